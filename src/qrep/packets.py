"""What two processes of one agent say to each other: one msgpack map per packet of a unix SOCK_SEQPACKET pair, descriptors with it."""

import os
import socket
import threading
from typing import Annotated

import msgspec
from msgspec import Meta

from qrep.errors import ProtocolError

PACKET_MAX = 64 << 10  # bytes

Number = Annotated[int, Meta(ge=0, le=1 << 62)]


class Say(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t", kw_only=True):
    """Base of all packets."""


class Gone(Exception):
    """The other process is not there any more."""


class Line:
    """One end. Any thread may send; one receives. hears: the union of what the other end may say; descriptors: how many may come with a packet."""

    def __init__(self, end, hears, descriptors):
        self.socket, self._decoder, self._descriptors = end, msgspec.msgpack.Decoder(hears), descriptors
        self._encoder, self._lock = msgspec.msgpack.Encoder(), threading.Lock()

    def send(self, packet, *descriptors):
        """Raises Gone."""
        data = self._encoder.encode(packet)
        if len(data) > PACKET_MAX:
            raise ValueError(f"a {type(packet).__name__} of {len(data)} bytes")
        try:
            with self._lock:
                socket.send_fds(self.socket, [data], descriptors)
        except OSError as err:
            raise Gone from err

    def receive(self):
        """(packet, descriptors that came with it, now the caller's). Raises Gone, ProtocolError."""
        try:
            data, descriptors, flags, _address = socket.recv_fds(self.socket, PACKET_MAX, self._descriptors, socket.MSG_CMSG_CLOEXEC)
        except OSError as err:
            raise Gone from err
        try:
            if not data:
                raise Gone
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ProtocolError("a packet that is too long")
            return self._decoder.decode(data), descriptors
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ProtocolError, Gone) as err:
            for each in descriptors:
                os.close(each)
            raise err if isinstance(err, (ProtocolError, Gone)) else ProtocolError(f"not a packet: {err}") from None

    def close(self):
        self.socket.close()
