"""Who else uses a device: mounts, swap, device-mapper and md on top, other loop devices, locks, processes."""

import fcntl
import os
import struct
from typing import NamedTuple

from qrep import blocktree, filesystems

# What a device-mapper uuid starts with, and what a person calls it.
DM_OWNERS = {"LVM-": "LVM", "CRYPT-": "dm-crypt", "mpath-": "multipath", "part": "partition mapping"}
WAYS_OUT = {
    "swap": "swapoff {what}",
    "LVM": "vgchange -an its volume group, or name another target",
    "dm-crypt": "cryptsetup close {what}, or name another target",
    "multipath": "name the multipath device {what} instead of one of its paths",
    "md": "mdadm --stop {what}, or name another target",
    "loop": "losetup -d {what}, or name that device instead",
}


class User(NamedTuple):
    """One use. kind: mounted, swap, loop, LVM, md, ...; what: mount point or device; via: the device that is used."""

    kind: str
    what: str
    via: str

    def __str__(self):
        text = {"mounted": f"{self.via} on {self.what}", "swap": f"swap on {self.what}"}
        return text.get(self.kind, f"{self.kind} {self.what}")


def users(info):
    """Every User of the storage that writing `info` would change; mounts first. [] when it is free."""
    mine = blocktree.storage(info)
    return [*_mounts(mine), *_swaps(mine), *_stacked(mine, info)]


def mounts_of(info):
    """The filesystems.Mounts whose filesystem lies on the storage of `info`; the same filesystem may be there twice."""
    return [mount for mount, _ in _mounted_on(blocktree.storage(info))]


def same_storage(first, second):
    """How two devices are the same storage, in words; "" if writing one cannot change the other."""
    a, b = blocktree.storage(first), blocktree.storage(second)
    if not a.shares(b):
        return ""
    if first.real_path == second.real_path:
        return f"both are {first.real_path}"
    overlap = a.place.overlaps(b.place)
    for one, other in ((first, second), (second, first)):
        if one.kind == "file" and other.is_loop:
            return f"{other.path} is a loop device over {one.path}"
        if one.partition_start and not other.partition_start and overlap:
            return f"{one.path} is a part of {other.path}"
    if first.is_loop and second.is_loop:
        return f"both are loop devices over {first.backing_file}"
    if a.place.key[0] == "disk" and a.place.key == b.place.key and a.chain.isdisjoint(b.chain):
        return f"both lead to the disk {a.place.key[1]}"
    return "they share the same bytes of one disk" if overlap else "one lies on the other"


def lies_inside(info, other):
    """The mount point of the filesystem on `other` that holds the file of `info`; "" if it lies elsewhere."""
    path = info.real_path if info.kind == "file" else info.backing_file
    mount = filesystems.mount_of(path) if path else None
    if mount is None:
        return ""
    below = blocktree.storage(other)
    numbers = filesystems.devices_of_mount(mount)
    return mount.point if any(blocktree.storage_of_device(number).shares(below) for number in numbers) else ""


def processes(info):
    """`pid 123 (name)` of every process that has it open, as far as this user may see."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(_is_open(f"/proc/{pid}/fd/{fd}", info) for fd in os.listdir(f"/proc/{pid}/fd")):
                with open(f"/proc/{pid}/comm", errors="replace") as comm:
                    found.append(f"pid {pid} ({comm.read().strip()})")
        except OSError:  # it ended, or belongs to someone else
            continue
    return found


def record_lock_owner(fd):
    """Pid of whoever holds a range lock on the file (-1: an open file description), None if nobody does."""
    # struct flock: l_type, l_whence, l_start, l_len (0: to the end), l_pid
    asked = struct.pack("=hhiqqii", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0, 0, 0)
    kind, _, _, _, _, pid, _ = struct.unpack("=hhiqqii", fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else pid


def way_out(users_found):
    """What to do about the first use, "" if there is no better advice than to stop it."""
    for user in users_found:
        if user.kind in WAYS_OUT:
            return WAYS_OUT[user.kind].format(what=user.what) + "; no option overrides this"
    return ""


def _mounted_on(mine):
    """(Mount, device number) of each mounted filesystem that shares bytes with a Storage."""
    seen = {}
    for mount in filesystems.mounts():
        for number in filesystems.devices_of_mount(mount):
            if number not in seen:
                seen[number] = blocktree.storage_of_device(number).shares(mine)
            if seen[number]:
                yield mount, number


def _mounts(mine):
    for mount, number in _mounted_on(mine):
        node = blocktree.node(number)
        yield User("mounted", mount.point, node.device_path if node else mount.source)


def _swaps(mine):
    return [User("swap", path, path) for path, storage in filesystems.swaps() if storage.shares(mine)]


def _stacked(mine, info):
    """Devices built on this storage, and other loop devices that show it."""
    for node in blocktree.all_nodes():
        if node.number in mine.chain or node.is_partition or not (node.size() or node.slaves()):
            continue
        other = blocktree.storage_of_node(node)
        if node.is_loop and other.place.overlaps(mine.place):
            yield User("loop", node.device_path, info.path)
        elif any(place.overlaps(mine.place) for place in other.under):
            name = node.read("dm/name")
            kind = next((kind for start, kind in DM_OWNERS.items() if node.read("dm/uuid").startswith(start)), "")
            if not kind:
                kind = "md" if node.name.startswith("md") else "device-mapper" if name else "device"
            yield User(kind, f"/dev/mapper/{name}" if name else node.device_path, info.path)


def _is_open(link, info):
    try:
        status = os.stat(link)
    except OSError:  # closed in between
        return False
    if info.kind == "block":
        return (os.major(status.st_rdev), os.minor(status.st_rdev)) == info.device_number and status.st_rdev != 0
    return (status.st_dev, status.st_ino) == info.device_number
