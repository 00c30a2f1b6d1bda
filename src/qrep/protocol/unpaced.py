"""TCP connections that the kernel does not pace where the other end is near.

bbr, the default of some systems, spaces packets by timers, which halves the speed of loopback and LAN. A connection that once had it is spaced to its end,
whatever is chosen for it later: the kernel never takes that back. So another way is chosen before the socket connects, and the system's own one is put
back where the other end turns out to be far.
"""

import socket

from qrep._native import sockets

NAME_SIZE = 16  # TCP_CA_NAME_MAX
UNPACED = (b"cubic", b"reno")  # best first; without CAP_NET_ADMIN only what tcp_allowed_congestion_control names, and reno always


def _choose(stream):
    """Give a socket that is not connected one of UNPACED; the name of what it had, None where it has one of them anyway or gets none."""
    usual = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, NAME_SIZE).rstrip(b"\0")
    for name in () if usual in UNPACED else UNPACED:
        try:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        except OSError:  # not in this kernel, or not permitted
            continue
        return usual
    return None


def connect(address, timeout=None, source=None):
    """As socket.create_connection(): a connected socket to (host, port), with this time-out. source: the address it comes from, or None. Raises OSError."""
    failure = None
    for family, kind, protocol, _, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        stream = socket.socket(family, kind, protocol)
        try:
            stream.settimeout(timeout)
            if source:
                stream.bind((source, 0))
            usual = _choose(stream)
            stream.connect(place)
            if usual and not sockets.is_near(stream.fileno()):
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, usual)
            return stream
        except OSError as err:
            stream.close()
            failure = failure or err
    raise failure or OSError("no address")
