"""Sending and receiving through the ring: order, partial delivery, ends of streams, and whose buffer it is."""

import errno
import socket
import threading
import time

import pytest

from qrep._native.ring import COPIED, MORE, NOTIFY

MIB = 1 << 20


def drain(ring):
    """All events until nothing is in flight."""
    events = []
    while ring.in_flight:
        events += ring.wait(timeout=20) or pytest.fail("nothing completed in 20 s")
    return events


def test_several_buffers_arrive_as_one_stream(open_ring, tcp_pair, random_source):
    ours, theirs = tcp_pair
    ring = open_ring(tcp_pair)
    sent = [random_source.randbytes(size) for size in (64, 1, 0, 3 * MIB, 4097)]
    received = [bytearray(size) for size in (1000, 2 * MIB, MIB + 64 + 1 + 4097 - 1000)]
    ring.start_receive(1, received, 1)
    ring.start_send(0, sent, 2)
    total = 3 * MIB + 64 + 1 + 4097
    assert sorted(drain(ring)) == [(1, total, 0), (2, total, 0)]
    assert b"".join(received) == b"".join(sent)


def test_a_receive_waits_for_the_last_byte_of_a_peer_that_sends_in_pieces(open_ring, tcp_pair, random_source):
    ours, theirs = tcp_pair
    ring = open_ring([ours])
    data = random_source.randbytes(10_000)
    buffers = [bytearray(3_000), bytearray(7_000)]
    ring.start_receive(0, buffers, 1)
    for start in range(0, 9_999, 1_111):
        theirs.sendall(data[start : start + 1_111][: 9_999 - start])
        assert ring.wait(timeout=0.005) == []
    theirs.sendall(data[9_999:])
    assert drain(ring) == [(1, 10_000, 0)]
    assert b"".join(buffers) == data


def test_a_send_larger_than_the_socket_buffer_completes_once_and_whole(open_ring, tcp_pair, random_source):
    ours, theirs = tcp_pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    data = random_source.randbytes(4 * MIB)
    received = bytearray()

    def slow_reader():
        while len(received) < len(data):
            received.extend(theirs.recv(100_000))

    ring = open_ring([ours])
    ring.start_send(0, [data[:100], data[100:]], 1)
    ring.submit()
    reader = threading.Thread(target=slow_reader)
    reader.start()
    assert drain(ring) == [(1, 4 * MIB, 0)]
    reader.join()
    assert received == data


def test_a_receive_completes_short_at_the_end_of_the_stream(open_ring, tcp_pair):
    ours, theirs = tcp_pair
    ring = open_ring([ours])
    theirs.sendall(b"abc")
    theirs.shutdown(socket.SHUT_WR)
    buffer = bytearray(10)
    assert ring.receive(0, [buffer]) == 3
    assert buffer[:3] == b"abc"
    assert ring.receive(0, [buffer]) == 0


def test_a_send_to_a_peer_that_is_gone_is_an_error_not_a_signal(open_ring, tcp_pair):
    ours, theirs = tcp_pair
    ring = open_ring([ours])
    theirs.close()
    with pytest.raises(OSError) as failure:
        for _ in range(100):
            ring.send(0, [bytes(MIB)])
    assert failure.value.errno in (errno.EPIPE, errno.ECONNRESET)


def test_streams_in_non_blocking_mode_are_waited_for(open_ring, tcp_pair, random_source):
    ours, theirs = tcp_pair
    ours.setblocking(False)
    theirs.setblocking(False)
    ring = open_ring(tcp_pair)
    data = random_source.randbytes(6 * MIB)
    buffer = bytearray(6 * MIB)
    ring.start_receive(1, [buffer], 1)
    assert ring.wait(timeout=0.01) == []
    ring.start_send(0, [data], 2)
    assert sorted(drain(ring)) == [(1, 6 * MIB, 0), (2, 6 * MIB, 0)]
    assert buffer == data


