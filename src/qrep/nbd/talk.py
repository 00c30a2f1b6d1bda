"""What the agent and the process of one attachment say to each other: packets.py, with at most so many descriptors."""

from typing import Annotated, Union

from msgspec import Meta

from qrep.packets import Number, Say

TEXT_MAX = 2000  # characters
DESCRIPTORS_MAX = 8
FILES_MAX = 4096  # undo files of one way

Short = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=8192)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]


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
    """One undo file, oldest first, with its descriptor; batches: how many it has at least; marks: number of what says how far it may be believed, a second
    descriptor; 0: none."""

    new: Id
    base: Id
    attempt: Annotated[int, Meta(ge=0)]
    size: Number
    batches: Number
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
