"""A digest map as one tree that two hosts can compare from its root down, and the way down: pure, without devices or sockets.

A node (level, index) stands for leaves [index << level, (index + 1) << level), up to the end of the volume. Below a granule it is the chaining
value that BLAKE3 gives it; a granule is its value, or the word that it is all zero; above, it is the BLAKE3 of what is said of its
granules, so that nobody must hash zeroes to tell the root of a large empty volume. Every node is 32 bytes and a kind.
"""

from qrep import mapvalues, masks
from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_MASK, STATE_UNKNOWN, STATE_VALUE, STATE_ZERO

DIGEST_SIZE = 32
UNKNOWN, HASHED, ZERO = 0, 1, 2  # kinds of a node
STEP = 4  # levels of one question: 16 children of every node that differs
NODES_MAX = 256  # of one question
_KINDS = bytes(state & STATE_MASK if state & STATE_MASK <= ZERO else UNKNOWN for state in range(256))
# Of those whose value is what they are told apart by: also where a list of kinds is given, which does not say that it is known.
_WITH_VALUE = bytes(STATE_VALUE if state & STATE_VALUE or state & STATE_MASK == STATE_HASHED else 0 for state in range(256))
_IS_ZERO_WITH_VALUE = masks.table(lambda state: state & STATE_MASK == STATE_ZERO and state & STATE_VALUE)
assert (STATE_UNKNOWN, STATE_ZERO) == (UNKNOWN, ZERO)


