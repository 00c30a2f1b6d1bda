"""Fixtures every test may use: seeds, loop devices, filesystems. What a test makes is undone, last made first.

loop_device(size, sector_size=512, direct_io=True, ...) -> LoopDevice     a real block device over a sparse file
filesystem(kind, size=..., device=None) -> Path                           a mounted ext4, xfs (reflink) or btrfs
xfs, btrfs, ext4                                                          one mounted filesystem of that kind
memory_dir                                                                a directory on tmpfs
seed, random_source                                                       printed; QREP_SEED=n repeats a run
"""

import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
import zlib
from pathlib import Path

import pytest
from machine import need_tool, run

MIB = 1 << 20
SEED = int(os.environ.get("QREP_SEED", "1"))
# mkfs.xfs refuses less than 300 MiB, mkfs.btrfs less than 109 MiB; the files are sparse, so this costs nothing.
FILESYSTEM_SIZE = {"ext4": 128 * MIB, "xfs": 320 * MIB, "btrfs": 256 * MIB}
MKFS = {
    "ext4": ["mkfs.ext4", "-q", "-F"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
}


def pytest_report_header(config):
    return f"qrep seed: {SEED} (QREP_SEED={SEED} repeats this run)"


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job; what tests start would ignore Ctrl-C, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(ImportError):
        from hypothesis import core, settings

        repeatable = "QREP_SEED" not in os.environ  # without a seed the examples are the same in every run
        settings.register_profile("qrep", deadline=None, print_blob=True, derandomize=repeatable)
        settings.load_profile("qrep")
        if not repeatable and core.global_force_seed is None:
            core.global_force_seed = SEED


def pytest_runtest_setup(item):
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root (loop devices, mounts)")


class LoopDevice:
    """An attached loop device. `path` is /dev/loopN, `backing` the file below it."""

    def __init__(self, path, backing, sector_size):
        self.path, self.backing, self.sector_size = path, Path(backing), sector_size

    def __fspath__(self):
        return self.path

    def __str__(self):
        return self.path

    @property
    def size(self):
        return int(run("blockdev", "--getsize64", self.path))

    def detach(self):
        """Give the device back; safe to call twice. It goes when nobody has it open any more, whoever looks at all devices just now included."""
        if self.path:
            run("losetup", "--detach", self.path)
            shown = Path("/sys/class/block", os.path.basename(self.path), "loop/backing_file")
            deadline = time.monotonic() + 20
            with contextlib.suppress(OSError):  # it has none any more
                while shown.read_text().strip() == os.path.realpath(self.backing) and time.monotonic() < deadline:
                    time.sleep(0.01)
            self.path = ""


@pytest.fixture
def seed(request):
    """A number that depends on the test and on QREP_SEED only."""
    number = zlib.crc32(f"{SEED}:{request.node.nodeid}".encode())
    print(f"seed {number} (QREP_SEED={SEED})")
    return number


@pytest.fixture
def random_source(seed):
    return random.Random(seed)


@pytest.fixture
def undo_after():
    """An ExitStack: what is pushed here is undone after the test, last in first out."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def memory_dir(undo_after):
    """A directory on tmpfs, for device files that should not touch a disk."""
    parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = Path(tempfile.mkdtemp(prefix="qrep-test-", dir=parent))
    undo_after.callback(shutil.rmtree, path, ignore_errors=True)
    return path


@pytest.fixture
def loop_device(undo_after, memory_dir):
    """Makes loop devices: size in bytes; backing: an existing file to use instead of a new sparse one.

    offset: where in the backing file the device starts. partscan: make /dev/loopNpM for partitions.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root (loop devices)")
    need_tool("losetup")
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("needs loop devices, and /dev/loop-control does not exist here")
    count = 0

    def make(size=None, sector_size=512, direct_io=True, *, backing=None, offset=0, read_only=False, partscan=False):
        nonlocal count
        if backing is None:
            count += 1
            backing = memory_dir / f"disk{count}.img"
            with open(backing, "wb") as image:
                image.truncate(size)
        command = ["losetup", "--find", "--show", f"--sector-size={sector_size}", f"--offset={offset}"]
        command += [f"--direct-io={'on' if direct_io else 'off'}"]
        command += ["--read-only"] * read_only + ["--partscan"] * partscan
        name = run(*command, backing)  # "loop5" alone where the device's own node was not there yet
        device = LoopDevice(os.path.join("/dev", name), backing, sector_size)
        undo_after.callback(device.detach)
        return device

    return make


@pytest.fixture
def mount(undo_after, memory_dir):
    """Mounts a device and returns the mount point. options: as for mount -o."""
    count = 0

    def make(device, options="defaults"):
        nonlocal count
        count += 1
        point = memory_dir / f"mnt{count}"
        point.mkdir()
        run("mount", "-o", options, device, point)
        undo_after.callback(unmount, point)
        return point

    return make


def unmount(point):
    """Unmount if it is mounted still. Busy for long is a fault of the test, but must not litter the machine; for a while it may be because a process
    of another test was started with a copy of all mounts, and holds what lies on this one."""
    deadline = time.monotonic() + 60
    while os.path.ismount(point):
        try:
            run("umount", point)
        except RuntimeError:
            if time.monotonic() > deadline:
                run("umount", "--lazy", point)
                raise
            time.sleep(0.2)


@pytest.fixture
def filesystem(loop_device, mount):
    """Makes and mounts a filesystem of a kind; on a new loop device unless one is given."""

    def make(kind, size=None, device=None, options="defaults"):
        need_tool(MKFS[kind][0])
        device = device or loop_device(size or FILESYSTEM_SIZE[kind])
        run(*MKFS[kind], device)
        return mount(device, options)

    return make


@pytest.fixture
def xfs(filesystem):
    return filesystem("xfs")


@pytest.fixture
def btrfs(filesystem):
    return filesystem("btrfs")


@pytest.fixture
def ext4(filesystem):
    return filesystem("ext4")
