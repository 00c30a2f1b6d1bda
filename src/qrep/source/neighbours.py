"""Who else uses the source's device, and what it lies on: the kernel's counts of completed requests, from sysfs.

    neighbours = Neighbours(info)       # DeviceInfo of the source volume
    neighbours.seen()                   # Seen

Counted on the device itself: all requests. On what lies below it (the disk of a partition, the parts of a device-mapper or md device, the filesystem of
an image file or of a loop device's file): all reads, and writes as far as this process has not caused them; its target may lie on the same disk.
"""

import contextlib
import os
from typing import NamedTuple

from qrep import blocktree, filesystems

SECTOR = blocktree.SECTOR
OWN_WRITES = "/proc/self/io"


class Seen(NamedTuple):
    """ios, busy_s: of the device itself, requests that completed and how long they took in all. below: of others, at most one device's. Since boot."""

    ios: int
    busy_s: float
    below: int


class Neighbours:
    """numbers: (major, minor) of every device that is looked at; two sources that have one in common are neighbours."""

    def __init__(self, info):
        self.numbers, self._tops, self._below = set(), [], []
        if info.kind == "block":
            top = blocktree.node(info.device_number)
            if top is not None:
                self._add(top, self._tops)
                self._add_under(top)
        else:
            self._add_filesystem(info.real_path)
        self._own_fd = _opened(OWN_WRITES)
        self._written = {}  # descriptor -> (requests, bytes, own bytes) at the last look, and what of the requests was not ours so far
        self._others = dict.fromkeys(self._below, 0)

    def _add(self, node, found):
        """Open its counts; False if it is known already or has none."""
        fd = -1 if node.number in self.numbers else _opened(f"{node.path}/stat")
        if fd < 0:
            return False
        self.numbers.add(node.number)
        found.append(fd)
        return True

    def _add_under(self, node):
        under = [node.disk] if node.is_partition else node.slaves()
        loop = blocktree.loop_status(node) if node.is_loop else None
        if loop and loop.rdev:
            under.append(blocktree.node((os.major(loop.rdev), os.minor(loop.rdev))))
        for each in under:
            if each is not None and self._add(each, self._below):
                self._add_under(each)
        if loop and not loop.rdev:
            self._add_filesystem(loop.file_path)

    def _add_filesystem(self, path):
        mount = filesystems.mount_of(path)
        for number in filesystems.devices_of_mount(mount) if mount is not None else []:
            node = blocktree.node(number)
            if node is not None and self._add(node, self._below):
                self._add_under(node)

    def close(self):
        for fd in (*self._tops, *self._below, self._own_fd):
            if fd >= 0:
                os.close(fd)
        self._tops, self._below, self._own_fd = [], [], -1

    @property
    def can_see(self):
        """Whether there is anything to look at; on a filesystem in memory there is not."""
        return bool(self._tops or self._below)

    def seen(self):
        counts = [_counts(fd) for fd in self._tops]
        ios = sum(count[0] + count[4] for count in counts)
        busy_s = sum(count[3] + count[7] for count in counts) / 1000
        own = _own_written(self._own_fd)
        for fd in self._below:
            self._look_below(fd, own)
        return Seen(ios, busy_s, max(self._others.values(), default=0))

    def _look_below(self, fd, own):
        count = _counts(fd)
        now = count[0], count[4], count[6] * SECTOR, own
        reads, writes, written, ours = (new - old for new, old in zip(now, self._written.get(fd, now), strict=True))
        self._written[fd] = now
        # What we wrote is counted when we ask for it and when it is done, and in between there may be a look: a quarter more counts as ours.
        foreign = max(0, written - ours * 5 // 4) / written if written > 0 else 1.0
        self._others[fd] += max(0, reads) + round(max(0, writes) * foreign)


def _opened(path):
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it has gone, or this kernel does not count
        return -1


def _counts(fd):
    """The numbers of a `stat` file of sysfs; zeroes for a device that has gone."""
    with contextlib.suppress(OSError):
        words = os.pread(fd, 512, 0).split()
        if len(words) >= 11:
            return [int(word) for word in words]
    return [0] * 11


def _own_written(fd):
    """Bytes that this process has caused to be written."""
    with contextlib.suppress(OSError):
        for line in os.pread(fd, 1024, 0).splitlines() if fd >= 0 else ():
            if line.startswith(b"write_bytes:"):
                return int(line.split()[1])
    return 0
