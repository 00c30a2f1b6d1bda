"""Whether a volume is the clone of a job, and what of it was changed on the way: decided by digests, without sockets, disks or a clock.

    judge = Judge(geometry, ours, random, keep)
    question = judge.first()
    while question is not None:                  # say.Sample, say.ScanTarget or say.GetLeaves
        question = judge.answer(...)             # what was answered to it
    judge.verdict

First a sample: leaves at random places that are not zero here. Where hardly any of them is there, it is another volume, and nobody waits for a
whole disk to be read. Then everything: the digests of all granules, and of those that differ the leaves. Zero leaves prove nothing, since every
empty disk has them; so what counts is which share of the leaves that are not zero here is the same there: with half of them it is the clone,
changed on the way, and with less it is not. A clone that was used for a while has most of its blocks as they were; two volumes that have nothing to do with each
other share next to none. The sample refuses below a tenth only, so that chance never refuses what reading everything would take.
"""

from dataclasses import dataclass

from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_MASK, STATE_PAGE, STATE_SLOT, STATE_VALUE, STATE_ZERO
from qrep.errors import ProtocolError
from qrep.protocol import messages as say

DIGEST_SIZE = 32
CLONE_SHARE = 0.5  # of the leaves that are not zero
SAMPLE_REFUSES = 0.1  # a share of the sample below this
SAMPLE_LEAST = 64  # leaves; fewer say nothing, and everything is read
SAMPLE_GRANULES = 1024  # from which the sample is drawn, themselves drawn at random: each costs the hash of a granule of zeroes
DRAWS = 32 * say.SAMPLE_MAX  # tries to hit a leaf that is not zero
PAGES_BYTES = 4 << 20  # of leaf pages asked for at a time
EXACT_BYTES = 32 << 30  # equal granules are counted leaf by leaf up to this much, if the verdict does not need it
READ_GRANULES = 64  # asked for at a time: so often progress is told


@dataclass
class Verdict:
    """share: of the leaves that are not zero here, those that are the same there, 0 to 1. by_sample: nothing but the sample was read.

    differing_leaves, differing_bytes: all that is not the same, zero or not. read: bytes that the target read.
    """

    is_clone: bool
    share: float
    by_sample: bool
    differing_leaves: int
    differing_bytes: int
    read: int

    @property
    def exact(self):
        return self.is_clone and not self.differing_leaves


