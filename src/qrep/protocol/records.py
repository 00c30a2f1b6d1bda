"""What the two ends keep durable between runs, as the machines see it. Bytes on disk: `_native/disk.h` (target), JSON (source)."""

import msgspec

from qrep.protocol.messages import HISTORY_MAX, NO_ID, PRIMARY, REPLICA

OPEN_NONE, OPEN_RUN, OPEN_ROLLBACK = 0, 1, 2  # open_kind, enum qrep_open_kind of disk.h


class TargetRecord(msgspec.Struct, frozen=True):
    """The target superblock without magic, sequence and checksum, which belong to whoever writes it. Fields as in disk.h."""

    volume_id: bytes
    size: int
    leaf_size: int
    granule_size: int
    role: int = REPLICA
    committed_id: bytes = NO_ID
    committed_counter: int = 0
    max_epoch: int = 0
    open_kind: int = OPEN_NONE
    open_new_id: bytes = NO_ID
    open_attempt: int = 0
    history: tuple = ()  # earlier committed ids, newest first, at most HISTORY_MAX; which are within reach, the undo files say

    def opened(self, kind, new, attempt):
        return msgspec.structs.replace(self, open_kind=kind, open_new_id=new, open_attempt=attempt)

    def reshaped(self, size, leaf_size, granule_size):
        return msgspec.structs.replace(self, size=size, leaf_size=leaf_size, granule_size=granule_size)

    def with_epoch(self, epoch):
        return msgspec.structs.replace(self, max_epoch=epoch)

    def closed(self):
        """The open generation is given up."""
        return self.opened(OPEN_NONE, NO_ID, 0)

    def committed(self):
        """The open generation becomes the committed one; the sequence of committed ids stays a chain."""
        history = self.history if self.committed_id == NO_ID else (self.committed_id, *self.history)[:HISTORY_MAX]
        return msgspec.structs.replace(
            self.closed(), committed_id=self.open_new_id, committed_counter=self.committed_counter + 1, history=history
        )

    def taken_over(self, new):
        """The host may write from here on: no earlier generation can be shown any more."""
        return self._changed_role(PRIMARY, new)

    def given_up(self, new):
        """What the host wrote is generation `new`, with nothing before it."""
        return self._changed_role(REPLICA, new)

    def _changed_role(self, role, new):
        return msgspec.structs.replace(self.closed(), role=role, committed_id=new, committed_counter=self.committed_counter + 1, history=())


class Decided(msgspec.Struct, frozen=True):
    """What the record of a group commit says of one volume. point: what Prepare said of the sync point, as TargetMachine keeps it."""

    volume_id: bytes
    attempt: int
    new: bytes
    point: tuple


class RunRecord(msgspec.Struct, frozen=True):
    """What a source remembers of its open attempt, so that another process can resume it. Durable before Begin is sent."""

    epoch: int
    base: bytes
    new: bytes
    attempt: int
    snapshot: str  # token by which the snapshot backend finds it again; "": the live volume
    fuzzy: bool
    frozen_at_ns: int
    mixed: bool  # sessions of this attempt have read different images: what was applied is not all of `snapshot`
    consistency: str = ""  # of the image: volumes.base.Frozen
    label: str = ""  # the name that the sync point is to bear
