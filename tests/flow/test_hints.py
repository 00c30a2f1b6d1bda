"""Runs that read only what has changed since the last one, as the filesystem of the image tells; and what happens when that is not true."""

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from flow.harness import GRANULE, JOB, LEAF, MIB, Site, b3sum, write_at

from qrep._native.bucket import Bucket
from qrep import digesttree
from qrep.copy import LocalTarget
from qrep.errors import Interrupted
from qrep.extents import Extent
from qrep.digesttree import fill_zero_values
from qrep.source import flow
from qrep.source.estimate import estimate
from qrep.source.flow import Run
from qrep.source.found import put_into_map
from qrep.source.hints import kept
from qrep.source.verify import verify
from qrep.volumes.base import SnapshotError
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
SIZE = 24 * MIB


class Lying(Reflink):
    """Leaves out what it is told to. said: what the honest one answered."""

    def __init__(self):
        super().__init__()
        self.hide, self.said = [], None

    def changes(self, device, old_token, new_token):
        self.said = super().changes(device, old_token, new_token)
        return [extent for extent in self.said if not any(extent.offset <= place < extent.end for place in self.hide)]


class Observer:
    def __init__(self):
        self.codes = []

    def event(self, code, text, **data):
        self.codes.append(code)


class Hinted(Site):
    """A site whose source is an image, the last generation of which is kept. backend: of every run."""

    backend = Reflink()
    observer = None

    def make_run_request(self, **options):
        options = {"hints": True, "backend": self.backend, "hint_sample": 0.01, **options}
        return super().make_run_request(**options)

    def make_run(self, **options):
        run = super().make_run(**options)
        run._observer = self.observer = Observer()
        return run

    def run(self, **options):
        """As Site.run, and both sides hold the same; the maps are true; one snapshot is left."""
        report = super().run(**options)
        assert report.root == b3sum(self.target_path) == b3sum(self.source)
        self.map_is_true(SIZE)
        if options.get("hints", True):
            assert len(self.snapshots()) == 1 and kept(self.run_directory)[0].hex() == report.generation
        return report

    @property
    def run_directory(self):
        return self.directory / "sources" / JOB.hex()

    def snapshots(self):
        return list((self.image.parent / ".qrep-snapshots").iterdir())

    @property
    def image(self):
        return Path(getattr(self, "image_path", self.source))

    def put(self, offset, data):
        write_at(self.source, offset, data)


@pytest.fixture
def site(xfs, loop_device, memory_dir, random_source, undo_after):
    """An image of 24 MiB with 10 MiB of data and 1 MiB more behind a hole, replicated once."""
    image = xfs / "db.img"
    image.write_bytes(random_source.randbytes(10 * MIB))
    os.truncate(image, SIZE)
    made = Hinted(memory_dir, image, loop_device(SIZE))
    undo_after.callback(made.close)
    made.put(20 * MIB, random_source.randbytes(MIB))
    made.open()
    report = made.run()
    assert report.hints["state"] == "none" and report.hints["reason"] == "no snapshot of the last generation is kept"
    return made


def test_a_run_reads_what_has_changed_and_a_sample_of_the_rest(site, random_source):
    for leaf in (3, 4, 700, 2559):
        site.put(leaf * LEAF, random_source.randbytes(LEAF))
    site.put(15 * MIB, random_source.randbytes(8192))  # where there was a hole
    report = site.run()
    assert report.changed == 4 * LEAF + 8192 and report.hints["state"] == "used"
    assert report.read == report.hints["named"] + report.hints["sampled"]
    assert 0 < report.hints["sampled"] <= 0.01 * 12 * MIB
    assert report.as_dict()["read_per_changed"] == round(report.read / report.changed, 3)


@pytest.mark.slow
def test_nothing_changed_and_little_is_read(site):
    report = site.run()
    assert report.changed == 0 and report.hints["named"] == 0 and report.read == report.hints["sampled"] > 0
    assert report.read_per_changed is None


