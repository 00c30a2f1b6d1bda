"""What a block device or image file is, and opening it so that it is surely that one.

Facts come from sysfs and the kernel's own calls, never from the output of a tool. Whether it may be written is
decided in devicesafety.py; how devices lie on one another is in blocktree.py.
"""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qrep import blocktree, filesystems
from qrep.errors import NotFound, QrepError, Refused, UsageError

HELD = (errno.EBUSY, errno.ETXTBSY)  # someone else has claimed it; a running program is "text busy"
UDEV_RECORDS = "/run/udev/data"
SECTOR = 512  # sysfs counts in these whatever the device's own sector is
IDENTIFYING = (
    *("serial", "wwn", "dm_uuid", "md_uuid", "partition_uuid", "partition_start"),
    *("filesystem", "inode", "backing_offset"),
)


@dataclass(frozen=True)
class DeviceInfo:
    """One device or image file at the moment of `inspect`. All sizes and offsets are bytes; unknown strings are ""."""

    path: str  # as given
    real_path: str  # links resolved
    kind: str  # "block" or "file"
    size: int
    logical_sector_size: int  # of a file: 512, as loop devices and virtual machines show it
    physical_sector_size: int
    io_alignment: int  # what O_DIRECT asks of offsets and sizes here
    device_number: tuple  # (major, minor) of a block device, (st_dev, inode) of a file
    read_only: bool
    serial: str = ""  # of the whole disk
    wwn: str = ""  # of the whole disk; only world-wide ones (naa., eui., uuid.)
    dm_name: str = ""
    dm_uuid: str = ""
    md_uuid: str = ""
    partition_uuid: str = ""
    partition_start: int = 0  # on its disk; 0 if it is no partition
    disk_sequence: int = 0  # kernel's count of attached media: differs after a re-attach; 0 if the kernel has none
    filesystem: str = ""  # that a file, or a loop device's backing file, lies on: uuid:..., or fsid:...
    inode: int = 0  # of that file
    backing_file: str = ""  # of a loop device, as its kernel thread calls it
    backing_offset: int = 0
    holders: tuple = ()  # names of devices built directly on this one

    @property
    def is_loop(self):
        return bool(self.backing_file)


class Difference(NamedTuple):
    """One thing in which a device is not the one that was stored."""

    field: str
    stored: object
    now: object

    def __str__(self):
        return f"{self.field.replace('_', ' ')} is {self.now or 'unknown'}, was {self.stored}"


def inspect(path):
    """Describe the device or image file at `path`; follows links, opens no block device but a loop device.

    Raises NotFound when there is none, UsageError when it is neither, QrepError when it may not be looked at or
    holds nothing.
    """
    path = os.fspath(path)
    try:
        real_path = os.path.realpath(path, strict=True)
        status = os.stat(real_path)
    except (FileNotFoundError, NotADirectoryError) as err:
        raise NotFound(f"{path}: no such device or file", code="no-such-device") from err
    except OSError as err:
        raise QrepError(f"{path}: {err.strerror}", code="device-open", hint="run as root, or check the path") from err
    if stat.S_ISBLK(status.st_mode):
        return _inspect_block(path, real_path, status)
    if stat.S_ISREG(status.st_mode):
        return _inspect_file(path, real_path, status)
    raise UsageError(
        f"{path} is neither a block device nor a regular file",
        hint="name a device such as /dev/vg0/db, or an image file",
    )


