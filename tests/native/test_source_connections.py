"""Source lanes over every kind of connection: the same bytes arrive, the rate is kept, and a peer that goes away harms nobody."""

import errno
import os
import socket
import ssl
import threading
import time

import pytest
from source_peer import ATTEMPT, KEY, SESSION, Peer, map_of, receive_all

from qrep._native import wire
from qrep._native.bucket import Bucket
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep._native.wire import Geometry

LEAF, GRANULE = 4096, 256 << 10
SIZE = 40 * GRANULE + 3 * LEAF
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)
GRANULES = GEOMETRY.granules


@pytest.fixture
def device(memory_dir, random_source, undo_after):
    path = memory_dir / "device"
    path.write_bytes(random_source.randbytes(SIZE))
    descriptor = os.open(path, os.O_RDONLY)
    undo_after.callback(os.close, descriptor)
    return descriptor


@pytest.fixture
def make_run(backend):
    def make(states=None, values=None, **options):
        states, values = states or bytes(GRANULES), values or bytes(32 * GRANULES)
        return SourceRun(
            GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512,
            base_states=states, base_values=values, ring_backend=backend, **options,
        )  # fmt: skip

    return make


def contents(device):
    return os.pread(device, SIZE, 0)


class Transport:
    """Both ends of one connection: `connection` for the lane, receive and send for the peer, hang_up() to cut it."""

    def __init__(self, kind, index, undo_after, **options):
        self.stack = undo_after
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


