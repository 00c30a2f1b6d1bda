"""The relay between a TLS connection and the engine's socket: every byte, in order, bounded, and an end that says why."""

import contextlib
import random
import socket
import struct
import threading

import pytest

from qrep.daemon import tls
from qrep.daemon.front.contexts import Contexts
from qrep.daemon.front.relay import Relay
from qrep.daemon.front.screen import Screen
from qrep.daemon.front.stream import TlsStream
from qrep.oneshot.keys import OneUseIdentity
from qrep.protocol import messages

JOIN = messages.encode(messages.Join(token=b"t" * 32))
MIB = 1 << 20


@pytest.fixture(scope="module")
def identity():
    with contextlib.closing(OneUseIdentity()) as made:
        yield made


@pytest.fixture(scope="module")
def contexts(identity):
    with open(identity.key_path, "rb") as file:
        made = Contexts(identity.certificate, file.read())
    made.rehearse(identity.certificate)
    return made


class Between:
    """A peer with plain ssl, a relay in a thread, and the engine's end. ended: what the relay's run() gave."""

    def __init__(self, identity, contexts, purpose):
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = socket.create_connection(server.getsockname())
            far, _address = server.accept()
        context = tls.client_context(identity, purpose, [identity.certificate])
        self.stream = TlsStream.server(contexts.server, far)
        handshake = threading.Thread(target=self.stream.do_handshake)
        handshake.start()
        self.peer = context.wrap_socket(near)
        handshake.join()
        self.engine, self.local = socket.socketpair()
        self.relay = Relay(self.stream, self.local, Screen(purpose, accepted=True))
        self.ended = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        for end in (self.peer, self.engine):
            end.settimeout(20)

    def _run(self):
        self.ended = self.relay.run()
        self.stream.close()
        self.local.close()

    def end(self):
        self.thread.join(20)
        assert not self.thread.is_alive()
        return self.ended

    def close(self):
        for end in (self.peer, self.engine):
            end.close()
        self.end()


@pytest.fixture
def between(identity, contexts):
    with contextlib.ExitStack() as stack:
        yield lambda purpose=tls.DATA: stack.enter_context(contextlib.closing(Between(identity, contexts, purpose)))


def read(stream, size):
    data = bytearray()
    while len(data) < size:
        part = stream.recv(size - len(data))
        assert part, f"it ended after {len(data)} of {size} bytes"
        data += part
    return bytes(data)


def test_every_byte_passes_both_ways_at_once(between):
    pair, draw = between(), random.Random(7)
    there, back = JOIN + draw.randbytes(9 * MIB), draw.randbytes(5 * MIB)

    def say(stream, data):
        sizes, at = random.Random(len(data)), 0
        while at < len(data):
            size = sizes.choice([1, 100, 4096, 70000, MIB])
            stream.sendall(data[at : at + size])
            at += size

    # Each end of TLS is used by one thread, as the lanes do it: first all the one way, while the engine says its part at the same time.
    engine = threading.Thread(target=say, args=(pair.engine, back))
    heard = []
    listener = threading.Thread(target=lambda: heard.append(read(pair.engine, len(there))))
    engine.start()
    listener.start()
    say(pair.peer, there)
    assert read(pair.peer, len(back)) == back
    engine.join(20)
    listener.join(20)
    assert heard == [there]


def test_an_engine_that_does_not_read_is_waited_for_and_little_is_kept(between):
    pair = between()
    pair.peer.settimeout(0.5)
    sent = 0
    pair.peer.sendall(JOIN)
    with pytest.raises(TimeoutError):
        for _ in range(64):
            pair.peer.sendall(bytes(MIB))
            sent += MIB
    assert sent < 32 * MIB  # what the kernel's buffers of loopback take, and two of ours
    assert sum(map(len, (pair.relay._inward, pair.relay._outward))) < MIB
    assert pair.stream.incoming.pending < MIB


def test_a_peer_that_does_not_read_is_waited_for(between):
    pair = between()
    pair.engine.settimeout(0.5)
    sent = 0
    with pytest.raises(TimeoutError):
        for _ in range(64):
            pair.engine.sendall(bytes(MIB))
            sent += MIB
    assert sent < 32 * MIB
    assert pair.stream.outgoing.pending < MIB


def test_the_last_words_of_the_engine_arrive_though_the_peer_is_still_talking(between):
    pair = between()
    pair.peer.sendall(JOIN + bytes(200000))  # nobody reads it
    pair.engine.sendall(b"w" * 300000)
    pair.engine.shutdown(socket.SHUT_RDWR)
    pair.engine.close()
    assert read(pair.peer, 300000) == b"w" * 300000
    assert pair.peer.recv(1) == b""
    assert pair.end() == ("disconnected", "closed here")


def test_the_last_words_of_the_peer_arrive_and_then_the_end(between):
    pair = between()
    pair.peer.sendall(JOIN + b"x" * 300000)
    pair.peer.close()
    assert read(pair.engine, len(JOIN) + 300000).endswith(b"x")
    assert pair.engine.recv(1) == b""
    assert pair.end() == ("disconnected", "the peer closed the connection")


def test_a_reset_is_told_as_one(between):
    pair = between()
    pair.peer.sendall(JOIN)
    assert read(pair.engine, len(JOIN)) == JOIN
    pair.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.peer.close()
    assert pair.engine.recv(1) == b""
    code, reason = pair.end()
    assert code == "disconnected" and "reset" in reason


def test_a_connection_that_is_cut_ends_at_once(between):
    pair = between()
    pair.relay.cut()
    assert pair.engine.recv(1) == b""
    assert pair.end()[0] == "disconnected"


def test_what_is_no_message_ends_it_and_the_engine_hears_nothing_of_it(between):
    pair = between(tls.CONTROL)
    pair.peer.sendall(messages.encode(messages.Ping()) + b"\xff\xff\xff\xff")
    assert pair.engine.recv(100) in (messages.encode(messages.Ping()), b"")
    assert pair.end() == ("protocol", f"a message of {0xFFFFFFFF} bytes was announced; the limit is {messages.MESSAGE_MAX}")


def test_bytes_that_are_no_tls_end_it(between):
    pair = between()
    plain = socket.socket(fileno=pair.peer.detach())
    plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record of 32 bytes that decrypts to nothing
    assert pair.engine.recv(1) == b""
    plain.close()
    code, reason = pair.end()
    assert code == "disconnected" and "TLS" in reason
