"""The zero test and the leaf comparison against copying the same memory, which is what the memory gives.

A copy moves each byte twice, so what only reads them is to be faster than it: `first` 1.
"""

import random

import pytest
from ratios import FULL, huge_memory, measure_ratio, report

from qrep._native import compare

LEAF = 4096
GRANULE = 8 << 20
WORKING_SET = (64 << 20) if FULL else GRANULE


@pytest.fixture(scope="module")
def copied():
    return huge_memory(WORKING_SET, fill=1)


@pytest.mark.parametrize("zero_test", ["avx512", "avx2", "sse2", "portable"])
def test_zero_test_of_zeros_against_memcpy(benchmark, copied, zero_test):
    try:
        compare.select(zero_test)
    except RuntimeError as err:
        pytest.skip(str(err))
    zeros = huge_memory(WORKING_SET, fill=0)
    pieces = [(zeros[at:at + GRANULE], copied[at:at + GRANULE]) for at in range(0, WORKING_SET, GRANULE)]

    def test_all():
        return all(compare.is_zero(piece) for piece, _ in pieces)

    def copy_all():
        for piece, target in pieces:
            target[:] = piece

    report(benchmark, "", f"zero test of zeros, {zero_test} / memcpy", measure_ratio(test_all, copy_all, WORKING_SET), first=1.0, goal=1.3)
    assert benchmark.pedantic(test_all, rounds=1) is True
    compare.select()


def test_zero_test_of_data_is_free(benchmark, copied):
    """A granule that starts with data is known not to be zero after 256 bytes."""
    source = huge_memory(GRANULE)
    target = copied[:GRANULE]
    ratio = measure_ratio(lambda: compare.is_zero(source), lambda: target.__setitem__(slice(None), source), GRANULE)
    report(benchmark, "", "zero test of data / memcpy", ratio, first=10.0, goal=50.0)
    assert benchmark.pedantic(compare.is_zero, args=(source,), rounds=1) is False


@pytest.mark.parametrize("changed_every", [0, 100, 1])
def test_leaf_comparison_of_a_granule_against_memcpy_of_it(benchmark, copied, changed_every):
    """changed_every: one leaf in so many differs; 0: none."""
    data = huge_memory(GRANULE)
    fresh = random.Random(3).randbytes(GRANULE // LEAF * 32)
    base = bytearray(fresh)
    changed = range(0, GRANULE // LEAF, changed_every) if changed_every else ()
    for leaf in changed:
        base[32 * leaf] ^= 1

    def compare_all():
        return compare.compare_leaves(fresh, base, data, LEAF)

    def copy_all():
        copied[:GRANULE] = data

    ratio = measure_ratio(compare_all, copy_all, GRANULE)
    report(benchmark, "", f"compare leaves, changed 1 in {changed_every or 'none'} / memcpy of the granule", ratio, first=1.0, goal=5.0)
    runs = benchmark.pedantic(compare_all, rounds=1)
    assert sum(count for _, count, _ in runs) == len(changed)
