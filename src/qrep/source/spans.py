"""Pure arithmetic on what a hint names: leaves of the volume in spans, the granules they touch, and which of the others are read all the same.

A span is (first leaf of the volume, how many); lists of them are array("Q") of pairs, ascending and disjoint, as _native/lane.h takes them.
"""

import array
from bisect import bisect_right
from itertools import accumulate
from typing import NamedTuple

from qrep import masks

PIECE_LEAVES = 16  # a sample is taken in pieces of so many leaves: 64 KiB is one read, and few granules are touched
PIECES_MAX = 4096
SAMPLE_SHARE = 0.01  # of the data that a hint leaves out
# What bounds the sample where nobody asked for a share: a run reads what was named, and at most this part of it on top, so that read / changed
# stays below 1.2 where as little as a block was changed at a time; and a run of which (almost) nothing was named still looks at a few places,
# else a provider that calls everything unchanged would never be found out. 4 MiB is 4 % of 100 MiB, and 5 ms of a disk.
SAMPLE_OF_NAMED = 0.15
SAMPLE_LEAST = 4 << 20


class Spans(NamedTuple):
    """wanted: the spans. touched: a byte per granule, 1 where one of them lies. leaves: how many in all."""

    wanted: array.array
    touched: bytearray
    leaves: int


def spans_of(pairs, geometry):
    """Spans of ascending (first leaf, end leaf); those that touch or overlap are joined. Raises ValueError for a list that does not ascend."""
    per_granule = geometry.granule_size // geometry.leaf_size
    wanted, touched, leaves = array.array("Q"), bytearray(geometry.granules), 0
    total = -(-geometry.size // geometry.leaf_size)
    for first, end in pairs:
        end = min(end, total)
        if not 0 <= first < end:
            raise ValueError(f"leaves {first} to {end} of {total}")
        if wanted and first <= wanted[-2] + wanted[-1]:
            if first < wanted[-2]:
                raise ValueError("it does not ascend")
            added = max(0, end - wanted[-2] - wanted[-1])
            wanted[-1] += added
        else:
            added = end - first
            wanted.extend((first, added))
        leaves += added
        granules = slice(first // per_granule, (end - 1) // per_granule + 1)
        touched[granules] = b"\1" * (granules.stop - granules.start)
    return Spans(wanted, touched, leaves)


def spans_of_extents(extents, geometry):
    """Spans of the leaves that extents, in bytes, touch; the device may be larger than the volume. Raises ValueError for what cannot be a list of changes."""
    leaf, size = geometry.leaf_size, geometry.size
    if any(extent.size <= 0 or extent.offset < 0 for extent in extents):
        raise ValueError("an extent begins before the device, or is empty")
    return spans_of(((extent.offset // leaf, -(-min(extent.end, size) // leaf)) for extent in extents if extent.offset < size), geometry)


def ranges(mask):
    """[(first, end)] of the granules of a mask, ascending."""
    return list(masks.runs(mask))


def left_out(spans, granules, geometry):
    """[(first, end)] of the leaves in `granules`, ascending ranges (first, end) of them, that no span names; ranges that touch are joined."""
    per_granule, total = geometry.granule_size // geometry.leaf_size, -(-geometry.size // geometry.leaf_size)
    found, wanted = [], spans.wanted
    # The first span that does not end before the first granule; many granules at once are walked through, one alone is found.
    index = 2 * bisect_right(range(len(wanted) // 2), granules[0][0] * per_granule, key=lambda i: wanted[2 * i] + wanted[2 * i + 1] - 1) if granules else 0
    index = max(0, index - 2)

    def add(first, end):
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], end)
        elif end > first:
            found.append((first, end))

    for first, last in granules:
        position, end = first * per_granule, min(last * per_granule, total)
        while index < len(wanted) and wanted[index] + wanted[index + 1] <= position:
            index += 2
        following = index
        while following < len(wanted) and wanted[following] < end:
            add(position, max(position, wanted[following]))
            position = max(position, wanted[following] + wanted[following + 1])
            following += 2
        index = max(index, following - 2)  # the last one may reach into the next range
        add(position, max(position, end))
    return found


def sample(pool, named_leaves, share, cursor, leaf_size):
    """([(first, end)] of leaves to read, the next run's cursor). pool: [(first, end)] of leaves to choose from. named_leaves: that the hint names.

    share: 0 to 1 of the pool, None: SAMPLE_SHARE, bounded as said above. The pieces lie evenly in the pool and move on by a piece with each run, so
    that every leaf has its turn.
    """
    ends = list(accumulate(end - first for first, end in pool))
    total = ends[-1] if ends else 0
    if share is None:
        count = min(total * SAMPLE_SHARE, max(named_leaves * SAMPLE_OF_NAMED, SAMPLE_LEAST / leaf_size))
    else:
        count = total * share
    count = min(total, int(count) + (0 < count < 1))
    if not count:
        return [], cursor
    if count == total:
        return list(pool), cursor
    piece = min(count, max(PIECE_LEAVES, -(-count // PIECES_MAX)))
    pieces = count // piece
    stride = -(-total // pieces)
    found = []
    for number in range(pieces):
        position = (number * total // pieces + cursor % stride) % total
        stop = position + piece
        found += _cut(pool, ends, position, min(stop, total))
        found += _cut(pool, ends, 0, stop - total)  # round the end
    return _joined(found), (cursor + piece) % (1 << 62)


def _cut(pool, ends, position, stop):
    """Pool coordinates [position, stop) as leaves."""
    index = bisect_right(ends, position)
    while position < stop:
        first, end = pool[index]
        start = first + position - (ends[index] - (end - first))
        taken = min(end - start, stop - position)
        yield start, start + taken
        position += taken
        index += 1


def _joined(ranges):
    found = []
    for first, end in sorted(ranges):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found
