"""The values of a map in memory: 32 bytes per granule in a mapping of its own, of which only pages with a value in them take memory.

A sparse volume of 16 TiB has two million granules and values for a few dozen of them. What is not written reads as zeroes and costs nothing, as long
as nobody writes zeroes there: whoever drops a value clears it, and whoever has none leaves the page alone. A granule has a value where its
state says so (STATE_VALUE), and only there; so the states, a thirty-second of the size, tell which pages matter.
"""

import mmap

from qrep import masks
from qrep._native.disk import STATE_VALUE

DIGEST_SIZE = 32
PER_PAGE = mmap.PAGESIZE // DIGEST_SIZE  # granules
Values = mmap.mmap
_HAS_VALUE = masks.table(lambda state: state & STATE_VALUE)
_HAS_NONE = masks.table(lambda state: not state & STATE_VALUE)


def empty(granules):
    """Room for the values of so many granules, all zero. Indexed and sliced like a bytearray of a fixed size."""
    values = mmap.mmap(-1, granules * DIGEST_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    values.madvise(mmap.MADV_NOHUGEPAGE)  # else one value would take 2 MiB
    return values


def spans(states):
    """Yield, in order, (first granule, end) of the pages in which a granule has a value; pages side by side are one span."""
    granules, mask = len(states), states.translate(_HAS_VALUE)
    first = end = 0
    while (found := mask.find(1, end)) >= 0:
        start = max(end, found // PER_PAGE * PER_PAGE)
        if start > end and end > first:
            yield first, end
        first = start if start > end or end == first else first
        stop = mask.find(0, found)
        end = min(granules, -(-(stop if stop >= 0 else granules) // PER_PAGE) * PER_PAGE)
    if end > first:
        yield first, end


def parts(states, values):
    """What a file of these values is made of, in order, for store.Directory.write: holes, as numbers, and memoryviews."""
    found, done = [], 0
    with memoryview(values) as view:
        for first, end in spans(states):
            found += [(first - done) * DIGEST_SIZE, view[first * DIGEST_SIZE : end * DIGEST_SIZE]]
            done = end
    return [*found, (len(states) - done) * DIGEST_SIZE]


def put(values, before, first, states, fresh):
    """Let granules from `first` on have the values `fresh`, which are said by `states`. before: the states that `values` had until now."""
    end = first + len(states)
    at = first * DIGEST_SIZE
    for run in masks.runs(before[first:end].translate(_HAS_VALUE)):
        start, stop = (place * DIGEST_SIZE for place in run)
        values[at + start : at + stop] = bytes(stop - start)
    for run in masks.runs(states.translate(_HAS_VALUE)):
        start, stop = (place * DIGEST_SIZE for place in run)
        values[at + start : at + stop] = fresh[start:stop]


def copied(states, values):
    """A copy of `values` of its own, as far as `states` has any."""
    copy = empty(len(states))
    with memoryview(values) as source, memoryview(copy) as target:
        for first, end in spans(states):
            part = slice(first * DIGEST_SIZE, end * DIGEST_SIZE)
            target[part] = source[part]
    return copy


def clear_strays(states, values):
    """Clear what lies in the pages of `spans` where no granule has a value by `states`, which have been changed since. Returns whether there was any."""
    found = False
    for first, end in spans(states):
        for run in masks.runs(states[first:end].translate(_HAS_NONE)):
            here = slice((first + run[0]) * DIGEST_SIZE, (first + run[1]) * DIGEST_SIZE)
            nothing = bytes(here.stop - here.start)
            if values[here] != nothing:
                values[here] = nothing
                found = True
    return found


def settled(states, values):
    """A copy of `values` of its own, after granules were made UNKNOWN in `states`: theirs are gone, as whoever reads the arrays expects."""
    copy = copied(states, values)
    clear_strays(states, copy)
    return copy
