"""A data connection prepares the stream it is given."""

import socket
from pathlib import Path

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
