"""Writes batches of before-images to an undo file, as the lanes do, and reads one (`_native/disk.h` has the bytes)."""

import errno
import mmap

from qrep._native import disk
from qrep.errors import DamagedError, UndoSpaceError
from qrep.store import read_into, write_all
from qrep.units import format_size

PIECE = 1 << 20  # bytes of one before-image at most
PAYLOAD_MAX = 3 << 20  # of one batch: five fill a segment, all but the last 16th of it
EXTENTS_MAX = 4096
SEGMENT = disk.UNDO_SEGMENT_SIZE
MORE_ROOM = "raise the volume's --undo-space, make room on its filesystem, or keep fewer sync points"  # the way out for people


class BatchWriter:
    """undo_fd: O_DIRECT or not. base, attempt: of the file's header. device_size: bytes of the volume. limit: bytes that the file may reach up to.

    count: batches written so far. What was added last is written by write(), and nothing is flushed here.
    """

    def __init__(self, undo_fd, base, attempt, device_size, limit):
        self._undo_fd = undo_fd
        self._base, self._attempt, self._size, self._limit = base, attempt, device_size, limit
        self._next = self._flushed = SEGMENT
        self._page = mmap.mmap(-1, SEGMENT)
        self._extents, self._payload = [], bytearray()
        self.count = 0

    def add(self, offset, size, data):
        """What a range held, PIECE at most; data None: zeroes. Raises UndoSpaceError, OSError."""
        self._extents.append((offset, size, disk.UNDO_ZERO if data is None else disk.UNDO_DATA))
        if data is not None:
            self._payload += data
        if len(self._payload) + PIECE > PAYLOAD_MAX or len(self._extents) == EXTENTS_MAX:
            self.write()

    def write(self):
        """One batch at the next place; it never crosses the end of a segment."""
        if not self._extents:
            return
        size = _batch_size(len(self._extents), len(self._payload))
        if self._next % SEGMENT + size > SEGMENT:
            self._next = (self._next // SEGMENT + 1) * SEGMENT
        if self._next + size > self._limit:
            raise self._no_room(size)
        batch = disk.UndoBatch(
            base_id=self._base, attempt=self._attempt, sequence=self.count, position=self._next,
            flushed=max(self._flushed, self._next // SEGMENT * SEGMENT), extents=self._extents, payload=self._payload,
        )  # fmt: skip
        packed = batch.pack(self._size)
        self._page[: len(packed)] = packed
        try:
            write_all(self._undo_fd, memoryview(self._page)[: len(packed)], self._next)
        except OSError as err:
            if err.errno != errno.ENOSPC:
                raise
            raise self._no_room(size) from err
        self._next += len(packed)
        self.count += 1
        self._extents, self._payload = [], bytearray()
        self._written(self._next)

    @staticmethod
    def _no_room(size):
        return UndoSpaceError(
            f"the undo store has no room for another {format_size(size)}; what was begun is undone",
            hint=MORE_ROOM,
        )

    def _written(self, end):
        """For subclasses: a batch is written that ends there."""


def read_batch(descriptor, header, place):
    """(bytes of the batch, its extents, where its payload begins in them); everything is checked. place: of undo.scan(). Raises DamagedError."""
    data = mmap.mmap(-1, place.size)
    if read_into(descriptor, memoryview(data), place.position) == place.size:
        scanned = disk.scan_undo_segment(data, place.position, header.size, header.base_id, header.attempt, limit=1)
        if len(scanned.batches) == 1 and scanned.batches[0].position == place.position:
            (batch,) = scanned.batches
            return data, batch.extents, batch.payload_position - place.position
    raise DamagedError(f"the batch of before-images at {place.position} changed while it was read")


def _batch_size(extents, payload):
    """As qrep_undo_batch_size(): header and table, then the payload, each filled up to whole pages."""
    return -(-(disk.UNDO_BATCH_SIZE + extents * 16) // 4096) * 4096 + -(-payload // 4096) * 4096
