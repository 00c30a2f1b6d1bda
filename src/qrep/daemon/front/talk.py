"""What engine and front say to each other: packets.py."""

from typing import Annotated, Union

from msgspec import Meta

from qrep.packets import Number, Say
from qrep.protocol.transport import TOKEN_SIZE

TEXT_MAX = 4000  # characters of a text that is sent
DESCRIPTORS_MAX = 2  # with one packet
VIEWS_MAX = 1000  # connections of one Views

Short = Annotated[str, Meta(max_length=256)]
Long = Annotated[str, Meta(max_length=8192)]


# ---- engine -> front ----


class Setup(Say, tag="setup"):
    """The first packet. files: descriptors the front may have. uid 0: stay who we are. empty_root: a directory to make an empty root in."""

    listen: list[str]
    port: int
    certificate: str
    key: bytes
    fingerprint: str
    half_open: int
    connections: int
    files: int
    uid: int
    gid: int
    empty_root: str


class Open(Say, tag="open"):
    """Listen from now on; answered by Opened."""

    number: Number


class Trust(Say, tag="trust"):
    name: str
    fingerprint: str
    certificate: str


class Distrust(Say, tag="distrust"):
    """Forget a peer, and cut its connections."""

    name: str


class Dial(Say, tag="dial"):
    """Connect, and prove who is there. hosts: addresses without a name in them, the first that answers counts."""

    number: Number
    hosts: list[str]
    port: int
    source: str | None
    purpose: str
    fingerprint: str
    certificate: str
    timeout: float


class DialPlain(Say, tag="dial-plain"):
    """Connect, and hand over the TCP connection itself."""

    number: Number
    hosts: list[str]
    port: int
    source: str | None
    timeout: float


class Count(Say, tag="count"):
    """How many are in their handshake?"""

    number: Number


class Look(Say, tag="look"):
    number: Number
    hosts: list[str]
    port: int
    timeout: float


# ---- front -> engine ----


class Ready(Say, tag="ready"):
    """The port is bound and the rights are gone. landlock: version in force, 0: none."""

    addresses: list[tuple[Short, int]]
    landlock: int
    empty_root: bool
    unprivileged: bool


class Failed(Say, tag="failed"):
    """The answer to Setup when it could not be done; the front ends."""

    message: Long
    hint: Long
    code: Short


class Accepted(Say, tag="accepted"):
    """With the engine's end of connection `number`, whose peer is pinned under this name. host: its address."""

    number: Number
    peer: Short
    purpose: Short
    host: Short


class Plain(Say, tag="plain"):
    """With a TCP connection that began as a plain data connection does. Nobody has looked at the token yet."""

    token: Annotated[bytes, Meta(min_length=TOKEN_SIZE, max_length=TOKEN_SIZE)]
    host: Short


class Dialled(Say, tag="dialled"):
    """With the engine's end of connection `number`, as asked for by Dial; plain: with the TCP connection itself, for DialPlain.

    local: the address of this host that it comes from. rtt_us: as the handshakes measured it, of a data connection. kernel: the engine's end
    is for receiving; a second descriptor is the TCP connection, and the kernel encrypts what is written to that.
    """

    number: Number
    plain: bool
    local: Short
    rtt_us: Number | None = None
    kernel: bool = False


class NotDialled(Say, tag="not-dialled"):
    """The answer to Dial, DialPlain or Look: QrepError.as_dict()."""

    number: Number
    code: Short
    exit: int
    message: Long
    hint: Long


class Seen(Say, tag="seen"):
    """The answer to Look: the certificate (DER), of a stranger."""

    number: Number
    certificate: Annotated[bytes, Meta(max_length=32768)]


class Opened(Say, tag="opened"):
    number: Number


class Counted(Say, tag="counted"):
    number: Number
    half_open: Number


class Views(Say, tag="views"):
    """TCP's account of the data connections that we dialled: (number, unacked, probes, silent_s), as transport.TcpView."""

    views: Annotated[list[tuple[Number, Number, Number, float]], Meta(max_length=VIEWS_MAX)]


class Ended(Say, tag="ended"):
    """Why connection `number` is over; its stream ends right after this. code: disconnected, or protocol."""

    number: Number
    code: Short
    reason: Long


class Told(Say, tag="told"):
    """A connection was refused."""

    text: Long
    address: Short
    peer: Short
    reason: Short


class Note(Say, tag="note"):
    """A bug of the front's, in words, for the service log."""

    text: Long


ENGINE_SAYS = Union[Setup, Open, Trust, Distrust, Dial, DialPlain, Look, Count]
FRONT_SAYS = Union[Ready, Failed, Accepted, Plain, Dialled, NotDialled, Seen, Opened, Counted, Views, Ended, Told, Note]
