"""Taking sync points out of the middle: the undo files around them become one, F(n <- p), F(p <- b) -> F'(n <- b).

Where both hold a before-image of the same place, the older file's is what the device held at b, and the newer file's is left out. Nothing is changed
before the new file is written, flushed and read back; then it is renamed over F(n <- p), which is the moment the points between are gone, and what
they needed is removed. A crash before that leaves a temporary file, after it a file that leads back from nothing that is within reach: each is removed
at the next start.

Memory: a bit for each page of the volume that an undo file covers (32 MiB per TiB at most), one batch read and one being filled.
"""

import contextlib
import mmap
import os
import secrets

from qrep._native import disk
from qrep.crashpoint import crashpoint
from qrep.errors import DamagedError, UndoSpaceError
from qrep.store import TEMPORARY, flush, write_all
from qrep.target.undolog import PIECE, SEGMENT, BatchWriter, read_batch
from qrep.target.undoplaces import Places
from qrep.units import format_size

COPY_OFFSET = disk.UNDO_COPY_OFFSET
PAGE = 4096  # every before-image covers whole ones, but for the end of the volume
BLOCK = 8 << 20  # pages are noted by the block
NO_LIMIT = 1 << 62  # of positions in the file, where the ends of segments are holes


class Covered:
    """Which pages of a volume have been seen."""

    def __init__(self):
        self._blocks = {}  # number -> bits, one per page

    def take(self, offset, size):
        """Note the pages of a range, and yield (offset, size) of what was not noted before. offset: of a page; size: bytes, the last page may be short."""
        end = offset + size
        while offset < end:
            number, inside = divmod(offset, BLOCK)
            here = min(end - offset, BLOCK - inside)
            first, count = inside // PAGE, -(-here // PAGE)
            seen = self._blocks.get(number, 0)
            fresh = ((1 << count) - 1 << first) & ~seen
            self._blocks[number] = seen | fresh
            base = number * BLOCK
            while fresh:
                low = (fresh & -fresh).bit_length() - 1
                rest = fresh >> low
                run = (rest + 1 & ~rest).bit_length() - 1  # up to the first page that was seen
                start = base + low * PAGE
                yield start, min(run * PAGE, end - start)
                fresh = rest >> run << low + run
            offset += here


class MergeWriter(BatchWriter):
    """Each batch says that all before it are flushed: the file is believed only after it was, as a whole."""

    def _written(self, end):
        self._flushed = end


class Merge:
    """One merge. ids: newest first, the first and the last stay; what lies between goes. progress(bytes read).

    build() may run beside everything else that is done with the store, as long as room() is reserved by whoever calls; finish() needs that
    nobody else changes the store, and that the files are still those of `ids`.
    """

    def __init__(self, store, ids, progress=None):
        self.store, self.ids, self._progress = store, list(ids), progress
        self._temporary = f"{self.ids[0].hex()}.undo.{secrets.token_hex(4)}{TEMPORARY}"
        old = sum(store.size(new) for new in self.ids[:-1])
        self.needed = old + old // 256 + SEGMENT  # bytes at most, while the old files are still there; its batches may be smaller

    def check_room(self):
        """Raises UndoSpaceError."""
        room = self.store.room()
        if room < self.needed:
            raise UndoSpaceError(
                f"{self.store.directory.path}: merging undo needs up to {format_size(self.needed)} for a while, and {format_size(max(0, room))} are left",
                hint="delete the oldest sync points first, which needs no room, or raise the volume's --undo-space",
            )

    def build(self):
        """Write the new file, flush it and read it back. Raises DamagedError when one of the old ones cannot be believed, OSError, UndoSpaceError;
        then nothing is left behind."""
        try:
            self._build()
        except BaseException:
            self.drop()
            raise

    def _build(self):
        new, base = self.ids[0], self.ids[-1]
        header = self.store.header(new)
        if header is None:
            raise DamagedError(f"{self.store.directory.path}: the undo file of {new.hex()} is gone")
        header = header.replace(base_id=base)
        os.close(self.store.directory.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        descriptor = self.store.open_named(self._temporary, os.O_RDWR)
        try:
            front = mmap.mmap(-1, COPY_OFFSET + PAGE)
            writer = MergeWriter(descriptor, base, header.attempt, header.size, NO_LIMIT)  # check_room() is what bounds it
            self._copy(writer)
            writer.write()
            for offset, text in ((0, header.pack()), (COPY_OFFSET, header.replace(batches=writer.count).pack())):
                front[offset : offset + len(text)] = text
            write_all(descriptor, memoryview(front), 0)
            crashpoint("undo-merge-written")
            flush(descriptor, f"{self.store.directory.path}/{self._temporary}")
            crashpoint("undo-merge-durable")
            found = Places(descriptor, header)
            in_order = all(place.sequence == number for number, place in enumerate(reversed(found)))
            if found.damaged is not None or len(found) != writer.count or not in_order:
                raise DamagedError(f"{self.store.directory.path}/{self._temporary}: it does not read back as it was written; nothing was changed")
        finally:
            os.close(descriptor)

    def _copy(self, writer):
        """The oldest file first, and in each the first that was logged first: of every place the first that comes is what stays."""
        covered, done = Covered(), 0
        size = self.store.geometry.size
        for new, base in reversed(list(zip(self.ids, self.ids[1:], strict=False))):
            descriptor, header, batches = self.store.batches(base, new)
            try:
                for place in reversed(batches):
                    data, extents, payload = read_batch(descriptor, header, place)
                    for offset, length, kind in extents:
                        if offset % PAGE or ((offset + length) % PAGE and offset + length != size):
                            raise DamagedError(f"{self.store.directory.path}: a before-image at {offset} does not cover whole pages; it cannot be merged")
                        for start, part in covered.take(offset, length):
                            self._add(writer, start, part, data, None if kind == disk.UNDO_ZERO else payload + start - offset)
                        payload += length if kind == disk.UNDO_DATA else 0
                    done += place.size
                    if self._progress:
                        self._progress(done)
            finally:
                os.close(descriptor)

    @staticmethod
    def _add(writer, start, size, data, at):
        """In pieces. at: where its bytes begin in `data`, None: zeroes, of which any size is one piece."""
        if at is None:
            writer.add(start, size, None)
            return
        for skip in range(0, size, PIECE):
            part = min(PIECE, size - skip)
            writer.add(start + skip, part, memoryview(data)[at + skip : at + skip + part])

    def finish(self):
        """The new file takes the place of the newest one; from then on the points between are gone. Raises OSError."""
        crashpoint("undo-merge-rename-before")
        self.store.directory.rename(self._temporary, self.store.name(self.ids[0]))
        crashpoint("undo-merge-renamed")
        for gone in self.ids[1:-1]:
            self.store.directory.remove(self.store.name(gone))
        crashpoint("undo-merge-done")

    def drop(self):
        """Give up what was built. What cannot be removed, the next start removes."""
        with contextlib.suppress(OSError):
            self.store.directory.remove(self._temporary)
