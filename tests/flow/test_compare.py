"""Runs without a map in common: digests first, then only the leaves that differ, whatever became of the map, the target or the connection."""

import threading

import pytest
from flow.harness import GRANULE, LEAF, MIB, Site, b3sum, packaged, write_at

from qrep._native.bucket import Bucket
from qrep.errors import Interrupted
from qrep.protocol import messages as say
from qrep.protocol.source_machine import SourceMachine
from qrep.source.flow import Run
from qrep.target import scan
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
PAGE = GRANULE // LEAF * 32


class Tap:
    """A control channel that counts what arrives, and may cut itself off after so many Leaves."""

    def __init__(self, channel, heard, cut_after=None):
        self._channel, self._messages, self._cut_after = channel, heard, cut_after

    @property
    def heard(self):
        return self._channel.heard

    def receive(self, timeout=None):
        message = self._channel.receive(timeout)
        self._messages.append(message)
        if self._cut_after is not None and isinstance(message, say.Leaves):
            self._cut_after -= 1
            if self._cut_after < 0:
                self._channel.close()
        return message

    def send(self, message):
        self._channel.send(message)

    def close(self):
        self._channel.close()


def tapped_run(site, heard, cut_after=None, **options):
    cuts = [cut_after]
    dial = lambda: Tap(site.local.dial(), heard, cuts.pop() if cuts else None)  # noqa: E731
    return Run(site.make_run_request(**options), dial, site.local.connect)


def control_bytes(heard):
    return sum(len(say.encode(message)) for message in heard)


def pages(heard):
    return [message.granule for message in heard if isinstance(message, say.Leaves)]


def same(site, report):
    assert report.root == b3sum(site.target_path) == b3sum(site.source) == packaged(site.target_path)


def lose_map(site):
    for path in (site.directory / "sources").rglob("root"):
        path.unlink()


@pytest.fixture
def replicated(site):
    with site:
        site.run()
        lose_map(site)
        yield site


def test_one_leaf_changed_behind_a_lost_map_costs_one_leaf_and_one_page(replicated):
    heard = []
    write_at(replicated.source, 3 * MIB + 5 * LEAF, b"y" * LEAF)
    report = tapped_run(replicated, heard).run()
    same(replicated, report)
    assert pages(heard) == [3]
    # one leaf with its headers; a page of 8 KiB, 33 bytes of digest for each of 24 granules, a few small messages
    assert report.changed == LEAF and report.sent < LEAF + 1024
    assert report.sent + control_bytes(heard) < LEAF + PAGE + 24 * 33 + 4096 < 64 << 10


def test_after_it_the_map_knows_the_leaves_of_every_granule(replicated):
    replicated.run()
    for granule in (0, 4, 9, 20):
        write_at(replicated.source, granule * GRANULE, b"z" * LEAF)
    report = replicated.run()
    same(replicated, report)
    assert report.changed == 4 * LEAF
    replicated.map_is_true(24 * MIB)


def test_an_unchanged_source_behind_a_lost_map_sends_nothing_and_asks_for_no_leaves(replicated):
    heard = []
    report = tapped_run(replicated, heard).run()
    same(replicated, report)
    assert report.changed == 0 and report.sent < 1024 and not pages(heard)


def test_after_a_rollback_the_next_run_sends_only_what_differs(site, random_source):
    with site:
        site.run()
        write_at(site.source, 2 * MIB, random_source.randbytes(3 * LEAF))
        write_at(site.source, 9 * MIB - LEAF, random_source.randbytes(2 * LEAF))  # over the border of two granules
        site.run()
        site.volume.rollback(site.volume.sync_points()[1].id)
        heard = []
        report = tapped_run(site, heard).run()
        same(site, report)
        assert report.changed == 5 * LEAF and report.sent < 5 * LEAF + 4096
        assert pages(heard) == [2, 8, 9]


def test_a_target_that_holds_the_image_already_is_compared_with_before_its_first_generation(site, random_source):
    content = random_source.randbytes(24 * MIB)
    write_at(site.source, 0, content)
    write_at(site.target_path, 0, content[: 12 * MIB] + b"other" + content[12 * MIB + 5 :])
    with site:
        report = site.run(initial="compare")
        same(site, report)
        assert report.changed == LEAF and report.counter == 1


def test_an_empty_target_is_not_searched(site):
    with site:
        report = site.run(initial="compare")
        same(site, report)
        assert report.read == 24 * MIB  # once