class Judge:
    """geometry: wire.Geometry of the source volume. ours: states, values and leaf_page(granule) of its map (digestmap.DigestMap).

    random: a random.Random; whoever offers a wrong volume must not know what is sampled. keep(granule, state, page): called with the leaf values of
    each granule that differs, and the state that names the slot they belong into. Afterwards states and values describe what the volume holds.
    """

    def __init__(self, geometry, ours, random, keep=lambda granule, state, page: None):
        self.geometry, self._ours, self._random, self._keep = geometry, ours, random, keep
        self.states, self.values = bytearray(ours.states), bytearray(ours.values)
        self.verdict = None
        self.phase, self.compared = "sampling", 0  # granules whose digests have come
        self._sampled, self._first = {}, 0  # leaf -> its value here
        self._different, self._asked, self._next = [], [], 0
        self._matched = self._total = 0  # of leaves that are not zero here, in granules that differ
        self._differing_leaves = self._differing_bytes = self._read = 0

    # ---- questions ----

    def first(self):
        self._sampled = self._draw_sample()
        return say.Sample(leaves=list(self._sampled)) if len(self._sampled) >= SAMPLE_LEAST else self._scan()

    def answer(self, message):
        """What follows an answer: the next question, None for more answers to the last one; or None with `verdict` set."""
        if isinstance(message, say.Sampled):
            return self._on_sampled(message)
        if isinstance(message, say.Digests):
            return self._on_digests(message)
        return self._on_leaves(message)

    @property
    def waiting(self):
        """How many more answers to the last question are to come."""
        return len(self._asked)

    def _scan(self):
        self.phase = "reading"
        return say.ScanTarget(first=self._first, count=min(READ_GRANULES, self.geometry.granules - self._first))

    # ---- the sample ----

    def _draw_sample(self):
        """{leaf: value} of leaves that are not zero, each of those in the granules drawn as likely as any other."""
        hashed = [granule for granule, state in enumerate(self._ours.states) if state & STATE_MASK == STATE_HASHED]
        granules = self._random.sample(hashed, min(len(hashed), SAMPLE_GRANULES))
        pages, found = {}, {}
        per_granule = self.geometry.granule_size // self.geometry.leaf_size
        for _ in range(DRAWS if granules else 0):
            granule, leaf = self._random.choice(granules), self._random.randrange(per_granule)
            if granule not in pages:
                pages[granule] = self._not_zero(granule)
            page, not_zero = pages[granule]
            if leaf < len(not_zero) and not_zero[leaf]:
                found[granule * per_granule + leaf] = page[leaf * DIGEST_SIZE : (leaf + 1) * DIGEST_SIZE]
            if len(found) == say.SAMPLE_MAX:
                break
        return found

    def _not_zero(self, granule):
        """(page, a flag for each leaf that is not zero) of a granule here; no flags where its leaf values are not known."""
        page = self._ours.leaf_page(granule)
        if page is None:
            return b"", ()
        zeroes = self._zero_page(granule)
        return bytes(page), [page[at : at + DIGEST_SIZE] != zeroes[at : at + DIGEST_SIZE] for at in range(0, len(page), DIGEST_SIZE)]

    def _zero_page(self, granule):
        zeroes = bytearray(self.geometry.granule_leaves(granule) * DIGEST_SIZE)
        hasher.zero_subtree(self.geometry.granule_bytes(granule), granule * self.geometry.granule_size, self.geometry.leaf_size, zeroes)
        return zeroes

    def _on_sampled(self, message):
        if len(message.values) != len(self._sampled) * DIGEST_SIZE:
            raise ProtocolError(f"{len(self._sampled)} leaves were asked for, and {len(message.values)} bytes came")
        self._read = len(self._sampled) * self.geometry.leaf_size
        values = (message.values[at : at + DIGEST_SIZE] for at in range(0, len(message.values), DIGEST_SIZE))
        matched = sum(theirs == ours for theirs, ours in zip(values, self._sampled.values(), strict=True))
        share = matched / len(self._sampled)
        if share < SAMPLE_REFUSES:
            self.verdict = Verdict(False, share, True, 0, 0, self._read)
            return None
        return self._scan()

    # ---- everything ----

    def _on_digests(self, message):
        count = min(READ_GRANULES, self.geometry.granules - self._first)
        if message.first != self._first or len(message.states) != count:
            raise ProtocolError(f"digests of granules from {message.first} on were not asked for")
        for index in range(count):
            granule, kind = self._first + index, message.states[index] & STATE_MASK
            if kind not in (STATE_ZERO, STATE_HASHED):
                raise ProtocolError(f"the digest of granule {granule} says nothing")
            value = message.values[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]
            if not self._same(granule, kind, value):
                self._note(granule, kind, value)
        self._first += count
        self.compared = self._first
        return self._scan() if self._first < self.geometry.granules else self._ask_leaves()

    def _same(self, granule, kind, value):
        ours = self._ours.states[granule] & STATE_MASK
        if STATE_ZERO in (ours, kind):
            return ours == kind
        return ours == STATE_HASHED and self._ours.values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE] == value

    def _note(self, granule, kind, value):
        """A granule that differs: from here on `states` and `values` say what is there. Its page goes where ours does not lie."""
        self.states[granule] = kind | STATE_VALUE if kind == STATE_HASHED else kind
        self.values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE] = value if kind == STATE_HASHED else bytes(DIGEST_SIZE)
        self._different.append(granule)

    def _ask_leaves(self):
        """The leaves of granules that differ; those that are zero there are known. Without any more: the verdict."""
        self.phase = "comparing"
        most = min(say.LEAF_PAGES_MAX, max(1, PAGES_BYTES // (self.geometry.granule_size // self.geometry.leaf_size * DIGEST_SIZE)))
        while self._next < len(self._different) and len(self._asked) < most:
            granule = self._different[self._next]
            self._next += 1
            if self.states[granule] & STATE_MASK == STATE_ZERO:
                self._compare(granule, self._zero_page(granule))
            else:
                self._asked.append(granule)
        if self._asked:
            return say.GetLeaves(granules=list(self._asked))
        self._decide()
        return None

    def _on_leaves(self, message):
        if not self._asked or message.granule != self._asked[0] or len(message.page) != self.geometry.granule_leaves(message.granule) * DIGEST_SIZE:
            raise ProtocolError(f"leaf values of granule {message.granule} were not asked for, or not so many")
        granule = self._asked.pop(0)
        if hasher.merge(message.page) == bytes(self.values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE]):  # R8
            self.states[granule] |= STATE_PAGE | (STATE_SLOT & ~self._ours.states[granule])
            self._keep(granule, self.states[granule], message.page)
        self._compare(granule, message.page)
        return None if self._asked else self._ask_leaves()

    def _compare(self, granule, theirs):
        """Count what is the same in a granule that differs. Where its leaves are not known here, all of it may differ and none of it counts."""
        size, leaf_size = self.geometry.granule_bytes(granule), self.geometry.leaf_size
        ours = self._zero_page(granule) if self._ours.states[granule] & STATE_MASK == STATE_ZERO else self._ours.leaf_page(granule)
        if ours is None:
            self._differing_leaves += self.geometry.granule_leaves(granule)
            self._differing_bytes += size
            return
        zeroes = self._zero_page(granule)
        for at in range(0, len(theirs), DIGEST_SIZE):
            value = ours[at : at + DIGEST_SIZE]
            same, counts = value == theirs[at : at + DIGEST_SIZE], value != zeroes[at : at + DIGEST_SIZE]
            self._total += counts
            self._matched += counts and same
            if not same:
                self._differing_leaves += 1
                self._differing_bytes += min(leaf_size, size - at // DIGEST_SIZE * leaf_size)

    def _decide(self):
        self._read += self.geometry.size
        share = self._share() if self._different else 1.0
        self.verdict = Verdict(share >= CLONE_SHARE, share, False, self._differing_leaves, self._differing_bytes, self._read)

    def _share(self):
        """Of leaves that are not zero here. How many of them lie in granules that are equal costs a hash of zeroes as long as those granules, so it
        is left out for a large volume where the verdict is the same anyway: each has one at least."""
        different = set(self._different)
        equal = [
            granule for granule, state in enumerate(self._ours.states) if state & STATE_MASK == STATE_HASHED and granule not in different
        ]  # fmt: skip
        mismatched = self._total - self._matched
        if len(equal) * self.geometry.granule_size > EXACT_BYTES and self._matched + len(equal) >= mismatched:
            counted = len(equal)
        else:
            counted = sum(sum(flags) if flags else self.geometry.granule_leaves(granule) for granule, flags in ((g, self._not_zero(g)[1]) for g in equal))
        total = self._total + counted
        return (self._matched + counted) / total if total else 0.0
