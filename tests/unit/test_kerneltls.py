"""Whether the kernel encrypts is asked of the kernel, and any other answer than that it does means no."""

import contextlib
import errno
import socket
import struct

import pytest

from qrep import kerneltls
from qrep.daemon import tls
from qrep.daemon.front import kernel
from qrep.daemon.front.dialler import Dialler
from qrep.daemon.front.screen import Screen
from qrep.daemon.network import KernelStream
from qrep.errors import QrepError
from qrep.protocol.transport import DataConnection



@pytest.fixture
def answering(monkeypatch):
    def make(answer):
        def getsockopt(_stream, level, option, size):
            assert (level, option) == (282, 1)
            if isinstance(answer, int):
                raise OSError(answer, "as the kernel says it")
            return answer[:size]

        monkeypatch.setattr(socket.socket, "getsockopt", getsockopt)
        return kerneltls.encrypts(object())

    return make


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTCONN, errno.EBADF])
def test_an_error_means_that_the_kernel_does_not_encrypt(answering, code):
    assert answering(code) is False  # EBUSY: TLS is attached, and has no keys


def test_only_keys_of_tls_1_3_mean_that_it_does(answering):
    assert answering(struct.pack("=HH", 0x0304, 52)) is True
    for answer in (struct.pack("=HH", 0x0303, 52), bytes(4), b"", b"\x04"):
        assert answering(answer) is False


def test_a_plain_connection_is_never_taken_for_an_encrypted_one():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as stream:
        assert not kerneltls.encrypts(stream)
        with contextlib.suppress(OSError):  # attached without keys, where the kernel has TLS
            stream.setsockopt(socket.IPPROTO_TCP, kerneltls.TCP_ULP, b"tls")
        assert not kerneltls.encrypts(stream)


@pytest.mark.parametrize("code, words", [(errno.ENOENT, "modprobe tls"), (errno.EOPNOTSUPP, "no TLS"), (errno.ENOTCONN, None)])
def test_why_a_kernel_has_no_tls_is_said(monkeypatch, code, words):
    def setsockopt(_stream, level, option, value):
        assert (level, option, value) == (socket.IPPROTO_TCP, 31, b"tls")
        raise OSError(code, "as the kernel says it")

    monkeypatch.setattr(socket.socket, "setsockopt", setsockopt)
    why = kerneltls.absent()
    assert why is None if words is None else words in why


class Dialled:
    """What KernelStream.client or TlsStream.client became. closed: given up again."""

    def __init__(self, wrap, encrypts):
        self.by_kernel, self.encrypts, self.closed = wrap == kernel.KernelStream.client, encrypts, False

    def close(self):
        self.closed = True


@pytest.mark.parametrize("purpose", tls.PURPOSES)
@pytest.mark.parametrize("may, does", [(False, False), (True, False), (True, True)])
def test_only_a_data_connection_that_the_kernel_encrypts_is_handed_over(monkeypatch, purpose, may, does):
    class Front:
        class contexts:  # noqa: N801
            kernel_tls = may

    class Packet:
        pass

    made = []
    dialler = Dialler(Front)
    monkeypatch.setattr(dialler, "_connect_as", lambda wrap, _packet, _host: made.append(Dialled(wrap, does)) or made[-1])
    Packet.purpose = purpose
    stream = dialler._connect(Packet, "192.0.2.1")
    data = purpose == tls.DATA
    assert stream.by_kernel == (data and may and does)
    assert not stream.closed and all(other.closed for other in made if other is not stream)
    assert Front.contexts.kernel_tls == (may and (does or not data)), "where it does not work it is not tried for every connection"


@pytest.fixture
def split():
    """(the engine's stream, what sees its bytes go out, what it receives from)"""
    received, local = socket.socketpair()
    sending, far = socket.socketpair()
    stream = KernelStream(received.detach(), sending.detach(), "192.0.2.1", 300)
    with local, far, contextlib.closing(stream):
        yield stream, far, local


def test_what_the_engine_sends_goes_to_the_connection_itself(split):
    stream, far, local = split
    assert stream.send(b"there") == 5 and far.recv(10) == b"there"
    local.sendall(b"back")
    assert stream.recv(10) == b"back"
    connection = DataConnection(stream, 0)
    assert connection.kernel_tls and connection.native.kind == "socket" and not connection.zero_copy


def test_an_interrupt_ends_both_directions_and_a_close_closes_both(split):
    stream, far, local = split
    connection = DataConnection(stream, 0)
    connection.interrupt()
    assert far.recv(1) == b"" and local.recv(1) == b""
    connection.close()
    assert stream.fileno() == -1 and stream.sending.fileno() == -1


def test_the_front_ends_a_connection_whose_engine_writes_to_the_wrong_end():
    near, far = socket.socketpair()
    engine, local = socket.socketpair()

    class Stream:
        plain = tls = near
        settimeout = near.settimeout

    with near, far, engine, local:
        local.setblocking(False)
        relay = kernel.KernelRelay(Stream, local, Screen(tls.DATA, accepted=False), data=True)
        assert relay._move_outward() is False
        engine.sendall(b"x")
        with pytest.raises(QrepError, match="only read from"):
            relay._move_outward()
