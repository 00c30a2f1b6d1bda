"""What a source run has to look at: the base it compares with, the granules it reads, and what is known without reading.

The loops here run over granules that are special (applied, holes, unknown), never over leaves.
"""

import array
import os
import re
import stat

from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_MASK, STATE_PAGE, STATE_SLOT, STATE_UNKNOWN, STATE_VALUE
from qrep._native.source_lane import WORK_HOLE, WORK_LEAVES, WORK_UNKNOWN
from qrep.digesttree import DIGEST_SIZE, page_offset
from qrep.extents import clipped, data_extents, granules_of
from qrep.store import write_all

PARTS, WHOLE = 1, 2  # marks of an applied list
_WHOLE_RUN = re.compile(rb"\x02+", re.DOTALL)


class Base:
    """What the target is known to hold: states and values per granule, and the marks of what the open attempt has applied.

    same: 1 for granules that the frozen image of this attempt was found to hold as the target does; nobody need read them again.
    """

    def __init__(self, states, values):
        self.states, self.values = bytearray(states), bytearray(values)
        self.marked, self.same = bytearray(len(self.states)), bytearray(len(self.states))

    def store(self, first, states, values):
        """Digests that the target read afresh."""
        self.states[first : first + len(states)] = states
        self.values[first * DIGEST_SIZE : first * DIGEST_SIZE + len(values)] = values

    def without_page(self):
        """Granules of data whose value is known and whose leaves are not."""
        return [granule for granule, state in enumerate(self.states) if state & STATE_MASK == STATE_HASHED and not state & STATE_PAGE]

    def store_page(self, geometry, leaves_fd, granule, page):
        """Keep the target's leaf values of a granule where the lanes look for them. R8: only if they merge to its value; returns whether.

        page: as long as the granule has leaves.
        """
        value = self.values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE]
        if self.states[granule] & STATE_MASK != STATE_HASHED or hasher.merge(page) != value:
            return False
        write_all(leaves_fd, page, page_offset(geometry, granule, self.states[granule]))
        self.states[granule] |= STATE_PAGE
        return True

    def overlaid(self, applied, unknown):
        """A copy with the applied chunks of a resumed attempt over it. unknown "incomplete": what is not whole is not known at all."""
        base = Base(self.states, self.values)
        base.same = self.same
        for chunk in applied:
            first = chunk.first
            base.marked[first : first + len(chunk.marked)] = chunk.marked
            for run in _WHOLE_RUN.finditer(chunk.marked):
                start, end = run.span()
                for index in range(start, end):
                    base.states[first + index] = _applied_state(self.states[first + index], chunk.states[index])
                base.values[(first + start) * DIGEST_SIZE : (first + end) * DIGEST_SIZE] = chunk.values[
                    start * DIGEST_SIZE : end * DIGEST_SIZE
                ]
        if unknown == "incomplete":
            for granule, mark in enumerate(base.marked):
                if mark != WHOLE:
                    base.states[granule] = STATE_UNKNOWN
        return base


def _applied_state(before, applied):
    """The state of a granule the target has applied. The session that sent it left its leaf page in the slot the map does not use;
    whether it is there is seen when it is read: a page counts only if it merges to the value (R8)."""
    state = applied & (STATE_MASK | STATE_VALUE)
    if state & STATE_MASK == STATE_HASHED:
        state |= STATE_PAGE | (STATE_SLOT & ~before)
    return state


def work_list(base, holes, geometry, *, resumed, same_image, unknown, searched=False, hint=None):
    """The work of a run as an array of uint64, or None for all granules in order, all to be read.

    holes: of holes_of(). searched: the image is the frozen one in which base.same was found. hint: spans.Spans of what may differ between this
    image and the one that the map describes, None: everything. It says nothing of granules that the attempt has touched: what was applied there
    is not of the image it compares with.
    """
    if holes is None and not resumed and not searched and hint is None:
        return None
    work = array.array("Q")
    for granule in range(geometry.granules):
        mark = base.marked[granule]
        if (same_image and mark == WHOLE) or (searched and base.same[granule]):
            continue
        item = granule
        if holes is not None and holes[granule]:
            item |= WORK_HOLE
        if (unknown == "parts" and mark == PARTS) or (unknown == "incomplete" and mark != WHOLE):
            item |= WORK_UNKNOWN
        elif hint is not None and not mark and base.states[granule] & STATE_MASK != STATE_UNKNOWN:
            if not hint.touched[granule]:
                continue
            if item == granule:
                item |= WORK_LEAVES
        work.append(item)
    return work


def holes_of(source_fd, geometry, allocated=None):
    """A byte per granule, 1 where a frozen image has a hole; None where it has none, or cannot tell. allocated: extents, as the snapshot
    backend knows them; None: a file tells, a device cannot."""
    if allocated is None and not stat.S_ISREG(os.fstat(source_fd).st_mode):
        return None
    holes = bytearray(b"\x01") * geometry.granules
    extents = data_extents(source_fd, geometry.size) if allocated is None else clipped(allocated, geometry.size)
    for granule in granules_of(extents, geometry.granule_size):
        holes[granule] = 0
    return holes if any(holes) else None
