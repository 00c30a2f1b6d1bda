"""Devices for the benches: loop devices over files, filled once and lent to one bench after the other; huge pages for fio; and what a killed bench left."""

import contextlib
import errno
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

MIB = 1 << 20
PREFIX = f"qrep-bench-{os.getpid()}-"
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
HUGE_NEEDED = 40  # of 2 MiB: 16 MiB in flight, twice, and some for what fio keeps beside them


def fill_file(path, size, seed, offset=0):
    """Incompressible bytes, the same for the same seed, no block twice. Fast, because every bench begins with it: 2 GB/s, where Generator.bytes has 0.4."""
    import numpy

    source = numpy.random.SFC64(seed)
    with open(path, "r+b", buffering=0) as image:
        for start in range(0, size, 16 * MIB):
            piece = min(16 * MIB, size - start)
            os.pwrite(image.fileno(), source.random_raw((piece + 7) // 8).data.cast("B")[:piece], offset + start)


def fill_zeros(path, size):
    """Zeros that take room: what writes over them later does not wait for memory or blocks."""
    with open(path, "r+b", buffering=0) as image:
        os.posix_fallocate(image.fileno(), 0, size)
        zeros = bytes(4 * MIB)
        for start in range(0, size, len(zeros)):
            os.pwrite(image.fileno(), zeros[: min(len(zeros), size - start)], start)


def attach(path):
    """A loop device with direct I/O over a file."""
    command = ["losetup", "--find", "--show", "--direct-io=on", path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_loop(stack, directory, size, fill):
    """A loop device with direct I/O over a new file, until `stack` is closed. fill: "random" or "zero" (allocated), or None (a hole)."""
    pool = Pool(directory)
    stack.callback(pool.drop)
    return pool.lend(size, fill)


SEEDS = itertools.count(1000)  # one for each device that is filled: no two of a session hold the same


def is_free(path):
    """Whether nobody has claimed the device: no mount, no process of a bench before that has not ended yet."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL))
    except OSError as err:
        if err.errno != errno.EBUSY:
            raise
        return False
    return True


class Pool:
    """Loop devices over files in one directory. What is given back is lent again, filled anew only if somebody has written to it.

    Of each size at most `keep` wait for their next user; larger ones than `largest` never do.
    """

    def __init__(self, directory, keep=3, largest=2 << 30):
        self.directory, self._keep, self._largest = Path(directory), keep, largest
        self._free, self._lent = [], {}

    def lend(self, size, fill):
        """The path of a device of `size` bytes. Two that are lent at a time never hold the same data."""
        if size > self._largest:
            self.make_room()
        fits = [each for each in self._free if each["size"] == size and is_free(each["path"])]
        device = next((each for each in fits if self._is(each, fill)), None) or next(iter(fits), None)
        if device is None:
            device = self._make(size)
        else:
            self._free.remove(device)
        if not self._is(device, fill):
            self._fill(device, fill)
        self._lent[device["path"]] = device
        return device["path"]

    def give_back(self, path):
        device = self._lent.pop(path)
        if device["size"] > self._largest or sum(each["size"] == device["size"] for each in self._free) >= self._keep:
            self._remove(device)
        else:
            self._free.append(device)

    def make_room(self):
        """Give the memory of those that wait back."""
        while self._free:
            self._remove(self._free.pop())

    def drop(self):
        for path in list(self._lent):
            self._free.append(self._lent.pop(path))
        self.make_room()

    def _make(self, size):
        descriptor, file = tempfile.mkstemp(dir=self.directory, suffix=".img")
        os.truncate(descriptor, size)
        os.close(descriptor)
        path = attach(file)
        device = {"path": path, "file": file, "size": size, "fill": None}
        device["written"] = self._written(device)
        return device

    def _fill(self, device, fill):
        if fill == "random":
            fill_file(device["file"], device["size"], next(SEEDS))
        elif fill == "zero":
            fill_zeros(device["file"], device["size"])
        else:
            os.truncate(device["file"], 0)
            os.truncate(device["file"], device["size"])
        with open(device["file"], "rb") as image:
            os.fsync(image.fileno())
        with open(device["path"], "rb") as whole:
            os.posix_fadvise(whole.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what the device's own cache holds of the time before
        device.update(fill=fill, written=self._written(device))

    def _written(self, device):
        """Sectors that were ever written to, or discarded on, the loop device; None where the kernel does not count them."""
        about = Path("/sys/block") / Path(device["path"]).name
        if (about / "queue/iostats").read_text().strip() != "1":
            return None
        fields = (about / "stat").read_text().split()
        return int(fields[6]), int(fields[13])

    def _is(self, device, fill):
        return device["fill"] == fill and None is not device["written"] == self._written(device)

    def _remove(self, device):
        subprocess.run(["losetup", "--detach", device["path"]], check=True)
        os.unlink(device["file"])


POOLS = []


def make_room():
    """Free the memory of all devices that nobody uses now: for a bench that takes as much as there is."""
    for pool in POOLS:
        pool.make_room()


def huge_pages():
    """How many 2 MiB pages are there for a program that asks for them, as fio does with --mem=mmaphuge; 0 if they are too few for it, for then it fails."""
    words = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(words.get("HugePages_Free", "0")) if words.get("Hugepagesize", "").split() == ["2048", "kB"] else 0
    return free if free >= HUGE_NEEDED // 2 else 0


@contextlib.contextmanager
def reserve_huge_pages():
    """Enough huge pages for fio where the machine lets us, put back as it was afterwards."""
    before = None
    if huge_pages() < HUGE_NEEDED and os.access(HUGE_PAGES, os.W_OK):
        before = HUGE_PAGES.read_text()
        with contextlib.suppress(OSError):  # a container's /proc: then fio goes without, and the table says so
            HUGE_PAGES.write_text(str(int(before) + HUGE_NEEDED))
    try:
        yield huge_pages()
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                HUGE_PAGES.write_text(before)


def sweep(places=("/tmp", "/var/tmp", os.environ.get("QREP_BENCH_DIR", "/var/tmp"))):
    """Take away what a bench that was killed left: its loop devices, mounts and directories. Their names say whose they are."""
    for found in {path for place in places for path in Path(place).glob("qrep-bench-*-*")}:
        owner = found.name.split("-")[2]
        if not owner.isdigit() or Path("/proc", owner).exists():
            continue
        listed = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, check=True)
        for name, backing in (line.split(None, 1) for line in listed.stdout.splitlines() if " " in line.strip()):
            if backing.startswith(f"{found}/"):
                subprocess.run(["umount", "--quiet", name], check=False)
                subprocess.run(["losetup", "--detach", name], check=False)
        if os.path.ismount(found):
            subprocess.run(["umount", "--lazy", found], check=False)
        shutil.rmtree(found, ignore_errors=True)
