"""The judge of a rebuild: what it decides and counts is what comparing the bytes themselves gives, whatever the two volumes hold."""

import random

import pytest

from qrep._native import disk, hasher, wire
from qrep.digesttree import DIGEST_SIZE
from qrep.errors import ProtocolError
from qrep.protocol import messages as say
from qrep.protocol import rebuild
from qrep.protocol.rebuild import Judge

LEAF, GRANULE = 4096, 32 * 4096


class Content:
    """A volume in memory, as a map describes it (states, values, leaf_page) and as a target answers for it."""

    def __init__(self, data, lost=()):
        self.data, self.lost = bytes(data), set(lost)
        self.geometry = wire.Geometry(len(data), LEAF, GRANULE)
        self.states, self.values, self.pages = bytearray(), bytearray(), []
        for start in range(0, len(data), GRANULE):
            part = self.data[start : start + GRANULE]
            page = bytearray(-(-len(part) // LEAF) * DIGEST_SIZE)
            value = hasher.subtree(part, start, LEAF, page)
            zero = not any(part)
            self.states.append(disk.STATE_ZERO if zero else disk.STATE_HASHED | disk.STATE_VALUE | disk.STATE_PAGE)
            self.values += bytes(DIGEST_SIZE) if zero else value
            self.pages.append(bytes(page))

    def leaf_page(self, granule):
        return None if granule in self.lost else self.pages[granule]

    def answer(self, question):
        """The answers of a target that holds this content."""
        if isinstance(question, say.Sample):
            per_granule = GRANULE // LEAF
            values = (self.pages[leaf // per_granule][leaf % per_granule * 32 :][:32] for leaf in question.leaves)
            return [say.Sampled(values=b"".join(values))]
        if isinstance(question, say.ScanTarget):
            end = question.first + question.count
            return [say.Digests(question.first, bytes(self.states[question.first : end]), bytes(self.values[question.first * 32 : end * 32]))]
        return [say.Leaves(granule, self.pages[granule]) for granule in question.granules]

    def leaves(self):
        return [self.data[at : at + LEAF] for at in range(0, len(self.data), LEAF)]


def judged(ours, theirs, seed, judge_class=Judge):
    """(verdict, judge, {granule: (state, page)} that was kept) of a whole conversation."""
    kept = {}
    judge = judge_class(ours.geometry, ours, random.Random(seed), lambda granule, state, page: kept.setdefault(granule, (state, page)))
    waiting = [judge.first()]
    while judge.verdict is None:
        for answer in theirs.answer(waiting.pop()):
            question = judge.answer(answer)
            if question is not None:
                waiting.append(question)
    assert not waiting
    return judge.verdict, judge, kept


def check(ours, theirs, verdict, judge, kept):
    """The oracle: the bytes."""
    pairs = list(zip(ours.leaves(), theirs.leaves(), strict=True))
    data = [pair for pair in pairs if any(pair[0])]
    share = sum(mine == yours for mine, yours in data) / len(data) if data else 1.0 if ours.data == theirs.data else 0.0
    if verdict.by_sample:
        assert not verdict.is_clone and share < 0.5, (share, verdict)
        return
    assert verdict.is_clone == (share >= 0.5) and abs(verdict.share - share) < 1e-9, (share, verdict)
    different = [yours for mine, yours in pairs if mine != yours]
    assert (verdict.differing_leaves, verdict.differing_bytes) == (len(different), sum(map(len, different)))
    assert verdict.exact == (ours.data == theirs.data)
    for granule, state in enumerate(judge.states):  # the map of what is there is true
        part = theirs.data[granule * GRANULE : (granule + 1) * GRANULE]
        assert (state & disk.STATE_MASK == disk.STATE_ZERO) == (not any(part))
        if any(part):
            assert judge.values[granule * 32 : granule * 32 + 32] == hasher.subtree(part, granule * GRANULE, LEAF)
        if granule in kept:
            assert kept[granule] == (state, theirs.pages[granule]) and state & disk.STATE_SLOT != ours.states[granule] & disk.STATE_SLOT


def contents(rng):
    """Two volumes: the second is the first with some, most or none of its leaves as they were; or has nothing to do with it."""
    size = rng.randint(2, 60) * GRANULE // rng.choice((1, 2, 4)) + rng.choice((0, 0, 512, LEAF))
    filled = rng.choice((0.0, 0.01, 0.3, 1.0))
    leaves = [rng.randbytes(LEAF) if rng.random() < filled else bytes(LEAF) for _ in range(-(-size // LEAF))]
    changed = rng.choice((0.0, 0.0, 0.001, 0.1, 0.45, 0.55, 0.9, 1.0))
    fresh = rng.choice((b"", b"\0"))
    other = [(bytes(LEAF) if fresh else rng.randbytes(LEAF)) if rng.random() < changed else leaf for leaf in leaves]
    return b"".join(leaves)[:size], b"".join(other)[:size]


SEEDS = range(25)


def play(judge_class=Judge):
    for seed in SEEDS:
        rng = random.Random(seed)
        mine, yours = contents(rng)
        ours, theirs = Content(mine), Content(yours)
        try:
            check(ours, theirs, *judged(ours, theirs, seed, judge_class))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


def test_what_is_decided_and_counted_is_what_the_bytes_say():
    play()


class CountsZeroes(Judge):
    """Leaves that are zero on every empty disk count as proof."""

    def _compare(self, granule, theirs):
        zeroes, self._zero_page = self._zero_page, lambda granule: bytes(len(theirs))
        try:
            super()._compare(granule, theirs)
        finally:
            self._zero_page = zeroes


class TrustsTheSample(Judge):
    """A sample below one half is enough to refuse."""

    def _on_sampled(self, message):
        values = [message.values[at : at + 32] for at in range(0, len(message.values), 32)]
        if sum(a == b for a, b in zip(values, self._sampled.values(), strict=True)) / len(values) < 0.6:
            self.verdict = rebuild.Verdict(False, 0.0, True, 0, 0, 0)
            return None
        return super()._on_sampled(message)


class SamplesOnly(Judge):
    """A good sample is enough to take it."""

    def _on_sampled(self, message):
        question = super()._on_sampled(message)
        if question is not None:
            self.verdict = rebuild.Verdict(True, 1.0, False, 0, 0, 0)
        return None


class ForgetsWhatIsThere(Judge):
    """The map goes on saying what the clone held before it was changed."""

    def _note(self, granule, kind, value):
        states, values = bytes(self.states), bytes(self.values)
        super()._note(granule, kind, value)
        self.states[:], self.values[:] = states, values


@pytest.mark.parametrize("defect", [CountsZeroes, TrustsTheSample, SamplesOnly, ForgetsWhatIsThere])
def test_each_defect_is_caught(defect):
    with pytest.raises(AssertionError):
        play(defect)


def test_another_volume_is_refused_by_the_sample_alone():
    rng = random.Random(1)
    ours, theirs = (Content(rng.randbytes(40 * GRANULE)) for _ in range(2))
    verdict, judge, kept = judged(ours, theirs, 1)
    assert verdict.by_sample and verdict.share == 0 and verdict.read == say.SAMPLE_MAX * LEAF and not kept and judge.compared == 0


def test_an_empty_disk_is_not_the_clone_of_a_nearly_empty_volume_however_many_zeroes_they_share():
    data = bytearray(40 * GRANULE)
    for leaf in range(0, 32 * 40, 7):
        data[leaf * LEAF : leaf * LEAF + 3] = b"abc"
    verdict, _judge, _kept = judged(Content(data), Content(bytes(len(data))), 1)
    assert not verdict.is_clone and verdict.share == 0


def test_two_empty_volumes_are_the_same_and_an_empty_one_is_no_proof_of_a_full_one():
    empty, full = Content(bytes(4 * GRANULE)), Content(random.Random(1).randbytes(4 * GRANULE))
    assert judged(empty, empty, 1)[0].exact
    verdict, _judge, _kept = judged(empty, full, 1)
    assert not verdict.is_clone and verdict.share == 0.0 and verdict.differing_leaves == 4 * 32


def test_leaf_values_that_were_lost_here_count_neither_way():
    rng = random.Random(2)
    data = bytearray(rng.randbytes(8 * GRANULE))
    ours = Content(data, lost=[0])
    data[0] ^= 1
    data[3 * GRANULE] ^= 1
    verdict, judge, kept = judged(ours, Content(data), 2)
    assert verdict.is_clone and verdict.differing_leaves == 32 + 1 and set(kept) == {0, 3}
    assert verdict.share == pytest.approx((7 * 32 - 1) / (7 * 32), abs=0.02)


def test_equal_granules_of_a_large_volume_are_not_counted_leaf_by_leaf_where_the_verdict_is_clear(monkeypatch):
    monkeypatch.setattr(rebuild, "EXACT_BYTES", 0)
    rng = random.Random(3)
    data = bytearray(rng.randbytes(40 * GRANULE))
    ours = Content(data)
    data[5 * GRANULE] ^= 1
    verdict, _judge, _kept = judged(ours, Content(data), 3)
    assert verdict.is_clone and verdict.differing_leaves == 1
    data[: 39 * GRANULE] = rng.randbytes(39 * GRANULE)
    verdict, _judge, _kept = judged(ours, Content(data), 3)
    assert not verdict.is_clone


@pytest.mark.parametrize("answer", [
    say.Sampled(bytes(32)), say.Digests(1, b"\1" * 8, bytes(32 * 8)), say.Digests(0, b"\1" * 7, bytes(32 * 7)), say.Digests(0, b"\0" * 8, bytes(32 * 8)),
    say.Leaves(0, bytes(32 * 32)),
])  # fmt: skip
def test_an_answer_that_does_not_fit_the_question_is_refused(answer):
    ours = Content(random.Random(4).randbytes(8 * GRANULE))
    judge = Judge(ours.geometry, ours, random.Random(4))
    question = judge.first()
    if not isinstance(answer, say.Sampled):
        judge.answer(ours.answer(question)[0])
    with pytest.raises(ProtocolError):
        judge.answer(answer)


def test_a_page_that_is_not_of_its_digest_is_not_kept():
    ours = Content(random.Random(5).randbytes(8 * GRANULE))
    changed = bytearray(ours.data)
    changed[0] ^= 1
    theirs = Content(changed)
    theirs.pages[0] = bytes(len(theirs.pages[0]))
    verdict, judge, kept = judged(ours, theirs, 5)
    assert not kept and not judge.states[0] & disk.STATE_PAGE and verdict.differing_leaves == 32
