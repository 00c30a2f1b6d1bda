"""What a verify has found, and how far it is: durable beside the run record, so that an interrupted one goes on and a run puts right what differs.

`verify.json`: position and findings, replaced atomically; of one generation, of which `verify.seen` has what the map said. `differs`: what the target is known to hold instead of what the map
says, until a run has put it right. Both are JSON of this host only; what is damaged in them is as if it were not there.
"""

import json
import logging
from dataclasses import dataclass, field

from qrep import mapvalues
from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_PAGE, STATE_SLOT, STATE_UNKNOWN, STATE_VALUE
from qrep.digestmap import DIGEST_SIZE, DigestMap
from qrep.digesttree import page_offset
from qrep.errors import DamagedError
from qrep.rehash import own_page, tree_of
from qrep.store import Directory, write_all

POSITION, SEEN, DIFFERS = "verify.json", "verify.seen", "differs"
SIZE_MAX = 32 << 20
LISTED_MAX = 1 << 15  # leaves; beyond that granules are noted, and looked at again when their leaves are needed
UNREADABLE_MAX = 4096  # places
BLOCK = 2048  # granules that are compared at a time
AGAIN_MAX = 4096  # granules that are read again one by one; AGAIN_MAX of messages.py
log = logging.getLogger("qrep.source")