def test_a_target_that_lies_about_its_leaves_costs_bandwidth_only(replicated, monkeypatch):
    honest = scan.leaf_pages

    def lying(*arguments):
        for granule, page in honest(*arguments):
            page[5 * 32] ^= 1
            yield granule, page

    monkeypatch.setattr(scan, "leaf_pages", lying)
    write_at(replicated.source, 3 * MIB + 5 * LEAF, b"y" * LEAF)
    report = replicated.run()
    same(replicated, report)
    assert report.changed == GRANULE
    replicated.map_is_true(24 * MIB)


def test_a_connection_lost_among_the_leaves_is_taken_up_again(replicated):
    for granule in range(6):
        write_at(replicated.source, granule * GRANULE, b"cut")
    heard = []
    report = tapped_run(replicated, heard, cut_after=3).run()
    same(replicated, report)
    assert report.interruptions == 1 and report.changed == 6 * LEAF


def test_a_run_stopped_while_it_sends_differing_leaves_begins_anew_and_still_sends_only_those(replicated, random_source):
    write_at(replicated.source, 0, random_source.randbytes(8 * MIB))
    replicated.local._bucket = Bucket(8 * MIB)
    run = replicated.make_run(connections=1)
    threading.Timer(0.6, run.stop).start()
    with pytest.raises(Interrupted):
        run.run()
    replicated.local._bucket = None
    report = replicated.run()
    same(replicated, report)
    assert report.changed == 8 * MIB  # the other 3 MiB of data are the same at the target


def test_data_connections_cut_in_the_middle_are_resumed_on_the_same_base(replicated, random_source):
    write_at(replicated.source, 0, random_source.randbytes(8 * MIB))
    replicated.local._bucket = Bucket(8 * MIB)
    run = replicated.make_run(connections=1)
    threading.Timer(0.6, lambda: run._lanes.interrupt()).start()
    report = run.run()
    same(replicated, report)
    assert report.interruptions == 1 and report.sent < 12 * MIB


def test_progress_says_scanning_and_how_far(replicated, monkeypatch):
    shown = []
    write_at(replicated.source, 3 * MIB, b"y")
    run = replicated.make_run()
    execute = run._execute
    monkeypatch.setattr(run, "_execute", lambda actions: (execute(actions), shown.append(run.progress()))[0])
    run.run()
    percents = [progress["percent"] for progress in shown if progress["phase"] == "scanning"]
    assert percents == sorted(percents) and percents[0] >= 50.0 and percents[-1] == 100.0


@pytest.fixture
def frozen_site(xfs, memory_dir, random_source, undo_after):
    """Image files; the source can be frozen."""
    source, target = xfs / "db.img", memory_dir / "copy.img"
    source.write_bytes(random_source.randbytes(8 * MIB))
    target.write_bytes(bytes(8 * MIB))
    made = Site(memory_dir, source, target)
    undo_after.callback(made.close)
    with made:
        made.run(backend=Reflink())
        lose_map(made)
        yield made


def test_of_a_frozen_source_what_is_the_same_is_read_once(frozen_site):
    write_at(frozen_site.source, 5 * MIB, b"x")
    report = frozen_site.run(backend=Reflink())
    same(frozen_site, report)
    assert report.changed == LEAF
    assert report.read == 9 * MIB  # 8 MiB looked through, the granule that differs once more
    write_at(frozen_site.source, 2 * MIB, b"x")
    assert frozen_site.run(backend=Reflink()).changed == LEAF


def test_a_live_source_that_changes_after_the_pass_is_read_again(replicated):
    run = replicated.make_run()
    original = SourceMachine.differences_found

    def change(machine, granules):
        write_at(replicated.source, 7 * MIB, b"later")
        return original(machine, granules)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceMachine, "differences_found", change)
        report = run.run()
    same(replicated, report)
    assert report.fuzzy and report.changed == LEAF  # its page was kept by the pass


def test_a_rollback_of_everything_leaves_a_map_that_is_believed_after_a_restart(site, random_source):
    with site:
        site.run()
        for _ in range(2):
            write_at(site.source, 0, random_source.randbytes(24 * MIB))
            site.run()
        site.volume.rollback(site.volume.sync_points()[1].id)
        rolled_back = site.volume.machine.record.committed_id
    with site:
        assert site.volume.digest_map.reason == "" and site.volume.digest_map.tag == rolled_back
