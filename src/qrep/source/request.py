"""What a run is asked to do."""

from dataclasses import dataclass, field

from qrep._native import wire
from qrep.device import DeviceInfo
from qrep.source.limiter import Reading
from qrep.volumes import registry


@dataclass
class RunRequest:
    """What to replicate and how. job_id, volume_id (of the target volume): 16 bytes. device: DeviceInfo of the source.

    backend: volumes.base.SnapshotBackend. map_directory, run_directory: of this job's state. initial: auto, compare or full.
    timeout_s: without progress, before a run gives up for now. Rates and zero-copy belong to the connections that `connect` makes.
    """

    job_id: bytes
    volume_id: bytes
    device: DeviceInfo
    backend: object
    map_directory: str
    run_directory: str
    leaf_size: int = 4096
    granule_size: int = 8 << 20
    connections: int = 2
    initial: str = "auto"
    frame_limit: int = 2 << 20
    slots: int = 2
    timeout_s: float = 30.0
    plain: object = None  # a callable: whether `connect` makes connections without TLS, asked for each session; None: it does not
    hold: bool = True  # where blocks are left out, the target keeps what was applied; False: only if nothing was ever committed
    snapshot_name: str = field(default="")
    hints: bool = False  # keep the snapshot of the last committed generation, and read only what the backend says may have changed since
    hint_sample: float | None = None  # the share, 0 to 1, of what a hint leaves out that is read all the same; None: source/hints.py decides
    size: int = 0  # bytes of the volume where the device is larger; 0: all of it
    once: bool = False  # mode copy: what was committed is the end of it, also for a run that finds it so
    tokens: object = None  # shared.SharedTokens: snapshots that several jobs hold; None: none are
    together: object = None  # what this run shares with others that were started with it: daemon/groups.py, source/shared.py; None: nothing
    label: str = ""  # the name that the sync point is to bear; a run with one always freezes anew
    compress: str = "off"  # data travels packed: off, auto (where that is faster) or on (whatever gets smaller)
    nice: bool = False  # the source is read so that others who use it hardly notice
    forgotten: object = None  # a callable: whether the target that was just dialled has dropped what it knew of itself; None: it has not
    wanted: object = None  # a callable: how many connections the way has that was just dialled; None: as many as before

    def __post_init__(self):
        self.hints = self.hints and self.backend.hints
        self.reading = Reading(self.device, self.nice)  # of all that is read for it; whoever carries it out ends it

    def find(self, token):
        """The Frozen of a token, None if it is gone or another backend made it."""
        return self.backend.find(token) if token.startswith(f"{self.backend.name}:") else None

    def open(self, frozen):
        """(descriptor, alignment) of a Frozen, as SnapshotBackend.open; others of this source may have frozen it in another way."""
        return self.backend.open(frozen) if frozen.token.startswith(f"{self.backend.name}:") else registry.open_frozen(frozen)

    def release(self, token):
        """Give a snapshot back, also one that another backend made: how a volume is frozen may have changed since. One that others hold, too,
        stays until the last of them gives it back."""
        if self.tokens is not None and self.tokens.release(token, self.job_id.hex()):
            return
        (self.backend if token.startswith(f"{self.backend.name}:") else registry).release(token)

    def is_plain(self):
        return self.plain is not None and self.plain()

    @property
    def geometry(self):
        return wire.Geometry(self.size or self.device.size, self.leaf_size, self.granule_size)

    @property
    def snapshot(self):
        """Name of this job's snapshots: by it a crash's left-overs are known as ours."""
        return self.snapshot_name or f"job-{self.job_id.hex()}"
