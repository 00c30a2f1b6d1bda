"""A data connection prepares the stream it is given."""

import socket
from pathlib import Path

import pytest

from qrep._native import sockets
from qrep.protocol import unpaced
from qrep.protocol.transport import DataConnection


def test_a_data_connection_over_tcp_is_tuned_for_bulk_data():
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    wanted = "cubic" if "cubic" in available else "reno"
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    # What the system has as its default (bbr on some) halves the speed of loopback; the option is read back from the socket.
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
        connection = DataConnection(end, 0)
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode() == wanted
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        connection.close()


def congestion(stream):
    return stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


def test_a_connection_to_a_near_host_was_never_paced():
    with socket.create_server(("127.0.0.1", 0)) as server, unpaced.connect(server.getsockname(), 5) as near:
        assert near.gettimeout() == 5
        assert congestion(near) in (b"cubic", b"reno")


def test_a_connection_to_a_far_host_goes_on_as_the_system_would_have_it(monkeypatch):
    monkeypatch.setattr(sockets, "is_near", lambda descriptor: False)
    with socket.create_server(("127.0.0.1", 0)) as server, unpaced.connect(server.getsockname()) as far, socket.socket() as plain:
        assert congestion(far) == congestion(plain)


def test_who_may_not_choose_cubic_takes_reno(monkeypatch):
    class Restricted(socket.socket):
        def setsockopt(self, level, option, value):
            if value == b"cubic":
                raise PermissionError
            super().setsockopt(level, option, value)

        def getsockopt(self, level, option, size=None):
            return b"bbr\0" if option == socket.TCP_CONGESTION and size == unpaced.NAME_SIZE and not self.connected() else super().getsockopt(level, option, size)

        def connected(self):
            try:
                return bool(self.getpeername())
            except OSError:
                return False

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(socket, "socket", Restricted)
        with unpaced.connect(server.getsockname()) as near:
            assert congestion(near) == b"reno"


def test_a_connection_that_is_refused_says_so_and_leaves_no_socket_behind():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(ConnectionRefusedError):
        unpaced.connect(address, 5)
