"""What a source run has to look at: the base it compares with, the granules it reads, and what is known without reading.

The loops here run over granules that are special (applied, holes, unknown), never over leaves.
"""

import array
import re
import stat
import os

from qrep._native.disk import STATE_HASHED, STATE_MASK, STATE_PAGE, STATE_SLOT, STATE_UNKNOWN, STATE_VALUE
from qrep._native.source_lane import WORK_HOLE, WORK_UNKNOWN
from qrep.digesttree import DIGEST_SIZE
from qrep.extents import allocated_granules

PARTS, WHOLE = 1, 2  # marks of an applied list
_WHOLE_RUN = re.compile(rb"\x02+", re.DOTALL)


class Base:
    """What the target is known to hold: states and values per granule, and the marks of what the open attempt has applied."""

    def __init__(self, states, values):
        self.states, self.values = bytearray(states), bytearray(values)
        self.marked = bytearray(len(self.states))

    def store(self, first, states, values):
        """Digests that the target read afresh."""
        self.states[first : first + len(states)] = states
        self.values[first * DIGEST_SIZE : first * DIGEST_SIZE + len(values)] = values

    def overlaid(self, applied, unknown):
        """A copy with the applied chunks of a resumed attempt over it. unknown "incomplete": what is not whole is not known at all."""
        base = Base(self.states, self.values)
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


def work_list(base, source_fd, geometry, *, resumed, same_image, unknown):
    """The work of a run as an array of uint64, or None for all granules in order, all to be read."""
    holes = _holes(source_fd, geometry)
    if holes is None and not resumed:
        return None
    work = array.array("Q")
    for granule in range(geometry.granules):
        mark = base.marked[granule]
        if same_image and mark == WHOLE:
            continue
        item = granule
        if holes is not None and holes[granule]:
            item |= WORK_HOLE
        if (unknown == "parts" and mark == PARTS) or (unknown == "incomplete" and mark != WHOLE):
            item |= WORK_UNKNOWN
        work.append(item)
    return work


def _holes(source_fd, geometry):
    """A byte per granule, 1 where an image file has a hole; None for a device, which cannot tell."""
    if not stat.S_ISREG(os.fstat(source_fd).st_mode):
        return None
    holes = bytearray(b"\x01") * geometry.granules
    for granule in allocated_granules(source_fd, geometry.size, geometry.granule_size):
        holes[granule] = 0
    return holes if any(holes) else None
