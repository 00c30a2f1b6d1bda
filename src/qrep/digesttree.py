"""From the two-level digest map to what can be said about the whole device: zero granules' values, leaf pages, the root.

`states` and `values` are a map's arrays (`_native/disk.h`): one byte and 32 bytes per granule. No loop here runs over
leaves; the loops over granules touch only those of one kind, found by a scan in C.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from qrep import masks
from qrep._native import hasher
from qrep._native.disk import (
    STATE_HASHED,
    STATE_MASK,
    STATE_PAGE,
    STATE_SLOT,
    STATE_UNKNOWN,
    STATE_VALUE,
    STATE_ZERO,
)

DIGEST_SIZE = 32
# Hashing zeroes runs at the speed of the hash kernel: this much takes about ten seconds on one core (bench/RESULTS.md, hash).
ZERO_FILL_LIMIT = 64 << 30


_IS_UNKNOWN = masks.table(lambda state: state & STATE_MASK == STATE_UNKNOWN)
_IS_BARE_ZERO = masks.table(lambda state: state & STATE_MASK == STATE_ZERO and not state & STATE_VALUE)
_KNOWN_BITS = STATE_MASK | STATE_SLOT | STATE_VALUE | STATE_PAGE
_IS_NO_STATE = masks.table(
    lambda state: state & ~_KNOWN_BITS
    or state & STATE_MASK > STATE_ZERO
    or (state & STATE_MASK == STATE_HASHED and not state & STATE_VALUE)
    or (state & STATE_MASK == STATE_UNKNOWN and state & STATE_VALUE)
)
# What a state means to the other side: its kind, and whether the value is known; slots and pages are our own affair.
SHARED_STATE = bytes(state & (STATE_MASK | STATE_VALUE) for state in range(256))


def page_offset(geometry, granule, state):
    """Where in `leaves` the page of `granule` lies, by the slot its state names."""
    return geometry.leaf_page_offset(granule, 1 if state & STATE_SLOT else 0)


def has_unknown(states):
    return 1 in states.translate(_IS_UNKNOWN)


def are_states(states):
    """Whether every byte is one that a state can be (disk.h)."""
    return 1 not in states.translate(_IS_NO_STATE)


def lacks_values(states):
    """Whether there is a zero granule whose value was never computed."""
    return 1 in states.translate(_IS_BARE_ZERO)


def can_fill(geometry, states, limit):
    """Whether every value is known, or would be once at most `limit` bytes of zeroes are hashed."""
    missing = states.translate(_IS_BARE_ZERO).count(1)
    return missing * geometry.granule_size <= limit and not has_unknown(states)


def fill_zero_values(geometry, states, values, limit=ZERO_FILL_LIMIT):
    """Compute the value of every zero granule that has none, on all cores; mark them in `states`.

    Returns False, and leaves both alone, if that would be more than `limit` bytes of zeroes to hash.
    """
    bare = states.translate(_IS_BARE_ZERO)
    if bare.count(1) * geometry.granule_size > limit:
        return False
    missing = masks.places(bare)

    def fill(granule):
        size = geometry.granule_bytes(granule)
        value = hasher.zero_subtree(size, granule * geometry.granule_size, geometry.leaf_size)
        values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE] = value
        states[granule] |= STATE_VALUE

    if missing:
        with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
            for _ in pool.map(fill, missing, chunksize=64):
                pass
    return True


def read_page(geometry, leaves_fd, granule, state, value):
    """The leaf values of a granule as stored, or None: a page is believed only if it can be read and merges to the granule's value (R8)."""
    count = geometry.granule_leaves(granule)
    if state & STATE_MASK == STATE_ZERO:
        page = bytearray(count * DIGEST_SIZE)
        size = geometry.granule_bytes(granule)
        hasher.zero_subtree(size, granule * geometry.granule_size, geometry.leaf_size, page)
        return page
    if state & STATE_MASK != STATE_HASHED or not state & STATE_PAGE or leaves_fd < 0:
        return None
    page = bytearray(count * DIGEST_SIZE)
    try:
        got = os.preadv(leaves_fd, [page], page_offset(geometry, granule, state))
    except OSError:  # as good as a page that is not there
        return None
    return page if got == len(page) and hasher.merge(page) == value else None


def root(geometry, states, values, leaves_fd=-1, limit=ZERO_FILL_LIMIT):
    """Plain BLAKE3 of the device the map describes, or None while a granule is unknown or too many zeroes lack values.

    Zero granules' values are filled in on the way. A device of one granule needs its leaf page.
    """
    if has_unknown(states) or not fill_zero_values(geometry, states, values, limit):
        return None
    unit = hasher.root_unit(geometry.size, geometry.granule_size, geometry.leaf_size)
    if unit == geometry.granule_size:
        return hasher.root(geometry.size, unit, values)
    page = read_page(geometry, leaves_fd, 0, states[0], bytes(values[:DIGEST_SIZE]))
    return hasher.root(geometry.size, unit, page) if page is not None else None
