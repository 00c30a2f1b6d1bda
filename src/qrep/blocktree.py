"""How block devices, partitions, loop devices and files lie on one another, read from sysfs.

Every device is traced down to its *place*: a byte range of a whole disk or of a file. Partitions and loop devices are
exact ranges, so two of them are the same storage exactly if their places overlap. A device made of others by a table
(device-mapper, md) is a place of its own and keeps its parts as `under`.
"""

import fcntl
import os
import stat
import struct
import time
from typing import NamedTuple

from qrep.errors import QrepError

SYS_DEVICES = "/sys/dev/block"
SECTOR = 512
WORLD_WIDE = ("naa.", "eui.", "uuid.")  # other wwids are made of vendor strings, and cheap disks share them
LOOP_GET_STATUS64 = 0x4C05
NUMBERLESS_S = 2.0  # that a device that is being added or removed may be without a number


class Place(NamedTuple):
    """Bytes [start, end) of the storage `key`: ("disk", wwn), ("dev", major, minor) or ("file", st_dev, inode)."""

    key: tuple
    start: int
    end: int

    def overlaps(self, other):
        return self.key == other.key and self.start < other.end and other.start < self.end


class Storage(NamedTuple):
    """Where a device's bytes are: its place, the device numbers it passes through, and what its place is made of."""

    place: Place
    chain: frozenset  # (major, minor) of itself and of each partition, loop device or disk straight below
    under: tuple  # Places below a device-mapper or md device, all levels

    def shares(self, other):
        """Whether writing one can change the other."""
        return (
            self.place.overlaps(other.place)
            or any(self.place.overlaps(place) for place in other.under)
            or any(other.place.overlaps(place) for place in self.under)
        )


class LoopStatus(NamedTuple):
    """What a loop device shows. device/inode: of the backing file; rdev: not 0 if that is itself a block device."""

    device: int
    inode: int
    rdev: int
    offset: int
    file_path: str


class Node:
    """One block device in sysfs."""

    def __init__(self, path):
        self.path = path
        self.name = os.path.basename(path)
        self.number = tuple(map(int, self.read("dev").split(":")))
        self.is_partition = os.path.exists(f"{path}/partition")
        self.disk = Node(os.path.dirname(path)) if self.is_partition else self
        self.is_loop = os.path.exists(f"{path}/loop/backing_file")

    @property
    def device_path(self):
        return "/dev/" + self.name.replace("!", "/")

    def read(self, attribute):
        """A sysfs attribute, stripped; "" if this device has none."""
        try:
            with open(f"{self.path}/{attribute}", errors="replace") as file:
                return file.read().strip().strip("\0")
        except OSError:
            return ""

    def queue_number(self, attribute):
        return int(self.disk.read(f"queue/{attribute}") or SECTOR)

    def uevent(self):
        return dict(line.split("=", 1) for line in self.read("uevent").splitlines() if "=" in line)

    def holders(self):
        return entries(f"{self.path}/holders")

    def slaves(self):
        return [found for name in entries(f"{self.path}/slaves") if (found := by_name(name))]

    def size(self):
        return int(self.read("size") or 0) * SECTOR


def node(number):
    """The Node of a (major, minor), None if the kernel has no such device."""
    return linked(SYS_DEVICES, f"{number[0]}:{number[1]}")


def by_name(name):
    return linked("/sys/class/block", name)


def linked(directory, name):
    """The Node that an entry of a directory of sysfs leads to, None if there is no such entry. Raises QrepError if it stays without a number: what it uses
    is not known then."""
    deadline = time.monotonic() + NUMBERLESS_S
    while True:
        try:
            link = os.readlink(f"{directory}/{name}")
        except OSError:
            return None
        try:
            return Node(os.path.normpath(f"{directory}/{link}"))
        except ValueError:  # the kernel makes the number after the entry, and removes it before
            if time.monotonic() > deadline:
                raise QrepError(f"{directory}/{name} has no device number", code="no-device-number", hint="see what the kernel says of it (dmesg)") from None
        time.sleep(0.005)


def all_nodes():
    return [found for name in entries("/sys/class/block") if (found := by_name(name))]


def loop_status(loop):
    """The LoopStatus of a loop device, None if nothing is attached (any more)."""
    try:
        fd = os.open(loop.device_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            raw = fcntl.ioctl(fd, LOOP_GET_STATUS64, bytes(232))
        finally:
            os.close(fd)
    except OSError:  # detached in between (ENXIO), or its node is not in this /dev
        return None
    device, inode, rdev, offset = struct.unpack_from("=4Q", raw)
    return LoopStatus(device, inode, rdev, offset, loop.read("loop/backing_file"))


def storage_of_device(number):
    """The Storage of a block device; of one that has gone: a place of its own."""
    found = node(number)
    if found is None:
        return Storage(Place(("dev", *number), 0, 1 << 63), frozenset([number]), ())
    return _storage(found, 0, found.size())


def storage_of_node(found):
    return _storage(found, 0, found.size())


def storage_of_file(status):
    """The Storage of a regular file or of the block device that `status` (os.stat) describes."""
    if stat.S_ISBLK(status.st_mode):
        return storage_of_device((os.major(status.st_rdev), os.minor(status.st_rdev)))
    return Storage(Place(("file", status.st_dev, status.st_ino), 0, max(status.st_size, 1)), frozenset(), ())


def storage(info):
    """The Storage of a DeviceInfo."""
    if info.kind == "block":
        return storage_of_device(info.device_number)
    return Storage(Place(("file", *info.device_number), 0, max(info.size, 1)), frozenset(), ())


def device_number_of(path):
    """(major, minor) of the block device node at `path`, None if it is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISBLK(status.st_mode) else None


def entries(path):
    """The names in a sysfs directory, sorted; [] where there is none."""
    try:
        return sorted(os.listdir(path))
    except OSError:  # not that kind of device, or it has just gone
        return []


def _storage(found, start, end):
    """The Storage of the bytes [start, end) of a node."""
    if found.is_partition:
        shift = int(found.read("start") or 0) * SECTOR
        below = _storage(found.disk, start + shift, end + shift)
        return below._replace(chain=below.chain | {found.number})
    loop = loop_status(found) if found.is_loop else None
    if loop and loop.rdev:
        below = node((os.major(loop.rdev), os.minor(loop.rdev)))
        if below:
            result = _storage(below, start + loop.offset, end + loop.offset)
            return result._replace(chain=result.chain | {found.number})
    if loop:
        place = Place(("file", loop.device, loop.inode), start + loop.offset, end + loop.offset)
        return Storage(place, frozenset([found.number]), ())
    wwn = found.read("wwid") or found.read("device/wwid")
    key = ("disk", wwn) if wwn.startswith(WORLD_WIDE) else ("dev", *found.number)
    under = []
    for slave in found.slaves():
        part = _storage(slave, 0, slave.size())
        under += [part.place, *part.under]
    return Storage(Place(key, start, end), frozenset([found.number]), tuple(under))
