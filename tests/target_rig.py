"""A source of frames in Python, and a target of one lane to send them to. What they say of each other is checked by the tests."""

import contextlib
import os
import random
import socket
import struct
import threading

from qrep._native import disk, hasher
from qrep._native.connection import Connection
from qrep._native.target_lane import TargetRun
from qrep._native.wire import ANSWER, END, HEADER_SIZE, LAST, FrameReader, FrameWriter, Geometry

KIB, MIB = 1 << 10, 1 << 20
LEAF = 4 * KIB
GRANULE = 256 * KIB
KEY = bytes(range(32))
ATTEMPT, SESSION = 0x1234, 5
BASE_ID, NEW_ID, VOLUME_ID = b"b" * 16, b"n" * 16, b"v" * 16
SEGMENT = disk.UNDO_SEGMENT_SIZE
UNKNOWN, HASHED, IS_ZERO = 0, 1, 2
SLOT, HAS_VALUE, HAS_PAGE = 0x10, 0x20, 0x40


def random_bytes(random_source, size):
    return bytearray(random_source.randbytes(size))


def granule_value(geometry, content, granule):
    """The chaining value of a granule of the volume whose bytes are `content`."""
    start = granule * geometry.granule_size
    data = bytes(content[start:start + geometry.granule_bytes(granule)])
    return hasher.subtree(data, start, geometry.leaf_size)


def table_entry(first, count, zero, copy_of=None):
    """8 bytes of a run table."""
    flags = 0x80000000 if zero else 0x40000000 | copy_of << 16 if copy_of is not None else 0
    return first.to_bytes(4, "little") + (count | flags).to_bytes(4, "little")


def sealed(*, kind=1, flags=3, run_count=0, granule=1, attempt=ATTEMPT, session=SESSION, sequence=0, data_size=4 * LEAF, first_leaf=0,
           digest=bytes(32), value=bytes(32), span=0, connection=0, magic=0x50455251, version=1):
    """A header with these fields, whatever they are, and the right tag."""
    head = struct.pack("<IHHIIQQQQII32s32sII", magic, version, kind, flags, run_count, granule, attempt, session, sequence, data_size,
                       first_leaf, digest, value, span, connection)
    assert len(head) == HEADER_SIZE - 32
    return head + hasher.keyed(KEY, head)


class FrameSource:
    """Makes frames of a volume's content (a mutable buffer of its size) and sends them with `send(bytes)`."""

    def __init__(self, send, geometry, content, *, attempt=ATTEMPT, session=SESSION, connection=0, key=KEY, features=()):
        self.send, self.geometry, self.content = send, geometry, content
        self.writer = FrameWriter(geometry, attempt, session, connection, key, features)

    def value(self, granule):
        return granule_value(self.geometry, self.content, granule)

    def node(self, granule, first, count):
        start = granule * self.geometry.granule_size + first * self.geometry.leaf_size
        end = min(start + count * self.geometry.leaf_size, self.geometry.size)
        return start, bytes(self.content[start:end])

    def full(self, granule, first=0, count=None, *, last=True, value=None, digest=None, pack=None):
        """pack: a function that makes of the data what travels; then the frame says PACKED."""
        count = self.geometry.granule_leaves(granule) - first if count is None else count
        start, data = self.node(granule, first, count)
        digest = digest or hasher.subtree(data, start, self.geometry.leaf_size)
        value = (value or self.value(granule)) if last else None
        size, data = len(data), pack(data) if pack else data
        self.send(self.writer.full(granule, first, size, digest, LAST if last else 0, value, packed=len(data) if pack else 0) + data)

    def runs_parts(self, granule, runs):
        """Data and digest of runs given as (first, count, zero) or (first, count, False, copy_of)."""
        data, values = b"", b""
        for first, count, zero, *copy_of in runs:
            for leaf in range(first, first + count):
                start, piece = self.node(granule, leaf, 1)
                if zero:
                    assert not any(piece)
                    continue
                data += piece if copy_of in ([], [None]) else b""
                values += hasher.subtree(piece, start, self.geometry.leaf_size)
        return data, hasher.hash(b"".join(table_entry(*run) for run in runs) + values)

    def runs(self, granule, runs, *, last=True, value=None, digest=None, pack=None):
        data, right = self.runs_parts(granule, runs)
        value = (value or self.value(granule)) if last else None
        size, data = len(data), pack(data) if pack else data
        self.send(self.writer.runs(granule, runs, size, digest or right, LAST if last else 0, value, packed=len(data) if pack else 0) + data)

    def zero(self, granule, span=1):
        self.send(self.writer.zero(granule, span, LAST))

    def end(self):
        self.send(self.writer.end())


