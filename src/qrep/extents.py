"""Byte ranges of a device: what they are, how they combine, and where a file holds data.

An extent list is *normal* when it is sorted, and no two extents touch or overlap, and none is empty. Every function
here takes any iterable of extents and returns a normal list, unless it says otherwise. Offsets and sizes are bytes.
"""

import errno
import os
import stat
from typing import NamedTuple


class Extent(NamedTuple):
    """A byte range. size 0 is allowed only as an input; a normal list never holds one."""

    offset: int
    size: int

    @property
    def end(self):
        return self.offset + self.size


def normalise(extents):
    """Sorted, touching and overlapping extents merged, empty ones dropped. Raises ValueError on a negative one."""
    merged = []
    for offset, size in sorted(extents):
        if offset < 0 or size < 0:
            raise ValueError(f"an extent is not negative: offset {offset}, size {size}")
        if size == 0:
            continue
        if merged and offset <= merged[-1].end:
            last = merged[-1]
            merged[-1] = Extent(last.offset, max(last.end, offset + size) - last.offset)
        else:
            merged.append(Extent(offset, size))
    return merged


def describe(extents, most=5):
    """`8192 bytes at 3153920, 512 bytes at 6291456 and 3 more places`. extents: (offset, size)."""
    extents = list(extents)
    shown = ", ".join(f"{size} bytes at {offset}" for offset, size in extents[:most])
    more = len(extents) - most
    return shown + (f" and {more} more place{'s' if more > 1 else ''}" if more > 0 else "")


def total(extents):
    """Bytes covered; a byte that is in two extents counts once."""
    return sum(extent.size for extent in normalise(extents))


def union(first, second):
    """What is in either."""
    return normalise([*first, *second])


def intersect(first, second):
    """What is in both."""
    first, second, common = normalise(first), normalise(second), []
    i = j = 0
    while i < len(first) and j < len(second):
        start = max(first[i].offset, second[j].offset)
        end = min(first[i].end, second[j].end)
        if start < end:
            common.append(Extent(start, end - start))
        if first[i].end <= second[j].end:
            i += 1
        else:
            j += 1
    return common


def complement(extents, size):
    """What of [0, size) is in none of them."""
    gaps, position = [], 0
    for extent in normalise(extents):
        if extent.offset >= size:
            break
        if extent.offset > position:
            gaps.append(Extent(position, extent.offset - position))
        position = extent.end
    if position < size:
        gaps.append(Extent(position, size - position))
    return gaps


def subtract(extents, minus):
    """What is in the first and not in the second."""
    extents = normalise(extents)
    return intersect(extents, complement(minus, extents[-1].end)) if extents else []


def align_outward(extents, unit, size):
    """Grow every extent to whole units of `unit` bytes, but not past `size` (the last unit may be short)."""
    grown = []
    for extent in normalise(extents):
        start = extent.offset // unit * unit
        end = min(-(-extent.end // unit) * unit, size)
        if start < end:
            grown.append(Extent(start, end - start))
    return normalise(grown)


def data_extents(fd, size):
    """Yield, in order, the extents of [0, size) that may hold data.

    What is not yielded was a hole when the kernel was asked, so it read as zeroes. Nothing is promised the other
    way round: a yielded extent may hold zeroes, too. A block device, and a filesystem that cannot tell, is data
    throughout. The descriptor's file position is moved.

    A hole filled while this runs may be missed, as by any reader who passed there before: freeze the file first.
    Raises OSError on anything but the answers SEEK_DATA is allowed to give.
    """
    if size <= 0:
        return
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        yield Extent(0, size)
        return
    position = 0
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


def holes(fd, size):
    """The extents of [0, size) that were holes: read as zeroes, and cost nothing to skip."""
    return complement(data_extents(fd, size), size)


def allocated_granules(fd, size, granule_size):
    """Yield the index of every granule that may hold data, in order, each once. granule_size: bytes."""
    next_index = 0
    for extent in data_extents(fd, size):
        first = max(extent.offset // granule_size, next_index)
        last = (extent.end - 1) // granule_size
        yield from range(first, last + 1)
        next_index = max(next_index, last + 1)
