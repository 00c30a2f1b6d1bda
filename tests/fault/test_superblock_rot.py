"""Rot of the one sector that says an attempt is open: its undo file still tells, and the target is brought back."""

import threading

import pytest
from flow.harness import MIB, Site, b3sum, write_at

from qrep._native import disk
from qrep._native.bucket import Bucket
from qrep.errors import Interrupted

pytestmark = pytest.mark.root
DISTANCE = disk.SUPERBLOCK_SLOT_DISTANCE


def newest_slot(path):
    data = path.read_bytes()
    sequences = [disk.Superblock.unpack(data[slot * DISTANCE : slot * DISTANCE + 512]).sequence for slot in range(2)]
    return sequences.index(max(sequences))


def test_rot_of_the_slot_that_says_open_does_not_keep_before_images_from_being_put_back(loop_device, memory_dir, random_source):
    site = Site(memory_dir, loop_device(24 * MIB), loop_device(24 * MIB))
    write_at(site.source, 0, random_source.randbytes(24 * MIB))
    with site:
        root = site.run().root
        write_at(site.source, 0, random_source.randbytes(24 * MIB))
        site.local._bucket = Bucket(20 * MIB)
        run = site.make_run(connections=1)
        threading.Timer(0.5, run.stop).start()
        with pytest.raises(Interrupted):
            run.run()
    assert b3sum(site.target_path) != root, "some leaves of the open attempt are on the device"
    path = memory_dir / "target" / "superblock"
    with path.open("r+b") as file:
        file.seek(newest_slot(path) * DISTANCE + 100)
        file.write(b"rot")
    with site:
        assert b3sum(site.target_path) == root
        report = site.run()
        assert report.root == b3sum(site.target_path) == b3sum(site.source)
