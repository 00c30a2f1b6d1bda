"""Socket options of data connections; sockets.h says why each is set."""

from .check cimport check

ZERO_COPY_SNDBUF = QREP_ZERO_COPY_SNDBUF  # bytes of send buffer below which zero-copy sending stalls


def tune(int descriptor, unsigned user_timeout_ms=30_000, bint zero_copy=False):
    """Prepare a connected TCP socket for bulk data; return what is in use as a dict.

    Keys: congestion (name), rtt_us, near (bool, a LAN or loopback: cubic was asked for), send_buffer (bytes).
    Raises OSError if it is not a connected TCP socket.
    """
    cdef qrep_socket_state state
    check(qrep_socket_tune(descriptor, user_timeout_ms, zero_copy, &state), "socket options")
    return {
        "congestion": (<bytes>state.congestion).decode("ascii", "replace"),
        "rtt_us": state.rtt_us,
        "near": state.near != 0,
        "send_buffer": state.send_buffer,
    }


def is_near(int descriptor):
    """Whether the other end of a connected TCP socket is on a LAN or on this host. Raises OSError."""
    return check(qrep_socket_is_near(descriptor), "TCP_INFO") != 0


def pace(int descriptor, uint64_t rate):
    """Have the kernel space packets at `rate` bytes per second; 0 takes the limit away. Raises OSError."""
    check(qrep_socket_pace(descriptor, rate), "SO_MAX_PACING_RATE")


def zero_copy_buffer(int descriptor):
    """Give the socket the send buffer that zero-copy needs; return the bytes granted. Raises OSError."""
    return check(qrep_socket_zero_copy_buffer(descriptor), "SO_SNDBUF")
