"""What the agent and the process of one attachment say to each other: packets as of daemon/front/talk.py, at most four descriptors with one."""

import os
import socket
import threading
from typing import Annotated, Union

import msgspec
from msgspec import Meta

from qrep.errors import ProtocolError

PACKET_MAX = 64 << 10  # bytes
TEXT_MAX = 2000  # characters
DESCRIPTORS_MAX = 8
FILES_MAX = 4096  # undo files of one way

Short = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=8192)]
Number = Annotated[int, Meta(ge=0, le=1 << 62)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Say(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="t", kw_only=True):
    """Base of all packets."""


# ---- agent -> server ----


class Setup(Say, tag="setup"):
    """The first packet, with descriptors: the device (to read), the epoch (to read), the listening sockets, then the overlay's file if writable.

    uid 0: stay who we are. empty_root: a directory to make an empty root in. overlay_limit: bytes; read_only: there is none.
    """

    name: str
    description: str
    size: Number
    align: Number
    cell_size: Number
    read_only: bool
    overlay_limit: Number
    listening: Number
    connections: Number
    uid: int
    gid: int
    empty_root: str


class Way(Say, tag="way"):
    """The answer to Look: so many File packets follow. error: then none do, and the point cannot be read any more."""

    epoch: Number = 0
    files: Number = 0
    error: Text = ""


class File(Say, tag="file"):
    """One undo file, oldest first, with its descriptor; marks: number of what says how far it may be believed, a second descriptor; 0: none."""

    new: Id
    base: Id
    attempt: Annotated[int, Meta(ge=0)]
    size: Number
    marks: Number


class Serve(Say, tag="serve"):
    """With a connected stream on which data may be asked for at once: the kernel's."""


# ---- server -> agent ----


class Ready(Say, tag="ready"):
    """The point can be read and the rights are gone."""

    landlock: Number
    empty_root: bool
    unprivileged: bool


class Failed(Say, tag="failed"):
    message: Text


class Look(Say, tag="look"):
    """Which undo files are there now?"""


class Figures(Say, tag="figures"):
    """Now and then, when they changed."""

    connections: Number
    requests: Number
    read: Number
    written: Number
    overlay: Number
    refused: Number


class Full(Say, tag="full"):
    """A client was told that there is no room; told once for a while."""


class Lost(Say, tag="lost"):
    """The point cannot be read any more; clients get errors."""

    reason: Text


class Note(Say, tag="note"):
    """A bug of the server's, or the reason of its end, for the service log."""

    text: Text


AGENT_SAYS = Union[Setup, Way, File, Serve]
SERVER_SAYS = Union[Ready, Failed, Look, Figures, Full, Lost, Note]


class Gone(Exception):
    """The other process is not there any more."""


class Line:
    """One end. Any thread may send; one receives. hears: the union of what the other end may say."""

    def __init__(self, end, hears):
        self.socket, self._decoder = end, msgspec.msgpack.Decoder(hears)
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
        """(packet, descriptors that came with it, the caller's). Raises Gone, ProtocolError."""
        try:
            data, descriptors, flags, _address = socket.recv_fds(self.socket, PACKET_MAX, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
        except OSError as err:
            raise Gone from err
        try:
            if not data:
                raise Gone
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ProtocolError("a packet that is too long")
            return self._decoder.decode(data), descriptors
        except (msgspec.DecodeError, ProtocolError, Gone) as err:
            for each in descriptors:
                os.close(each)
            raise ProtocolError(f"not a packet: {err}") if isinstance(err, msgspec.DecodeError) else err from None

    def close(self):
        self.socket.close()
