"""May this device be written? Every refusal is made here, before a byte is written, with both sides and the way out.

    check_target    the questions asked once, when a device becomes a target
    claim           rule R1: the exclusive open that every writer holds for life; its retry is the recovery barrier

What others do with the device is found in deviceusers.py, what lies on it in signature.py.
"""

import fcntl
import os
import time

from qrep import device, deviceusers, signature
from qrep.errors import Refused
from qrep.units import format_size

DEFAULT_LEAF_SIZE = 4096
RETRY_S = 0.05
DRAIN_S = 5.0  # to wait for what a killed process had asked of a device, where a person waits for the answer
OPEN_S = 1.0  # a process that has it open for so long is no passer-by


def check_target(target, *, source, size_needed, overwrite=False, known=False, leaf_size=DEFAULT_LEAF_SIZE, wait_seconds=0):
    """Raise Refused unless `target` may take the content of `source`. Writes nothing. Call it before `claim`.

    target, source: DeviceInfo; source is None when it is on another host.
    size_needed: bytes of the source. overwrite: the operator named this target or said -y. known: it is this volume's
    target already, so what it carries is the replica. leaf_size: bytes, the job's.
    wait_seconds: how long the kernel may still hold it for nobody, or for a passer-by, before it is in use.
    Mounted, in use, read-only and same-device are refused whatever is given. Returns notes for the operator, a list.

    Codes: same-device, target-read-only, target-mounted, target-in-use, target-too-small, sector-size,
    signature, signature-unknown.
    """
    if source is not None:
        _check_other_device(target, source)
    _check_writable(target)
    _check_unused(target, wait_seconds)
    _check_size(target, source, size_needed)
    notes = _check_sectors(target, source, size_needed, leaf_size)
    if not overwrite and not known:
        check_signature(target)
    if target.size > size_needed:
        notes.append(
            f"{target.path} is {format_size(target.size - size_needed)} larger than the source: "
            f"what lies behind byte {size_needed} is not touched and not part of the replica"
        )
    return notes


def claim(info, *, wait_seconds=30):
    """The descriptor to write the device with, held exclusively until it is closed: O_RDWR, O_DIRECT, close-on-exec.

    Block devices: O_EXCL. Image files: flock on this very descriptor. A killed process's writes that are still under
    way keep its claim, so waiting for it is what drains them (rule R1); nothing may be read for recovery before.
    Blocks the calling thread for up to wait_seconds. Raises Refused (target-in-use, naming who holds it; target-mounted;
    target-read-only; wrong-device if it is no longer what was inspected) or QrepError when it cannot be opened.
    """
    if info.read_only:
        _check_writable(info)
    deadline = time.monotonic() + wait_seconds
    while True:
        fd = _try_claim(info)
        if fd is not None:
            break
        if time.monotonic() >= deadline:
            raise _in_use(info, f"still held after {wait_seconds:g} s")
        time.sleep(RETRY_S)
    try:
        device.check_unchanged(info, fd)
        _check_users(info)  # who came while it was waited for: a claim does not keep out a mount through another device over the same bytes
    except BaseException:
        os.close(fd)
        raise
    return fd


def _try_claim(info):
    """An exclusive descriptor, or None while someone else holds the device."""
    if info.kind == "block":
        try:
            return device.open_direct(info, os.O_RDWR | os.O_EXCL)
        except OSError as err:
            if err.errno not in device.HELD:
                raise
            return None
    try:
        fd = device.open_direct(info, os.O_RDWR)
    except OSError as err:
        if err.errno not in device.HELD:
            raise
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # flock keeps out those who ask for it. qemu locks ranges; loop devices and swap lock nothing.
        if deviceusers.record_lock_owner(fd) is None and not deviceusers.users(info):
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _check_other_device(target, source):
    how = deviceusers.same_storage(target, source)
    if how:
        raise Refused(
            f"source {source.path} and target {target.path} are the same storage: {how}",
            code="same-device",
            hint="name another target; no option overrides this",
        )
    point = deviceusers.lies_inside(target, source)
    if point:
        raise Refused(
            f"target {target.path} is a file in {point}, which is on source {source.path}: "
            "each run would change its own source",
            code="same-device",
            hint="put the target on another disk; no option overrides this",
        )


def _check_writable(target):
    if target.read_only:
        raise Refused(
            f"target {target.path} is read-only",
            code="target-read-only",
            hint=f"blockdev --setrw {target.path}, if it is not read-only for a reason"
            if target.kind == "block"
            else "its filesystem is mounted read-only; remount it, or name another target",
        )


