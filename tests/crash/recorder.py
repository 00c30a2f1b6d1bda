"""A filesystem below qrep that records what happens to it, in order and with its data: system calls, io_uring's requests, O_DIRECT, whatever writes.

    with Recorder(directory) as recorder:
        ...                          # files below recorder.path
        recorder.mark("committed")
    records = recorder.records()
"""

import contextlib
import os
import struct
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("crashfs.c")
WRITE, ZERO, SIZE, SYNC, MAKE, MAKE_DIRECTORY, RENAME, REMOVE, SYNC_DIRECTORY = range(1, 10)
MARK = 0
ROOT = 1  # number of the directory that is mounted
_HEAD = struct.Struct("<IIQQQQII")
MARKS = ".mark"
MOUNT_S = 30.0


class Record(NamedTuple):
    """kind: above. node, directory: numbers. offset, size: bytes. names: of MAKE, REMOVE (name,), of RENAME (old, new), of MARK (text,). durable: an
    O_DSYNC write."""

    kind: int
    node: int = 0
    directory: int = 0
    offset: int = 0
    size: int = 0
    durable: bool = False
    names: tuple = ()
    data: bytes = b""


def build(directory):
    """Compile the filesystem; returns its path."""
    program = Path(directory) / "crashfs"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True).stdout.split()
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, SOURCE, *flags], check=True)
    return program


class Recorder:
    """One mount in `directory`, with the log beside it. program: of build(). preallocates: whether fallocate() of blocks is offered."""

    def __init__(self, directory, program, *, preallocates=False):
        self.path, self.log = Path(directory) / "mount", Path(directory) / "log"
        self.path.mkdir(parents=True)
        self._process = subprocess.Popen([program, self.log, "1" if preallocates else "0", self.path])
        try:
            deadline = time.monotonic() + MOUNT_S
            while not os.path.ismount(self.path):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the recording filesystem could not be mounted")
                time.sleep(0.005)
            self._marks = os.open(self.path / MARKS, os.O_RDWR | os.O_CREAT, 0o600)
        except BaseException:
            self._end()
            raise

    def mark(self, text):
        os.pwrite(self._marks, text.encode(), 0)

    def position(self):
        """Bytes of the log as of now: what happens from here on is behind it."""
        return self.log.stat().st_size

    def records(self, begin=0, end=None):
        """Those between two positions."""
        with open(self.log, "rb") as file:
            file.seek(begin)
            return list(understood(file.read() if end is None else file.read(end - begin)))

    def close(self):
        os.close(self._marks)
        self._end()

    def _end(self):
        for _ in range(200):  # something may look at it for a moment
            if not os.path.ismount(self.path) or not subprocess.run(["umount", self.path], capture_output=True, check=False).returncode:
                break
            time.sleep(0.05)
        for end in (self._process.terminate, self._process.kill):  # another mount namespace may have a copy of the mount, and would keep it alive
            try:
                self._process.wait(2)
                break
            except subprocess.TimeoutExpired:
                end()
        self._process.wait()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def understood(data):
    """Records of a log. What is written to the file of marks becomes MARK."""
    at, marks = 0, None
    while at < len(data):
        kind, durable, node, directory, offset, size, name_size, data_size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        names = tuple(data[at : at + name_size].decode().split("\0")) if name_size else ()
        at += name_size
        content = data[at : at + data_size]
        at += data_size
        if kind == MAKE and names == (MARKS,):
            marks = node
        elif marks is not None and node == marks:
            if kind == WRITE:
                yield Record(MARK, names=(content.decode(),))
        else:
            yield Record(kind, node, directory, offset, size, bool(durable), names, content)
