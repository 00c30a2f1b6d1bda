"""A whole run whose snapshot is about to be lost: it ends cleanly, gives the snapshot back, keeps what was applied, and the next run goes on."""

import pytest
from flow.harness import MIB, Site, b3sum
from machine import image

from qrep._native.bucket import Bucket
from qrep.volumes.base import SnapshotError
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
SIZE = 24 * MIB


class Filling(Reflink):
    """Clones whose space is said to be full once a quarter was sent."""

    watched, run = True, None

    def check(self, token):
        if self.run.progress()["sent"] >= SIZE // 4:
            raise SnapshotError("its space is nearly full; the source is unharmed", code="snapshot-full")


def test_a_run_whose_snapshot_runs_full_ends_and_the_next_one_sends_what_is_missing(xfs, loop_device, memory_dir, random_source, monkeypatch):
    monkeypatch.setattr("qrep.source.snapshotwatch.EVERY_S", 0.05)
    source = image(xfs, "db.img", SIZE)
    source.write_bytes(random_source.randbytes(SIZE))
    with Site(memory_dir, source, loop_device(SIZE)) as site:
        site.local._bucket = Bucket(6 * MIB)  # 3 s are left then
        backend = Filling()
        backend.run = site.make_run(backend=backend, connections=1)
        with pytest.raises(SnapshotError) as caught:
            backend.run.run()
        assert caught.value.code == "snapshot-full"
        assert list((xfs / ".qrep-snapshots").iterdir()) == [], "it was given back"
        assert site.volume.has_open_generation(), "what was applied is kept"
        site.local._bucket = None
        with open(source, "r+b") as file:  # the image that follows is another one, and its first blocks were applied already
            file.write(random_source.randbytes(MIB))
        report = site.run(backend=Reflink())
        assert report.resumed and report.root == b3sum(source) == b3sum(site.target_path)
        assert report.sent < SIZE
        site.map_is_true(SIZE)
