"""Salvage reads on a loop device whose backing file was cut: past the cut every sector fails with EIO, exactly."""

import errno
import os
import shutil
import subprocess
import time

import pytest

from qrep._native.buffers import BufferPool
from qrep._native.ring import salvage_read

MIB = 1 << 20
pytestmark = pytest.mark.root


@pytest.fixture
def holed(loop_device, open_direct, random_source):
    """holed(cut) -> (descriptor, data) of a device of 1 MiB that fails from byte `cut` on."""

    def make(cut):
        device = loop_device(MIB)
        data = random_source.randbytes(MIB)
        with open(device, "wb") as plain:
            plain.write(data)
            plain.flush()
            os.fsync(plain.fileno())  # while somebody else has the device open its close does not write, and what is written later makes the file long again
        descriptor = open_direct(device, os.O_RDONLY)
        os.truncate(device.backing, cut)
        return descriptor, data

    return make


@pytest.mark.parametrize("cut", [0, 512, 4096 + 512, MIB // 2, MIB - 4096, MIB - 512, MIB])
def test_a_failing_range_is_halved_down_to_the_sector(holed, cut):
    descriptor, data = holed(cut)
    with BufferPool(MIB, 1).lease_nowait() as slot, memoryview(slot) as view:
        bad = salvage_read(descriptor, view, 0, 512)
        assert bad == ([(cut, MIB - cut, errno.EIO)] if cut < MIB else [])
        assert view[:cut] == data[:cut]


def test_only_the_range_asked_for_is_read(holed):
    descriptor, data = holed(MIB // 2)
    with BufferPool(64 << 10, 1).lease_nowait() as slot, memoryview(slot) as view:
        start = MIB // 2 - (32 << 10)
        assert salvage_read(descriptor, view, start, 512) == [(MIB // 2, 32 << 10, errno.EIO)]
        assert view[: 32 << 10] == data[start : MIB // 2]


def test_calls_that_cannot_be_made_are_errors_not_bad_sectors(holed):
    descriptor, _ = holed(MIB)
    with BufferPool(64 << 10, 1).lease_nowait() as slot, memoryview(slot) as view:
        for offset, sector_size, number in [(100, 512, errno.EINVAL), (0, 500, errno.EINVAL), (MIB - 4096, 512, errno.ENXIO)]:
            with pytest.raises(OSError) as refusal:
                salvage_read(descriptor, view, offset, sector_size)
            assert refusal.value.errno == number


@pytest.fixture
def two_bad_spots(tmp_path, undo_after):
    """A file of 64 KiB of "x", served by nbdkit through FUSE, that fails with EIO at [8192, 12288) and [40960, 41472)."""
    for tool in ("nbdkit", "nbdfuse", "fusermount3"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    pread = """
        end=$(($4 + $3))
        if { [ $4 -lt 12288 ] && [ $end -gt 8192 ]; } || { [ $4 -lt 41472 ] && [ $end -gt 40960 ]; }; then echo EIO bad spot >&2; exit 1; fi
        head -c $3 /dev/zero | tr '\\0' x
    """
    path = tmp_path / "device"
    path.touch()
    pidfile = tmp_path / "pid"
    server = ["nbdkit", "--exit-with-parent", "-s", "eval", "get_size=echo 65536", f"pread={pread}"]
    fuse = subprocess.Popen(["nbdfuse", "--pidfile", pidfile, path, "--command", *server], stderr=subprocess.PIPE)
    undo_after.callback(fuse.wait, 10)
    undo_after.callback(subprocess.run, ["fusermount3", "-u", path], check=True)
    for _ in range(1000):
        if pidfile.exists() and pidfile.read_text():
            return path
        if fuse.poll() is not None:
            undo_after.pop_all()
            pytest.skip(f"nbdfuse does not run here: {fuse.stderr.read().decode().strip()}")
        time.sleep(0.01)
    pytest.fail("nbdfuse did not come up in 10 s")


def test_bad_spots_between_good_ones_are_separate_extents_and_the_last_covers_the_rest(two_bad_spots, open_direct):
    descriptor = open_direct(two_bad_spots, os.O_RDONLY)
    with BufferPool(65536, 1).lease_nowait() as slot, memoryview(slot) as view:
        first, second = (8192, 4096, errno.EIO), (40960, 512, errno.EIO)
        assert salvage_read(descriptor, view, 0, 512) == [first, second]
        good = [view[:8192], view[12288:40960], view[41472:]]
        assert b"".join(good) == b"x" * (65536 - 4096 - 512)
        del good
        assert salvage_read(descriptor, view, 0, 512, room=1) == [(8192, 65536 - 8192, errno.EIO)]
