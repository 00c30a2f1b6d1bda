"""Granules of which only some leaves are read: what is sent and remembered is what a whole read gives, and nothing else is read."""

import array
import errno
import os

import pytest
from native.test_source_lane import GRANULE, GRANULES, LEAF, SIZE, Volume, data_frames, true_values
from source_peer import GEOMETRY as MANY
from source_peer import STATE_PAGE, STATE_SLOT, STATE_VALUE, STATE_ZERO, map_of

from qrep._native import wire
from qrep._native.connection import Connection
from qrep._native.source_lane import WORK_LEAVES, WORK_UNKNOWN, SourceRun

LEAVES = GRANULE // LEAF  # of a whole granule


@pytest.fixture
def volume(memory_dir, random_source, backend):
    return Volume(memory_dir, random_source, backend)


def spans(*leaves):
    """`wanted` of these leaves of the volume."""
    return array.array("Q", [number for leaf in sorted(set(leaves)) for number in (leaf, 1)])


def only(*granules):
    return array.array("Q", [granule | WORK_LEAVES for granule in granules])


def test_only_the_leaves_that_are_wanted_are_read_and_the_rest_comes_from_the_map(volume):
    volume.change(2, 3)
    volume.change(2, 4)
    volume.change(5, 0)
    volume.change(9, 5)  # the short last leaf
    wanted = [2 * LEAVES + 3, 2 * LEAVES + 4, 2 * LEAVES + 9, 5 * LEAVES, 9 * LEAVES + 5]  # one of them has not changed
    run, peer = volume.send(work=only(2, 5, 9), wanted=spans(*wanted))
    assert volume.image == volume.data
    assert bytes(run.fresh_values) == true_values(volume.data)
    counters = run.counters()
    assert counters["read"] == counters["hashed"] == 4 * LEAF + 512 and counters["changed"] == 3 * LEAF + 512
    assert sorted((frame.kind, frame.granule) for frame in data_frames(peer)) == [(wire.RUNS, 2), (wire.RUNS, 5), (wire.RUNS, 9)]
    # The pages that were written merge to the new values: the next run compares with them, leaf by leaf.
    volume.states, volume.values = bytearray(run.fresh_states), bytearray(run.fresh_values)
    volume.change(2, 3)
    run, peer = volume.send(work=only(2), wanted=spans(2 * LEAVES + 3))
    assert volume.image == volume.data and data_frames(peer)[0].data_size == LEAF and run.fresh_states[2] & STATE_PAGE
    assert bytes(run.fresh_values) == true_values(volume.data)


def test_leaves_that_became_zero_travel_as_zero_runs_and_touching_spans_are_one_run(volume):
    for leaf in (4, 5, 6):
        volume.change(3, leaf, bytes(LEAF))
    wanted = array.array("Q", [3 * LEAVES + 4, 1, 3 * LEAVES + 5, 2])
    run, peer = volume.send(work=only(3), wanted=wanted)
    (frame,) = data_frames(peer)
    assert (frame.run_count, frame.data_size) == (1, 0)
    assert volume.image == volume.data and bytes(run.fresh_values) == true_values(volume.data)


def test_a_granule_whose_wanted_leaves_are_as_before_is_not_sent_and_keeps_its_state(volume):
    run, peer = volume.send(work=only(1, 4), wanted=spans(LEAVES, 4 * LEAVES + 7))
    assert data_frames(peer) == [] and run.counters()["read"] == 2 * LEAF
    assert (run.fresh_states, run.fresh_values) == (volume.states, volume.values)


def test_in_a_granule_that_was_zero_the_rest_stays_zero(volume):
    volume.data[3 * GRANULE : 4 * GRANULE] = bytes(GRANULE)
    volume.image[:] = volume.data
    volume.remember()
    volume.states[3] = STATE_ZERO | STATE_VALUE
    volume.change(3, 6)
    run, peer = volume.send(work=only(3), wanted=spans(3 * LEAVES + 6, 3 * LEAVES + 7))
    assert volume.image == volume.data and bytes(run.fresh_values) == true_values(volume.data)
    assert run.counters()["read"] == 2 * LEAF and data_frames(peer)[0].data_size == LEAF


@pytest.mark.parametrize("spoil", ["unknown base", "page lost", "unknown item", "page without its bit"])
def test_what_the_base_does_not_know_by_the_leaf_is_read_whole(volume, spoil):
    volume.change(2, 3)
    volume.change(2, 8)  # not wanted: only a whole read finds it
    item = only(2)
    if spoil == "unknown base":
        volume.states[2] = 0
    elif spoil == "page lost":
        with open(volume.leaves_path, "r+b") as file:
            file.seek(2 * 2 * MANY.leaf_page_size)
            file.truncate(0)
    elif spoil == "unknown item":
        item[0] |= WORK_UNKNOWN
    else:
        volume.states[2] &= ~STATE_PAGE & 0xFF
    run, _ = volume.send(work=item, wanted=spans(2 * LEAVES + 3))
    assert volume.image == volume.data and bytes(run.fresh_values) == true_values(volume.data)
    assert run.counters()["read"] == GRANULE


