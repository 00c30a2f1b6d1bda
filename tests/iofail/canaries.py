"""Defects that the sweep must report: qrep, patched in the fork that is watched, swallows an error. Each with the points at which it shows.

Those of native code cannot be patched in a running process; there the library hands it no error at all ("blank": a flush that failed says that it did
not, a read that failed brings zeroes), which is what code that does not look makes of it.
"""

import contextlib
import os

from qrep import store
from qrep.errors import UndoSpaceError
from qrep.target import driver, rollback, superblock, undolog, undostore

MODULES = (store, driver, rollback, superblock, undolog, undostore)


def _replace(name, function):
    """In each module that has imported it."""
    for module in MODULES:
        if hasattr(module, name):
            setattr(module, name, function)


def flush_ignored():
    def flush(descriptor, what):
        with contextlib.suppress(OSError):
            os.fsync(descriptor)

    _replace("flush", flush)


def flush_retried():
    def flush(descriptor, what):
        for _ in range(3):
            with contextlib.suppress(OSError):
                os.fsync(descriptor)
                return
        store.die(what, OSError(5, "after three times"))

    _replace("flush", flush)


def short_write_taken_for_whole():
    def write_all(descriptor, data, offset=None):
        os.write(descriptor, data) if offset is None else os.pwrite(descriptor, data, offset)

    _replace("write_all", write_all)


def short_read_taken_for_whole():
    def read_into(descriptor, view, offset):
        os.preadv(descriptor, [view], offset)
        return len(view)

    _replace("read_into", read_into)


def unreadable_taken_for_zeroes():
    real = store.read_into

    def read_into(descriptor, view, offset):
        try:
            return real(descriptor, view, offset)
        except OSError:
            view[:] = bytes(len(view))
            return len(view)

    _replace("read_into", read_into)


def full_undo_ignored():
    real = undolog.BatchWriter.write

    def write(self):
        before = self._next, self._extents, self._payload
        try:
            real(self)
        except (OSError, UndoSpaceError):
            self._next, self._extents, self._payload = before[0] + 4096, [], bytearray()

    undolog.BatchWriter.write = write


def rename_ignored():
    def rename(self, old, new):
        with contextlib.suppress(OSError):
            os.rename(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        self.flush()

    store.Directory.rename = rename


def slot_ignored():
    superblock.die = lambda what, err: None


def descriptor_kept():
    real = os.close
    kept = []

    def close(descriptor):
        if not kept and os.readlink(f"/proc/self/fd/{descriptor}").endswith("/device"):
            kept.append(descriptor)
        else:
            real(descriptor)

    os.close = close


CANARIES = {  # name: (defect or None, points)
    "a flush that fails is taken for one that did not": (flush_ignored, "second device.flush 1 lose"),
    "a flush that failed is tried again": (flush_retried, "second device.flush 1 eio"),
    "a directory's flush that fails is ignored": (flush_ignored, "second target-map.dirflush 1 eio"),
    "a short write is taken for a whole one": (short_write_taken_for_whole, "rollback undo.write 3 short"),
    "a short read is taken for a whole one": (short_read_taken_for_whole, "merge superblock.read 2 zero"),
    "what cannot be read is taken for zeroes": (unreadable_taken_for_zeroes, "rollback device.read 6 eio"),
    "undo that found no room is taken for written": (full_undo_ignored, "rollback undo.write 3 enospc"),
    "a rename that failed is ignored": (rename_ignored, "merge undo.rename 1 eio"),
    "the commit's sector did not go down, and it is committed": (slot_ignored, "second superblock.write 3 eio"),
    "a descriptor is left open": (descriptor_kept, "second source.read 1 eintr"),
    "native: a source's sector that cannot be read is sent as zeroes": (None, "second source.read 2 blank"),
    "native: a flush of before-images that failed is not noticed": (None, "second undo.flush 2 blank"),
    "native: a device's write that failed is not noticed": (None, "second device.write 2 blank"),
    "native: a flush of the device that failed is not noticed": (None, "second device.flush 1 blank"),
}  # fmt: skip
