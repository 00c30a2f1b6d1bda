"""The superblock file of a target volume: two slots, written in turn, one sector each; the valid one with the higher sequence wins.

Writing a slot is the commit point (R4): one sector, O_DSYNC, past the page cache where the filesystem can do that. A crash
in the middle leaves the other slot. The file exists only with at least one slot written: it is made by an atomic replace.
"""

import contextlib
import errno
import mmap
import os

from qrep._native import disk
from qrep.crashpoint import crashpoint
from qrep.errors import DamagedError
from qrep.store import die, read_into

NAME = "superblock"
SLOT_SIZE = disk.SUPERBLOCK_SIZE
SLOT_DISTANCE = disk.SUPERBLOCK_SLOT_DISTANCE
FILE_SIZE = 2 * SLOT_DISTANCE


class SuperblockFile:
    """The superblock of one volume, below its state directory (a store.Directory, not ours to close)."""

    def __init__(self, directory):
        self.directory = directory
        self.path = f"{directory.path}/{NAME}"
        self.block = None  # what is durable now; None: there is no superblock yet
        self._descriptor = -1
        self._page = mmap.mmap(-1, SLOT_DISTANCE)  # page aligned, as O_DIRECT asks
        self._unit = SLOT_SIZE

    def load(self):
        """Read both slots; returns the superblock, or None if the volume has none yet.

        Raises DamagedError when neither slot can be believed, or one was written by a newer qrep: then hands off.
        """
        try:
            self._open()
        except FileNotFoundError:
            return None
        slots = []
        for slot in range(2):
            # Whole pages: the descriptor may be O_DIRECT. A slot of which only a part is there must not hide behind what the other one held.
            if read_into(self._descriptor, memoryview(self._page), slot * SLOT_DISTANCE) != SLOT_DISTANCE:
                raise self._damaged("it ends before its second slot")
            slots.append(self._page[:SLOT_SIZE])
        try:
            self.block, _ = disk.choose_superblock(*slots)
        except disk.RecordNewer as err:
            raise DamagedError(f"{self.path}: {err}", hint="use the version of qrep that wrote it") from err
        except disk.RecordDamaged as err:
            raise self._damaged(err) from err
        return self.block

    def _damaged(self, what):
        return DamagedError(
            f"{self.path}: {what}", hint="the target was left alone; put the file back from a copy, or remove the volume and replicate it anew"
        )

    def confirm(self):
        """Flush what load() read: a predecessor may have died between its write and its flush. A failed flush ends the process (R2)."""
        try:
            os.fsync(self._descriptor)
        except OSError as err:
            die(self.path, err)

    def write(self, block):
        """Make `block` the superblock: when this returns it is durable, and before that the old one is.

        A failed write or flush ends the process (R2): what the slot holds is then known only by reading it again.
        """
        sequence = self.block.sequence + 1 if self.block else 1
        block = block.replace(sequence=sequence)
        packed = block.pack()
        if self.block is None:
            self._create(packed, sequence % 2)
        else:
            self._page[:SLOT_DISTANCE] = packed + bytes(SLOT_DISTANCE - SLOT_SIZE)
            crashpoint("superblock-write-before")
            try:
                self._write_slot(sequence % 2)
            except OSError as err:
                die(self.path, err)
        self.block = block
        crashpoint("superblock-write-durable")

    def _create(self, packed, slot):
        content = bytearray(FILE_SIZE)
        start = slot * SLOT_DISTANCE
        content[start : start + SLOT_SIZE] = packed
        crashpoint("superblock-create-before")
        self.directory.write(NAME, content)
        self._open()

    def _open(self):
        flags = os.O_RDWR | os.O_DSYNC
        try:
            self._descriptor = self.directory.open(NAME, flags | os.O_DIRECT)
        except OSError as err:
            if err.errno != errno.EINVAL:  # this filesystem has no direct I/O; O_DSYNC alone is as durable
                raise
            self._descriptor = self.directory.open(NAME, flags)

    def _write_slot(self, slot):
        """One sector. Where the device below has larger ones, the kernel says EINVAL and the unit becomes 4096, one sector there."""
        while True:
            try:
                written = os.pwritev(self._descriptor, [memoryview(self._page)[: self._unit]], slot * SLOT_DISTANCE)
            except OSError as err:
                if err.errno != errno.EINVAL or self._unit == SLOT_DISTANCE:
                    raise
                self._unit = SLOT_DISTANCE
                continue
            if written != self._unit:
                raise OSError(errno.EIO, f"{written} of {self._unit} bytes were written")
            return

    def close(self):
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        with contextlib.suppress(BufferError):
            self._page.close()
