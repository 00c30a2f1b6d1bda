"""The other end of source lanes, written in Python over the frame codec: it believes nothing and rebuilds the volume."""

import os
import socket
import threading

from qrep._native import hasher, wire
from qrep._native.connection import Connection
from qrep._native.pack import Unpacker

ATTEMPT, SESSION, KEY = 0x1122334455667788, 3, bytes(range(32))
# The volume of the tests of connections; its last granule is short.
LEAF, GRANULE = 4096, 256 << 10
GEOMETRY = wire.Geometry(40 * GRANULE + 3 * LEAF, LEAF, GRANULE)
STATE_HASHED, STATE_ZERO, STATE_SLOT, STATE_VALUE, STATE_PAGE = 1, 2, 0x10, 0x20, 0x40


class Peer(threading.Thread):
    """Serves one connection: checks every frame and digest, applies it to `image`, answers END.

    receive(size) -> bytes, short at the end of the stream. send(bytes). stop_after: hang up after so many frames. features: what they may use.
    """

    def __init__(self, geometry, image, receive, send, index=0, *, stop_after=None, on_frame=None, features=()):
        super().__init__()
        self.geometry, self.image, self.receive, self.send = geometry, image, receive, send
        self.reader = wire.FrameReader(geometry, ATTEMPT, SESSION, index, KEY, features)
        self.unpacker = Unpacker()
        self.writer = wire.FrameWriter(geometry, ATTEMPT, SESSION, index | wire.ANSWER, KEY)
        self.stop_after, self.on_frame = stop_after, on_frame
        self.copies = 0  # leaves
        self.open = None  # the granule whose last frame has not come
        self.frames, self.last, self.bytes, self.error, self.ended = [], {}, 0, None, False
        self.start()

    def run(self):
        try:
            while not self.ended and len(self.frames) != self.stop_after:
                self.serve_one()
        except (wire.FrameDamaged, wire.FrameStale, wire.FrameInvalid, AssertionError, EOFError, OSError) as err:
            self.error = err

    def exactly(self, size):
        data = self.receive(size)
        self.bytes += len(data)
        if len(data) != size:
            raise EOFError(f"{len(data)} of {size} bytes")
        return data

    def serve_one(self):
        frame = self.reader.header(self.exactly(wire.HEADER_SIZE))
        self.frames.append(frame)
        if frame.kind == wire.END:
            self.ended = True
            self.send(self.writer.end())
            return
        assert self.open in (None, frame.granule) and not (self.open is not None and frame.kind == wire.ZERO), f"{frame} within granule {self.open}"
        self.open = None if frame.flags & wire.LAST else frame.granule
        {wire.FULL: self.apply_full, wire.RUNS: self.apply_runs, wire.ZERO: self.apply_zero}[frame.kind](frame)
        for granule in range(frame.granule, frame.granule + (frame.span if frame.kind == wire.ZERO else 1)):
            assert granule not in self.last, f"granule {granule} goes on after its last frame"
            if frame.flags & wire.LAST:
                self.last[granule] = frame.value
        if self.on_frame:
            self.on_frame(frame)

    def put(self, frame, first, data):
        start = frame.granule * self.geometry.granule_size + first * self.geometry.leaf_size
        assert start + len(data) <= self.geometry.size
        self.image[start : start + len(data)] = data
        return start

    def data_of(self, frame):
        data = self.exactly(frame.data_size)
        return self.unpacker.unpack(data, frame.span) if frame.flags & wire.PACKED else data

    def apply_full(self, frame):
        data = self.data_of(frame)
        start = self.put(frame, frame.first_leaf, data)
        assert hasher.subtree(data, start, self.geometry.leaf_size) == frame.digest, "digest of a FULL frame"

    def apply_runs(self, frame):
        table = self.exactly(frame.run_count * wire.RUN_SIZE)
        runs = self.reader.runs(frame, table)
        data, position, values = self.data_of(frame), 0, b""
        leaf_size = self.geometry.leaf_size
        granule_start = frame.granule * self.geometry.granule_size
        carried = {}  # leaf -> bytes
        for run in runs:
            size = min(run.count * leaf_size, self.geometry.size - granule_start - run.first * leaf_size)
            if run.zero:
                self.put(frame, run.first, bytes(size))
                continue
            if run.copy_of is not None:
                part = b"".join(carried[run.copy_of + i] for i in range(run.count))
                self.copies += run.count
            else:
                part = data[position : position + size]
                position += size
                carried.update((run.first + i, part[i * leaf_size : (i + 1) * leaf_size]) for i in range(run.count))
            start = self.put(frame, run.first, part)
            leaves = bytearray(32 * run.count)
            for i in range(run.count):
                leaf = part[i * leaf_size : (i + 1) * leaf_size]
                leaves[32 * i : 32 * i + 32] = hasher.subtree(leaf, start + i * leaf_size, leaf_size)
            values += leaves
        assert hasher.hash(table + values) == frame.digest, "digest of a RUNS frame"

    def apply_zero(self, frame):
        start = frame.granule * self.geometry.granule_size
        size = min(frame.span * self.geometry.granule_size, self.geometry.size - start)
        self.image[start : start + size] = bytes(size)

    def close(self):
        """Join; then raise what went wrong here, so that a test fails for the reason."""
        self.join(30)
        assert not self.is_alive(), "the peer still waits for the source"
        if self.error:
            raise self.error