@dataclass
class Side:
    """What one end found of its own device. next: granules below were read, but for those of `again`, ascending; bad: {leaf: value of what is there}; whole: granules of which
    leaves are not known; unreadable: [[offset, size]]."""

    next: int = 0
    again: list = field(default_factory=list)
    read: int = 0
    bad: dict = field(default_factory=dict)
    whole: set = field(default_factory=set)
    unreadable: list = field(default_factory=list)

    def take(self, first, count, size, bad, whole, unreadable, granule_level):
        if self.again:
            self.again.pop(0)
        else:
            self.next = first + count
        self.read += size
        for leaf, value in bad:
            if len(self.bad) < LISTED_MAX:
                self.bad[leaf] = bytes(value)
            else:
                self.whole.add(leaf >> granule_level)
        self.whole.update(whole)
        self.unreadable += [list(extent) for extent in unreadable][: max(0, UNREADABLE_MAX - len(self.unreadable))]

    def changed(self, granules, tree):
        """Another generation, which has other content in these granules: they are read again, and so are those in which something was found, since a
        run may have put it right."""
        size = tree.geometry.granule_size
        again = {*granules, *self.again, *self.whole, *(leaf >> tree.granule_level for leaf in self.bad)}
        for start, length in self.unreadable:
            again.update(range(start // size, (start + length - 1) // size + 1))
        again = sorted(granule for granule in again if granule < self.next)
        if len(again) > AGAIN_MAX:
            self.next, again = again[AGAIN_MAX], again[:AGAIN_MAX]
        self.again, self.bad, self.whole, self.unreadable = again, {}, set(), []

    def as_json(self):
        bad = {str(leaf): value.hex() for leaf, value in self.bad.items()}
        return {"next": self.next, "again": self.again, "read": self.read, "bad": bad, "whole": sorted(self.whole), "unreadable": self.unreadable}

    @classmethod
    def from_json(cls, fields):
        bad = {int(leaf): _digest(value) for leaf, value in fields["bad"].items()}
        places = [[int(offset), int(size)] for offset, size in fields["unreadable"]]
        again = sorted({int(granule) for granule in fields["again"]})
        if again and again[-1] >= fields["next"]:
            raise ValueError("granules are to be read again that have not been read")
        return cls(int(fields["next"]), again, int(fields["read"]), bad, {int(granule) for granule in fields["whole"]}, places)


@dataclass
class Position:
    """Of one verify of `generation` (16 bytes). source_token: the frozen image that is read at the source, "": none."""

    generation: bytes
    source_token: str = ""
    target: Side = field(default_factory=Side)
    source: Side = field(default_factory=Side)
    resumed: bool = False

    def begin(self, directory, tree):
        """Remember what the map says now, so that another generation can be told from this one granule by granule. Before anything is read."""
        with Directory(directory) as opened:
            opened.write(SEEN, self.generation, bytes(tree.kinds), memoryview(tree.values))
        self.save(directory)

    def save(self, directory):
        fields = {
            "generation": self.generation.hex(), "source_token": self.source_token, "target": self.target.as_json(), "source": self.source.as_json(),
        }  # fmt: skip
        with Directory(directory) as opened:
            opened.write(POSITION, json.dumps(fields).encode())


def load_position(directory, generation, source_token, tree):
    """The Position to go on from. tree: MapTree of what the map says of `generation`.

    One of an earlier generation goes on, too: what was read stays read where both generations have the same content; all else is read again.
    """
    try:
        fields = _read(directory, POSITION)
        if fields is not None:
            before = bytes.fromhex(fields["generation"])
            position = Position(generation, source_token, Side.from_json(fields["target"]), Side.from_json(fields["source"]), resumed=True)
            if (not fields["source_token"]) != (not source_token):
                position.source = Side()
            if before == generation and fields["source_token"] == source_token:
                return position
            changed = _changed_since(directory, before, tree)
            if changed is not None:
                for side in (position.target, position.source):
                    side.changed(changed, tree)
                position.begin(directory, tree)
                return position
    except (DamagedError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as err:
        log.warning("%s/%s is not used: %s", directory, POSITION, err)
    position = Position(generation, source_token)
    position.begin(directory, tree)
    return position


def _changed_since(directory, before, tree):
    """The granules in which the map of generation `before` said something else than `tree`, ascending; None: that is not known any more."""
    count = len(tree.kinds)
    with Directory(directory) as opened:
        data = opened.read(SEEN, 16 + count * (1 + DIGEST_SIZE))
    if data is None or len(data) != 16 + count * (1 + DIGEST_SIZE) or bytes(data[:16]) != before:
        return None
    kinds, values = data[16 : 16 + count], data[16 + count :]
    found = []
    for first in range(0, count, BLOCK):
        block = slice(first * DIGEST_SIZE, (first + BLOCK) * DIGEST_SIZE)
        if kinds[first : first + BLOCK] != tree.kinds[first : first + BLOCK] or values[block] != tree.values[block]:
            spans = ((granule, slice(granule * DIGEST_SIZE, (granule + 1) * DIGEST_SIZE)) for granule in range(first, min(first + BLOCK, count)))
            found += [granule for granule, span in spans if kinds[granule] != tree.kinds[granule] or values[span] != tree.values[span]]
    return found


def position_of(directory):
    """{generation, granule} of a verify that was interrupted, for people; None."""
    try:
        fields = _read(directory, POSITION)
        return None if fields is None else {"generation": str(fields["generation"]), "granule": int(fields["target"]["next"])}
    except (DamagedError, RecursionError, OSError, ValueError, KeyError, TypeError):
        return None


def forget_position(directory):
    with Directory(directory) as opened:
        for name in (POSITION, SEEN):
            opened.remove(name)


def _read(directory, name):
    with Directory(directory) as opened:
        data = opened.read(name, SIZE_MAX)
    return None if data is None else json.loads(data)


def _digest(text):
    value = bytes.fromhex(text)
    if len(value) != DIGEST_SIZE:
        raise ValueError("a digest of another length")
    return value


# ---- what the next run has to put right ----


def write_differences(directory, generation, leaves, granules):
    """leaves: {leaf: value of what the target holds}; granules: in which something differs. Neither: there is nothing to put right."""
    with Directory(directory) as opened:
        if not leaves and not granules:
            opened.remove(DIFFERS)
            return
        fields = {
            "generation": generation.hex(), "leaves": {str(leaf): value.hex() for leaf, value in leaves.items()}, "granules": sorted(granules),
        }  # fmt: skip
        opened.write(DIFFERS, json.dumps(fields).encode())


def put_into_map(request):
    """Before a run: let the map say what a verify found the target to hold, so that the run sends exactly what differs. What cannot be said leaf by
    leaf becomes UNKNOWN, and a list that cannot be read makes all of it so. Returns whether anything differs."""
    try:
        fields = _read(request.run_directory, DIFFERS)
        if fields is None:
            return False
        generation = bytes.fromhex(fields["generation"])
        leaves = {int(leaf): _digest(value) for leaf, value in fields["leaves"].items()}
        granules = {int(granule) for granule in fields["granules"]}
    except (DamagedError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as err:
        log.warning("%s/%s cannot be read, both sides are compared afresh: %s", request.run_directory, DIFFERS, err)
        generation, leaves, granules = None, {}, set()
    digest_map = DigestMap(request.map_directory, request.geometry, request.volume_id)
    try:
        if generation is None:
            digest_map.forget()
        elif digest_map.tag == generation:
            correct(digest_map, leaves, granules)
    finally:
        digest_map.close()
    with Directory(request.run_directory) as directory:
        directory.remove(DIFFERS)
    return True


def corrected(digest_map, leaves, granules):
    """(states, values, {granule: page}) of a map once these leaves have other values, and nothing is known of these granules."""
    tree = tree_of(digest_map)
    states, values, pages = bytearray(digest_map.states), mapvalues.copied(digest_map.states, digest_map.values), {}
    by_granule = {}
    for leaf, value in leaves.items():
        by_granule.setdefault(leaf >> tree.granule_level, []).append((leaf, value))
    for granule in sorted(set(granules) | set(by_granule)):
        page = own_page(tree, granule) if granule not in granules else None
        span = slice(granule * DIGEST_SIZE, (granule + 1) * DIGEST_SIZE)
        if page is None:
            states[granule], values[span] = STATE_UNKNOWN, bytes(DIGEST_SIZE)
            continue
        for leaf, value in by_granule[granule]:
            place = (leaf - (granule << tree.granule_level)) * DIGEST_SIZE
            page[place : place + DIGEST_SIZE] = value
        states[granule] = STATE_HASHED | STATE_VALUE | STATE_PAGE | (STATE_SLOT & ~digest_map.states[granule])
        values[span], pages[granule] = hasher.merge(page), page
    return states, values, pages


def correct(digest_map, leaves, granules):
    """Make that the map, durably. The pages go into the slots that the map does not use, so a crash at any point leaves one or the other."""
    states, values, pages = corrected(digest_map, leaves, granules)
    for granule, page in pages.items():
        write_all(digest_map.leaves_fd, page, page_offset(digest_map.geometry, granule, states[granule]))
    digest_map.replace(states, values)

