"""Verify: each end reads its own device, and what differs is told exactly, leaf for leaf, whoever it is that is wrong."""

import json
import os
import random
import threading

import pytest
from flow.harness import GRANULE, LEAF, MIB, b3sum, write_at

from qrep._native import hasher
from qrep.errors import Refused
from qrep.maptree import NODES_MAX, STEP
from qrep.protocol import messages as say
from qrep.rehash import own_page, tree_of
from qrep.source.estimate import estimate
from qrep.source.found import AGAIN_MAX, Side, correct, position_of, put_into_map
from qrep.source.verify import Verification, verify

pytestmark = pytest.mark.root
PER_GRANULE = GRANULE // LEAF


def damage(site, *places, data=b"rot"):
    """Change the target behind our back, while nobody holds it."""
    site.close()
    for place in places:
        write_at(site.target_path, place, data)
    site.open()


def check(site, independent=False, **options):
    return verify(site.make_run_request(), site.local.dial, independent, **options)


def target_map(site):
    """Not before the target has done what follows a commit: the source has its answer before that."""
    with site.volume.lock:
        return site.volume.digest_map


def size_of(site):
    return site.volume.geometry.size


@pytest.mark.parametrize("independent", [False, True])
def test_when_all_is_well_32_bytes_are_compared(site, independent):
    with site:
        report = site.run()
        found = check(site, independent)
        assert found.ok and found.root == found.target_root == report.root == b3sum(site.target_path)
        assert found.counter == 1 and found.leaves == [] and found.equal_maps
        # one node of 32 bytes; the messages around it: a check, a question, an answer
        assert found.digests == found.nodes == 1 and found.wire_bytes < 400
        assert found.read_target == size_of(site)


@pytest.mark.parametrize("independent", [False, True])
def test_damaged_leaves_are_told_exactly_and_a_run_sends_exactly_them(site, independent):
    with site:
        site.run()
        # a leaf of data, the last leaf of a granule, and one in a granule that is zero
        damage(site, 2 * MIB + 3 * LEAF + 7, 5 * MIB - 1, 15 * MIB + LEAF)
        last = PER_GRANULE - 1
        # the three bytes written at the end of granule 4 reach into granule 5
        wanted = [2 * PER_GRANULE + 3, 4 * PER_GRANULE + last, 5 * PER_GRANULE, 15 * PER_GRANULE + 1]
        for _ in range(2):  # a second verify finds the same
            found = check(site, independent)
            assert found.leaves == wanted and found.result.device == set(wanted)
            assert not found.ok and found.target_root == b3sum(site.target_path) != found.root
            assert found.equal_maps and found.nodes == 1, "the maps agree: nothing is looked for in them"
            assert found.digests == 1 + len(wanted)
        assert put_into_map(site.make_run_request()) and not put_into_map(site.make_run_request())
        report = site.run()
        # granule 15 is all zero at the source, and said so as a whole: nothing of it travels
        assert report.changed == 3 * LEAF + GRANULE and report.sent < 4 * LEAF
        assert report.root == b3sum(site.target_path) == b3sum(site.source)
        assert check(site).ok
        site.map_is_true(size_of(site))


def test_swapped_leaves_and_flipped_bits_are_damage_where_they_are(site):
    with site:
        site.run()
        site.close()
        with open(site.target_path, "r+b") as file:
            one, other = (os.pread(file.fileno(), LEAF, place * LEAF) for place in (10, 700))
            assert one != other
            os.pwrite(file.fileno(), other, 10 * LEAF)
            os.pwrite(file.fileno(), one, 700 * LEAF)
            byte = os.pread(file.fileno(), 1, 900 * LEAF + 4000)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), 900 * LEAF + 4000)
            os.fsync(file.fileno())
        site.open()
        found = check(site)
        assert found.leaves == [10, 700, 900]
        assert [place["offset"] for place in found.as_dict()["target_damage"]] == [10 * LEAF, 700 * LEAF, 900 * LEAF]


def lie(digest_map, leaves):
    """Let a map say of leaves what the device does not hold: a page of an older time, consistent in itself."""
    correct(digest_map, {leaf: bytes([leaf % 251 + 1]) * 32 for leaf in leaves}, set())


