"""What a hint names and what of the rest is read, against a model that knows each leaf."""

import pytest

from qrep._native.wire import Geometry
from qrep.extents import Extent
from qrep.source.spans import SAMPLE_LEAST, left_out, ranges, sample, spans_of, spans_of_extents

LEAF, GRANULE = 4096, 64 << 10
GEOMETRY = Geometry(9 * GRANULE + 5 * LEAF + 512, LEAF, GRANULE)
PER_GRANULE, LEAVES = GRANULE // LEAF, 9 * 16 + 6


def leaves_of(ranges):
    return {leaf for first, end in ranges for leaf in range(first, end)}


def named_by(spans):
    pairs = list(zip(spans.wanted[::2], spans.wanted[1::2], strict=True))
    assert all(one[0] + one[1] < other[0] for one, other in zip(pairs, pairs[1:], strict=False)), "ascending, and none touches the next"
    return {leaf for first, count in pairs for leaf in range(first, first + count)}


@pytest.mark.parametrize("seed", range(20))
def test_any_list_of_extents_names_the_leaves_that_it_touches(random_source, seed):
    extents, position, wanted = [], 0, set()
    while position < GEOMETRY.size:
        offset = position + random_source.choice([0, 1, 700, LEAF, 5 * LEAF, GRANULE])
        size = random_source.choice([1, 512, LEAF, 3 * LEAF + 1, GRANULE, 3 * GRANULE])
        if offset >= GEOMETRY.size:
            break
        extents.append(Extent(offset, size))  # the last one may end behind the volume
        wanted |= {leaf for leaf in range(offset // LEAF, -(-(offset + size) // LEAF)) if leaf < LEAVES}
        position = offset + size
    spans = spans_of_extents(extents, GEOMETRY)
    assert named_by(spans) == wanted and spans.leaves == len(wanted)
    assert {granule for granule in range(10) if spans.touched[granule]} == {leaf // PER_GRANULE for leaf in wanted}
    # What is left out of any granules is the rest of their leaves, whether they are asked for together or alone.
    granules = sorted(random_source.sample(range(10), 6))
    inside = {leaf for leaf in range(LEAVES) if leaf // PER_GRANULE in granules}
    mask = bytes(granule in granules for granule in range(10))
    assert [granule for first, end in ranges(mask) for granule in range(first, end)] == granules
    assert leaves_of(left_out(spans, ranges(mask), GEOMETRY)) == inside - wanted
    assert set().union(*(leaves_of(left_out(spans, [(granule, granule + 1)], GEOMETRY)) for granule in granules)) == inside - wanted


@pytest.mark.parametrize("pairs", [[(5, 5)], [(3, 2)], [(9, 12), (1, 2)], [(LEAVES, LEAVES + 1)]])
def test_what_is_no_ascending_list_is_refused(pairs):
    with pytest.raises(ValueError):
        spans_of(pairs, GEOMETRY)


def test_nothing_named_leaves_everything():
    spans = spans_of_extents([], GEOMETRY)
    assert not any(spans.touched) and leaves_of(left_out(spans, [(0, 10)], GEOMETRY)) == set(range(LEAVES))


def test_of_little_that_was_named_no_more_than_a_bounded_part_is_read_beside_it():
    pool = [(0, 25 << 20)]  # 100 GiB of leaves
    for named in (0, 256, 25600, 1 << 22):  # nothing, 1 MiB, 100 MiB, 16 GiB
        chosen, _cursor = sample(pool, named, None, 0, LEAF)
        read = len(leaves_of(chosen))
        assert 0 < read <= max(0.15 * named, SAMPLE_LEAST // LEAF) and read <= 0.01 * (25 << 20)
        if named >= 25600:
            assert (named + read) / named <= 1.2


@pytest.mark.parametrize("pool", [[(0, 1000)], [(3, 7), (10, 500), (600, 601), (900, 1400)]])
@pytest.mark.parametrize("share", [0.1, 0.03, 0.5])
def test_every_leaf_has_its_turn(pool, share):
    seen, cursor = set(), 0
    runs = int(1 / share) + 17  # pieces of up to 16 leaves do not divide everything
    for _ in range(2 * runs):
        chosen, cursor = sample(pool, 0, share, cursor, LEAF)
        assert leaves_of(chosen) <= leaves_of(pool)
        seen |= leaves_of(chosen)
    assert seen == leaves_of(pool)


def test_all_of_it_is_all_of_it_and_nothing_is_nothing():
    pool = [(3, 7), (10, 500)]
    assert sample(pool, 0, 1.0, 5, LEAF) == (pool, 5)
    assert sample([], 100, 0.5, 5, LEAF) == ([], 5)
    chosen, _cursor = sample([(4, 5)], 0, 0.01, 0, LEAF)
    assert chosen == [(4, 5)], "a share of one leaf is one leaf"
