"""What a run tells people: its report at the end, and its progress while it goes on."""

import time
from dataclasses import asdict, dataclass, field

from qrep.errors import Unsynced
from qrep.extents import describe
from qrep.source.recent import Recent

RATE_S = 5.0  # the rates that are shown are those of so many seconds
PACE_S = 60.0  # the time to go, of so many: a granule may take long
# Which wait of the lanes names the bottleneck; others: it gives way to who else uses the source. What is not waiting is hashing and comparing.
_WAITS = {"source": "wait_device_ns", "network": "wait_network_ns", "limit": "wait_limit_ns", "others": "wait_nice_ns", "hash": "busy_ns"}


@dataclass
class RunReport:
    """A committed run. read, read_shared, hashed, zero, changed: bytes of the volume; sent: bytes of changed data; wire: with headers.

    root: hex of the plain BLAKE3 of the device, or None when too many zeroes would have to be hashed for it.
    """

    generation: str
    counter: int
    root: str | None
    fuzzy: bool
    resumed: bool
    frozen_at_ns: int
    seconds: float
    read: int = 0
    read_shared: int = 0  # what another run of the same source, started with this one, has read and hashed for it
    hashed: int = 0
    zero: int = 0
    changed: int = 0
    sent: int = 0
    copies: int = 0  # of the changed bytes, those of leaves that travelled as copies of others
    packed: int = 0  # of the data in frames, what travelled packed,
    packed_sent: int = 0  # and what of it travelled
    frames: int = 0
    interruptions: int = 0
    zero_copy: bool | None = None
    ktls: bool | None = None
    unreadable: list = field(default_factory=list)
    hints: dict | None = None  # Hints.report()
    clean: bool = False  # neither end held anything, each by its own word, and nothing was sent

    @property
    def read_per_changed(self):
        """Bytes read for each byte that had changed: what change hints are measured by. None where nothing had."""
        return round(self.read / self.changed, 3) if self.changed else None

    def as_dict(self):
        return asdict(self) | {"read_per_changed": self.read_per_changed}


class Progress:
    """Sums of the lanes' counters over all sessions of a run, and what follows from them. Any thread may ask."""

    def __init__(self, size):
        self.size = size
        self.phase = "connecting"
        self.received_by_target = 0
        self.ktls = None  # whether the kernel encrypts what its connections send; None: there was none yet
        self._done = {}  # of sessions that have ended
        self._run = None
        self._work = 0  # granules of the present session's work
        self._applied = 0  # bytes that need no look, because they were applied before
        self._scanned = 0.0  # of the scanning: the target's reading is its first half, ours the second
        self._searched = 0  # bytes of the pass over the source, while it goes on
        self._started = time.monotonic()
        self._recent, self._pace = Recent(RATE_S), Recent(PACE_S)

    def connected(self, connection):
        self.ktls = connection.kernel_tls and self.ktls is not False

    def begin(self, run, applied):
        """Lanes were started. applied: bytes of the volume that an earlier session has dealt with."""
        self._run, self._applied = run, applied
        for each in (self._recent, self._pace):
            each.begin(time.monotonic())
        self.phase = "syncing"

    def compared(self, granules, total):
        """The target has given digests of so many granules."""
        self.phase, self._scanned = "scanning", granules / total / 2

    def begin_search(self, run, size):
        """The source is looked through for what differs: `size` bytes."""
        self._run, self._searched, self.phase, self._scanned = run, size, "scanning", 0.5

    def end(self):
        counters = self._counters()
        self._run, self._searched = None, 0
        self._done = _sum(self._done, counters)
        if self.phase == "scanning":
            self._scanned = 1.0

    def totals(self):
        return _sum(self._done, self._counters())

    def _counters(self):
        """Of the lanes that run. What a search finds changed or zero is counted again by the lanes that send it."""
        run, searching = self._run, self._searched
        counters = run.counters() if run is not None else {}
        return {name: counters[name] for name in ("read", "hashed")} if counters and searching else counters

    @property
    def seconds(self):
        return time.monotonic() - self._started

    def as_dict(self, granule_size, unreadable=0):
        """The PROGRESS of the local API."""
        run, totals, searched, counters = self._run, self.totals(), self._searched, self._counters()
        run = None if searched else run
        recent = self._recent.rates(time.monotonic(), counters) if run is not None else {}
        pace = self._pace.rates(time.monotonic(), counters) if run is not None else {}
        looked_at = min(self.size, self._applied + counters.get("granules_done", 0) * granule_size)
        fraction = 1.0 if self.phase == "committing" else looked_at / self.size if run is not None else 0.0
        if self.phase == "scanning":
            fraction = self._scanned + (min(1.0, counters.get("read", 0) / searched) / 2 if searched else 0.0)
        speed = pace.get("granules_done", 0) * granule_size
        left = (self.size - looked_at) / speed if speed else None
        waits = {name: counters.get(counter, 0) for name, counter in _WAITS.items()}
        return {
            "phase": self.phase,
            "percent": round(100 * fraction, 1),
            "seconds_left": left,
            "bottleneck": max(waits, key=waits.get) if any(waits.values()) else None,
            **{name: totals.get(name, 0) for name in ("read", "read_shared", "hashed", "zero", "changed", "sent", "copies", "packed", "packed_sent")},
            "written": self.received_by_target,
            "rate_bytes_per_s": recent.get("sent", 0),
            "hash_bytes_per_s": recent.get("hashed", 0),
            "zero_copy": zero_copy_of(totals),
            "ktls": self.ktls,
            "unreadable": unreadable,
        }


def zero_copy_of(counters):
    """Whether the kernel sent from our memory: None if it was not asked to, False if it says that it copied all the same."""
    notified = counters.get("zc_notified", 0)
    return counters.get("zc_copied", 0) < notified if notified else None


def _sum(first, second):
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}


def named_blocks(error, source, kept):
    """The Unsynced of a run as people see it. source: the path of its device. kept: the target holds what was applied."""
    ends = ((error.unreadable, f"{source}: %s cannot be read"), (error.unwritten, "the target cannot write %s"))
    text = "; ".join(text % describe(extents) for extents, text in ends if extents) + "; nothing was committed"
    what = " and ".join(f"the {end} device" for end, extents in (("source", error.unreadable), ("target", error.unwritten)) if extents)
    return Unsynced(
        f"{text}, everything else is applied and kept for the next run" if kept else text, unreadable=error.unreadable,
        unwritten=error.unwritten, hint=f"repair or replace {what}; the next run tries these blocks again",
    )  # fmt: skip