KINDS = ["socketpair", "tcp", "zero copy", "pipes", "stream"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_run_arrives_over_every_kind_of_connection(kind, make_run, device, undo_after):
    run, image = make_run(frame_size=64 << 10), bytearray(SIZE)
    line = Transport(kind, 7, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send, 7)
    assert (run.lane(device, line.connection), run.failure()) == (0, None)
    peer.close()
    assert image == contents(device) and bytes(run.marked) == b"\2" * GRANULES
    assert run.counters()["sent"] == peer.bytes == SIZE + len(peer.frames) * wire.HEADER_SIZE


def test_zero_copy_gives_up_where_the_kernel_says_copied(make_run, device, undo_after):
    run, image = make_run(slots=3), bytearray(SIZE)
    line = Transport("zero copy", 0, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send)
    assert run.lane(device, line.connection) == 0
    peer.close()
    assert image == contents(device)
    counters = run.counters()
    # Loopback always copies: 16 notifications decide, and what was in flight then may still add some. Threads never ask for it.
    assert counters["zc_copied"] == counters["zc_notified"]
    assert counters["zc_notified"] == 0 or 16 <= counters["zc_notified"] < GRANULES


def test_several_lanes_cover_every_granule_exactly_once(make_run, device, undo_after):
    run, image = make_run(), bytearray(SIZE)
    lines = [Transport(kind, index, undo_after) for index, kind in enumerate(["tcp", "pipes", "stream", "socketpair"])]
    peers = [Peer(GEOMETRY, image, line.receive, line.send, index) for index, line in enumerate(lines)]
    results = {}
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, run.lane(device, lines[i].connection, i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for ending in [*threads, *peers]:
        ending.join(60)
    assert [peer.error for peer in peers] == [None] * 4 and results == dict.fromkeys(range(4), 0)
    assert sorted(granule for peer in peers for granule in peer.last) == list(range(GRANULES))
    assert image == contents(device)


@pytest.mark.parametrize("kind", ["tcp", "pipes", "stream"])
def test_the_rate_is_kept(kind, make_run, device, undo_after):
    # 10.01 MiB and headers at 20 MiB/s with 64 KiB of burst: 0.5 s.
    run, image, rate = make_run(), bytearray(SIZE), 20 << 20
    line = Transport(kind, 0, undo_after, bucket=Bucket(rate))
    peer = Peer(GEOMETRY, image, line.receive, line.send)
    started = time.monotonic()
    assert run.lane(device, line.connection) == 0
    seconds = time.monotonic() - started
    peer.close()
    assert image == contents(device)
    least = (peer.bytes - (64 << 10)) / rate
    assert least * 0.999 <= seconds < least + 0.5
    assert run.counters()["wait_limit_ns"] > 0.5 * least * 1e9
    assert line.connection.bucket.taken == peer.bytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_that_hangs_up_in_the_middle_is_a_failure_of_the_connection(kind, make_run, device, undo_after):
    run, image = make_run(frame_size=64 << 10), bytearray(SIZE)
    line = Transport(kind, 0, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send, stop_after=5)
    threading.Thread(target=lambda: (peer.join(), line.hang_up())).start()
    number = run.lane(device, line.connection, 2)
    assert number in (errno.EPIPE, errno.ECONNRESET)
    assert run.failure() == ("connection", number, 2, None) and run.stopped
    assert run.marked.count(2) < GRANULES
    if kind == "stream":
        assert isinstance(line.connection.error, OSError)


@pytest.mark.parametrize("kind", ["socketpair", "tcp", "zero copy"])
def test_a_peer_that_goes_away_is_noticed_though_there_is_nothing_to_send(kind, make_run, device, undo_after):
    states, values, _ = map_of(contents(device), GEOMETRY)
    run = make_run(states, values)
    line = Transport(kind, 0, undo_after)
    line.hang_up()
    assert run.lane(device, line.connection) == errno.ECONNRESET
    assert run.failure()[0] == "connection"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_ends_a_lane_whose_peer_does_not_read(kind, make_run, device, undo_after):
    run = make_run(slots=4)
    line = Transport(kind, 0, undo_after)
    result = []
    lane = threading.Thread(target=lambda: result.append(run.lane(device, line.connection)))
    lane.start()
    while run.counters()["granules_done"] == 0:
        time.sleep(0.001)
    time.sleep(0.05)  # by now it is blocked: the buffers of a connection are smaller than the volume
    started = time.monotonic()
    run.stop()
    if kind == "stream":
        line.cut()
    lane.join(10)
    assert not lane.is_alive() and time.monotonic() - started < 2
    assert result[0] in ([errno.EPIPE, errno.ECONNRESET] if kind == "stream" else [errno.ECANCELED])


def test_a_lane_that_is_told_to_finish_ends_its_stream_in_order_and_leaves_the_rest(make_run, device, undo_after):
    run, image = make_run(), bytearray(SIZE)
    line = Transport("tcp", 0, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send, on_frame=lambda frame: line.connection.finish())
    assert (run.lane(device, line.connection), run.failure()) == (0, None)
    peer.close()
    done = sorted(peer.last)
    assert peer.ended and done == list(range(len(done))) and run.marked == b"\2" * len(done) + bytes(GRANULES - len(done))
    rest = Transport("tcp", 0, undo_after)
    peer = Peer(GEOMETRY, image, rest.receive, rest.send)
    assert run.lane(device, rest.connection) == 0
    peer.close()
    assert sorted(peer.last) == list(range(len(done), GRANULES)) and image == contents(device)


@pytest.mark.parametrize("kind", ["tcp", "pipes", "stream"])
def test_an_answer_that_is_not_the_end_of_this_session_is_refused(kind, make_run, device, undo_after):
    states, values, _ = map_of(contents(device), GEOMETRY)
    run = make_run(states, values)
    line = Transport(kind, 0, undo_after)
    line.send(wire.FrameWriter(GEOMETRY, ATTEMPT, SESSION + 1, 0, KEY).end())
    assert run.lane(device, line.connection) == errno.ESTALE
    assert run.failure() == ("frame", errno.ESTALE, 0, None)


def test_an_end_before_ours_is_refused(make_run, device, undo_after):
    run = make_run()
    line = Transport("tcp", 0, undo_after)
    line.send(wire.FrameWriter(GEOMETRY, ATTEMPT, SESSION, 0, KEY).end())
    assert run.lane(device, line.connection) == errno.EPROTO


def test_a_connection_serves_one_lane_once(make_run, device, undo_after):
    run = make_run()
    line = Transport("tcp", 0, undo_after)
    line.hang_up()
    run.lane(device, line.connection)
    with pytest.raises(ValueError, match="once"):
        run.lane(device, line.connection)


class Failing:
    """A stream whose n-th call of a method raises what is given."""

    def __init__(self, stream, calls, error):
        self.stream, self.left, self.error = stream, calls, error

    def sendall(self, view):
        self.left -= 1
        if self.left < 0:
            raise self.error
        self.stream.sendall(view)

    def recv_into(self, view):
        return self.stream.recv_into(view)


@pytest.mark.parametrize("error, number", [
    (ssl.SSLError(1, "bad record mac"), errno.ECONNRESET), (TimeoutError(errno.ETIMEDOUT, "late"), errno.ETIMEDOUT),
    (ZeroDivisionError("a bug"), errno.EIO), (KeyboardInterrupt(), errno.EIO),
])  # fmt: skip
@pytest.mark.parametrize("calls", [0, 3])
def test_what_a_stream_raises_ends_the_lane_and_is_kept(calls, error, number, make_run, device):
    run = make_run()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(GEOMETRY, bytearray(SIZE), receive_all(theirs), theirs.sendall)
        connection = Connection.stream(Failing(ours, calls, error), 0)
        assert run.lane(device, connection) == number
        assert connection.error is error
        ours.shutdown(socket.SHUT_RDWR)
        peer.join(30)
