"""What a source run has to look at: the base it compares with, the granules it reads, and what is known without reading.

The loops here run over granules that are special (applied, holes, unknown), never over leaves.
"""

import array
import os
import re
import stat

from qrep import mapvalues, masks
from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_MASK, STATE_PAGE, STATE_SLOT, STATE_UNKNOWN, STATE_VALUE
from qrep._native.source_lane import WORK_HOLE, WORK_LEAVES, WORK_UNKNOWN
from qrep.digesttree import DIGEST_SIZE, page_offset
from qrep.extents import clipped, data_extents
from qrep.store import write_all

PARTS, WHOLE = 1, 2  # marks of an applied list
_WHOLE_RUN = re.compile(rb"\x02+", re.DOTALL)


class Base:
    """What the target is known to hold: states and values per granule, and the marks of what the open attempt has applied.

    same: 1 for granules that the frozen image of this attempt was found to hold as the target does; nobody need read them again.
    """

    def __init__(self, states, values):
        self.states, self.values = bytearray(states), values
        self._shares_values = True  # with the map: copied before anything is put into them
        self.marked, self.same = bytearray(len(self.states)), bytearray(len(self.states))

    def store(self, first, states, values):
        """Digests that the target read afresh."""
        if self._shares_values:
            self.values, self._shares_values = mapvalues.copied(self.states, self.values), False
        mapvalues.put(self.values, self.states, first, states, values)
        self.states[first : first + len(states)] = states

    def without_page(self):
        """Granules of data whose value is known and whose leaves are not."""
        return masks.places(self.states.translate(_IS_WITHOUT_PAGE))

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
                states = applied_states(self.states[first + start : first + end], chunk.states[start:end])
                base.store(first + start, states, chunk.values[start * DIGEST_SIZE : end * DIGEST_SIZE])
        if unknown == "incomplete":
            for first, end in masks.runs(base.marked.translate(masks.table(lambda mark: mark != WHOLE))):
                base.states[first:end] = bytes(end - first)
            base.values, base._shares_values = mapvalues.settled(base.states, base.values), False
        return base


def applied_states(before, applied):
    """The states of granules the target has applied, one after the other. The session that sent them left each leaf page in the slot the map does
    not use; whether it is there is seen when it is read: a page counts only if it merges to the value (R8)."""
    other_slot = _number(applied.translate(_SLOT_OF_HASHED)) & ~_number(before)
    return (_number(applied.translate(_AS_APPLIED)) | other_slot).to_bytes(len(applied), "little")


def work_list(base, holes, geometry, *, resumed, same_image, unknown, searched=False, hint=None):
    """The work of a run as an array of uint64, or None for all granules in order, all to be read.

    holes: of holes_of(). searched: the image is the frozen one in which base.same was found. hint: spans.Spans of what may differ between this
    image and the one that the map describes, None: everything. It says nothing of granules that the attempt has touched: what was applied there
    is not of the image it compares with.
    """
    if holes is None and not resumed and not searched and hint is None:
        return None
    # Masks of a byte per granule, 0 or 1, as numbers: two million granules are looked at in some operations on 2 MiB each.
    count = geometry.granules
    every = _number(b"\1" * count)
    whole, parts = (_number(base.marked.translate(masks.table(mark.__eq__))) for mark in (WHOLE, PARTS))
    hole = _number(holes) if holes is not None else 0
    unsure = parts if unknown == "parts" else every ^ whole if unknown == "incomplete" else 0
    skipped = (whole if same_image else 0) | (_number(base.same) if searched else 0)
    leaves = 0
    if hint is not None:
        hinted = every & ~(whole | parts | unsure | _number(base.states.translate(_IS_UNKNOWN)))
        touched = _number(hint.touched)
        skipped |= hinted & ~touched
        leaves = hinted & touched & ~hole
    codes = (skipped | hole << _HOLE_BIT | unsure << _UNSURE_BIT | leaves << _LEAVES_BIT).to_bytes(count, "little")
    work = array.array("Q")
    for run in _ONE_CODE.finditer(codes):
        flags = _FLAGS[codes[run.start()]]
        if flags is not None:
            work.extend(range(run.start() + flags, run.end() + flags))
    return work


def _number(mask):
    return int.from_bytes(mask, "little")


_ONE_CODE = re.compile(rb"(.)\1*", re.DOTALL)
_IS_UNKNOWN = masks.table(lambda state: state & STATE_MASK == STATE_UNKNOWN)
_IS_WITHOUT_PAGE = masks.table(lambda state: state & STATE_MASK == STATE_HASHED and not state & STATE_PAGE)
_SLOT_OF_HASHED = bytes(STATE_SLOT if state & STATE_MASK == STATE_HASHED else 0 for state in range(256))
_AS_APPLIED = bytes(state & (STATE_MASK | STATE_VALUE) | (STATE_PAGE if state & STATE_MASK == STATE_HASHED else 0) for state in range(256))
_HOLE_BIT, _UNSURE_BIT, _LEAVES_BIT = 1, 2, 3  # of a code; bit 0: it is skipped


def _flags(code):
    """Of a work item; None: there is none."""
    found = ((_HOLE_BIT, WORK_HOLE), (_UNSURE_BIT, WORK_UNKNOWN), (_LEAVES_BIT, WORK_LEAVES))
    return None if code & 1 else sum(flag for bit, flag in found if code >> bit & 1)


_FLAGS = [_flags(code) for code in range(16)]


def holes_of(source_fd, geometry, allocated=None):
    """A byte per granule, 1 where a frozen image has a hole; None where it has none, or cannot tell. allocated: extents, as the snapshot
    backend knows them; None: a file tells, a device cannot."""
    if allocated is None and not stat.S_ISREG(os.fstat(source_fd).st_mode):
        return None
    holes = bytearray(b"\x01") * geometry.granules
    extents = data_extents(source_fd, geometry.size) if allocated is None else clipped(allocated, geometry.size)
    for extent in extents:
        first, end = extent.offset // geometry.granule_size, -(-extent.end // geometry.granule_size)
        holes[first:end] = bytes(end - first)
    return holes if 1 in holes else None
