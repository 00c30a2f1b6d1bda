"""Giving up rights for life; sandbox.h says which and in what order."""

import os

from .check cimport check


def enter(*, uint32_t files, uid_t uid=0, gid_t gid=0, empty_root=None, bint storage=False):
    """Give up everything but the sockets that are open, and new ones of the internet. Call it once, with one thread, everything imported.

    files: descriptors this process may have. uid, gid: who to become, when root. empty_root: a directory to make an empty root in, when root.
    storage: for a server of storage, which needs no socket but those it has, and reads and writes the files it has at an offset.
    Returns what is in force: {"landlock": version or 0, "empty_root": bool, "unprivileged": bool}; no new privileges, no capability and
    seccomp always are. Raises OSError that names the step: end the process then, half of its rights may be gone.
    """
    cdef qrep_sandbox wanted
    cdef qrep_sandbox_state state
    base = None if empty_root is None else os.fsencode(empty_root)
    wanted.uid, wanted.gid, wanted.files, wanted.storage = uid, gid, files, storage
    wanted.empty_root = NULL if base is None else <const char *>base
    cdef int rc = qrep_sandbox_enter(&wanted, &state)
    cdef const char *failed = state.failed
    check(rc, "sandbox" if failed == NULL else failed.decode())
    return {"landlock": state.landlock, "empty_root": state.empty_root != 0, "unprivileged": state.unprivileged != 0}


def kernel():
    """What this machine has of it: {"landlock": version or 0, "seccomp": bool}."""
    return {"landlock": qrep_sandbox_landlock_version(), "seccomp": qrep_sandbox_has_filter() != 0 and _actions_available()}


def _actions_available():
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail") as file:
            return {"allow", "errno", "kill_process"} <= set(file.read().split())
    except FileNotFoundError:
        return False
