"""Putting a retained sync point back as a generation of its own, and copying one out.

The content of a sync point is the device with the undo files between put over it, newest file first, inside each file the
newest batch first: so the oldest before-image of every place is what stays.
"""

import mmap
import os
import stat

from qrep import device, devicesafety
from qrep._native import undo
from qrep._native.compare import is_zero
from qrep.crashpoint import crashpoint
from qrep.errors import DeviceReadError, Refused
from qrep.extents import Extent, data_extents
from qrep.store import flush, read_into, write_all
from qrep.target.undolog import PIECE, BatchWriter, read_batch
from qrep.target.undostore import groups

COPY_SIZE = 4 << 20


class UndoLog(BatchWriter):
    """Before-images of what the device holds, in the undo file of an open generation, and flushed (R3)."""

    def __init__(self, undo_fd, device_fd, base, attempt, device_size, limit, marks=None):
        super().__init__(undo_fd, base, attempt, device_size, limit)
        self._device_fd = device_fd
        self._buffer = mmap.mmap(-1, PIECE)
        self._marks, self._ends = marks, []  # view.Marks; where the batches end that were written since the last flush

    def save(self, offset, size):
        """Log what the device holds in a range."""
        while size:
            piece = min(size, PIECE)
            if read_into(self._device_fd, memoryview(self._buffer)[:piece], offset) != piece:
                raise DeviceReadError(f"{piece} bytes at {offset} could not be read before they are overwritten")
            data = self._buffer[:piece]
            self.add(offset, piece, None if is_zero(data) else data)
            offset, size = offset + piece, size - piece

    def _written(self, end):
        self._ends.append(end)

    def flush(self):
        """Everything saved is durable when this returns (R2, R3)."""
        self.write()
        flush(self._undo_fd, "undo file of the rollback")
        self._flushed = self._next
        for end in self._ends if self._marks is not None else ():
            self._marks.set(end)
        self._ends.clear()
        crashpoint("rollback-undo-durable")


def apply_point(store, chain, way, log, device_fd, *, is_file, progress=None):
    """Put the undo files of `way` (generation ids, newest first) over the device, logging what was there before.

    chain: ids, newest first; the file of way[i] leads to the generation after it in chain. Returns the granules touched.
    """
    touched, done = set(), 0
    granule_size = store.geometry.granule_size
    for new in way:
        descriptor, header, batches = store.batches(chain[chain.index(new) + 1], new)
        try:
            for group in groups(batches):
                for place in group:
                    _data, extents, _payload = read_batch(descriptor, header, place)
                    for extent in extents:
                        log.save(extent.offset, extent.size)
                        last = (extent.offset + extent.size - 1) // granule_size
                        touched.update(range(extent.offset // granule_size, last + 1))
                log.flush()
                done += undo.restore(device_fd, descriptor, group, header.size, punch=True, is_file=is_file)
                crashpoint("rollback-applied")
                if progress:
                    progress(done)
        finally:
            os.close(descriptor)
    return touched


def copy_out(store, chain, way, device_fd, path, *, is_file, overwrite=False, progress=None):
    """Write the content of a sync point to a new image file, or to a device that may be overwritten. Returns the bytes gone through.

    The file is 0600 and sparse where the device is zero. Of a device that is larger, what lies behind the size of the volume is not touched.
    Raises Refused if the file exists and overwrite is not given.
    """
    size = store.geometry.size
    descriptor, new_is_file = _open_copy(path, size, overwrite)
    try:
        done = _copy_device(device_fd, descriptor, size, new_is_file, progress)
        for new in way:
            undo_fd, header, batches = store.batches(chain[chain.index(new) + 1], new)
            try:
                for group in groups(batches):
                    undo.restore(descriptor, undo_fd, group, header.size, punch=True, is_file=new_is_file)
            finally:
                os.close(undo_fd)
        flush(descriptor, path)
    finally:
        os.close(descriptor)
    return done


def _open_copy(path, size, overwrite):
    """(descriptor, whether it is a file) of what a sync point is copied to; O_DIRECT, as undo.restore asks."""
    try:
        exists = os.stat(path)
    except FileNotFoundError:
        exists = None
    if exists is not None and not overwrite and stat.S_ISREG(exists.st_mode):
        raise Refused(f"{path} exists", hint="name a new file, or give -y to overwrite it", code="exists")
    directory = os.path.dirname(os.path.abspath(path))
    if exists is None and not os.path.isdir(directory):
        raise Refused(f"target {path}: there is no directory {directory}", hint="make it first", code="no-such-directory")
    if exists is None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, size)
        os.close(descriptor)
    info = device.inspect(path)
    is_file = info.kind == "file"
    devicesafety.check_target(info, source=None, size_needed=0 if is_file else size, overwrite=overwrite or is_file)
    descriptor = devicesafety.claim(info, wait_seconds=0)
    if is_file and exists is not None:  # only now is it known that nobody else uses it
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, size)
    return descriptor, is_file


def _copy_device(device_fd, descriptor, size, to_file, progress):
    """All of the device. A file is fresh, so zeroes are left out; another device is made zero where this one, an image file, has holes."""
    buffer, done, position = mmap.mmap(-1, COPY_SIZE), 0, 0

    def pieces(offset, end):
        nonlocal done
        while offset < end:
            view = memoryview(buffer)[: min(COPY_SIZE, end - offset)]
            yield view, offset
            offset, done = offset + len(view), done + len(view)
            if progress:
                progress(done)

    for extent in (*data_extents(device_fd, size), Extent(size, 0)):
        offset, end = extent.offset // 4096 * 4096, min(-(-extent.end // 4096) * 4096, size)
        for view, at in () if to_file else pieces(position, offset):
            _make_zero(descriptor, view, at)
        for view, at in pieces(max(offset, position), end):
            if read_into(device_fd, view, at) != len(view):
                raise DeviceReadError(f"the device ended before its size, {size} bytes")
            if not to_file or not is_zero(view):
                write_all(descriptor, view, at)
        position = max(position, end)
    return done


def _make_zero(descriptor, view, offset):
    """Write zeroes over a range of a device that does not hold them: one that is thin stays so. view: of that size, aligned."""
    try:
        if read_into(descriptor, view, offset) == len(view) and is_zero(view):
            return
    except OSError:  # with integrity tags a sector that was never written cannot be read; whether it can be used is told by the write
        pass
    view[:] = bytes(len(view))
    write_all(descriptor, view, offset)
