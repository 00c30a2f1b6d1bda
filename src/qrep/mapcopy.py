"""One digest map made of another: both ends of a pair may hold the same content, and then each needs a map of its own and of the other."""

import errno
import os

from qrep import mapvalues
from qrep.digesttree import DIGEST_SIZE
from qrep.store import write_all

PIECE = 1 << 20


def copy_leaves(source, target):
    """The leaf pages of one digestmap.DigestMap into another's, holes left out. Not flushed: a page that is not there or is stale does not merge
    to its granule's value (R8). Both have the same geometry."""
    size = os.fstat(source.leaves_fd).st_size
    _empty(target, size)
    try:
        _copy(source, target, size)
    except OSError:  # what there is of it is of no use, and others need the room
        _empty(target, size)
        raise


def room_for(source, target):
    """Bytes on disk, about, that become() takes beyond what the leaf pages of `target` have now."""
    leaves = (os.fstat(each.leaves_fd).st_blocks * 512 for each in (source, target))
    return next(leaves) - next(leaves) + 2 * len(source.states) * (1 + DIGEST_SIZE)


def _empty(target, size):
    os.ftruncate(target.leaves_fd, 0)
    os.ftruncate(target.leaves_fd, size)


def _copy(source, target, size):
    offset = 0
    while offset < size:
        try:
            start = os.lseek(source.leaves_fd, offset, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # nothing but a hole follows
                return
            raise
        end = os.lseek(source.leaves_fd, start, os.SEEK_HOLE)
        for offset in range(start, end, PIECE):
            data = os.pread(source.leaves_fd, min(PIECE, end - offset), offset)
            write_all(target.leaves_fd, data, offset)
        offset = end


def content_of(source, target):
    """(states, values) of `source` for the map `target`, whose leaf pages become those of `source`. Nothing is durable yet."""
    if source is not target:
        copy_leaves(source, target)
    states = bytearray(source.states)
    return states, mapvalues.copied(states, source.values)


def become(target, tag, source):
    """Make `target` describe, under `tag`, what `source` describes; durable."""
    target.forget()
    states, values = content_of(source, target)
    target.write_pending(tag, source.tag, source.counter, states, values, source.root_value)
    target.fold(tag)