class Target:
    """A device, its undo file and a run; serve() starts a lane on its own thread.

    device: path. content: what it held before, which is written to it unless it is None.
    """

    def __init__(self, directory, device, content, size=None, *, leaf_size=LEAF, granule_size=GRANULE, undo=True, sector_size=512,
                 is_file=True, leaves=True, undo_path=None, **options):
        size = size or len(content)
        self.geometry = Geometry(size, leaf_size, granule_size)
        self.device_path, self.open_files = os.fspath(device), []
        self.device_fd = self.open(device, os.O_RDWR | os.O_DIRECT)
        if content is not None:
            with open(device, "r+b") as file:
                file.write(content)
        self.undo_path = undo_path or os.path.join(directory, "undo")
        self.undo_fd = self.open(self.undo_path, os.O_RDWR | os.O_CREAT | os.O_DIRECT) if undo else -1
        self.leaves_fd = self.open(os.path.join(directory, "leaves"), os.O_RDWR | os.O_CREAT) if leaves else -1
        self.base_states = options.pop("base_states", bytes(self.geometry.granules))
        self.base_values = options.pop("base_values", bytes(32 * self.geometry.granules))
        options = {"undo_limit": 1 << 40, "base_id": BASE_ID, "slots": 2} | options
        self.run = TargetRun(
            self.geometry, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=sector_size, base_states=self.base_states,
            base_values=self.base_values, leaves_fd=self.leaves_fd, undo_fd=self.undo_fd, is_file=is_file, **options)
        self.is_file = is_file

    def open(self, path, flags):
        fd = os.open(path, flags, 0o600)
        self.open_files.append(fd)
        return fd

    def close(self):
        while self.open_files:
            os.close(self.open_files.pop())

    def serve(self, content, *, kind="socket", index=0, **identity):
        """A Session: a lane on a thread, and the FrameSource that feeds it."""
        return Session(self, content, kind, index, identity)

    @property
    def device(self):
        with open(self.device_path, "rb") as file:
            return file.read(self.geometry.size)

    def undo_header(self):
        return disk.UndoHeader(volume_id=VOLUME_ID, base_id=BASE_ID, new_id=NEW_ID, attempt=ATTEMPT, size=self.geometry.size)

    def value(self, granule):
        return bytes(self.run.fresh_values[32 * granule:32 * granule + 32])


class Session:
    """One lane that serves one connection. `source` sends to it; finish() ends in order, result() is what lane() returned."""

    def __init__(self, target, content, kind, index, identity):
        self.ours, self.theirs = socket.socketpair()
        self.target, self.index = target, index
        connection = {
            "socket": lambda: Connection.socket(self.theirs.fileno(), index),
            "stream": lambda: Connection.stream(self.theirs, index),
            "pipes": lambda: Connection.pipes(self.theirs.fileno(), self.theirs.fileno(), index),
        }[kind]()
        self.source = FrameSource(self.send, target.geometry, content, connection=index, **identity)
        self.rc = None
        self.thread = threading.Thread(target=self.work, args=(connection, index))
        self.thread.start()

    def work(self, connection, index):
        self.rc = self.target.run.lane(self.target.device_fd, connection, index)
        if self.rc:  # what an agent does with a connection of no use; the lane itself only shuts down plain sockets
            with contextlib.suppress(OSError):
                self.theirs.shutdown(socket.SHUT_RDWR)

    def send(self, data):
        try:
            self.ours.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the target refused and hung up; what the test asserts is the target's verdict

    def result(self, timeout=5):
        self.thread.join(timeout)
        if self.thread.is_alive():
            self.hang_up()
            self.thread.join(timeout)
            raise AssertionError("the lane did not return by itself")
        self.ours.close()
        self.theirs.close()
        return self.rc

    def finish(self):
        """End in order: the target must answer with an END of its own."""
        self.source.end()
        self.ours.settimeout(20)
        answer = b""
        while len(answer) < HEADER_SIZE:
            piece = self.ours.recv(HEADER_SIZE - len(answer))
            if not piece:
                return self.result() or "no END came"
            answer += piece
        frame = FrameReader(self.target.geometry, ATTEMPT, SESSION, self.index | ANSWER, KEY).header(answer)
        assert frame.kind == END
        return self.result()

    def hang_up(self):
        self.ours.close()


def mixed_content(seed, size):
    """Bytes with zero leaves in between, so that before-images of both kinds occur."""
    source = random.Random(seed)
    content = bytearray(source.randbytes(size))
    for start in range(0, size, LEAF):
        if source.random() < 0.3:
            end = min(start + LEAF, size)
            content[start:end] = bytes(end - start)
    return content