def test_a_root_that_is_told_only_after_the_commit_is_kept_and_the_hint_of_the_next_run_holds(site, monkeypatch):
    """Where many zeroes have to be hashed for it; here one granule is too many."""
    monkeypatch.setattr(flow, "ROOT_BEFORE_COMMIT", GRANULE - 1)
    site.put(2 * GRANULE, bytes(GRANULE))
    assert site.run().changed == GRANULE
    computed = []
    monkeypatch.setattr(digesttree, "fill_zero_values", lambda *arguments: computed.append(arguments) or fill_zero_values(*arguments))
    site.put(0, bytes(LEAF))
    report = site.run()
    assert report.hints["state"] == "used" and report.changed == LEAF
    assert not any(digesttree.lacks_values(states) for _geometry, states, *_ in computed), "nothing was computed again"


def test_an_estimate_reads_only_what_has_changed_too(site, random_source):
    site.put(5 * MIB, random_source.randbytes(3 * LEAF))
    runs = []
    found = estimate(site.make_run_request(), on_run=runs.append)
    assert found.would_send == 3 * LEAF and runs[0].counters()["read"] == 3 * LEAF
    assert len(site.snapshots()) == 1


def test_blocks_that_were_discarded_are_sent_as_zeroes_without_reading_the_rest(site):
    subprocess.run(["fallocate", "--punch-hole", "-o", str(2 * MIB), "-l", str(MIB + 3 * LEAF), site.source], check=True)
    report = site.run()
    assert report.hints["state"] == "used" and report.changed == MIB + 3 * LEAF and report.read <= 3 * LEAF + report.hints["sampled"]
    assert report.sent < 64 << 10


@pytest.mark.slow
def test_a_loop_device_over_an_image_is_hinted_as_well(site, loop_device, random_source):
    site.image_path = site.source
    site.source = str(loop_device(backing=site.source))
    site.put(4 * MIB, random_source.randbytes(LEAF))
    report = site.run()
    assert report.hints["state"] == "used" and report.changed == LEAF and report.read <= 8 * LEAF + report.hints["sampled"]


# ---- a hint that is wrong ----


@pytest.fixture
def liar(site, random_source):
    """Two leaves were changed, and the backend names one of them."""
    site.backend = Lying()
    site.put(LEAF * 100, random_source.randbytes(LEAF))
    site.put(LEAF * 900, random_source.randbytes(LEAF))
    site.backend.hide = [LEAF * 900]
    return site


def test_a_change_that_a_hint_leaves_out_is_found_by_the_sample_and_the_same_run_reads_everything(liar):
    report = liar.run(hint_sample=1.0)
    assert report.hints["state"] == "wrong" and f"at byte {900 * LEAF}" in report.hints["reason"]
    assert liar.observer.codes.count("hint-wrong") == 1
    assert report.changed == 2 * LEAF and report.read >= 11 * MIB


def test_after_a_wrong_hint_everything_is_read_until_a_hint_was_right(liar, random_source):
    liar.run(hint_sample=1.0)
    liar.put(LEAF * 901, random_source.randbytes(LEAF))
    liar.backend.hide = [LEAF * 901]
    report = liar.run()  # not believed, read, and found wrong again, though the sample would not have met it
    assert report.hints["state"] == "wrong" and "hint-wrong" in liar.observer.codes
    liar.put(LEAF * 902, random_source.randbytes(LEAF))
    liar.backend.hide = []
    report = liar.run()
    assert report.hints["state"] == "checked" and report.read >= 11 * MIB and liar.observer.codes == []
    liar.put(LEAF * 903, random_source.randbytes(LEAF))
    report = liar.run()
    assert report.hints["state"] == "used" and report.read < MIB


def test_a_lie_about_data_in_what_was_a_hole_is_found(site, random_source):
    site.backend = Lying()
    site.put(18 * MIB + 5 * LEAF, random_source.randbytes(LEAF))
    site.backend.hide = [18 * MIB + 5 * LEAF]
    report = site.run(hint_sample=1.0)
    assert report.hints["state"] == "wrong" and report.changed == LEAF