def test_a_silent_stream_holds_no_disk_request_behind_it(open_ring, tcp_pair, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 4096)
    pairs = [socket.socketpair() for _ in range(8)]
    with open(tmp_path / "file", "rb") as plain:
        ring = open_ring([plain, *(pair[0] for pair in pairs)], entries=32)
        for number in range(8):
            ring.start_receive(1 + number, [bytearray(10)], 100 + number)
        for number in range(8):
            ring.start_read(0, bytearray(4096), 0, number)
        events = []
        while len(events) < 8:
            events += ring.wait(timeout=20) or pytest.fail("the reads wait for the streams")
        assert sorted(events) == [(number, 4096, 0) for number in range(8)]
        for pair in pairs:
            pair[1].close()
        assert sorted(drain(ring)) == [(100 + number, 0, 0) for number in range(8)]
        ring.close()
    for pair in pairs:
        pair[0].close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_zero_copy_buffer_is_the_kernels_until_the_notification(open_ring, tcp_pair, pool, random_source, count):
    ours, theirs = tcp_pair
    ring = open_ring([ours])
    ring.register_buffers(pool)
    slot = pool.lease_nowait()
    data = random_source.randbytes(MIB)
    memoryview(slot)[:] = data
    view = memoryview(slot)
    buffers = [view] if count == 1 else [view[:64], view[64:]]
    ring.start_send(0, buffers, 5, zero_copy=True)
    del view, buffers
    received = bytearray()
    reader = threading.Thread(target=lambda: [received.extend(theirs.recv(1 << 16)) for _ in iter(lambda: len(received) < MIB, False)])
    reader.start()
    events = []
    while ring.in_flight:
        events += ring.wait(timeout=20, room=1)
        if events[-1][2] & MORE:
            assert ring.in_flight == 1  # the completion alone does not return the buffer
            with pytest.raises(BufferError):
                slot.give_back()
    reader.join()
    slot.give_back()
    assert received == data
    if ring.backend == "threads":
        assert events == [(5, MIB, 0)]
    else:
        # loopback copies always; what matters is that it says so
        assert events == [(5, MIB, MORE), (5, 0, NOTIFY | COPIED)]


def test_zero_copy_over_a_socket_that_cannot_is_a_plain_send(open_ring):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ring = open_ring([ours])
        ring.start_send(0, [b"hello"], 1, zero_copy=True)
        events = drain(ring)
        assert theirs.recv(10) == b"hello"
        assert events[0][:2] == (1, 5)
        # Where the kernel took the buffer before it declined, it says that it copied.
        assert events[1:] in ([], [(1, 0, NOTIFY | COPIED)])
        ring.close()


def test_waiting_ends_in_time_when_nothing_completes(open_ring, tcp_pair):
    ring = open_ring([tcp_pair[0]])
    ring.start_receive(0, [bytearray(1)], 1)
    started = time.monotonic()
    assert ring.wait(timeout=0.05) == []
    assert 0.05 <= time.monotonic() - started < 5
    assert ring.wait(timeout=0) == []
    tcp_pair[1].sendall(b"x")
    assert drain(ring) == [(1, 1, 0)]
    assert ring.wait() == []  # nothing in flight: for ever would be a mistake


def test_a_tag_in_flight_and_a_second_thread_are_refused(open_ring, tcp_pair):
    ring = open_ring([tcp_pair[0]])
    ring.start_receive(0, [bytearray(1)], 1)
    with pytest.raises(ValueError, match="tag 1 is in flight"):
        ring.start_fsync(0, 1)
    with pytest.raises(RuntimeError, match="one at a time"):
        ring.read(0, bytearray(1), 0)
    refusals = []

    def other():
        try:
            ring.wait()
        except RuntimeError as err:
            refusals.append(str(err))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert refusals == ["a ring is used by the thread that made it"]
    tcp_pair[1].sendall(b"x")
    assert drain(ring) == [(1, 1, 0)]
