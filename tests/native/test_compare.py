"""The zero test and the leaf comparison say what a plain look at the bytes says, at every size and position."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep._native import compare

LEAF = 4096
ZERO_TESTS = ["avx512", "avx2", "sse2", "portable"]


@pytest.fixture(params=ZERO_TESTS)
def zero_test(request):
    try:
        compare.select(request.param)
    except RuntimeError as err:
        pytest.skip(str(err))
    yield request.param
    compare.select()


def test_zero_bytes_of_any_size_and_alignment_are_zero(zero_test):
    assert compare.isa() == zero_test
    zeros = memoryview(bytes(5000))
    for size in (*range(600), 1023, 1024, 4095, 4096, 4097):
        for start in (0, 1, 7, 64):
            assert compare.is_zero(zeros[start:start + size]), (start, size)


def test_one_bit_anywhere_is_found(zero_test):
    for size in (1, 7, 8, 9, 63, 64, 255, 256, 257, 520, 1031):
        data = bytearray(size + 3)
        for position in range(size):
            data[3 + position] = 1 << position % 8
            assert not compare.is_zero(memoryview(data)[3:]), (size, position)
            data[3 + position] = 0


def test_bytes_before_and_after_do_not_count(zero_test):
    for size in (1, 64, 255, 256, 257, 4096):
        data = b"\xff" + bytes(size) + b"\xff"
        assert compare.is_zero(memoryview(data)[1:-1]), size


def test_a_zero_test_that_is_absent_is_refused():
    with pytest.raises(RuntimeError, match="sve"):
        compare.select("sve")


def expected_runs(fresh, base, data):
    """The same by plain Python: differing leaves, joined while neighbours agree in being zero."""
    runs = []
    for leaf in range(-(-len(data) // LEAF)):
        row = slice(32 * leaf, 32 * leaf + 32)
        if base is not None and fresh[row] == base[row]:
            continue
        zero = not any(data[leaf * LEAF:(leaf + 1) * LEAF])
        if runs and runs[-1][0] + runs[-1][1] == leaf and runs[-1][2] == zero:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, zero)
        else:
            runs.append((leaf, 1, zero))
    return runs


@settings(max_examples=150, deadline=None)
@given(
    leaves=st.lists(st.sampled_from(["same", "changed", "zero", "zero and same"]), min_size=1, max_size=40),
    short_by=st.integers(0, LEAF - 1),
    changed_byte=st.integers(0, 31),
    known=st.booleans(),
)
def test_runs_are_those_of_the_plain_comparison(leaves, short_by, changed_byte, known):
    fresh = random.Random(len(leaves)).randbytes(32 * len(leaves))
    base, data = bytearray(fresh), bytearray()
    for leaf, kind in enumerate(leaves):
        if kind in ("changed", "zero"):
            base[32 * leaf + changed_byte] ^= 0x80  # any one of the 32 bytes must count
        data += bytes(LEAF) if kind.startswith("zero") else b"\0" * (LEAF - short_by - 1) + b"x" + b"\0" * short_by
    data = data[:len(data) - short_by]
    assert compare.compare_leaves(fresh, base if known else None, data, LEAF) == expected_runs(
        fresh, base if known else None, data
    )


def test_an_unchanged_granule_has_no_runs():
    digests = random.Random(1).randbytes(32 * 2048)
    assert compare.compare_leaves(digests, digests, bytes(2048 * LEAF), LEAF) == []


def test_zero_and_data_leaves_make_separate_runs_without_a_base():
    data = bytes(2 * LEAF) + b"x" * LEAF + bytes(512)
    assert compare.compare_leaves(bytes(4 * 32), None, data, LEAF) == [(0, 2, True), (2, 1, False), (3, 1, True)]


@pytest.mark.parametrize("fresh, base, size, leaf_size", [
    (64, None, 0, LEAF),
    (64, None, 3 * LEAF, LEAF),
    (63, None, 2 * LEAF, LEAF),
    (64, 96, 2 * LEAF, LEAF),
    (64, 0, 2 * LEAF, LEAF),
    (64, None, 2 * LEAF, 0),
    (64, None, 2 * LEAF, 3000),
])
def test_shapes_that_do_not_fit_raise(fresh, base, size, leaf_size):
    with pytest.raises(ValueError):
        compare.compare_leaves(bytes(fresh), None if base is None else bytes(base), bytes(size), leaf_size)
