"""Filesystems and files from below: what is mounted where, what is swapped on, which filesystem a file is on."""

import fcntl
import os
import struct
from pathlib import Path
from typing import NamedTuple

from qrep import blocktree

FS_IOC_GETFSUUID = 0x80111500  # _IOR(0x15, 0, struct fsuuid2), since Linux 6.9
XFS_IOC_FSGEOMETRY_V1 = 0x80705864  # _IOR('X', 100, 112 bytes), uuid at byte 64
STATX_DIOALIGN = 0x2000


class Mount(NamedTuple):
    number: tuple  # (major, minor) of the filesystem; major 0 has no device of its own
    point: str
    kind: str
    source: str


def mounts():
    """Every mounted filesystem this process can see, with the device of each (btrfs: every device)."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields = line.split(" ")
        kind, source = fields[fields.index("-") + 1 : fields.index("-") + 3]
        number = tuple(map(int, fields[2].split(":")))
        found.append(Mount(number, unescape(fields[4]), kind, unescape(source)))
    return found


def mount_of(path):
    """The Mount that the file at `path` (absolute, links resolved) is seen through."""
    inside = [mount for mount in reversed(mounts()) if f"{path}/".startswith(mount.point.rstrip("/") + "/")]
    return max(inside, key=lambda mount: len(mount.point), default=None)  # of several on one point the last is on top


def devices_of_mount(mount):
    """The (major, minor) of every block device a mounted filesystem lives on; [] for tmpfs and its like."""
    if mount.number[0]:
        return [mount.number]
    number = blocktree.device_number_of(mount.source)
    if number is None:
        return []
    for uuid in blocktree.entries("/sys/fs/btrfs") if mount.kind == "btrfs" else []:
        nodes = map(blocktree.by_name, blocktree.entries(f"/sys/fs/btrfs/{uuid}/devices"))
        members = [node.number for node in nodes if node]
        if number in members:
            return members
    return [number]


def swaps():
    """(path, Storage) of every swap device and file in use; a swap file that has gone is left out."""
    found = []
    for line in Path("/proc/swaps").read_text(errors="surrogateescape").splitlines()[1:]:
        path = unescape(line.split()[0])
        if os.path.exists(path):
            found.append((path, blocktree.storage_of_file(os.stat(path))))
    return found


def filesystem_id(path):
    """A name of the filesystem that holds `path`, the same after a reboot: its uuid where the kernel gives one.

    Raises OSError when the path cannot be opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        for request, size, start in ((FS_IOC_GETFSUUID, 17, 1), (XFS_IOC_FSGEOMETRY_V1, 112, 64)):
            try:
                uuid = fcntl.ioctl(fd, request, bytes(size))[start : start + 16]
            except OSError:  # not known to this kernel or filesystem
                continue
            if any(uuid):
                return "uuid:" + uuid.hex()
        return f"fsid:{os.fstatvfs(fd).f_fsid:x}"
    finally:
        os.close(fd)


def direct_io_alignment(path, status):
    """Bytes that O_DIRECT offsets and sizes on this file must be a multiple of; 4096 where nobody says.

    Source: statx(2), STATX_DIOALIGN, Linux 6.1; before it, the sector size of the device below the filesystem.
    """
    import ctypes  # 5 ms: not at import, the command line does not need it

    raw = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd = -100
    if libc.statx(at_fdcwd, os.fsencode(path), 0, STATX_DIOALIGN, raw) == 0:
        mask = struct.unpack_from("=I", raw, 0)[0]
        offset_alignment = struct.unpack_from("=I", raw, 0x9C)[0]
        if mask & STATX_DIOALIGN and offset_alignment:
            return offset_alignment
    number = (os.major(status.st_dev), os.minor(status.st_dev))
    if any(mount.number == number and mount.kind == "tmpfs" for mount in mounts()):
        return blocktree.SECTOR  # memory: the flag is accepted and copies any range
    below = blocktree.node(number)
    return below.queue_number("logical_block_size") if below else 4096


def unescape(text):
    r"""Undo the \040 of mountinfo and swaps."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] if part[:3].isdigit() else "\\" + part for part in rest)
