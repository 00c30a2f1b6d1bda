"""Several volumes with mounted filesystems frozen at one moment: what a program writes to one after the other is never in the second alone."""

import os
import re
import threading
import time

import pytest
from machine import need_tool, run

from qrep import device
from qrep.volumes.base import FreezeOptions, SnapshotError
from qrep.volumes.reflink import Reflink
from qrep.volumes.together import Wanted, freeze_all

pytestmark = pytest.mark.root
MIB = 1 << 20
SIZE = 16 * MIB


@pytest.fixture
def pair(xfs, undo_after):
    """[(loop device, mount point)] of two images that can be cloned, each with a filesystem in use."""
    need_tool("mkfs.ext4")
    found = []
    for name in ("data", "log"):
        image, point = xfs / f"{name}.img", xfs / name
        image.write_bytes(bytes(SIZE))
        point.mkdir()
        run("mkfs.ext4", "-q", "-O", "^has_journal", str(image))
        loop = run("losetup", "--find", "--show", str(image)).strip()
        undo_after.callback(run, "losetup", "--detach", loop)
        run("mount", loop, str(point))
        undo_after.callback(run, "umount", str(point))
        (point / "number").write_bytes(bytes(4096))
        found.append((loop, point))
    return found


class Program(threading.Thread):
    """Writes a number to the first, makes it durable, then to the second, and so on."""

    def __init__(self, points):
        super().__init__()
        self.files = [os.open(point / "number", os.O_WRONLY) for point in points]
        self.number, self.over = 0, False
        self.start()

    def run(self):
        while not self.over:
            self.number += 1
            for file in self.files:
                os.pwrite(file, b"NUMBER%012d;" % self.number, 0)
                os.fsync(file)

    def end(self):
        self.over = True
        self.join()
        for file in self.files:
            os.close(file)


def wanted(pair, **options):
    return [Wanted(device.inspect(loop), Reflink(FreezeOptions(**options)), "group") for loop, _point in pair]


def number_in(path):
    with open(path, "rb") as file:
        return max(int(found) for found in re.findall(rb"NUMBER(\d{12});", file.read()))


def test_the_second_is_never_ahead_of_the_first(pair):
    program = Program([point for _loop, point in pair])
    try:
        for _ in range(5):
            before = program.number
            while program.number < before + 3:
                assert program.is_alive()
                time.sleep(0.001)
            frozen = freeze_all(wanted(pair))
            first, second = (number_in(one.path) for one in frozen)
            for one in frozen:
                Reflink().release(one.token)
            assert first - second in (0, 1), f"{first} is in the first, {second} in the second"
            assert {one.consistency for one in frozen} == {"application"} and len({one.time_ns for one in frozen}) == 1
    finally:
        program.end()


def test_one_that_cannot_be_prepared_keeps_all_of_them_and_leaves_nothing(pair, xfs):
    one, other = wanted(pair)
    other = other._replace(backend=Reflink(FreezeOptions(before=("/bin/false",))))
    with pytest.raises(SnapshotError):
        freeze_all([one, other])
    assert not list((xfs / ".qrep-snapshots").glob("*"))
    for _loop, point in pair:
        (point / "number").write_bytes(b"it goes on")
