"""Source lanes whose peer misbehaves, goes away or does not read: a failure with a name, and nothing left in flight."""

import errno
import os
import socket
import ssl
import threading
import time

import pytest
from source_peer import ATTEMPT, CONNECTION_KINDS, GEOMETRY, KEY, SESSION, Peer, Transport, map_of, receive_all

from qrep._native import wire
from qrep._native.connection import Connection

SIZE, GRANULES = GEOMETRY.size, GEOMETRY.granules


@pytest.mark.parametrize("kind", CONNECTION_KINDS)
def test_a_peer_that_hangs_up_in_the_middle_is_a_failure_of_the_connection(kind, make_run, source_device, undo_after):
    run, image = make_run(frame_size=64 << 10), bytearray(SIZE)
    line = Transport(kind, 0, undo_after)
    peer = Peer(GEOMETRY, image, line.receive, line.send, stop_after=5)
    cutter = threading.Thread(target=lambda: (peer.join(), line.hang_up()))
    cutter.start()
    number = run.lane(source_device, line.connection, 2)
    cutter.join()
    assert number in (errno.EPIPE, errno.ECONNRESET)
    assert run.failure() == ("connection", number, 2, None) and run.stopped
    assert run.marked.count(2) < GRANULES
    if kind == "stream":
        assert isinstance(line.connection.error, OSError)


@pytest.mark.parametrize("kind", ["socketpair", "tcp", "zero copy"])
def test_a_peer_that_goes_away_is_noticed_though_there_is_nothing_to_send(kind, make_run, source_device, undo_after):
    states, values, _ = map_of(os.pread(source_device, SIZE, 0), GEOMETRY)
    run = make_run(states, values)
    line = Transport(kind, 0, undo_after)
    line.hang_up()
    assert run.lane(source_device, line.connection) == errno.ECONNRESET
    assert run.failure()[0] == "connection"


@pytest.mark.parametrize("kind", CONNECTION_KINDS)
def test_a_stop_ends_a_lane_whose_peer_does_not_read(kind, make_run, source_device, undo_after):
    run = make_run(slots=4)
    line = Transport(kind, 0, undo_after)
    result = []
    lane = threading.Thread(target=lambda: result.append(run.lane(source_device, line.connection)))
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


@pytest.mark.parametrize("kind", ["tcp", "pipes", "stream"])
def test_an_answer_that_is_not_the_end_of_this_session_is_refused(kind, make_run, source_device, undo_after):
    states, values, _ = map_of(os.pread(source_device, SIZE, 0), GEOMETRY)
    run = make_run(states, values)
    line = Transport(kind, 0, undo_after)
    line.send(wire.FrameWriter(GEOMETRY, ATTEMPT, SESSION + 1, wire.ANSWER, KEY).end())
    assert run.lane(source_device, line.connection) == errno.ESTALE
    assert run.failure() == ("frame", errno.ESTALE, 0, None)


def test_an_end_before_ours_is_refused(make_run, source_device, undo_after):
    run = make_run()
    line = Transport("tcp", 0, undo_after)
    line.send(wire.FrameWriter(GEOMETRY, ATTEMPT, SESSION, wire.ANSWER, KEY).end())
    result = []
    lane = threading.Thread(target=lambda: result.append(run.lane(source_device, line.connection)), daemon=True)
    lane.start()
    lane.join(10)
    assert result == [errno.EPROTO]


@pytest.mark.parametrize("kind", ["tcp", "pipes", "stream"])
def test_an_end_that_is_sent_back_is_not_taken_for_its_answer(kind, make_run, source_device, undo_after):
    """Who stands in between may mirror what he sees; a connection that carried nothing else has the same number and key in both directions."""
    states, values, _ = map_of(os.pread(source_device, SIZE, 0), GEOMETRY)
    run = make_run(states, values)
    line = Transport(kind, 0, undo_after)
    mirror = threading.Thread(target=lambda: line.send(line.receive(wire.HEADER_SIZE)))
    mirror.start()
    assert run.lane(source_device, line.connection) == errno.ESTALE
    assert run.failure() == ("frame", errno.ESTALE, 0, None)
    mirror.join(10)


def test_a_connection_serves_one_lane_once(make_run, source_device, undo_after):
    run = make_run()
    line = Transport("tcp", 0, undo_after)
    line.hang_up()
    run.lane(source_device, line.connection)
    with pytest.raises(ValueError, match="once"):
        run.lane(source_device, line.connection)


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
def test_what_a_stream_raises_ends_the_lane_and_is_kept(calls, error, number, make_run, source_device):
    run = make_run()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(GEOMETRY, bytearray(SIZE), receive_all(theirs), theirs.sendall)
        connection = Connection.stream(Failing(ours, calls, error), 0)
        assert run.lane(source_device, connection) == number
        assert connection.error is error
        ours.shutdown(socket.SHUT_RDWR)
        peer.join(30)
