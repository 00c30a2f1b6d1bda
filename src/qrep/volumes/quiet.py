"""Bring a device's content to rest for a moment: mounted filesystems frozen, dirty pages written down.

A filesystem that stays frozen stops everything that writes to it, so each freeze is guarded by a process of its own
(thawguard.py) which thaws when this one dies or takes too long.
"""

import contextlib
import errno
import fcntl
import os
import sys
from pathlib import Path

from qrep import blocktree, deviceusers
from qrep.crashpoint import crashpoint
from qrep.volumes.base import APPLICATION, CRASH, SnapshotError

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
GUARD = Path(__file__).with_name("thawguard.py")
FROZEN, THEIRS = "frozen", "theirs"


@contextlib.contextmanager
def quiet(device, options, quieted=""):
    """While inside, no filesystem on `device` (DeviceInfo) changes, and what it had written is in the backing file. Gives its consistency.

    quieted: the consistency that the caller has brought it to already; then only what was written is written down.

    Covers filesystems mounted on it, on its partitions or on what is stacked on it, as far as this mount namespace
    shows them. One that cannot be frozen is synced instead. One that someone else has frozen is left to them.
    Raises SnapshotError when flushing fails, and at the end when it took longer than options.limit_s: then filesystems may
    have been written meanwhile, and what was made inside must be thrown away.
    """
    limit_s = options.limit_s
    if quieted:
        _flush(_devices_showing(device))
        crashpoint("snapshot-frozen")
        yield quieted
        return
    with contextlib.ExitStack() as stack:
        fds = [_open_mounted(stack, mounts) for mounts in _filesystems(device)]
        for fd in fds:
            _syncfs(fd)  # the bulk is written while others still may write, so that they wait only for the rest
        showing = _devices_showing(device)
        guard = stack.enter_context(_guard(fds, limit_s)) if fds else None
        ours, frozen, held = [], [], 0  # held: by someone else
        try:
            for fd in fds:
                ours.append(fd)  # before: an interrupt may come between the freeze and its result
                result = _freeze(fd)
                if result is FROZEN:
                    frozen.append(fd)
                else:
                    ours.remove(fd)
                    held += result is THEIRS
            _flush(showing)
            crashpoint("snapshot-frozen")
            yield APPLICATION if fds and len(frozen) + held == len(fds) else CRASH
        finally:
            late = [fd for fd in reversed(ours) if not _thaw(fd) and fd in frozen]
            if guard:
                with contextlib.suppress(BrokenPipeError):  # someone killed the guard; all is thawed anyway
                    guard.stdin.write(b"d")
        if late:
            raise SnapshotError(
                f"{device.path}: its filesystem was frozen for more than {limit_s:g} s and was thawed before the "
                f"snapshot was complete",
                code="snapshot-too-slow",
                hint="try again when the disk below is less busy",
            )


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


@contextlib.contextmanager
def _guard(fds, limit_s):
    """A standing thawguard process for these descriptors."""
    import subprocess  # not at import: the command line does not need it

    command = [sys.executable, "-IS", str(GUARD), str(limit_s), *map(str, fds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, pass_fds=fds, start_new_session=True
    ) as process:
        if process.stdout.read(1) != b"r":
            raise SnapshotError(
                "the guard that would thaw the filesystem did not start", hint=f"check {sys.executable}"
            )
        yield process


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