def _check_unused(target, wait_seconds):
    _check_users(target)
    # The kernel is the last judge: it also knows other mount namespaces, and claims nobody shows in sysfs. It may still be ending what a killed
    # process had asked of the device; no process has it open then, or one that looks at what was written for a moment, as udev does.
    began, seen = time.monotonic(), None
    while (fd := _try_claim(target)) is None:
        now = time.monotonic()
        seen = (seen or now) if deviceusers.processes(target) else None
        if now - began >= wait_seconds or (seen and now - seen >= OPEN_S):
            raise _in_use(target)
        time.sleep(RETRY_S)
    try:
        _check_users(target)  # who came while it was waited for
    finally:
        os.close(fd)


def _check_users(target):
    users = deviceusers.users(target)
    mounted = [user for user in users if user.kind == "mounted"]
    if mounted:
        point = mounted[0].what
        raise Refused(
            f"target {target.path} is mounted: {mounted[0]}",
            code="target-mounted",
            hint=f"umount {point}, or name another target; no option overrides this",
        )
    if users:
        raise _in_use(target)


def _in_use(info, because=""):
    users = deviceusers.users(info)
    who = [str(user) for user in users] or [f"open in {process}" for process in deviceusers.processes(info)]
    named = "; ".join(who) or "by the kernel, or by a process or mount namespace that cannot be seen from here"
    return Refused(
        f"{info.path} is in use: {named}" + (f" ({because})" if because else ""),
        code="target-in-use",
        hint=deviceusers.way_out(users) or "stop what uses it, or name another target; no option overrides this",
    )


def _check_size(target, source, size_needed):
    if target.size < size_needed:
        side = f"source {source.path}" if source is not None else "the source"
        missing = size_needed - target.size
        grow = f"truncate -s {size_needed} {target.path}" if target.kind == "file" else "grow it"
        raise Refused(
            f"target {target.path} is {target.size} bytes ({format_size(target.size)}), {side} is {size_needed} "
            f"({format_size(size_needed)}): {missing} bytes too small",
            code="target-too-small",
            hint=f"{grow}, or name a target of at least {size_needed} bytes",
        )


def _check_sectors(target, source, size_needed, leaf_size):
    """Refuse sizes that cannot be written or read in whole sectors; say what a larger sector means for the content."""
    for side, info in (("target", target), ("source", source)):
        if info is not None and leaf_size % info.io_alignment:
            raise Refused(
                f"{side} {info.path} is written in units of {info.io_alignment} bytes, the job's leaf is {leaf_size}",
                code="sector-size",
                hint=f"give the volume a leaf of {info.io_alignment} bytes or a multiple of it",
            )
    if size_needed % target.io_alignment:
        side = f"source {source.path}" if source is not None else "the source"
        fitting = _largest_power_of_two(size_needed, target.io_alignment)
        smaller = f"name a target with sectors of {fitting} bytes, or " if fitting >= 512 else ""
        raise Refused(
            f"{side} is {size_needed} bytes, which is not a whole number of the {target.io_alignment}-byte sectors of "
            f"target {target.path}: its last {size_needed % target.io_alignment} bytes could not be written",
            code="sector-size",
            hint=f"{smaller}make the source a multiple of {target.io_alignment} bytes",
        )
    if source is not None and target.logical_sector_size > source.logical_sector_size:
        return [
            f"source {source.path} has {source.logical_sector_size}-byte sectors, target {target.path} has "
            f"{target.logical_sector_size}: the bytes are replicated exactly, but a partition table or a filesystem "
            f"made for smaller sectors cannot be used on the target itself; attach it with "
            f"losetup -b {source.logical_sector_size}"
        ]
    return []


def _largest_power_of_two(size, below):
    """The largest sector size below `below` that divides `size`, for a hint; 1 if it is odd."""
    unit = below
    while unit > 1 and size % unit:
        unit //= 2
    return unit


def check_signature(target):
    """Raise Refused (signature, signature-unknown) if a target carries what somebody else put there. Opens it for reading."""
    try:
        found = signature.probe(target.real_path)
    except signature.CannotProbe as err:
        raise Refused(
            f"cannot tell what is on target {target.path}: {err}",
            code="signature-unknown",
            hint="install util-linux, or give -y if its content may be overwritten",
        ) from err
    if found:
        raise Refused(
            f"target {target.path} is not qrep's and carries {found}",
            code="signature",
            hint="give -y if its content may be overwritten, or name another target",
        )


def check_still_the_volume(name, stored, info):
    """Raise Refused unless the device is the one the volume `name` was made with. stored: its `identity`."""
    differences = device.same_identity(stored, device.identity(info))
    if differences:
        raise Refused(
            f"{info.path} is not the device of volume {name}: {'; '.join(map(str, differences))}",
            code="wrong-device",
            hint=f"attach the right device, or qrep volume remove {name} and add it again",
        )