def open_source(info):
    """A descriptor to read the source with: O_DIRECT, close-on-exec. The caller closes it.

    Raises Refused when the path no longer leads to what was inspected, QrepError when it cannot be opened.
    """
    fd = open_direct(info, os.O_RDONLY)
    try:
        check_unchanged(info, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_direct(info, flags):
    """os.open with O_DIRECT and O_CLOEXEC; HELD errors are passed on as OSError, all others become a QrepError."""
    try:
        return os.open(info.real_path, flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as err:
        if err.errno in HELD:
            raise
        if err.errno == errno.ENOENT:
            raise NotFound(f"{info.path}: it has gone since it was looked at", code="no-such-device") from err
        hints = {
            errno.EINVAL: "its filesystem cannot do direct I/O; move the image to ext4, XFS or btrfs, or attach it "
            "with losetup and name the loop device",
            errno.EROFS: "it is read-only",
            errno.EACCES: "run as root",
            errno.EPERM: "run as root; a container or policy may forbid this device",
        }
        code = "no-direct-io" if err.errno == errno.EINVAL else "device-open"
        raise QrepError(f"{info.path}: cannot open: {err.strerror}", code=code, hint=hints.get(err.errno, "")) from err


def check_unchanged(info, fd):
    """Raise Refused unless the open descriptor is the very device that was inspected."""
    status = os.fstat(fd)
    if info.kind == "block":
        number = (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISBLK(status.st_mode) else None
        same_number = number == info.device_number
    else:
        same_number = stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) == info.device_number
    differences = [] if same_number else [Difference("device_number", info.device_number, "another")]
    if same_number:
        now = inspect(info.real_path)
        differences = same_identity(identity(info), identity(now))
        if now.disk_sequence != info.disk_sequence:
            differences.append(Difference("disk_sequence", info.disk_sequence, now.disk_sequence))
    if differences:
        raise Refused(
            f"{info.path} is no longer the device that was looked at: {'; '.join(map(str, differences))}",
            code="wrong-device",
            hint="nothing was written; check what the path leads to, then try again",
        )


def identity(info):
    """What tells this device from others and outlives a reboot and a new device number; plain JSON types.

    A name like /dev/sdb or a loop device's number is not part of it. Disks without serial number, WWN, uuid or
    backing file (some virtual disks) are known by their size alone.
    """
    fields = {"kind": info.kind, "size": info.size, "logical_sector_size": info.logical_sector_size}
    for name in IDENTIFYING:
        if getattr(info, name):
            fields[name] = getattr(info, name)
    return fields


def same_identity(stored, now):
    """Every Difference between a stored identity and a device's of now; [] if it is the same device.

    Something that was not known when it was stored is not held against it; something that was and is not any more is.
    """
    return [Difference(name, value, now.get(name)) for name, value in stored.items() if now.get(name) != value]


def _inspect_block(path, real_path, status):
    number = (os.major(status.st_rdev), os.minor(status.st_rdev))
    node = blocktree.node(number)
    if node is None:
        raise QrepError(f"{path}: the kernel knows no such device", code="device-open", hint="is /sys mounted?")
    disk = node.disk
    logical = node.queue_number("logical_block_size")
    size = int(node.read("size") or 0) * SECTOR
    if size == 0:
        raise QrepError(f"{path} is empty: no medium, or nothing attached", code="no-medium")
    wwn = disk.read("wwid") or disk.read("device/wwid")
    loop = blocktree.loop_status(disk) if disk.is_loop else None
    return DeviceInfo(
        path=path,
        real_path=real_path,
        kind="block",
        size=size,
        logical_sector_size=logical,
        physical_sector_size=max(logical, node.queue_number("physical_block_size")),
        io_alignment=logical,
        device_number=number,
        read_only=node.read("ro") == "1" or disk.read("ro") == "1",
        serial=_serial(disk),
        wwn=wwn if wwn.startswith(blocktree.WORLD_WIDE) else "",
        dm_name=node.read("dm/name"),
        dm_uuid=node.read("dm/uuid"),
        md_uuid=node.read("md/uuid"),
        partition_uuid=_partition_uuid(node),
        partition_start=int(node.read("start") or 0) * SECTOR if node.is_partition else 0,
        disk_sequence=int(disk.read("diskseq") or 0),
        filesystem=_filesystem(loop.file_path) if loop else "",
        inode=loop.inode if loop else 0,
        backing_file=loop.file_path if loop else "",
        backing_offset=loop.offset if loop else 0,
        holders=tuple(node.holders()),
    )


def _inspect_file(path, real_path, status):
    alignment = filesystems.direct_io_alignment(real_path, status)
    return DeviceInfo(
        path=path,
        real_path=real_path,
        kind="file",
        size=status.st_size,
        logical_sector_size=SECTOR,
        physical_sector_size=max(SECTOR, alignment),
        io_alignment=alignment,
        device_number=(status.st_dev, status.st_ino),
        read_only=bool(os.statvfs(real_path).f_flag & os.ST_RDONLY),
        filesystem=_filesystem(real_path),
        inode=status.st_ino,
    )


def _filesystem(path):
    """The uuid of the filesystem `path` is on; "" when the path does not lead there (another mount namespace)."""
    try:
        return filesystems.filesystem_id(path)
    except FileNotFoundError:
        return ""


def _serial(disk):
    serial = disk.read("device/serial") or disk.read("serial")
    if not serial:  # SCSI: vital product data page 0x80, a 4 byte header, then the serial number
        try:
            serial = Path(disk.path, "device/vpd_pg80").read_bytes()[4:].decode("ascii", "replace")
        except OSError:  # no SCSI disk, or one that has no such page
            return ""
    return serial.strip().strip("\0")


def _partition_uuid(node):
    """From the kernel (6.15 and later), else from udev's own record; "" if neither knows."""
    uuid = node.uevent().get("PARTUUID", "")
    if not uuid and node.is_partition:
        major, minor = node.number
        try:
            record = Path(UDEV_RECORDS, f"b{major}:{minor}").read_text()
        except OSError:  # no udev here
            return ""
        for line in record.splitlines():
            uuid = line.removeprefix("E:ID_PART_ENTRY_UUID=") if line.startswith("E:ID_PART_ENTRY_UUID=") else uuid
    return uuid.lower()
