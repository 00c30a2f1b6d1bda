"""What must hold, whatever happens (the invariants of FAULTS: E, R, I, M, F, K). Knows the images, and believes nothing it is told.

Superblocks and undo files are read by the campaign's oracle and by H3's reader, as docs/DISK_FORMAT.md has them. Granule values are proposed by qrep's
kernel, which is faster than numpy, and are believed only if they merge to the root that the packaged blake3 has of the same image: no others do.
"""

import blake3
import oracle as stranger
from crash import undofile

from qrep._native import hasher
from sim.disk import HEAD
from sim.world import Violation

NO_ID = bytes(16)
REPLICA, PRIMARY = 1, 2
OPEN_NONE = 0


class Oracle:
    def __init__(self, world, size, leaf_size, granule_size):
        self.world, self.size, self.leaf_size, self.granule_size = world, size, leaf_size, granule_size
        self.images = {}  # generation id -> content of the device, of everything that was ever committed
        self.announced = {}  # generation id -> content that a source has sent in full
        self.points = {}  # generation id of a rollback -> the point it puts back
        self.chain = []  # committed ids, oldest first
        self.epoch = 0  # highest that was accepted
        self.values_of = {}
        self.role = REPLICA
        self.deleted = {}  # committed id -> ids of sync points that were deleted while it was
        self.firsts = set()  # ids that nothing is kept before: of changes of role

    def committed_runs(self):
        """How many generations were committed that are no change of role."""
        return sum(generation not in self.firsts for generation in self.chain)

    def granules(self):
        return range(0, self.size, self.granule_size)

    def values(self, image):
        """[(is zero, chaining value)] of every granule of an image."""
        known = self.values_of.get(image)
        if known is None:
            step = self.granule_size
            parts = [image[start : start + step] for start in self.granules()]
            known = [
                (not any(part), hasher.subtree(part, index * step, self.leaf_size)) for index, part in enumerate(parts)
            ]
            root = hasher.root(self.size, step, b"".join(value for _, value in known))
            if root != blake3.blake3(image).digest():
                raise Violation("the values of an image do not merge to its plain BLAKE3")
            self.values_of[image] = known
        return known

    def announce(self, new, image):
        self.announced[new] = image

    def accepted(self, epoch):
        """The target told a session that its epoch counts."""
        self.epoch = max(self.epoch, epoch)

    def landed(self, offset, data, session):
        """INV-F: a write of a run lands on the device."""
        if session is not None and session < self.epoch:
            raise Violation(f"INV-F: a write of session {session} at {offset} landed after epoch {self.epoch} was accepted")

    def superblock(self, record, device):
        """A superblock is durable, or was found at a start. Knows the chain (INV-M) and compares the device (INV-E, INV-R)."""
        committed = record.committed_id
        last = self.chain[-1] if self.chain else NO_ID
        if record.role != self.role:
            self._changed_role(record, last)
        elif committed != last:
            if committed in self.images:
                raise Violation(f"INV-M: generation {committed.hex()[:8]} was committed twice")
            if (record.history[0] if record.history else NO_ID) != last:
                raise Violation("INV-M: a commit does not follow the committed generation")
            self.images[committed] = self._image_of(committed)
            self.chain.append(committed)
            self.world.log(f"oracle: generation {len(self.chain)} is {committed.hex()[:8]}")
        if record.open_kind == OPEN_NONE and committed != NO_ID and record.role == REPLICA:
            self.device(device, "INV-E/R")

    def _changed_role(self, record, last):
        """A volume that takes over holds what it held; one that gives up holds what its host left, under whatever id it says."""
        committed, self.role = record.committed_id, record.role
        if record.history:
            raise Violation("INV-K: a volume that changed its role offers sync points of before")
        if record.role == REPLICA and committed not in self.announced:
            raise Violation("INV-P: a primary volume was taken for a replica, and what its host wrote is nobody's generation")
        self.images[committed] = self.images[last] if record.role == PRIMARY else self.announced[committed]
        self.firsts.add(committed)
        if committed != last:
            self.chain.append(committed)
        self.world.log(f"oracle: generation {len(self.chain)} is {committed.hex()[:8]}, {'primary' if record.role == PRIMARY else 'replica again'}")

    def _image_of(self, new):
        if new in self.points:
            return self.images[self.points[new]]
        if new not in self.announced:
            raise Violation("INV-E: a generation was committed that nobody sent in full")
        return self.announced[new]

    def device(self, device, what):
        image = self.images[self.chain[-1]]
        if device.in_flight:
            raise Violation(f"{what}: writes are in flight while nothing is open")
        for name, content in (("durable", device.durable), ("cached", device.cache)):
            if content != image:
                leaves = [i for i in range(0, self.size, self.leaf_size) if content[i : i + self.leaf_size] != image[i : i + self.leaf_size]]
                raise Violation(f"{what}: the {name} device differs from the committed generation at {leaves}")

    def map(self, tag, states, values, who):
        """INV-I: what a map says of a committed generation is true, or UNKNOWN."""
        if tag not in self.images:
            return
        for index, (zero, value) in enumerate(self.values(self.images[tag])):
            state = states[index] & stranger.STATE_MASK
            if state == stranger.UNKNOWN:
                continue
            right = zero if state == stranger.ZERO else values[index * 32 : index * 32 + 32] == value
            if not right:
                raise Violation(f"INV-I: the map of {who} lies about granule {index} of {tag.hex()[:8]}")

    def kept(self, count):
        """Ids that must be within reach, newest first: each commit kept the newest `count` earlier ones that were there."""
        ids = []
        for new in self.chain:
            ids = [new] if new in self.firsts else [new, *(old for old in ids if old not in self.deleted.get(ids[0], ()))][: count + 1]
        return [ids[0], *(old for old in ids[1:] if old not in self.deleted.get(ids[0], ()))]

    def delete(self, point):
        """A sync point was taken out of the middle, while the last of the chain was committed."""
        self.deleted.setdefault(self.chain[-1], set()).add(point)

    def superblock_of(self, target):
        """What is durable says what was committed last."""
        try:
            block = stranger.superblock_in(bytes(target.superblock.durable), "superblock")
        except stranger.Wrong as err:
            raise Violation(f"INV-M: {err}") from err
        if block.committed_id != self.chain[-1] or (block.role, block.size) != (self.role, self.size):
            raise Violation(f"INV-M: the superblock says {block}, and generation {self.chain[-1].hex()[:8]} was committed last")
        return block

    def retained(self, target):
        """INV-K: every sync point that was asked for can still be shown; so many as were made, or as are kept. By this reader, and by the target's own."""
        new, shown = self.superblock_of(target).committed_id, 0
        content = bytearray(self.images[new])
        kept = self.kept(target.sync_points)
        wanted = len(kept) - 1
        if target.machine.chain[0] != new or len(target.machine.chain) <= wanted:
            raise Violation("INV-K: the machine does not know what is within reach")
        while shown < wanted:
            file = target.undo.get(new)
            if file is None:
                raise Violation("INV-K: the undo file of a retained generation is missing")
            base, extents = way_back(file, new)
            theirs = bytearray(content)
            for offset, data in target.shown(file):
                theirs[offset : offset + len(data)] = data
            for offset, data in extents:
                content[offset : offset + len(data)] = data
            if base != kept[shown + 1]:
                raise Violation("INV-K: a sync point is missing, or one is there that was given up")
            if base not in self.images or bytes(content) != self.images[base]:
                raise Violation("INV-K: a retained sync point does not show its image")
            if theirs != content:
                raise Violation("INV-K: the target shows another sync point than its undo file leads to")
            new, shown = base, shown + 1
        if target.machine.phase == "idle" and len(target.undo) > wanted:
            raise Violation(f"{len(target.undo)} undo files are kept for {wanted} sync points")


def way_back(file, new):
    """(base, [(offset, bytes)] in the order in which they are put back) of a disk.SparseFile. Raises Violation."""
    pieces = ((0, bytes(file.cache[: HEAD])), *((position, bytes(part)) for position, part in file.segments()))
    position, part = pieces[-1]
    try:
        base, of, extents = undofile.way_back(pieces, position + len(part), sealed=file.sealed)
    except undofile.Broken as err:
        raise Violation(f"INV-K: the undo file of a retained generation is damaged: {err}") from err
    if of != new:
        raise Violation("INV-K: the undo file of a retained generation is of another")
    return base, extents
