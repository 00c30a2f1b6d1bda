"""Plain data connections, between hosts that both trust the path: how one begins, and how it is told from TLS on the one port.

It begins with 40 bytes, MAGIC and a token that the control session handed over inside TLS, good once. They are read whole before anything is
looked at, and a token that nobody waits for is answered by closing, whether or not any peer is trusted here: a stranger learns nothing.
What follows is frames, whose tags need the session's key (wire.h). Nothing but data connections is ever plain.
"""

import socket
import time

from qrep.errors import ProtocolError, Unreachable
from qrep.protocol import transport

PURPOSE = "plain-data"  # beside tls.PURPOSES: no ALPN name, because there is no TLS to say it in
MAGIC = b"\xf1qrep-d1"  # a TLS record begins with 0x16, and no text with 0xf1
PREAMBLE_SIZE = len(MAGIC) + transport.TOKEN_SIZE


def begins_plain(first):
    """Whether a connection whose first byte or bytes these are is to be read as a plain one; else it is TLS, or nothing we know."""
    return first[:1] == MAGIC[:1]


def token_of(preamble):
    """The token in PREAMBLE_SIZE bytes, None if they are no preamble."""
    return bytes(preamble[len(MAGIC) :]) if len(preamble) == PREAMBLE_SIZE and preamble.startswith(MAGIC) else None


def peek(stream, deadline):
    """The first byte of an accepted connection, left where it is; b"" if it was closed. Raises OSError, TimeoutError past `deadline`."""
    stream.settimeout(max(0.001, deadline - time.monotonic()))
    return stream.recv(1, socket.MSG_PEEK)


def read_preamble(stream, deadline):
    """The token of a connection that begins_plain(). Raises OSError, TimeoutError past `deadline`, ProtocolError."""
    data = b""
    while len(data) < PREAMBLE_SIZE:
        stream.settimeout(max(0.001, deadline - time.monotonic()))
        part = stream.recv(PREAMBLE_SIZE - len(data))
        if not part or time.monotonic() > deadline:
            break
        data += part
    token = token_of(data)
    if token is None:
        raise ProtocolError("neither TLS nor a plain data connection", code="handshake")
    stream.settimeout(None)
    return token


def join(stream, token):
    """Offer `token` on a fresh TCP connection; (connection index, the stream, ready for frames). As transport.join()."""
    try:
        stream.sendall(MAGIC + token)
    except OSError as err:
        stream.close()
        raise Unreachable(f"the plain data connection broke off: {err.strerror or err}") from err
    channel = transport.Channel(stream, "joined")
    try:
        return channel.receive(10.0, limit=transport.FIRST_MAX).index, channel.detach()
    except BaseException:
        channel.close()
        raise