class MapTree:
    """geometry: Geometry. states, values: a map's arrays, copied. page(granule): its leaf values, None where none can be believed."""

    def __init__(self, geometry, states, values, page):
        self.geometry, self._page = geometry, page
        self.kinds = bytearray(bytes(states).translate(_KINDS))
        self.values = mapvalues.copied(bytes(states).translate(_WITH_VALUE), values)
        for first, end in masks.runs(bytes(states).translate(_IS_ZERO_WITH_VALUE)):  # whether the value of a zero granule was ever computed is nobody's affair
            self.values[first * DIGEST_SIZE : end * DIGEST_SIZE] = bytes((end - first) * DIGEST_SIZE)
        self.leaves = -(-geometry.size // geometry.leaf_size)
        self.granule_level = (geometry.granule_size // geometry.leaf_size).bit_length() - 1
        self.top = max(self.granule_level, (self.leaves - 1).bit_length())
        self._cached = (-1, None)

    def count(self, level):
        """Nodes of a level."""
        return -(-self.leaves >> level)

    def known(self, granule):
        return self.kinds[granule] != UNKNOWN

    def adopt(self, granule, kind, value):
        """What a granule was just read as, where the map does not know."""
        self.kinds[granule] = kind
        self.values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE] = value

    def page(self, granule):
        if self._cached[0] != granule:
            self._cached = granule, self._page(granule)
        return self._cached[1]

    def granule_of(self, level, index):
        """The granule that a node of at most granule_level lies in."""
        return index >> (self.granule_level - level)

    def node(self, level, index):
        """(kind, 32 bytes). index: below count(level)."""
        if level >= self.granule_level:
            first = index << (level - self.granule_level)
            end = min(first + (1 << (level - self.granule_level)), len(self.kinds))
            if level == self.granule_level:
                return self.kinds[first], self.values[first * DIGEST_SIZE : end * DIGEST_SIZE]
            with memoryview(self.kinds) as kinds, memoryview(self.values) as values:
                return HASHED, hasher.hash_parts(kinds[first:end], values[first * DIGEST_SIZE : end * DIGEST_SIZE])
        granule = self.granule_of(level, index)
        if self.kinds[granule] == ZERO:
            return ZERO, bytes(DIGEST_SIZE)
        page = self.page(granule) if self.kinds[granule] == HASHED else None
        if page is None:
            return UNKNOWN, bytes(DIGEST_SIZE)
        first = ((index << level) - (granule << self.granule_level)) * DIGEST_SIZE
        return HASHED, hasher.merge(page[first : first + (DIGEST_SIZE << level)])

    def nodes(self, level, indexes):
        """(a kind per index, 32 bytes per index)."""
        found = [self.node(level, index) for index in indexes]
        return bytes(kind for kind, _ in found), b"".join(value for _, value in found)

    def root(self):
        return self.node(self.top, 0)

    def is_same(self, level, index, one, other):
        """Whether two accounts (kind, value) of one node are of the same bytes, as far as they say."""
        if one == other:
            return one[0] != UNKNOWN or level > self.granule_level
        if level > self.granule_level or {one[0], other[0]} != {HASHED, ZERO}:
            return False
        start = (index << level) * self.geometry.leaf_size
        size = min(self.geometry.leaf_size << level, self.geometry.size - start)
        zero = hasher.zero_subtree(size, start, self.geometry.leaf_size)
        return zero == (one if one[0] == HASHED else other)[1]


class Descent:
    """From the root of a tree down to the leaves in which the tree of another host differs.

    tree: ours. ask(level, indexes): their (kinds, values), checked for length. most: how many nodes of one level are followed.
    After run(): leaves: [(index, their value)], ascending; granules: of which one of the two does not know the leaves, ascending;
    spans: (first leaf, leaves) of nodes that were too many to follow; nodes: how many were exchanged; equal: the roots agreed.
    """

    def __init__(self, tree, ask, most=1 << 16):
        self.tree, self._ask, self._most = tree, ask, most
        self.leaves, self.granules, self.spans = [], [], []
        self.nodes, self.equal = 0, False

    def run(self):
        level = self.tree.top
        found = self._differing(level, [0])
        self.equal = not found
        while found and level > 0:
            level, found = self._children(level, [index for index, _ in found])
            if len(found) > self._most:
                self.spans = [(index << level, 1 << level) for index, _ in found]
                return self
        if level == 0:
            self.leaves = found
        self.granules.sort()
        return self

    def _children(self, level, parents):
        """The next level that is asked for, and the nodes below `parents` that differ there."""
        tree = self.tree
        below = max(level - STEP, tree.granule_level if level > tree.granule_level else 0)
        if below < tree.granule_level:
            parents = [index for index in parents if not self._unknown_here(level, index)]
        each, found = 1 << (level - below), []
        for start in range(0, len(parents), NODES_MAX // each):
            group = parents[start : start + NODES_MAX // each]
            indexes = [child for index in group for child in range(index * each, min((index + 1) * each, tree.count(below)))]
            found += self._differing(below, indexes)
        return below, found

    def _unknown_here(self, level, index):
        granule = self.tree.granule_of(level, index)
        if self.tree.kinds[granule] == ZERO or self.tree.page(granule) is not None:
            return False
        self._take(granule)
        return True

    def _take(self, granule):
        if not self.granules or self.granules[-1] != granule:
            self.granules.append(granule)

    def _differing(self, level, indexes):
        """[(index, their value)]; granules of which they do not know are taken note of instead."""
        tree, found = self.tree, []
        kinds, values = self._ask(level, indexes)
        self.nodes += len(indexes)
        for place, index in enumerate(indexes):
            theirs = kinds[place], values[place * DIGEST_SIZE : (place + 1) * DIGEST_SIZE]
            if tree.is_same(level, index, tree.node(level, index), theirs):
                continue
            if level <= tree.granule_level and theirs[0] == UNKNOWN:
                self._take(tree.granule_of(level, index))
            elif level == 0 and theirs[0] == ZERO:
                found.append((index, self._zero_leaf(index)))
            else:
                found.append((index, theirs[1]))
        return found

    def _zero_leaf(self, index):
        size = self.tree.geometry.leaf_size
        return hasher.zero_subtree(min(size, self.tree.geometry.size - index * size), index * size, size)
