"""Reading a device afresh and comparing it with what its own digest map says, granule by granule and, where it differs, leaf by leaf."""

import mmap
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from qrep import digesttree
from qrep._native import hasher
from qrep._native.bucket import Bucket
from qrep._native.compare import is_zero
from qrep.errors import DeviceReadError
from qrep.maptree import HASHED, UNKNOWN, ZERO, MapTree

THREADS = 2
PIECE = 64 << 20  # bytes that are read between two words about it
PIECE_MAX = 256  # granules of a piece
LISTED_PER_GRANULE = 256  # of a granule in which more leaves differ nobody lists them: its page is asked for
LISTED_PER_PIECE = 4096
UNREADABLE_MAX = 256  # places of a piece
WAIT_S = 0.25


def read_granule(device_fd, geometry, granule, buffer, sector_size=512, read=os.preadv):
    """Fill the page-aligned `buffer` with a granule past the page cache; returns a memoryview of its bytes. read: as os.preadv."""
    return read_range(device_fd, buffer, granule * geometry.granule_size, geometry.granule_bytes(granule), sector_size, read)


def read_range(device_fd, buffer, start, size, sector_size, read=os.preadv):
    """As read_granule, for `size` bytes from `start` on. Raises DeviceReadError."""
    view = memoryview(buffer)[: -(-size // sector_size) * sector_size]
    done = 0
    while done < size:
        try:
            got = read(device_fd, [view[done:]], start + done)
        except OSError as err:
            extents = [(start + done, size - done, err.errno)]
            raise DeviceReadError(f"bytes from {start + done} on cannot be read: {err.strerror}", extents=extents) from err
        if not got:
            raise DeviceReadError(f"the device ended at {start + done}, before its size")
        done += got
    return view[:size]


@dataclass
class Piece:
    """What came of granules [first, first + count). bad: [(leaf of the volume, its fresh value)]; whole: granules of which the map has no
    leaf values, or in which too many leaves differ to be listed; unreadable: (offset, size); fresh: {granule: (kind, value)} of those of which
    the map knows nothing. All ascending."""

    first: int
    count: int
    size: int
    bad: list = field(default_factory=list)
    whole: list = field(default_factory=list)
    unreadable: list = field(default_factory=list)
    fresh: dict = field(default_factory=dict)


class Rehash:
    """device_fd: O_DIRECT. tree: MapTree of what the device should hold. rate: bytes per second, 0: as fast as it goes.
    stopped(): asked several times a second; true ends it. nice: a ReadLimit that is obeyed besides, or None.
    """

    def __init__(self, device_fd, tree, sector_size, rate=0, stopped=lambda: False, nice=None):
        self._read = os.preadv if nice is None else self._read_nicely
        self._nice = nice
        self.tree, self._fd, self._sector_size, self._stopped = tree, device_fd, sector_size, stopped
        self.geometry = tree.geometry
        self._bucket = Bucket(rate) if rate else None
        self._buffers = threading.local()
        per_piece = max(1, min(PIECE_MAX, PIECE // self.geometry.granule_size))
        if rate:  # a word about every second
            per_piece = max(1, min(per_piece, rate // self.geometry.granule_size))
        self.per_piece = per_piece

    def pieces(self, first):
        """Yield the Pieces from granule `first` on, until the end or stopped()."""
        with ThreadPoolExecutor(THREADS) as pool:
            while first < self.geometry.granules:
                granules = range(first, min(first + self.per_piece, self.geometry.granules))
                piece = self._piece(granules, pool)
                if piece is None:
                    return
                yield piece
                first = granules.stop

    def only(self, granules):
        """Yield a Piece of each of these granules, until stopped()."""
        with ThreadPoolExecutor(1) as pool:
            for granule in granules:
                piece = self._piece(range(granule, granule + 1), pool)
                if piece is None:
                    return
                yield piece

    def _piece(self, granules, pool):
        size = sum(self.geometry.granule_bytes(granule) for granule in granules)
        if not self._may_read(size):
            return None
        piece = Piece(granules.start, len(granules), size)
        for granule, fresh, bad, unreadable in pool.map(self._look, granules):
            if len(piece.unreadable) + len(unreadable) <= UNREADABLE_MAX:
                piece.unreadable += unreadable
            elif unreadable:
                bad = None
            if fresh is not None:
                piece.fresh[granule] = fresh
            if bad is None or len(bad) > LISTED_PER_GRANULE or len(piece.bad) + len(bad) > LISTED_PER_PIECE:
                piece.whole.append(granule)
            else:
                piece.bad += bad
        return None if self._stopped() else piece

    def _may_read(self, size):
        """Wait until the rate allows so many bytes. False: it was stopped."""
        while self._bucket is not None and not self._stopped() and (wait_ns := self._bucket.take(size)):
            time.sleep(min(wait_ns / 1e9, WAIT_S))
        return not self._stopped()

    def _read_nicely(self, device_fd, views, offset):
        """As os.preadv of one view, as much of it and when the limiter says; once it was stopped, no matter what."""
        nice, view = self._nice, views[0]
        size = min(len(view), nice.piece or len(view))
        while wait_ns := nice.take(size):
            if self._stopped():
                return os.preadv(device_fd, [view[:size]], offset)
            time.sleep(wait_ns / 1e9)
        began, got = time.monotonic_ns(), 0
        try:
            got = os.preadv(device_fd, [view[:size]], offset)
        finally:
            nice.done(got, time.monotonic_ns() - began)
        return got

    def _buffer(self):
        if not hasattr(self._buffers, "granule"):
            self._buffers.granule = mmap.mmap(-1, self.geometry.granule_size)
        return self._buffers.granule

    def _look(self, granule):
        """(granule, (kind, value) where the map knows nothing, [(leaf, value)] that differ or None: some, [(offset, size)] unreadable)."""
        geometry, tree = self.geometry, self.tree
        start = granule * geometry.granule_size
        try:
            data = read_granule(self._fd, geometry, granule, self._buffer(), self._sector_size, self._read)
        except DeviceReadError:
            return self._look_by_leaves(granule)
        zero = is_zero(data)
        fresh = (ZERO, bytes(32)) if zero else (HASHED, hasher.subtree(data, start, geometry.leaf_size))
        wanted = tree.node(tree.granule_level, granule)
        if wanted[0] == UNKNOWN:
            return granule, fresh, [], []
        if tree.is_same(tree.granule_level, granule, wanted, fresh):
            return granule, None, [], []
        page = bytearray(geometry.granule_leaves(granule) * 32)
        hasher.subtree(data, start, geometry.leaf_size, page)
        return granule, None, self._differing(granule, page), []

    def _differing(self, granule, page):
        """[(leaf of the volume, its value in `page`)] where the map's page has another; None: it has none."""
        ours = own_page(self.tree, granule)
        if ours is None:
            return None
        first = granule << self.tree.granule_level
        places = range(0, len(page), 32)
        return [(first + at // 32, bytes(page[at : at + 32])) for at in places if page[at : at + 32] != ours[at : at + 32]]

    def _look_by_leaves(self, granule):
        """A granule that cannot be read whole."""
        geometry, unreadable, found = self.geometry, [], []
        ours = own_page(self.tree, granule)
        for place in range(geometry.granule_leaves(granule)):
            leaf = (granule << self.tree.granule_level) + place
            start = leaf * geometry.leaf_size
            size = min(geometry.leaf_size, geometry.size - start)
            try:
                data = read_range(self._fd, self._buffer(), start, size, self._sector_size, self._read)
            except DeviceReadError:
                if unreadable and sum(unreadable[-1]) == start:
                    start, size = unreadable[-1][0], unreadable.pop()[1] + size
                unreadable.append((start, size))
                continue
            value = hasher.subtree(data, start, geometry.leaf_size)
            if ours is not None and value != ours[place * 32 : place * 32 + 32]:
                found.append((leaf, value))
        return granule, None, found, unreadable


def own_page(tree, granule):
    """The leaf values that a tree's map has of a granule, None where it has none. Safe from several threads."""
    if tree.kinds[granule] != ZERO:
        return tree._page(granule) if tree.kinds[granule] == HASHED else None
    page = bytearray(tree.geometry.granule_leaves(granule) * 32)
    hasher.zero_subtree(tree.geometry.granule_bytes(granule), granule * tree.geometry.granule_size, tree.geometry.leaf_size, page)
    return page


def tree_of(digest_map, known=True):
    """The MapTree of a DigestMap, which goes on reading its pages. known False: the map does not describe what is there."""
    states, values, geometry, leaves_fd = bytes(digest_map.states), digest_map.values, digest_map.geometry, digest_map.leaves_fd
    if not known:
        states = bytes(len(states))

    def page(granule):
        value = values[granule * 32 : granule * 32 + 32]
        return digesttree.read_page(geometry, leaves_fd, granule, states[granule], value)

    return MapTree(geometry, states, values, page)


def independent_root(device_fd, geometry, sector_size, progress=None, stopped=lambda: False, rate=0):
    """The root from a full read of the device with the packaged blake3: an opinion that shares no code with ours. None: it was stopped.

    progress(bytes): told every second.
    """
    import blake3

    digest = blake3.blake3(max_threads=blake3.blake3.AUTO)
    buffer, bucket = mmap.mmap(-1, geometry.granule_size), Bucket(rate) if rate else None
    told = time.monotonic()
    for granule in range(geometry.granules):
        size = geometry.granule_bytes(granule)
        while bucket is not None and not stopped() and (wait_ns := bucket.take(size)):
            time.sleep(min(wait_ns / 1e9, WAIT_S))
        if stopped():
            return None
        digest.update(read_granule(device_fd, geometry, granule, buffer, sector_size))
        if progress and time.monotonic() - told >= 1.0:
            told = time.monotonic()
            progress((granule + 1) * geometry.granule_size)
    return digest.digest()
