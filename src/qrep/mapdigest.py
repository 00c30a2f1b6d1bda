"""The digest of a map's file and the root of its device, both made anew from what has changed only.

Both are BLAKE3, which is a tree: of the file a row of nodes is kept, of 64 KiB each; of the device one of BLOCK granules each. Where little has
changed, little is hashed, and the row is put together: 32 bytes for each 64 KiB of the map, which is 32 bytes for 16 GiB of the volume.
"""

from qrep._native import disk, hasher

DIGEST_SIZE = 32
PIECE = 64 << 10  # bytes of the file's body: states, their padding, values
BLOCK = PIECE // DIGEST_SIZE  # granules, whose values are a piece
CHUNK = 1024  # of BLAKE3: a node is a power of two of them


def changed_blocks(before, now, marked=None):
    """The indexes of the blocks in which two arrays of states differ, or in which a granule is marked."""
    found = []
    for index, first in enumerate(range(0, len(now), BLOCK)):
        part = now[first : first + BLOCK]
        if before[first : first + BLOCK] != part or (marked is not None and marked.count(0, first, first + BLOCK) != len(part)):
            found.append(index)
    return found


class Row:
    """The nodes of the body of a map file. Not changed once it is made; following() gives another one."""

    def __init__(self, states, values, nodes=None, pieces=None):
        """nodes: of the row that this one follows; pieces: indexes of those that are to be made anew, None: all."""
        self._values_at = -(-len(states) // DIGEST_SIZE) * DIGEST_SIZE
        self.size = self._values_at + len(values)
        count = -(-self.size // PIECE)
        self.nodes = bytearray(count * DIGEST_SIZE) if nodes is None else bytearray(nodes)
        for index in range(count) if pieces is None else pieces:
            self.nodes[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE] = self._node(states, values, index * PIECE)
        # A body of one piece is hashed as a whole: the value of a node is not that of a root.
        self.digest = hasher.root(self.size, PIECE, self.nodes) if count > 1 else disk.map_digest(states, values)

    def _node(self, states, values, start):
        end = min(start + PIECE, self.size)
        body = states[start : min(end, len(states))]
        if len(states) < end and start < self._values_at:
            body += bytes(min(end, self._values_at) - max(start, len(states)))
        if end > self._values_at:
            body += values[max(start, self._values_at) - self._values_at : end - self._values_at]
        return hasher.subtree(body, start, CHUNK)

    def following(self, states, values, blocks):
        """The Row of arrays that differ from those of this one in `blocks` only."""
        pieces = set()
        for index in blocks:
            first, end = index * BLOCK, min((index + 1) * BLOCK, len(states))
            pieces.update(range(first // PIECE, (end - 1) // PIECE + 1))
            start, stop = (self._values_at + granule * DIGEST_SIZE for granule in (first, end))
            pieces.update(range(start // PIECE, (stop - 1) // PIECE + 1))
        return Row(states, values, self.nodes, sorted(pieces))


class Blocks:
    """The values of the device's nodes of BLOCK granules, all of whose values are known. Not changed once it is made."""

    def __init__(self, geometry, values, nodes=None, blocks=None):
        self.geometry = geometry
        count = -(-geometry.granules // BLOCK)
        self.nodes = bytearray(count * DIGEST_SIZE) if nodes is None else bytearray(nodes)
        for index in range(count) if blocks is None else blocks:
            self.nodes[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE] = hasher.merge(values[index * PIECE : (index + 1) * PIECE])

    def following(self, values, blocks):
        return Blocks(self.geometry, values, self.nodes, blocks)

    def root(self, values):
        """The root of a device of more than one granule."""
        if len(self.nodes) == DIGEST_SIZE:
            return hasher.root(self.geometry.size, self.geometry.granule_size, values)
        return hasher.root(self.geometry.size, self.geometry.granule_size * BLOCK, self.nodes)
