"""The power goes at some moment of a Recording: both devices as they may be then, qrep's recovery on them, and the oracle.

    with Replayer(recording, directory, seed) as replayer:
        replayer.check(point)          # oracle.Wrong, or whatever qrep should not have raised

Recovery is what a restarted agent does: TargetVolume.open() on real block devices, its records on the ext4 that the kernel makes whole again when it is
mounted. It runs in this process, so that a point costs no interpreter.
"""

import contextlib
import ctypes
import errno
import io
import logging
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import oracle
from flow.harness import Site

from replay.record import Plan, options
from replay.recording import KEEP

LIBC = ctypes.CDLL(None, use_errno=True)
PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
CHECKED_POINTS_ONE_IN, FINISHED_ONE_IN = 10, 10


class Point(NamedTuple):
    """The power goes just before `time`; data, state: recording.KEEP, what is there of what was not durable. number: draws which sectors."""

    time: int
    data: str
    state: str
    number: int = 0


def points(recording, seed, count):
    """Just before and just after every boundary, as often as there is room for in `count`, once at least, and moments at random."""
    chance, found = random.Random(seed), []
    first = recording.marks[0][0]  # before it there is nothing of ours
    times = [time + after for time in recording.boundaries() for after in (0, 1) if time > first]
    times += [chance.randrange(first, recording.end) for _ in range(max(count - len(times), count // 3))]
    for number, time in enumerate(times):
        found.append(Point(time, chance.choice(KEEP), chance.choice(KEEP), number))
    return found


def put(descriptor, size, extents):
    """Make a block device hold these extents and zeroes, whatever others have of it in the page cache."""
    if LIBC.fallocate(descriptor, PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(size)):
        raise OSError(ctypes.get_errno(), "punching a hole into a loop device failed")
    for offset, data in extents:
        while data:
            done = os.pwrite(descriptor, data, offset)
            offset, data = offset + done, data[done:]
    os.fsync(descriptor)


def loop_of(path):
    return subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=True).stdout.strip()


class Replayer:
    """checked, finished, rolled_back: how many points had their sync points read, another run after them, or an open attempt taken back."""

    def __init__(self, recording, directory, seed):
        self.recording, self.directory, self.seed = recording, Path(directory), seed
        self.plan, self.images = Plan(*recording.plan), oracle.Images()
        for generation, image in self.plan.images.items():
            self.images.keep(generation, image)
        self.checked = self.finished = self.rolled_back = 0
        self.mounted = self.directory / "mounted"
        self.mounted.mkdir(parents=True)
        self._undo = contextlib.ExitStack()
        self._loops, self._made, self._true = {}, 0, set()

    def __enter__(self):
        for name, device in self.recording.devices.items():
            self._attach(name, len(device.base))
        return self

    def __exit__(self, *_exception):
        self._undo.close()

    def _attach(self, name, size):
        self._made += 1
        file = self.directory / f"{name}{self._made}"
        with open(file, "wb") as made:
            made.truncate(size)
        self._loops[name] = loop_of(file)
        self._undo.callback(subprocess.run, ["losetup", "--detach", self._loops[name]], check=True)

    def _claimed(self, name, size):
        """A descriptor of the device, exclusive. What was mounted may be in use still: a process that somebody else started in a mount namespace of its
        own has a copy of all mounts; then there is another device."""
        try:
            return os.open(self._loops[name], os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as err:
            if err.errno != errno.EBUSY:
                raise
        self._attach(name, size)
        return os.open(self._loops[name], os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)

    def check(self, point, recording=None):
        """recording: another one than its own, for canaries."""
        recording, chance = recording or self.recording, random.Random(f"{self.seed}:{point.number}")
        for name, keep in (("data", point.data), ("state", point.state)):
            device = recording.devices[name]
            descriptor = self._claimed(name, len(device.base))
            try:
                put(descriptor, len(device.base), device.at(point.time, keep, chance))
            finally:
                os.close(descriptor)
        acked, begun = recording.generations(point.time)
        subprocess.run(["mount", "-t", "ext4", self._loops["state"], self.mounted], check=True)
        try:
            self._recover(chance, acked, begun)
        finally:
            subprocess.run(["umount", self.mounted], check=True)

    def _recover(self, chance, acked, begun):
        source = self.directory / "source"
        site = Site(self.mounted, source, self._loops["data"], **options(self.plan.size))
        before = oracle.superblock(self.mounted / "target") if (self.mounted / "target").exists() else None
        with _log() as told, contextlib.closing(site):
            # Who else uses the device is not looked for: that takes longer than all the rest.
            site.open(claimed=os.open(site.target_path, os.O_RDWR | os.O_DIRECT | os.O_EXCL | os.O_CLOEXEC))
            status = site.volume.status()
            if status["damaged"] or status["phase"] not in ("idle", "open"):
                raise oracle.Wrong(f"the volume is {status['phase']}: {status['damaged']}")
            block = oracle.superblock(self.mounted / "target")
            counter = self._right(block, acked, begun)
            self.rolled_back += bool(before and before.open_kind and not block.open_kind and before.counter == counter)
            if counter and chance.random() < 1 / CHECKED_POINTS_ONE_IN:
                self._sync_points(site.volume)
            if chance.random() < 1 / FINISHED_ONE_IN:
                self._finish(site, source, begun)
        oracle.nothing_forbidden(told.getvalue())

    def _right(self, block, acked, begun):
        """The superblock says what it may, and the device holds what it says. Returns the counter of that generation."""
        if not acked <= block.counter <= begun:
            raise oracle.Wrong(f"generation {acked} was acknowledged, {begun} was begun, and {block.counter} is committed")
        if not block.counter:
            return 0
        if block.open_kind:
            raise oracle.Wrong("recovery has left an attempt open")
        self.images.are_on(self._loops["data"], block.counter)
        path = self.mounted / "target" / "map" / "root"
        known = block.counter, path.read_bytes() if path.exists() else b""
        if known not in self._true:  # the same map of the same generation was looked at before
            oracle.map_is_true(path, block.committed_id, self.images.content[block.counter])
            self._true.add(known)
        return block.counter

    def _sync_points(self, volume):
        """INV-K: each retained sync point shows its generation."""
        self.checked += 1
        for point in volume.sync_points():
            copy = self.directory / "copy"
            copy.unlink(missing_ok=True)
            volume.copy_out(point.id, copy)
            self.images.are_on(copy, point.counter)

    def _finish(self, site, source, begun):
        """INV-L: the next run commits what the source holds."""
        self.finished += 1
        image = self.plan.images[begun]
        source.write_bytes(image)
        shutil.rmtree(self.mounted / "sources", ignore_errors=True)
        report = site.run()
        block = oracle.superblock(self.mounted / "target")
        if (report.counter, block.committed_id != oracle.NO_ID) != (block.counter, True):
            raise oracle.Wrong(f"a run says that it committed {report.counter}, and the superblock {block.counter}")
        found = oracle.read_direct(site.target_path)
        if found != image:
            raise oracle.Wrong(f"the run after it committed something else: {oracle.first_difference(image, found)}")


@contextlib.contextmanager
def _log():
    """What qrep logs meanwhile, kept and not shown."""
    told = io.StringIO()
    handler, logger = logging.StreamHandler(told), logging.getLogger("qrep")
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield told
    finally:
        logger.propagate = before
        logger.removeHandler(handler)
