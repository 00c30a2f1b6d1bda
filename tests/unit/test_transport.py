"""Messages over streams, and data connections that find their run."""

import os
import socket
import threading
import time

import msgspec
import pytest

from qrep.errors import ProtocolError, TimedOut
from qrep.protocol import messages as say
from qrep.protocol.transport import (
    Channel,
    DataConnection,
    Disconnected,
    PipeStream,
    Rendezvous,
    admit,
    join,
    local_pair,
    welcome,
)

HELLO = say.Hello(
    version_min=1, version_max=1, job_id=bytes(16), volume_id=bytes(16), epoch=1, size=1 << 20, leaf_size=4096,
    granule_size=1 << 16, sector_size=512, plain=False, features=[],
)  # fmt: skip
BIG = say.Leaves(granule=3, page=bytes(range(256)) * 2048)  # 512 KiB: more than a socket holds


@pytest.fixture
def pair(undo_after):
    source, target = local_pair()
    undo_after.callback(source.close)
    undo_after.callback(target.close)
    return source, target


def pipe_pair():
    one, other = os.pipe(), os.pipe()
    return PipeStream(one[0], other[1]), PipeStream(other[0], one[1])


def test_messages_arrive_in_order_and_whole(pair):
    source, target = pair
    source.send(HELLO)
    source.send(say.Ping())
    assert (target.receive(1), target.receive(1)) == (HELLO, say.Ping())


@pytest.mark.parametrize("streams", [socket.socketpair, pipe_pair], ids=["socket", "pipes"])
def test_a_message_larger_than_the_stream_holds_gets_through(streams, undo_after):
    one, other = streams()
    source, target = Channel(one, "target"), Channel(other, "source")
    undo_after.callback(source.close)
    undo_after.callback(target.close)
    sender = threading.Thread(target=target.send, args=(BIG,))
    sender.start()
    assert source.receive(5) == BIG
    sender.join()


def test_a_time_out_in_the_middle_of_a_message_loses_nothing(undo_after):
    one, other = socket.socketpair()
    undo_after.callback(one.close)
    target = Channel(other, "source")
    undo_after.callback(target.close)
    data = say.encode(HELLO)
    one.sendall(data[:7])
    with pytest.raises(TimedOut):
        target.receive(0.05)
    one.sendall(data[7:])
    assert target.receive(1) == HELLO


def test_both_ends_may_send_at_once_while_they_receive(pair):
    source, target = pair
    count = 20
    threads = [threading.Thread(target=lambda: [target.send(BIG) for _ in range(count)])]
    threads.append(threading.Thread(target=lambda: [source.send(HELLO) for _ in range(count)]))
    received = []
    threads.append(threading.Thread(target=lambda: received.extend(target.receive(10) for _ in range(count))))
    for thread in threads:
        thread.start()
    assert all(source.receive(10) == BIG for _ in range(count))
    for thread in threads:
        thread.join()
    assert received == [HELLO] * count


def test_closing_wakes_a_waiting_receiver(pair):
    source, target = pair
    threading.Timer(0.1, target.close).start()
    start = time.monotonic()
    with pytest.raises(Disconnected):
        target.receive()
    assert time.monotonic() - start < 2
    with pytest.raises(Disconnected, match="closed"):
        source.receive(1)


def test_an_announced_length_is_refused_before_it_is_read(undo_after):
    one, other = socket.socketpair()
    undo_after.callback(one.close)
    one.sendall((1 << 30).to_bytes(4, "little"))
    channel = Channel(other, "source")
    with pytest.raises(ProtocolError):
        channel.receive(1)
    channel.close()


def test_a_first_message_may_only_be_small(undo_after):
    one, other = socket.socketpair()
    undo_after.callback(one.close)
    one.sendall((5000).to_bytes(4, "little"))
    with pytest.raises(ProtocolError, match="5000"):
        admit(Channel(other, "source"))


def test_a_peer_that_takes_nothing_is_given_up(undo_after):
    one, other = socket.socketpair()
    undo_after.callback(one.close)
    channel = Channel(other, "source", send_timeout=0.2)
    with pytest.raises(Disconnected, match="took no message"):
        channel.send(BIG)


def test_a_token_joins_once_and_the_stream_is_left_at_the_first_frame(undo_after):
    rendezvous = Rendezvous()
    tokens = rendezvous.offer(2)
    joined = {}

    def accept(stream):
        channel = Channel(stream, "source")
        hello = admit(channel)
        if rendezvous.deliver(hello.token, lambda index: DataConnection(welcome(channel, index), index)) is None:
            channel.close()

    for token in reversed(tokens):
        one, other = socket.socketpair()
        undo_after.callback(one.close)
        thread = threading.Thread(target=accept, args=(other,))
        thread.start()
        joined[token], stream = join(one, token)
        stream.sendall(b"frame")
        thread.join()
    assert [joined[token] for token in tokens] == [0, 1]
    for token in tokens:
        connection = rendezvous.wait(token, 1)
        assert connection.stream.recv(5) == b"frame" and connection.native.index == joined[token]
        connection.close()
    one, other = socket.socketpair()  # the same token a second time
    thread = threading.Thread(target=accept, args=(other,))
    thread.start()
    with pytest.raises(Disconnected):
        join(one, tokens[0])
    thread.join()


def test_a_token_that_was_brought_once_is_used_up_although_nobody_has_taken_its_connection_yet():
    rendezvous, made = Rendezvous(), []
    [token] = rendezvous.offer(1)
    assert [rendezvous.deliver(token, lambda index: made.append(index) or "first") for _ in range(2)] == [0, None]
    assert made == [0] and rendezvous.wait(token, 5) == "first"


def test_withdrawing_wakes_who_waits_and_refuses_who_comes_late():
    rendezvous = Rendezvous()
    (token,) = rendezvous.offer(1)
    threading.Timer(0.1, rendezvous.withdraw, ([token],)).start()
    with pytest.raises(Disconnected):
        rendezvous.wait(token, 10)
    assert rendezvous.deliver(token, lambda index: pytest.fail("nobody waits")) is None


def test_a_connection_that_comes_while_its_token_is_withdrawn_is_closed():
    rendezvous = Rendezvous()
    (token,) = rendezvous.offer(1)
    one, other = socket.socketpair()

    def slow(index):
        rendezvous.withdraw([token])
        return DataConnection(other, index)

    assert rendezvous.deliver(token, slow) is None
    assert one.recv(1) == b""
    one.close()


def test_a_connection_that_never_comes_is_a_time_out():
    rendezvous = Rendezvous()
    (token,) = rendezvous.offer(1)
    with pytest.raises(TimedOut):
        rendezvous.wait(token, 0.05)
    assert rendezvous.deliver(token, lambda index: pytest.fail("too late")) is None


def test_a_peer_whose_first_message_is_none_is_told_why_and_with_which_versions():
    one, other = socket.socketpair()
    hello = {"t": "hello", "version_min": 2, "version_max": 3, "of_tomorrow": 1}
    body = msgspec.msgpack.encode(hello)
    one.sendall(len(body).to_bytes(4, "little") + body)
    with pytest.raises(ProtocolError, match="protocol 1 to 1, the source 2 to 3"):
        admit(Channel(other, "source"), tell=True)
    told = Channel(one, "target").receive(5)
    assert (told.code, told.hint) == ("version", "bring both ends to versions that overlap")
    one.close()
    other.close()
