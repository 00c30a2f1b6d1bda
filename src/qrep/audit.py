"""The audit log: every event that was told, one line each, each with the BLAKE3 of the line before and of itself, appended and never changed.

    1f0c... {"n": 42, "time": ..., "code": "pair-created", ...}

A line that was changed, taken out or put in breaks the chain there, and `qrep check` says where. What was cut off at the end, and a log that was made
anew as a whole, is told only by comparing `head` with what somebody else kept of it: the service log has it from every start of the agent.

It is evidence, not state: nothing is decided by it, it is not flushed line by line (a power cut may take the last ones), and where it cannot be written
the agent says so and goes on. audit.log is at most SIZE_MAX and has one predecessor, audit.log.1, whose chain it goes on with.
"""

import contextlib
import json
import logging
import os
import threading

from qrep._native import hasher

NAME, OLDER = "audit.log", "audit.log.1"
SIZE_MAX = 16 << 20  # bytes
LINE_MAX = 64 << 10
BEGIN = "0" * 64
log = logging.getLogger("qrep.agent")


def chained(before, body):
    """What a line begins with: before: that of the line before it, in hexadecimal digits; body: bytes."""
    return hasher.hash(bytes.fromhex(before) + body).hex()


def _split(line):
    """(chain, body) of a whole line; ("", b"") of what is none."""
    chain, _space, body = line.rstrip(b"\n").partition(b" ")
    good = line.endswith(b"\n") and len(chain) == 64 and set(chain) <= set(b"0123456789abcdef") and body.startswith(b"{")
    return (chain.decode(), body) if good else ("", b"")


def _body(event):
    body = json.dumps(event, separators=(",", ":")).encode()
    if len(body) > LINE_MAX - 128:  # more extents than a line has room for
        body = json.dumps(event | {"data": "too long for a line"}, separators=(",", ":")).encode()
    return body


class AuditLog:
    """Thread-safe. directory: a store.Directory. head: of the newest line, count: its number."""

    def __init__(self, directory):
        self._directory, self._lock, self._warned = directory, threading.Lock(), False
        self.head, self.count = BEGIN, 0
        self._descriptor = directory.open(NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._size = os.fstat(self._descriptor).st_size
        self._take_up(self._descriptor)
        if not self._size and OLDER in directory.names():  # it ended between the renaming and the first line
            older = directory.open(OLDER)
            try:
                self._take_up(older)
            finally:
                os.close(older)

    def _take_up(self, descriptor):
        """Go on with the last whole line. What a power cut left behind it was never a record."""
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, LINE_MAX, max(0, size - LINE_MAX))
        end = tail.rfind(b"\n") + 1
        if descriptor == self._descriptor and end < len(tail):
            self._size = size - (len(tail) - end)
            os.ftruncate(descriptor, self._size)
        chain, body = _split(tail[tail.rfind(b"\n", 0, end - 1) + 1 : end]) if end else ("", b"")
        number = _number(body) if chain else None
        if number is not None:
            self.head, self.count = chain, number
        elif end:
            log.warning("%s/%s: its last line cannot be read; the chain begins anew behind it", self._directory.path, NAME)

    def add(self, event):
        """One more line. event: a dict that JSON can have. Does not raise for what the disk does."""
        with self._lock:
            body = _body({"n": self.count + 1} | event)
            chain = chained(self.head, body)
            line = f"{chain} ".encode() + body + b"\n"
            try:
                if self._size + len(line) > SIZE_MAX:
                    self._turn()
                written = os.write(self._descriptor, line)
                if written != len(line):
                    os.ftruncate(self._descriptor, self._size)
                    raise OSError("no room for a whole line")
            except OSError as err:
                if not self._warned:
                    log.warning("%s/%s cannot be written: %s", self._directory.path, NAME, err)
                self._warned = True
                return
            self.head, self.count, self._size, self._warned = chain, self.count + 1, self._size + len(line), False

    def _turn(self):
        """Begin a new file. Raises OSError where none can be made: the old one has its new name then, takes no more, and this is tried again."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(NAME, OLDER, src_dir_fd=self._directory.descriptor, dst_dir_fd=self._directory.descriptor)
        new = self._directory.open(NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.close(self._descriptor)  # not sooner: what is opened next may have its number, and lines would be written there
        self._descriptor, self._size = new, 0

    def close(self):
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def verify(directory):
    """(lines, head, [(file, line number, what is wrong)]) of the audit log in a directory, by reading it. No log: (0, BEGIN, []). Raises OSError.

    The agent may go on writing: a last line that is not whole yet is none, and where a new file was begun meanwhile it is read once more.
    """
    for _ in range(3):
        before = _identity(directory)
        found = _read(directory)
        if not found[2] or _identity(directory) == before:
            break
    return found


def _identity(directory):
    try:
        return os.stat(os.path.join(directory, NAME), follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _read(directory):
    count, before, number, wrong = 0, None, None, []
    for name in (OLDER, NAME):
        path = os.path.join(directory, name)
        try:
            file = open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC))
        except FileNotFoundError:
            continue
        with file:
            for at, line in enumerate(iter(lambda file=file: file.readline(2 * LINE_MAX), b""), 1):
                chain, body = _split(line)
                if not chain:
                    if line.endswith(b"\n") or name == OLDER:
                        wrong.append((path, at, "not a line of this log"))
                    continue
                told = _number(body)
                # The oldest line that is kept may have had one before it that is not.
                expected = BEGIN if before is None and told == 1 else before
                if expected is not None and chain != chained(expected, body):
                    wrong.append((path, at, "it is not the line that was written behind the one before it"))
                elif number is not None and told != number + 1:
                    wrong.append((path, at, f"line {told} of all follows on line {number}"))
                count, before, number = count + 1, chain, told
    return count, before or BEGIN, wrong


def _number(body):
    """What a line says that its number is, None where it says nothing that could be one."""
    try:
        number = json.loads(body)["n"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return number if type(number) is int else None