def test_a_page_that_was_lost_is_there_again_after_a_scan_that_found_nothing(volume):
    volume.leaves_path.write_bytes(bytes(len(volume.leaves_path.read_bytes())))
    assert volume.scan(work=only(2), wanted=spans(2 * LEAVES)).counters()["read"] == GRANULE
    assert volume.scan(work=only(2), wanted=spans(2 * LEAVES)).counters()["read"] == LEAF


def test_a_stale_page_is_not_built_on(volume):
    """R8: the page of another moment is self-consistent, and does not merge to the granule's value."""
    stale = bytes(volume.data)
    volume.change(2, 8)
    volume.image[:] = volume.data
    fresh_pages = volume.leaves_path.read_bytes()
    volume.remember()
    assert volume.leaves_path.read_bytes() != fresh_pages
    volume.leaves_path.write_bytes(fresh_pages)  # of `stale`
    volume.change(2, 3)
    run, _ = volume.send(work=only(2), wanted=spans(2 * LEAVES + 3))
    assert stale != volume.data and run.counters()["read"] == GRANULE
    assert volume.image == volume.data and bytes(run.fresh_values) == true_values(volume.data)


def test_a_page_in_the_other_slot_is_found(volume):
    volume.states[2] |= STATE_SLOT  # the state names the slot in which it is not
    volume.change(2, 3)
    run, _ = volume.send(work=only(2), wanted=spans(2 * LEAVES + 3))
    assert run.counters()["read"] == LEAF and volume.image == volume.data


@pytest.mark.parametrize("seed", range(3))
def test_any_set_of_wanted_leaves_gives_what_whole_reads_give(volume, random_source, seed):
    for _ in range(4):
        changed = random_source.sample(range(SIZE // LEAF), random_source.randrange(1, 60))
        for leaf in changed:
            volume.change(leaf // LEAVES, leaf % LEAVES, random_source.choice([None, bytes(LEAF)]))
        wanted = sorted({*changed, *random_source.sample(range(SIZE // LEAF), 20)})
        joined, i = array.array("Q"), 0
        while i < len(wanted):  # consecutive leaves are one span, also over the end of a granule
            count = 1
            while i + count < len(wanted) and wanted[i + count] == wanted[i] + count:
                count += 1
            joined.extend((wanted[i], count))
            i += count
        run, _ = volume.send(work=only(*sorted({leaf // LEAVES for leaf in wanted})), wanted=joined, slots=random_source.choice([1, 3]))
        assert volume.image == volume.data and bytes(run.fresh_values) == true_values(volume.data)
        volume.states, volume.values = bytearray(run.fresh_states), bytearray(run.fresh_values)


def test_more_leaves_than_may_be_in_flight_are_all_read(memory_dir, make_run, source_device):
    """Every other leaf of granules of 64: more spans than reads in flight."""
    leaves = MANY.granule_size // LEAF
    leaves_fd = os.open(memory_dir / "leaves", os.O_RDWR | os.O_CREAT)
    data = os.pread(source_device, MANY.size, 0)
    states, values, pages = map_of(data, MANY)
    os.pwrite(leaves_fd, pages, 0)
    wanted = spans(*range(0, 10 * leaves, 2))
    run = make_run(states, values, leaves_fd=leaves_fd, work=only(*range(10)), wanted=wanted, slots=2)
    assert run.lane(source_device, Connection.none()) == 0
    assert run.counters()["read"] == 10 * leaves // 2 * LEAF and run.counters()["changed"] == 0
    os.close(leaves_fd)


def test_a_leaf_that_cannot_be_read_is_named_as_in_a_whole_read(volume):
    volume.change(9, 5)
    run = volume.make_run(work=only(9), wanted=spans(9 * LEAVES + 2))
    os.truncate(volume.path, 9 * GRANULE)
    assert run.lane(volume.device, Connection.none()) == errno.ENODATA
    assert run.failure()[0] == "shrunk" and run.failure()[3] == 9
    volume.close()


@pytest.mark.parametrize("numbers", [(5, 2, 6, 1), (9, 1, 3, 1), (2, 1 << 64 - 1, 1 << 63, 1)], ids=["overlap", "descending", "overflow"])
def test_a_list_of_spans_that_is_none_is_refused(volume, numbers):
    run = volume.make_run(work=only(0), wanted=array.array("Q", numbers))
    assert run.lane(volume.device, Connection.none()) == errno.EINVAL
    volume.close()


def test_wanted_must_be_pairs():
    with pytest.raises(ValueError, match="wanted"):
        SourceRun(
            wire.Geometry(SIZE, LEAF, GRANULE), attempt=1, session=1, key=bytes(32), sector_size=512, base_states=bytes(GRANULES),
            base_values=bytes(32 * GRANULES), wanted=array.array("Q", [1, 2, 3]),
        )  # fmt: skip
