"""Two digest maps compared from their roots: exactly the leaves that differ, with few nodes for each."""

import random

import pytest

from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_PAGE, STATE_UNKNOWN, STATE_VALUE, STATE_ZERO
from qrep._native.wire import Geometry
from qrep.maptree import NODES_MAX, STEP, Descent, MapTree

LEAF, GRANULE = 4096, 65536
HASHED = STATE_HASHED | STATE_VALUE | STATE_PAGE
PER_GRANULE = GRANULE // LEAF


def tree_of(pages, size, zero=(), unknown=()):
    """A MapTree of made-up leaf values. zero: granules said to be zero as a whole; unknown: those of which nothing is said."""
    geometry = Geometry(size, LEAF, GRANULE)
    states = bytes(STATE_ZERO if g in zero else STATE_UNKNOWN if g in unknown else HASHED for g in range(geometry.granules))
    values = b"".join(hasher.merge(page) for page in pages)
    return MapTree(geometry, states, values, lambda granule: pages[granule])


def made_pages(size, rng, zero=()):
    geometry = Geometry(size, LEAF, GRANULE)
    pages = [bytearray(rng.randbytes(32 * geometry.granule_leaves(granule))) for granule in range(geometry.granules)]
    for granule in zero:
        hasher.zero_subtree(geometry.granule_bytes(granule), granule * GRANULE, LEAF, pages[granule])
    return pages


def descend(ours, theirs, **options):
    asked = []

    def ask(level, indexes):
        assert 0 < len(indexes) <= NODES_MAX and max(indexes) < theirs.count(level)
        asked.append(level)
        return theirs.nodes(level, indexes)

    return Descent(ours, ask, **options).run(), asked


@pytest.mark.parametrize("size", [2 * LEAF, GRANULE, GRANULE + 512, 37 * GRANULE + 5 * LEAF + 512, 1000 * GRANULE])
def test_equal_maps_exchange_one_node_and_any_others_are_found_leaf_for_leaf(size):
    for seed in range(12):
        rng = random.Random(f"{size} {seed}")
        zero = [granule for granule in range(-(-size // GRANULE)) if rng.random() < 0.2]
        pages = made_pages(size, rng, zero)
        ours = tree_of(pages, size, zero)
        found, asked = descend(ours, tree_of(pages, size, zero))
        assert found.equal and found.nodes == 1 and asked == [ours.top]
        damaged = sorted(rng.sample(range(ours.leaves), rng.randint(1, min(9, ours.leaves))))
        other = [bytearray(page) for page in pages]
        for leaf in damaged:
            place = leaf % PER_GRANULE * 32
            other[leaf // PER_GRANULE][place : place + 32] = bytes([seed + 1]) * 32
        touched = {leaf // PER_GRANULE for leaf in damaged}
        found, asked = descend(ours, tree_of(other, size, set(zero) - touched))
        assert found.leaves == [(leaf, bytes([seed + 1]) * 32) for leaf in damaged], f"seed {seed}"
        assert not found.equal and found.granules == [] and found.spans == []
        levels = -(-(ours.top - ours.granule_level) // STEP) + -(-ours.granule_level // STEP)
        assert found.nodes <= 1 + len(damaged) * levels * 2**STEP, "O(log n) for each damaged leaf"


def test_a_granule_of_zeroes_is_the_same_however_it_is_said():
    rng = random.Random(5)
    pages = made_pages(3 * GRANULE, rng, zero=[1])
    found, _ = descend(tree_of(pages, 3 * GRANULE, [1]), tree_of(pages, 3 * GRANULE))
    assert found.leaves == [] and found.granules == []


def test_what_one_of_the_two_does_not_know_is_named_by_its_granule():
    rng = random.Random(6)
    pages, size = made_pages(40 * GRANULE, rng), 40 * GRANULE
    found, _ = descend(tree_of(pages, size), tree_of(pages, size, unknown=[7, 31]))
    assert found.granules == [7, 31] and found.leaves == []
    other = [bytearray(page) for page in pages]
    other[9][:32] = bytes(32)
    theirs, ours = tree_of(other, size), tree_of(pages, size)
    theirs._page = lambda granule: None  # its leaf values are gone
    assert descend(ours, theirs)[0].granules == [9]
    ours = tree_of(pages, size)
    ours._page = lambda granule: None
    assert descend(ours, tree_of(other, size))[0].granules == [9]


def test_a_host_that_says_that_everything_differs_is_not_followed_for_ever():
    rng = random.Random(8)
    size = 300 * GRANULE
    found, asked = descend(tree_of(made_pages(size, rng), size), tree_of(made_pages(size, rng), size), most=100)
    assert found.leaves == [] and sum(count for _, count in found.spans) >= size // LEAF and len(asked) < 10


def test_a_node_is_the_chaining_value_that_blake3_gives_it():
    rng = random.Random(9)
    data = rng.randbytes(2 * GRANULE + 3 * LEAF + 512)
    pages = []
    for start in range(0, len(data), GRANULE):
        part = data[start : start + GRANULE]
        page = bytearray(-(-len(part) // LEAF) * 32)
        hasher.subtree(part, start, LEAF, page)
        pages.append(page)
    tree = tree_of(pages, len(data))
    for level in range(tree.granule_level + 1):
        for index in range(tree.count(level)):
            start = index * (LEAF << level)
            part = data[start : start + (LEAF << level)]
            assert tree.node(level, index) == (1, hasher.subtree(part, start, LEAF)), f"level {level} index {index}"
