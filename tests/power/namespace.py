"""A mount namespace of this process's own, whose mounts nobody else gets a copy of: a copy would keep a filesystem alive after its power was cut."""

import contextlib
import ctypes
import os
import re
import tempfile
from pathlib import Path

CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x00020000, 0x4000, 1 << 18, 2


def enter():
    """For this thread and all processes it starts, for good. What other tests have mounted, and their network namespaces, are not kept alive by it. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(result):
        if result:
            number = ctypes.get_errno()
            raise OSError(number, f"a mount namespace: {os.strerror(number)}")

    call(libc.unshare(CLONE_NEWNS))
    call(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
    for point in reversed(mount_points()):
        if any(Path(place) in Path(point).parents for place in ("/dev/shm", "/run/netns", tempfile.gettempdir())):
            with contextlib.suppress(FileNotFoundError):  # its place was removed meanwhile, and the copy with it
                call(libc.umount2(point.encode(), MNT_DETACH))


def mount_points():
    """All of this namespace, in the order of mounting."""
    places = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), place) for place in places]
