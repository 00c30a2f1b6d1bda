"""Socket options are really set, on real sockets."""

import socket
from pathlib import Path

import pytest

from qrep._native import sockets


def test_tuning_sets_no_delay_time_out_and_cubic_on_loopback(tcp_pair):
    ours, _ = tcp_pair
    state = sockets.tune(ours.fileno(), user_timeout_ms=12_345)
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_345
    assert state["near"] and state["rtt_us"] < 2000
    available = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    in_use = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()
    assert state["congestion"] == in_use
    assert in_use == "cubic" or "cubic" not in available


def test_the_send_buffer_is_left_to_the_kernel_unless_zero_copy_needs_it(tcp_pair):
    ours, theirs = tcp_pair
    before = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert sockets.tune(ours.fileno())["send_buffer"] == before
    granted = sockets.tune(theirs.fileno(), zero_copy=True)["send_buffer"]
    assert granted == theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == sockets.zero_copy_buffer(theirs.fileno())
    assert granted > before


def test_pacing_is_set_and_taken_away(tcp_pair):
    ours, _ = tcp_pair
    so_max_pacing_rate = 47
    sockets.pace(ours.fileno(), 5_000_000)
    assert int.from_bytes(ours.getsockopt(socket.SOL_SOCKET, so_max_pacing_rate, 8), "little") == 5_000_000
    sockets.pace(ours.fileno(), 0)
    assert int.from_bytes(ours.getsockopt(socket.SOL_SOCKET, so_max_pacing_rate, 8), "little") == 2**64 - 1


def test_what_is_no_tcp_socket_is_refused(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(OSError, match="socket options"):
        sockets.tune(ours.fileno())
