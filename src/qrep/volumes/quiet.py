"""Bring volumes to rest for a moment: what writes to them told so, mounted filesystems frozen, dirty pages written down.

A filesystem that stays frozen stops everything that writes to it, so each freeze is guarded by a process of its own
(thawguard.py) which thaws when this one dies or takes too long, and runs the commands that undo what was prepared.
"""

import contextlib
import errno
import fcntl
import os
import sys
from typing import NamedTuple

from qrep import blocktree, deviceusers
from qrep.crashpoint import crashpoint
from qrep.device import DeviceInfo
from qrep.volumes.base import APPLICATION, CRASH, FreezeOptions, SnapshotError
from qrep.volumes.freezehooks import Guard

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
FROZEN, THEIRS = "frozen", "theirs"


class Subject(NamedTuple):
    """One volume. left: the (major, minor) whose filesystem the kernel freezes by itself when the snapshot is made."""

    device: DeviceInfo
    options: FreezeOptions
    left: tuple | None = None


@contextlib.contextmanager
def quiet(device, options, quieted="", left=None):
    """While inside, no filesystem on `device` (DeviceInfo) changes, and what it had written is in the backing file. Gives its consistency.

    quieted: the consistency that the caller has brought it to already; then only what was written is written down. left: as of a Subject.
    Raises as together().
    """
    if quieted:
        _flush(_devices_showing(device))
        crashpoint("snapshot-frozen")
        yield quieted
        return
    with together([Subject(device, options, left)]) as consistencies:
        yield consistencies[0]


@contextlib.contextmanager
def together(subjects):
    """Bring several volumes to rest at one moment, and their commands around it. Gives the consistency of each.

    Covers filesystems mounted on a volume, on its partitions or on what is stacked on it, as far as this mount namespace
    shows them. One that cannot be frozen is synced instead. One that someone else has frozen is left to them.
    Raises SnapshotError when a command fails or flushing does, and at the end when it took longer than the shortest limit_s: then
    filesystems may have been written meanwhile, and what was made inside must be thrown away.
    """
    limit_s = min(subject.options.limit_s for subject in subjects)
    hooks = any(subject.options.before or subject.options.after for subject in subjects)
    with contextlib.ExitStack() as stack:
        opened, of_subject = {}, []  # descriptor of each filesystem by its number; those of each subject
        for subject in subjects:
            mounts = {group[0].number: group for group in _filesystems(subject.device)}
            for number, group in mounts.items():
                if number not in opened:
                    opened[number] = _open_mounted(stack, group)
            of_subject.append(set(mounts))
        fds = list(opened.values())
        for fd in fds:
            _syncfs(fd)  # the bulk is written while others still may write, so that they wait only for the rest
        showing = sorted({path for subject in subjects for path in _devices_showing(subject.device)})
        left = {subject.left for subject in subjects}
        guard = Guard(fds, [(subject.device.path, subject.options) for subject in subjects], limit_s) if fds or hooks else None
        if guard:
            stack.callback(guard.close)
        ours, frozen, at_rest, prepared = [], [], set(), []
        owed = []  # that a hook may freeze, so that each of them is thawed in the end: not those that were frozen before
        for fd in fds if hooks else ():
            guard.mine(fd)
            if _try(fd) is THEIRS:
                guard.leave(fd)
            else:
                owed.append(fd)
        try:
            if hooks:
                prepared = guard.before()
            if guard:
                guard.frozen()
            for number, fd in opened.items():
                guard.mine(fd)
                if number in left:
                    result = _try(fd)
                else:
                    ours.append(fd)  # before: an interrupt may come between the freeze and its result
                    result = _freeze(fd)
                    if result is FROZEN:
                        frozen.append(fd)
                    else:
                        ours.remove(fd)
                if fd not in frozen and fd not in owed:
                    guard.leave(fd)
                at_rest |= {number} if result else set()
            _flush(showing)
            crashpoint("snapshot-frozen")
            yield [
                APPLICATION if index in prepared or (numbers and numbers <= at_rest) else CRASH for index, numbers in enumerate(of_subject)
            ]
        finally:
            late = [fd for fd in reversed(ours) if not _thaw(fd) and fd in frozen]
            if guard:
                guard.thawed()
            if hooks:
                _undo(guard, owed)
        if late:
            names = ", ".join(subject.device.path for subject in subjects)
            raise SnapshotError(
                f"{names}: its filesystem was frozen for more than {limit_s:g} s and was thawed before the snapshot was complete",
                code="snapshot-too-slow", hint="try again when the disk below is less busy",
            )  # fmt: skip


def _undo(guard, fds):
    """Run the commands that come after, then thaw what a command may have frozen and left so."""
    failing = sys.exc_info()[1] is not None
    try:
        guard.after()
    except SnapshotError:
        if not failing:  # else what went wrong first is told, and this is in the log
            raise
    finally:
        for fd in fds:
            _thaw(fd)


def _try(fd):
    """Freeze a filesystem and thaw it at once: FROZEN if it can be, THEIRS, or None."""
    result = _freeze(fd)
    if result is FROZEN:
        _thaw(fd)
    return result


def _filesystems(device):
    """The mounts on this device, grouped by filesystem."""
    groups = {}
    for mount in deviceusers.mounts_of(device):
        groups.setdefault(mount.number, []).append(mount)
    return list(groups.values())


def _open_mounted(stack, mounts):
    """A descriptor on a mounted filesystem, through the first mount point that another mount does not cover."""
    for mount in mounts:
        try:
            fd = os.open(mount.point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # covered by something that cannot be opened, or just unmounted: the next one, or say so
            continue
        stack.callback(os.close, fd)
        found = os.fstat(fd).st_dev
        # btrfs shows another device number in stat than in mountinfo (major 0): nothing to compare there.
        if mount.number[0] == 0 or (os.major(found), os.minor(found)) == mount.number:
            return fd
    raise SnapshotError(
        f"the filesystem mounted on {mounts[0].point} cannot be reached to freeze it",
        hint="is something else mounted over it?",
    )


def _freeze(fd):
    """FROZEN by this call, THEIRS if someone else had frozen it, None if it cannot be frozen."""
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
    except OSError as err:
        if err.errno == errno.EBUSY:
            return THEIRS
        if err.errno in (errno.EOPNOTSUPP, errno.ENOTTY):
            return None
        hint = "run as root" if err.errno == errno.EPERM else ""
        raise SnapshotError(f"cannot freeze the mounted filesystem: {err.strerror}", hint=hint) from err
    return FROZEN


def _thaw(fd):
    """True if it was frozen until now, False if the guard was faster."""
    try:
        fcntl.ioctl(fd, FITHAW, 0)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return False
    return True


def _syncfs(fd):
    import ctypes  # not at import: the command line does not need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise SnapshotError(f"the mounted filesystem cannot be synced: {os.strerror(number)}")


def _devices_showing(device):
    """Paths of every block device that shows this storage: the loop device, its partitions, others, what is stacked."""
    mine = blocktree.storage(device)
    nodes = blocktree.all_nodes()
    return [node.device_path for node in nodes if blocktree.storage_of_device(node.number).shares(mine)]


def _flush(paths):
    """Write down the dirty pages of block devices, and flush what is below them."""
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as err:  # once failed, a flush says nothing any more, also when it is repeated (rule R2)
            raise SnapshotError(f"{path} cannot be flushed: {err.strerror}") from err