@pytest.mark.parametrize("whose", ["target", "source"])
def test_maps_that_disagree_are_searched_from_the_root_with_few_nodes_for_each_leaf(site, whose):
    leaves = [0, 3 * PER_GRANULE + 77, 9 * PER_GRANULE - 1]
    with site:
        site.run()
        if whose == "source":
            source_map = site.source_map(size_of(site))
            lie(source_map, leaves)
            source_map.close()
        else:
            lie(target_map(site), leaves)
        found = check(site)
        assert not found.ok and not found.equal_maps and found.result.maps == set(leaves)
        tree = tree_of(target_map(site))
        levels = -(-(tree.top - tree.granule_level) // STEP) + -(-tree.granule_level // STEP)
        bound = 1 + len(leaves) * levels * (1 << STEP)
        assert found.nodes <= bound, f"{found.nodes} nodes; O(log n) is at most {bound}"
        assert found.wire_bytes <= 400 + 45 * bound + (100 + 2 * 5) * levels * len(leaves)
        if whose == "target":  # its device is as the source says: only its own map is wrong, and its own reading is told so
            assert found.leaves == [] and found.result.stale_map == set(leaves)
        else:
            assert found.leaves == leaves and not found.result.device
        put_into_map(site.make_run_request())
        report = site.run()
        assert report.root == b3sum(site.target_path)
        # a source that was told what the target holds finds that it holds the same itself
        assert check(site).ok and report.changed == (len(leaves) * LEAF if whose == "target" else 0)


def test_a_stale_leaf_of_an_older_generation_is_found_though_its_map_is_as_old(site):
    """Device and map of the target went back together, as with a storage that lost the last writes of both."""
    with site:
        site.run()
        tree = tree_of(target_map(site))
        leaf = 5 * PER_GRANULE + 9
        with open(site.target_path, "rb") as file:
            old = os.pread(file.fileno(), LEAF, leaf * LEAF)
        old_value = bytes(own_page(tree, 5)[9 * 32 : 10 * 32])
        write_at(site.source, leaf * LEAF, b"newer")
        site.run()
        damage(site, leaf * LEAF, data=old)
        correct(target_map(site), {leaf: old_value}, set())
        found = check(site)
        assert found.leaves == [leaf] and found.result.maps == {leaf} and not found.result.device
        assert found.as_dict()["differences"] == [{"offset": leaf * LEAF, "size": LEAF}]


def test_damage_in_many_leaves_of_a_granule_and_without_leaf_pages_is_told_leaf_for_leaf(site):
    with site:
        site.run()
        damage(site, 7 * MIB, data=os.urandom(GRANULE))
        pages = target_map(site).leaves_fd
        os.pwrite(pages, b"gone" * 16, site.volume.geometry.leaf_page_offset(3, 0))
        os.pwrite(pages, b"gone" * 16, site.volume.geometry.leaf_page_offset(3, 1))
        damage(site, 3 * MIB + 5 * LEAF)
        found = check(site)
        assert found.leaves == [3 * PER_GRANULE + 5, *range(7 * PER_GRANULE, 8 * PER_GRANULE)]
        assert found.as_dict()["exact"]


def test_a_target_that_lost_its_map_is_read_and_compared_all_the_same(site):
    with site:
        site.run()
        damage(site, 6 * MIB)
        target_map(site).forget()
        interrupted(site, rate=8 * MIB)
        site.close()
        site.open()
        assert target_map(site).tag == say.NO_ID
        found = check(site)  # what was read for lack of a map before the restart is read again
        assert found.resumed and found.leaves == [6 * PER_GRANULE] and found.result.granules == set()
        assert found.target_root == b3sum(site.target_path)


def test_more_damage_than_is_held_in_memory_is_told_granule_by_granule_and_sent_by_the_next_run(site, monkeypatch):
    monkeypatch.setattr("qrep.source.verify.PAGES_MAX", 3 * PER_GRANULE * 32)
    monkeypatch.setattr("qrep.rehash.LISTED_PER_GRANULE", 100)
    with site:
        site.run()
        damage(site, 2 * MIB, data=os.urandom(6 * MIB))
        found = check(site)
        told = found.as_dict()
        assert told["differences"] == [{"offset": 2 * MIB, "size": 6 * MIB}] and not told["exact"]
        assert len(found.leaves) == 3 * PER_GRANULE and found.result.granules == {5, 6, 7} and found.target_root is None
        put_into_map(site.make_run_request())
        assert site.run().root == b3sum(site.target_path) == b3sum(site.source)


def test_while_a_generation_is_open_there_is_nothing_to_compare(site):
    with site:
        site.run()
        machine = site.volume.machine
        with site.volume.lock:
            site.volume.execute(machine.connected(99))
            hello = say.Hello(1, 1, b"j" * 16, machine.record.volume_id, machine.record.max_epoch + 1, size_of(site), LEAF, GRANULE, 512, False, [])
            site.volume.execute(machine.message(99, hello))
            site.volume.execute(machine.message(99, say.Begin(machine.record.committed_id, b"n" * 16, 7, 1, LEAF)))
        with pytest.raises(Refused) as refusal:
            check(site)
        assert refusal.value.code == "generation-open"
        site.volume.abandon("told to", alone=False)


def test_without_a_common_generation_there_is_nothing_to_compare(site):
    with site, pytest.raises(Refused, match="nothing to compare"):
        check(site)


# ---- beside other things ----


class Slow(Verification):
    """Reads one granule at a time and can be looked at in between."""

    def _check_piece(self, piece, side, granules):
        super()._check_piece(piece, side, granules)
        self.came.set()


def begin(site, rate, **options):
    """A verify in a thread of its own that has read something. Returns (verification, thread, what it raises)."""
    raised, verification = [], Slow(site.make_run_request(), site.local.dial, rate=rate, **options)
    verification.came = threading.Event()

    def work():
        try:
            raised.append(verification.run())
        except Exception as err:
            raised.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    assert verification.came.wait(30)
    return verification, thread, raised


def test_the_volume_is_not_held_while_its_device_is_read_and_a_rollback_ends_the_reading(site):
    with site:
        site.run()
        write_at(site.source, MIB, b"second")
        site.run()
        _, thread, raised = begin(site, rate=2 * MIB)  # 16 MiB of granules of 1 MiB: seconds
        assert site.volume.lock.acquire(timeout=5), "nobody holds the volume's lock while it is read"
        site.volume.lock.release()
        points = site.volume.sync_points()
        site.volume.rollback(points[1].id)
        thread.join(30)
        assert not thread.is_alive() and raised[0].code in ("disconnected", "new-generation", "unreachable")


def interrupted(site, rate=4 * MIB):
    """A verify that has read something and was ended. Returns how many granules it knows of."""
    verification, thread, raised = begin(site, rate=rate)
    verification.stop()
    verification._link.hang_up()
    thread.join(30)
    assert isinstance(raised[0], Exception)
    return position_of(site.make_run_request().run_directory)["granule"]


def test_a_verify_that_was_interrupted_goes_on_where_it_was_with_what_it_had_found(site):
    with site:
        site.run()
        damage(site, 5 * LEAF)
        assert interrupted(site) >= 1
        site.close()
        site.open()  # also over a restart of the target
        found = check(site)
        assert found.resumed and found.leaves == [5] and found.read_target == size_of(site)
        assert position_of(site.make_run_request().run_directory) is None


def test_over_a_new_generation_only_what_it_changed_is_read_again_and_what_had_been_found(site):
    with site:
        site.run()
        damage(site, 3, GRANULE + 5 * LEAF)
        before = 0
        while before < 4:  # 24 granules
            before = interrupted(site, rate=8 * MIB)
        write_at(site.source, 2 * MIB, b"in granule 2, which was read")
        write_at(site.source, 20 * MIB, b"in granule 20, which is or will be")
        site.run()
        found = check(site)
        assert found.leaves == [0, PER_GRANULE + 5] and found.resumed
        # granules 0 and 1, in which something was found, which a run might have put right, 2, and 20 if it had been read
        assert found.read_target == size_of(site) + (3 + (before > 20)) * GRANULE
        put_into_map(site.make_run_request())
        site.run()
        interrupted(site)
        os.remove(site.make_run_request().run_directory + "/verify.seen")
        write_at(site.source, 2 * MIB, b"again")
        site.run()
        found = check(site)
        assert found.ok and not found.resumed, "where it is not known what the other generation was, all is read"


def test_so_many_granules_are_read_again_one_by_one_and_the_rest_from_the_first_of_them_on(site):
    side = Side(next=9000, read=1, bad={3: b"x" * 32}, whole={8000}, unreadable=[[GRANULE, LEAF]])
    with site:
        tree = tree_of(target_map(site))
    side.changed(range(10, 8990), tree)
    assert side.again == [0, 1, *range(10, 10 + AGAIN_MAX - 2)] and side.next == 10 + AGAIN_MAX - 2
    assert not side.bad and not side.whole and not side.unreadable
    side.changed([11, 8999], tree)
    assert side.again[:4] == [0, 1, 10, 11] and len(side.again) == AGAIN_MAX
    assert Side.from_json(json.loads(json.dumps(side.as_json()))) == side


def test_closing_the_volume_ends_the_reading_before_its_device_is_given_back(site):
    with site:
        site.run()
        _, thread, _ = begin(site, rate=1 * MIB)
        site.volume.close()
        assert not any(reader.is_going() for reader in site.volume._readers)
        site.local.join()
        thread.join(30)
        site.volume = None


# ---- repair ----


def test_repair_heals_in_place_and_leaves_no_new_generation_and_older_points_right(site):
    with site:
        site.run()
        first = b3sum(site.target_path)
        write_at(site.source, 2 * MIB, b"second")
        site.run()
        rng = random.Random(7)
        places = [2 * MIB, *(rng.randrange(16 * PER_GRANULE) * LEAF for _ in range(6)), size_of(site) - LEAF]
        damage(site, *places)
        before = site.volume.machine.record
        dry = check(site, repair=True, dry_run=True)
        assert dry.repair["healed_leaves"] == len(set(places)) and not dry.ok and len(dry.leaves) == len(set(places))
        found = check(site, repair=True)
        assert found.ok and found.repair["healed_leaves"] == len(set(places)) and found.repair["left"] == []
        assert b3sum(site.target_path) == b3sum(site.source) == found.root == found.target_root
        after = site.volume.machine.record
        assert (after.committed_id, after.committed_counter) == (before.committed_id, before.committed_counter)
        assert not put_into_map(site.make_run_request()), "there is nothing left for a run"
        site.volume.rollback(site.volume.sync_points()[1].id)
        assert b3sum(site.target_path) == first


def test_what_the_source_does_not_hold_any_more_is_left_to_the_next_run(site):
    with site:
        site.run()
        damage(site, 3 * MIB, 4 * MIB)
        write_at(site.source, 3 * MIB, b"changed since")
        found = check(site, repair=True)
        assert found.repair["healed_leaves"] == 1 and found.leaves == [3 * PER_GRANULE] and not found.ok
        assert "does not hold" in found.repair["reasons"][0]["why"]
        put_into_map(site.make_run_request())
        assert site.run().changed == LEAF and b3sum(site.target_path) == b3sum(site.source)


@pytest.mark.parametrize("what", ["another leaf", "another place", "nothing of it"])
def test_a_target_writes_nothing_but_what_its_own_map_says(site, what):
    with site:
        site.run()
        damage(site, 3 * MIB)
        held = b3sum(site.target_path)
        leaf = 3 * PER_GRANULE
        data = open(site.source, "rb").read()[leaf * LEAF : (leaf + 1) * LEAF]
        if what == "another leaf":
            data = data[:-1] + bytes([data[-1] ^ 1])
        elif what == "another place":
            leaf += 1
        else:
            target_map(site).forget()
        verification = Verification(site.make_run_request(), site.local.dial)
        verification._link.open()
        state = verification._greet()
        answer = verification.ask(say.Repair(generation=state.committed, leaf=leaf, data=data), say.Repaired)
        verification._link.hang_up()
        assert not answer.healed and answer.why == ("unknown" if what == "nothing of it" else "map")
        assert b3sum(site.target_path) == held


def test_the_bound_of_a_question_is_what_one_message_holds():
    assert AGAIN_MAX == say.AGAIN_MAX and NODES_MAX == say.NODES_MAX and NODES_MAX >> STEP == say.NODE_GRANULES_MAX
    assert hasher.merge(bytes(32)) == bytes(32), "a node of one leaf is that leaf"


def test_an_estimate_says_what_a_run_would_send(site):
    with site:
        full = estimate(site.make_run_request())
        assert full.full and full.would_send == 11 * MIB
        site.run()
        assert estimate(site.make_run_request()).would_send == 0
        write_at(site.source, 3 * MIB, b"x")
        write_at(site.source, 9 * MIB, b"x")
        found = estimate(site.make_run_request())
        assert not found.full and found.would_send == 2 * LEAF
        report = site.run()  # the estimate changed nothing
        assert report.changed == 2 * LEAF and report.root == b3sum(site.target_path)