@pytest.mark.slow
def test_a_lie_inside_a_granule_that_is_named_in_part_is_found(site, random_source):
    site.backend = Lying()
    site.put(3 * GRANULE, random_source.randbytes(LEAF))
    site.put(3 * GRANULE + 7 * LEAF, random_source.randbytes(LEAF))
    site.backend.hide = [3 * GRANULE + 7 * LEAF]
    assert site.run(hint_sample=1.0).hints["state"] == "wrong"


@pytest.mark.slow
def test_every_leaf_has_its_turn_so_that_a_lie_is_found_in_the_end(site, random_source):
    site.backend = Lying()
    place = random_source.randrange(10 * MIB // LEAF) * LEAF
    site.put(place, random_source.randbytes(LEAF))
    site.backend.hide = [place]
    for _ in range(12):  # 10 % in each run: every leaf within ten, or eleven where pieces do not divide
        try:
            if site.run(hint_sample=0.1).hints["state"] == "wrong":
                return
        except AssertionError:  # the two sides differ: the lie was believed, and the kept snapshot now holds it too
            pass
    raise AssertionError(f"the lie at {place} was never found")


@pytest.mark.parametrize(
    "answer", [[Extent(MIB, LEAF), Extent(0, LEAF)], pytest.param([Extent(LEAF, 0)], marks=pytest.mark.slow), pytest.param([Extent(-LEAF, LEAF)], marks=pytest.mark.slow)]
)
def test_an_answer_that_is_none_is_not_used(site, random_source, answer):
    site.backend = Lying()
    site.backend.changes = lambda *arguments: answer
    site.put(MIB, random_source.randbytes(LEAF))
    report = site.run()
    assert report.hints["state"] == "none" and report.changed == LEAF and report.read >= 11 * MIB


# ---- a hint over something else than it is about ----


def test_after_a_rollback_of_the_target_nothing_is_taken_from_the_map(site, random_source):
    site.put(MIB, random_source.randbytes(LEAF))
    site.run()
    oldest = site.volume.sync_points()[-1]
    site.volume.rollback(oldest.id)
    report = site.run()
    assert report.hints["state"] == "none" and report.read >= 11 * MIB
    assert site.run().hints["state"] == "used"


def test_a_lost_map_leaves_the_hint_unused(site):
    (site.run_directory / "map" / "root").unlink()
    assert site.run().hints["state"] == "none"
    assert site.run().hints["state"] == "used"


def test_lost_leaf_pages_cost_whole_granules_and_no_truth(site, random_source):
    os.truncate(site.run_directory / "map" / "leaves", 0)
    site.put(MIB, random_source.randbytes(LEAF))
    report = site.run(hint_sample=0.0001)  # one leaf
    assert report.hints["state"] == "used" and report.hints["sampled"] == LEAF and GRANULE <= report.read <= 2 * GRANULE
    site.put(MIB, random_source.randbytes(LEAF))
    assert site.run(hint_sample=0.0001).read == 2 * LEAF  # the pages of what was read are there again


@pytest.mark.slow
def test_a_kept_snapshot_that_somebody_removed_costs_a_scan(site, random_source):
    for path in site.snapshots():
        path.unlink()
    site.put(MIB, random_source.randbytes(LEAF))
    report = site.run()
    assert report.hints["state"] == "none" and "could not tell" in report.hints["reason"] and report.changed == LEAF


@pytest.mark.slow
def test_another_image_of_that_name_is_read_whole(site, random_source):
    content = Path(site.source).read_bytes()
    os.unlink(site.source)
    Path(site.source).write_bytes(content)
    site.put(9 * MIB, random_source.randbytes(LEAF))
    report = site.run()
    assert report.changed == LEAF and report.read >= 11 * MIB


def test_hints_that_are_switched_off_leave_no_snapshot(site, random_source):
    site.put(MIB, random_source.randbytes(LEAF))
    report = site.run(hints=False)
    assert report.hints["state"] == "off" and report.read >= 11 * MIB
    assert site.snapshots() == [] and kept(site.run_directory) is None


def test_a_leaf_that_a_verify_found_damaged_is_sent_though_the_source_has_not_changed(site):
    """The map then says what the target holds, which is not what the kept snapshot shows: what has not changed since may differ all the same."""
    site.close()
    write_at(site.target_path, 700 * LEAF + 5, b"rot")
    site.open()
    request = site.make_run_request()
    assert verify(request, site.local.dial).leaves == [700]
    assert put_into_map(request)
    report = site.run()
    assert report.changed == LEAF and report.hints["state"] == "none" and "corrected" in report.hints["reason"]
    assert site.run().hints["state"] == "used"


def test_a_kept_snapshot_that_cannot_be_given_back_does_not_keep_a_job_from_running(site):
    class Stubborn(Reflink):
        def release(self, token):
            if token == site.stuck:
                raise SnapshotError("it is stuck")
            super().release(token)

    site.stuck = kept(site.run_directory)[1]
    report = site.run(hints=False, backend=Stubborn())
    assert report.hints["state"] == "off" and "snapshot-left" in site.observer.codes
    assert kept(site.run_directory)[1] == site.stuck, "it is not forgotten"
    site.run(hints=False)
    assert site.snapshots() == [] and kept(site.run_directory) is None


# ---- a run that was interrupted ----


def interrupted_run(site, after, **options):
    """A run that is stopped once its lane has sent `after` bytes."""
    bucket = Bucket(1 << 20)
    local = LocalTarget(site.volume, bucket=bucket)
    run = Run(site.make_run_request(connections=1, slots=1, frame_limit=64 << 10, **options), local.dial, local.connect)

    def stop():
        while run._progress.totals().get("sent", 0) < after:
            time.sleep(0.005)
        run.stop()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    with pytest.raises(Interrupted):
        run.run()
    thread.join()
    local.join()


@pytest.fixture
def interrupted(site, random_source):
    """Leaves of five granules have changed, and a run of them was stopped after the first few."""
    for granule in range(5):
        site.put(granule * GRANULE, random_source.randbytes(GRANULE // 2))
    interrupted_run(site, GRANULE + GRANULE // 4)
    return site


def test_a_resumed_run_of_the_same_image_reads_what_is_missing(interrupted):
    report = interrupted.run()
    assert report.resumed and report.hints["state"] == "used"
    assert report.read < 4 * GRANULE


def test_a_resumed_run_of_another_image_takes_back_what_was_applied_of_the_first(interrupted):
    """What was applied of the first image and has been changed back is not named by a hint that compares the second with the committed one."""
    record = kept(interrupted.run_directory)[1].partition(":")[2]
    for path in interrupted.snapshots():
        if str(path) != record:
            path.unlink()  # the snapshot of the interrupted run
    committed = Path(record).read_bytes()
    # As before the interrupted run, and back to the very blocks: the filesystem says that nothing differs from the committed image.
    subprocess.run(["xfs_io", "-c", f"reflink {record} 0 0 {SIZE}", interrupted.source], check=True, capture_output=True)
    assert Path(interrupted.source).read_bytes() == committed
    report = interrupted.run()
    assert report.resumed and report.hints["state"] == "used" and report.hints["named"] == 0
    assert report.changed >= GRANULE // 2


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_any_sequence_of_changes_and_runs_is_replicated(site, random_source, seed):
    for _ in range(4):
        for _ in range(random_source.randrange(1, 30)):
            offset = random_source.randrange(SIZE // LEAF - 600) * LEAF
            size = random_source.choice([1, 1, 1, 3, 40, 600]) * LEAF
            what = random_source.choice(["write", "write", "zeroes", "punch", "zero-range"])
            if what == "write":
                site.put(offset + random_source.randrange(LEAF), random_source.randbytes(size))
            elif what == "zeroes":
                site.put(offset, bytes(size))
            else:
                option = {"punch": "--punch-hole", "zero-range": "--zero-range"}[what]
                subprocess.run(["fallocate", option, "-o", str(offset), "-l", str(size), site.source], check=True)
        report = site.run()
        assert report.hints["state"] == "used" and report.read <= report.hints["named"] + report.hints["sampled"]
