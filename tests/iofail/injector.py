"""Control of interpose.c: which calls of which files are watched, which one fails, and how.

    library = build(directory)                     # compiled; the process is then started with LD_PRELOAD=library
    injector = Injector(library, root)             # in that process
    injector.arm(Point(...))                       # in a fork of it
    injector.hits                                  # in either
"""

import ctypes
import errno
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
OPS = ("read", "write", "flush", "dirflush", "allocate", "truncate", "rename", "open", "create", "unlink", "mkdir")
HOWS = ("fail", "late", "torn", "short", "zero", "lose", "blank")
LASTINGS = ("once", "always", "place")
CLASSES = ("source", "device", "undo", "superblock", "target-map", "source-map", "record", "statedb")
TARGET_SIDE = {"device", "undo", "superblock", "target-map"}
PATTERNS = (  # fnmatch on the path below the root; the first that fits
    ("source", "source"), ("device", "device"), ("target/undo/*", "undo"), ("target/undo", "undo"), ("target/superblock*", "superblock"),
    ("target/map/*", "target-map"), ("target/map", "target-map"), ("sources/*/map/*", "source-map"), ("sources/*/map", "source-map"),
    ("records/db*", "statedb"), ("target", "record"), ("target/*", "record"), ("sources*", "record"), ("records*", "record"),
)  # fmt: skip
EVENTS = len(CLASSES) * len(OPS)


class Way(NamedTuple):
    """How a call fails. harmless: what is done again or gone on with, so that nobody notices."""

    how: str
    error: int = 0
    lasting: str = "once"
    harmless: bool = False


WAYS = {
    "eio": Way("fail", errno.EIO), "eio-always": Way("fail", errno.EIO, "always"), "eio-place": Way("fail", errno.EIO, "place"),
    "enospc": Way("fail", errno.ENOSPC), "enospc-always": Way("fail", errno.ENOSPC, "always"), "unsupported": Way("fail", errno.EOPNOTSUPP, "always"),
    "emfile": Way("fail", errno.EMFILE), "late": Way("late", errno.EIO), "torn": Way("torn", errno.EIO), "lose": Way("lose", errno.EIO),
    "short": Way("short", 0, "once", True), "short-always": Way("short", 0, "always", True), "zero": Way("zero"), "zero-always": Way("zero", 0, "always"),
    "eintr": Way("fail", errno.EINTR, "once", True), "eagain": Way("fail", errno.EAGAIN, "once"),
    "blank": Way("blank"), "blank-always": Way("blank", 0, "always"),  # of canaries: an error that nobody is told of
}  # fmt: skip
OF_OP = {
    "read": ("eio", "eio-always", "eio-place", "short", "short-always", "zero", "eintr", "eagain"),
    "write": ("eio", "eio-always", "eio-place", "enospc", "enospc-always", "late", "torn", "short", "short-always", "zero-always", "eintr", "eagain"),
    "flush": ("eio", "eio-always", "enospc", "lose"),
    "dirflush": ("eio", "enospc"),
    "allocate": ("eio", "enospc", "enospc-always", "unsupported"),
    "truncate": ("eio", "enospc"),
    "rename": ("eio", "eio-always", "enospc", "late"),
    "open": ("eio", "eio-always", "emfile"),
    "create": ("eio", "enospc", "enospc-always", "emfile"),
    "unlink": ("eio", "eio-always"),
    "mkdir": ("eio", "enospc"),
}


class Point(NamedTuple):
    """The nth call of `op` on a file of `kind` in an act fails as `way` says. As text: "second device.write 3 torn"."""

    act: str
    kind: str
    op: str
    nth: int
    way: str

    def __str__(self):
        return f"{self.act} {self.kind}.{self.op} {self.nth} {self.way}"

    @staticmethod
    def of(text):
        act, what, nth, way = text.split()
        kind, op = what.split(".")
        return Point(act, kind, op, int(nth), way)


def build(directory):
    """The library, in this directory."""
    library = Path(directory, "interpose.so")
    command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(HERE / "interpose.c"), "-ldl", "-lpthread"]
    subprocess.run(command, check=True, timeout=120)
    return library


class _Shared(ctypes.Structure):
    _fields_ = [
        ("counts", ctypes.c_uint * len(OPS) * len(CLASSES)), ("hits", ctypes.c_uint), ("voids", ctypes.c_uint), ("after", ctypes.c_uint * len(OPS)),
        ("flush_failed", ctypes.c_int), ("place_offset", ctypes.c_uint64), ("place_size", ctypes.c_uint64),
    ]  # fmt: skip


class Injector:
    """In the process that has the library loaded. root: what lies below it is watched."""

    def __init__(self, library, root):
        self._library = ctypes.CDLL(str(library))
        self._library.iofail_start.restype = ctypes.POINTER(_Shared)
        self.shared = self._library.iofail_start(os.fsencode(os.path.realpath(root))).contents
        for pattern, kind in PATTERNS:
            self._library.iofail_class(pattern.encode(), CLASSES.index(kind), int(kind in TARGET_SIDE))

    def arm(self, point):
        """This process, and no fork of it, is watched from now on."""
        way = WAYS[point.way]
        self._library.iofail_arm(
            CLASSES.index(point.kind), OPS.index(point.op), point.nth, HOWS.index(way.how), way.error, LASTINGS.index(way.lasting)
        )

    def disarm(self):
        self._library.iofail_disarm()

    def over(self, point):
        """In the process that forked: the fork has ended."""

    def counts(self):
        """{(kind, op): calls} of the last process that was watched."""
        return {(kind, op): self.shared.counts[i][j] for i, kind in enumerate(CLASSES) for j, op in enumerate(OPS) if self.shared.counts[i][j]}

    def after_failed_flush(self):
        """{op: calls} on the target's files that came after a flush of one of them had failed."""
        return {op: self.shared.after[i] for i, op in enumerate(OPS) if self.shared.after[i]}
