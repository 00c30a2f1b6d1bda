"""What a process of ours without rights is started with: its environment, the user it becomes; and what the kernel says of its rights."""

import contextlib
import os
import pwd
import sys

from qrep.errors import Refused, UsageError

USERS = ("qrep", "nobody")  # who it is, the first that exists


def environment():
    """What it needs of ours: where Python finds its modules; not the directory we happen to stand in."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path and os.path.exists(path))}


def user(name):
    """(uid, gid) it becomes; (0, 0) when we are not root and it cannot change."""
    if os.geteuid() != 0:
        return 0, 0
    for each in [name] if name else USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(each)
            if entry.pw_uid == 0 or entry.pw_gid == 0:
                raise Refused(f"[node] user = {each}: that is root", hint="name a user without rights", code="front-user")
            return entry.pw_uid, entry.pw_gid
    raise UsageError(f"there is no user {name or ' or '.join(USERS)} here", hint="[node] user in qrep.toml names the one to be", code="front-user")


def rights(pid):
    """Of a process, from the kernel; None if it has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return {
        "uid": int(lines["Uid"].split()[1]), "capabilities": int(lines["CapEff"], 16) | int(lines["CapPrm"], 16),
        "no_new_privileges": lines["NoNewPrivs"] == "1", "seccomp": lines["Seccomp"] == "2",
    }  # fmt: skip
