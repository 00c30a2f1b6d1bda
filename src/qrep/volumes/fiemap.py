"""Where two reflinked images differ, by FIEMAP: which blocks of the disk each of them is made of, without reading one.

A block that two files share cannot be overwritten in place while both exist: whoever writes one of them is given another block. So where two
frozen clones map the same place to the same block they hold the same bytes. Everything else is a difference that may be one.
"""

import errno
import fcntl
import hashlib
import os
import struct
from typing import NamedTuple

from qrep.extents import Extent

FS_IOC_FIEMAP = 0xC020660B
FLAG_SYNC = 0x1
HEADER = struct.Struct("=QQLLLL")  # start, length, flags, mapped extents, room for extents, reserved
RECORD = struct.Struct("=QQQQQLLLL")  # logical, physical, length, 2 reserved, flags, 3 reserved
ROOM = 1024  # extents asked for at a time
DIFFERENCES_MAX = 2 << 20  # a list of more is no saving any more, and half a GiB of memory
LAST, UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED = 0x1, 0x2, 0x4, 0x8, 0x80
NOT_ALIGNED, DATA_INLINE, DATA_TAIL, UNWRITTEN, SHARED = 0x100, 0x200, 0x400, 0x800, 0x2000
# Whose place on the disk says nothing of their content. Encoded: of compressed data all of an extent has one place, whichever part of it is meant.
UNCLEAR = UNKNOWN | ENCODED | DATA_ENCRYPTED | NOT_ALIGNED | DATA_INLINE | DATA_TAIL


class Mapped(NamedTuple):
    """Bytes of a file that lie one after the other on the disk, in bytes. physical None: they read as zeroes. unclear: nobody can tell what
    they are by where they lie."""

    offset: int
    size: int
    physical: int | None
    unclear: bool


class Moving(Exception):
    """The file is not at rest: data waits for a place on the disk."""


def mapping(fd, size, seen=None):
    """Yield Mapped of [0, size), ascending, without gaps. Flushes the file first. seen: a hashlib object that is fed what the kernel said.
    Raises Moving, OSError (EOPNOTSUPP, ENOTTY: no such map here)."""
    position = 0
    buffer = bytearray(HEADER.size + ROOM * RECORD.size)
    last = False
    while position < size and not last:
        HEADER.pack_into(buffer, 0, position, size - position, FLAG_SYNC, 0, ROOM, 0)
        fcntl.ioctl(fd, FS_IOC_FIEMAP, buffer)
        count = HEADER.unpack_from(buffer)[3]
        if not 0 <= count <= ROOM:
            raise OSError(errno.EIO, "a file map of more extents than were asked for")
        if seen is not None:
            seen.update(memoryview(buffer)[: HEADER.size + count * RECORD.size])
        before = position
        for index in range(count):
            logical, physical, length, _, _, flags, _, _, _ = RECORD.unpack_from(buffer, HEADER.size + index * RECORD.size)
            if flags & DELALLOC:
                raise Moving("data waits for a place on the disk")
            last = last or bool(flags & LAST)
            start, end = max(logical, position), min(logical + length, size)
            if end <= start:
                continue
            if start > position:
                yield Mapped(position, start - position, None, False)
            if flags & UNCLEAR:
                yield Mapped(start, end - start, None, True)
            elif flags & UNWRITTEN:
                yield Mapped(start, end - start, None, False)
            else:
                # Not shared, it can be in one of two files only; if both claim it, somebody is wrong.
                yield Mapped(start, end - start, physical + start - logical, not flags & SHARED)
            position = end
        if position == before:
            if count:
                raise OSError(errno.EIO, "a file map that does not go on")
            break
    if position < size:
        yield Mapped(position, size - position, None, False)


def differing(old, new):
    """[Extent] where two mappings of equally long files may hold other bytes, ascending, disjoint, joined where they touch.
    old, new: iterables of Mapped."""
    found = []
    begin = end = 0  # of the difference that is being put together
    left, right = iter(old), iter(new)
    one, two = next(left, None), next(right, None)
    while one is not None and two is not None:
        start, stop = max(one.offset, two.offset), min(one.offset + one.size, two.offset + two.size)
        if not _same(one, two, start):
            if start != end or begin == end:
                if end > begin:
                    found.append(Extent(begin, end - begin))
                    if len(found) > DIFFERENCES_MAX:
                        raise OSError(errno.EFBIG, f"more than {DIFFERENCES_MAX} differences")
                begin = start
            end = stop
        if one.offset + one.size == stop:
            one = next(left, None)
        if two.offset + two.size == stop:
            two = next(right, None)
    if end > begin:
        found.append(Extent(begin, end - begin))
    return found


def _same(one, two, start):
    if one.unclear or two.unclear:
        return False
    if one.physical is None or two.physical is None:
        return one.physical is two.physical
    return one.physical + start - one.offset == two.physical + start - two.offset


def changes(old_fd, new_fd):
    """[Extent] where two frozen clones may differ, None: cannot say. Raises OSError."""
    old, new = os.fstat(old_fd), os.fstat(new_fd)
    if old.st_size != new.st_size or old.st_dev != new.st_dev:
        return None
    try:
        return _steady((old_fd, new_fd), new.st_size)
    except Moving:
        return None
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EFBIG, errno.EINVAL):
            return None
        raise


def _steady(fds, size):
    """The difference, if nothing moved meanwhile: a balance or a defragmentation gives blocks of one file to another, so the map of the first
    file must still be what it was when that of the second was made."""
    before, after = hashlib.sha256(), hashlib.sha256()
    found = differing(mapping(fds[0], size, before), mapping(fds[1], size))
    for _ in mapping(fds[0], size, after):
        pass
    return found if before.digest() == after.digest() else None