def receive_all(sock):
    """receive(size) of a socket-like object."""

    def receive(size):
        data = bytearray(size)
        done = 0
        with memoryview(data) as view:
            while done < size:
                got = sock.recv_into(view[done:])
                if got == 0:
                    break
                done += got
        return bytes(data[:done])

    return receive


def map_of(data, geometry):
    """States, values and leaf pages (a bytes of the whole `leaves` file) of a map that knows `data` exactly, pages in slot 0."""
    states, values = bytearray(geometry.granules), bytearray(32 * geometry.granules)
    pages = bytearray(2 * geometry.granules * geometry.leaf_page_size)
    for granule in range(geometry.granules):
        start = granule * geometry.granule_size
        part = bytes(data[start : start + geometry.granule_bytes(granule)])
        leaves = bytearray(32 * geometry.granule_leaves(granule))
        values[32 * granule : 32 * granule + 32] = hasher.subtree(part, start, geometry.leaf_size, leaves)
        states[granule] = STATE_HASHED | STATE_VALUE | STATE_PAGE
        offset = geometry.leaf_page_offset(granule, 0)
        pages[offset : offset + len(leaves)] = leaves
    return states, values, pages


CONNECTION_KINDS = ["socketpair", "tcp", "zero copy", "pipes", "stream"]


class Transport:
    """Both ends of one connection: `connection` for the lane, receive and send for the peer, hang_up() to cut it."""

    def __init__(self, kind, index, undo_after, **options):
        if kind == "pipes":
            from_source, to_peer = os.pipe()
            from_peer, to_source = os.pipe()
            peer_ends = {from_source, to_source}
            for descriptor in (to_peer, from_peer):
                undo_after.callback(os.close, descriptor)
            self.connection = Connection.pipes(from_peer, to_peer, index, **options)
            self.receive, self.send = lambda size: read_exactly(from_source, size), lambda data: os.write(to_source, data)
            self.hang_up = lambda: [os.close(peer_ends.pop()) for _ in range(len(peer_ends))]
            self.cut = lambda: None
        else:
            ours, theirs = socket.socketpair() if kind in ("socketpair", "stream") else tcp()
            undo_after.callback(ours.close)
            self.connection = (Connection.stream(ours, index, **options) if kind == "stream" else
                               Connection.socket(ours.fileno(), index, zero_copy=kind == "zero copy", **options))  # fmt: skip
            self.receive, self.send, self.hang_up = receive_all(theirs), theirs.sendall, theirs.close
            self.cut = lambda: ours.shutdown(socket.SHUT_RDWR)
        undo_after.callback(self.hang_up)


def tcp():
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


def read_exactly(descriptor, size):
    data = bytearray()
    while len(data) < size:
        part = os.read(descriptor, size - len(data))
        if not part:
            break
        data += part
    return bytes(data)
