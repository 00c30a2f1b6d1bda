"""The contract of a snapshot backend: what freezes a source volume for a run.

Every backend passes tests/system/conformance_snapshot.py. A backend is stateless: whatever must outlive the agent is in
the token, which the caller stores before it uses the snapshot; what a crash left unstored is found by `stale`.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from qrep import device
from qrep.errors import QrepError, UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,63}", re.ASCII)
APPLICATION, CRASH, FUZZY = "application", "crash", "fuzzy"


class SnapshotError(QrepError):
    """A volume could not be frozen, or a frozen one not be released; the source is as it was."""

    code = "snapshot"


class Capability(NamedTuple):
    """Whether a backend can freeze a device, and why (not), in words."""

    ok: bool
    reason: str


@dataclass(frozen=True)
class FreezeOptions:
    """How a volume is brought to rest before it is frozen. before, after: argv of the commands that do so and undo it, () for none.

    limit_s: how long each of them may take, and how long a filesystem is kept frozen at most. space: of a snapshot that needs some of
    its own, a size or a part of the volume such as 20%.
    """

    before: tuple = ()
    after: tuple = ()
    limit_s: float = 10.0  # a clone takes milliseconds; what writes to the source waits as long as this
    space: str = "20%"


@dataclass(frozen=True)
class Frozen:
    """A source to read. While it exists its content does not change, unless `fuzzy`."""

    path: str  # for device.inspect and device.open_source; starts with the device's first byte
    size: int  # bytes, the device's
    fuzzy: bool  # live: what is read is no single moment, and the sync point is marked so
    time_ns: int  # wall clock (CLOCK_REALTIME) of the moment it shows
    token: str  # for find and release, also after a restart
    # application: every filesystem mounted on it was frozen, or its freeze_before command had succeeded. crash: a moment that nobody had
    # prepared, as after a power cut. fuzzy: no single moment.
    consistency: str = CRASH
    file: tuple | None = None  # (st_dev, inode) where it is a file of ours, whatever its path leads to by now


class SnapshotBackend(ABC):
    """Freezes devices. Every method may block on the device and may be called from any thread."""

    name = ""
    watched = False  # its snapshots have a space of their own that may overflow: whoever reads one calls check() every second

    hints = False  # it has changes(): a source then keeps the snapshot of its last committed generation

    def __init__(self, options=None):
        self.options = options or FreezeOptions()

    @abstractmethod
    def probe(self, device):
        """The Capability for this DeviceInfo. Changes nothing."""

    @abstractmethod
    def freeze(self, device, name, *, quieted=""):
        """Freeze the device as it is at one moment of this call; what was synced before it is in it. Returns Frozen.

        name: for people who look (letters, digits, . _ : + -); two snapshots may have the same.
        quieted: the consistency that the caller has brought it to, and keeps until this returns (several volumes at one moment); "": it is
        brought to rest here.
        Raises SnapshotError; then nothing is left behind, and no filesystem is left frozen.
        """

    @abstractmethod
    def find(self, token):
        """The Frozen of a token, None if it is not there (any more) and the caller has to freeze and scan again."""

    def open(self, frozen):
        """(descriptor for reading with O_DIRECT, what that asks offsets and sizes to be a multiple of) of a Frozen that this backend has made or
        found. Raises QrepError, OSError; the caller closes it."""
        info = device.inspect(frozen.path)
        return device.open_source(info), info.io_alignment

    def check(self, token):  # noqa: B027 - most have nothing to overflow
        """Raise SnapshotError (code snapshot-full) when the snapshot is about to be lost, or is lost, because its space runs full; or (snapshot-gone)
        when somebody has removed it."""

    @abstractmethod
    def release(self, token):
        """Give the snapshot back. Releasing one that is not there is not an error. Raises SnapshotError."""

    @abstractmethod
    def stale(self, device, keep=()):
        """Tokens of this device's snapshots that are not in `keep`: left by a crash between freeze and storing."""

    def changes(self, device, old_token, new_token):
        """Where two frozen images of `device` may differ, found without reading data: extents.Extent in bytes, ascending, disjoint; None:
        cannot say (one is gone, another size, a filesystem or a driver that does not tell): everything may.

        What is not named holds the same bytes in both. It is a hint all the same: it only ever saves reading, and a share of what it
        leaves out is read in every run (source/hints.py). Raises SnapshotError, OSError: as None.
        """
        return None

    def allocated(self, token):
        """Extents of a frozen image that may hold data, ascending, where reading the image's own file cannot tell; the rest is zeroes.
        None: ask the file (SEEK_DATA), and of a device take all of it."""
        return None

    def never_written(self, device):
        """Whether nothing was ever written to the live device, as far as can be told without reading it; a guess that decides what is
        looked at first, never what is believed."""
        return False


def check_name(name):
    """Raise UsageError unless `name` may be part of a file name."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a name for a snapshot", hint="use up to 64 letters, digits and . _ : + -, no blanks"
        )


def mark_of(consistency):
    """The letter behind the ~ of a snapshot's name that says how it was frozen."""
    return "a" if consistency == APPLICATION else "c"


def consistency_of(token):
    """What mark_of put into the name that a token ends in."""
    return APPLICATION if token.rpartition("~")[2].startswith("a") else CRASH
