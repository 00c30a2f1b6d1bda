"""Byte ranges of a device, in bytes: what they are, how they are said, and where a file holds data."""

import errno
import os
import stat
from typing import NamedTuple


class Extent(NamedTuple):
    offset: int
    size: int

    @property
    def end(self):
        return self.offset + self.size


def describe(extents, most=5):
    """`8192 bytes at 3153920, 512 bytes at 6291456 and 3 more places`. extents: (offset, size)."""
    extents = list(extents)
    shown = ", ".join(f"{size} bytes at {offset}" for offset, size in extents[:most])
    more = len(extents) - most
    return shown + (f" and {more} more place{'s' if more > 1 else ''}" if more > 0 else "")


def data_extents(fd, size, start=0):
    """Yield, in order, the extents of [start, size) that may hold data.

    What is not yielded was a hole when the kernel was asked, so it read as zeroes. Nothing is promised the other
    way round: a yielded extent may hold zeroes, too. A block device, and a filesystem that cannot tell, is data
    throughout. The descriptor's file position is moved.

    A hole filled while this runs may be missed, as by any reader who passed there before: freeze the file first.
    Raises OSError on anything but the answers SEEK_DATA is allowed to give.
    """
    if size <= start:
        return
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        yield Extent(start, size - start)
        return
    position = start
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # no data from here on, or the file shrank: nothing left to read
                return
            if err.errno == errno.EINVAL:  # this filesystem cannot tell
                yield Extent(position, size - position)
                return
            raise
        if start >= size:
            return
        try:
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as err:
            if err.errno != errno.ENXIO:
                raise
            end = size  # the file shrank below `start` in between: let the reader meet it
        # A hole punched at `start` between the two calls gives end == start; go on behind at least one byte.
        end = min(max(end, start + 1), size)
        yield Extent(start, end - start)
        position = end


def is_all_hole(path, size):
    """Whether a file has no data in [0, size) as far as its filesystem tells; False for anything that is not a file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return next(data_extents(fd, size), None) is None
    finally:
        os.close(fd)


def clipped(extents, size):
    """Extents of [0, size) only; the last one may be cut."""
    return [Extent(extent.offset, min(extent.end, size) - extent.offset) for extent in extents if extent.offset < size]


def granules_of(extents, granule_size):
    """Yield the index of every granule that ascending extents touch, in order, each once. granule_size: bytes."""
    next_index = 0
    for extent in extents:
        first = max(extent.offset // granule_size, next_index)
        last = (extent.end - 1) // granule_size
        yield from range(first, last + 1)
        next_index = max(next_index, last + 1)
