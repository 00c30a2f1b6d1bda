import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrep import extents
from qrep.extents import Extent

SPACE = 64  # small, so that a set of byte numbers is an oracle
some_extents = st.lists(
    st.tuples(st.integers(0, SPACE - 1), st.integers(0, 20)).map(lambda pair: Extent(*pair)), max_size=8
)
MIB = 1 << 20


def bytes_of(some):
    return {byte for offset, size in some for byte in range(offset, offset + size)}


def is_normal(some):
    return all(extent.size > 0 for extent in some) and all(
        a.end < b.offset for a, b in zip(some, some[1:], strict=False)
    )


@given(some_extents)
def test_normalise_keeps_the_bytes_and_sorts_and_merges(some):
    result = extents.normalise(some)
    assert is_normal(result) and bytes_of(result) == bytes_of(some)
    assert extents.total(some) == len(bytes_of(some))


@given(some_extents, some_extents)
def test_union_intersection_and_difference_are_those_of_the_bytes(first, second):
    for combine, expected in (
        (extents.union, bytes_of(first) | bytes_of(second)),
        (extents.intersect, bytes_of(first) & bytes_of(second)),
        (extents.subtract, bytes_of(first) - bytes_of(second)),
    ):
        result = combine(first, second)
        assert is_normal(result) and bytes_of(result) == expected


@given(some_extents, st.integers(0, SPACE))
def test_the_complement_is_every_other_byte_below_the_size(some, size):
    result = extents.complement(some, size)
    assert is_normal(result) and bytes_of(result) == set(range(size)) - bytes_of(some)


@given(some_extents, st.sampled_from([1, 4, 8, 16]), st.integers(0, SPACE + 20))
def test_aligning_outward_covers_whole_units_and_stops_at_the_size(some, unit, size):
    result = extents.align_outward(some, unit, size)
    expected = {
        b for byte in bytes_of(some) for b in range(byte // unit * unit, byte // unit * unit + unit) if b < size
    }
    assert is_normal(result) and bytes_of(result) == expected


def test_a_negative_extent_is_an_error():
    with pytest.raises(ValueError, match="negative"):
        extents.normalise([(0, -1)])


@pytest.fixture
def sparse(memory_dir):
    """8 MiB with 64 KiB of data at 1 MiB, and one byte at 5 MiB."""
    with open(memory_dir / "sparse", "wb+") as image:
        image.truncate(8 * MIB)
        os.pwrite(image.fileno(), b"x" * 65536, MIB)
        os.pwrite(image.fileno(), b"y", 5 * MIB)
        yield image


def test_data_extents_of_a_sparse_file_cover_its_data_and_leave_out_its_holes(sparse):
    found = list(extents.data_extents(sparse.fileno(), 8 * MIB))
    assert is_normal(found)
    assert extents.intersect(found, [Extent(MIB, 65536), Extent(5 * MIB, 1)]) == [
        Extent(MIB, 65536),
        Extent(5 * MIB, 1),
    ]
    assert extents.total(found) < MIB  # a huge page or a block of the filesystem at most
    assert extents.holes(sparse.fileno(), 8 * MIB) == extents.complement(found, 8 * MIB)


def test_a_file_without_holes_an_empty_one_and_a_hole_throughout(memory_dir):
    with open(memory_dir / "file", "wb+") as image:
        assert list(extents.data_extents(image.fileno(), 0)) == []
        image.truncate(MIB)
        assert list(extents.data_extents(image.fileno(), MIB)) == []
        assert extents.holes(image.fileno(), MIB) == [Extent(0, MIB)]
        os.pwrite(image.fileno(), b"z" * MIB, 0)
        assert list(extents.data_extents(image.fileno(), MIB)) == [Extent(0, MIB)]
        assert list(extents.data_extents(image.fileno(), 4096)) == [Extent(0, 4096)]


def test_a_size_past_the_end_of_the_file_is_a_hole(sparse):
    found = list(extents.data_extents(sparse.fileno(), 100 * MIB))
    assert found[-1].end <= 8 * MIB


def test_allocated_granules_name_each_granule_with_data_once(sparse):
    assert list(extents.allocated_granules(sparse.fileno(), 8 * MIB, MIB)) == [1, 5]
    assert list(extents.allocated_granules(sparse.fileno(), 8 * MIB, 8 * MIB)) == [0]


class Seeks:
    """lseek that answers from a list; an int is an errno to fail with, a tuple the offset to return."""

    def __init__(self, monkeypatch, *answers):
        self.answers = list(answers)
        monkeypatch.setattr(extents.os, "lseek", self)

    def __call__(self, fd, position, whence):
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer[0]


def test_a_filesystem_that_cannot_tell_is_data_throughout(sparse, monkeypatch):
    Seeks(monkeypatch, errno.EINVAL)
    assert list(extents.data_extents(sparse.fileno(), MIB)) == [Extent(0, MIB)]


def test_a_hole_punched_between_the_two_questions_still_makes_progress(sparse, monkeypatch):
    Seeks(monkeypatch, (4096,), (4096,), errno.ENXIO)
    assert list(extents.data_extents(sparse.fileno(), MIB)) == [Extent(4096, 1)]


def test_a_file_that_shrank_between_the_two_questions_is_left_to_its_reader(sparse, monkeypatch):
    Seeks(monkeypatch, (4096,), errno.ENXIO)
    assert list(extents.data_extents(sparse.fileno(), MIB)) == [Extent(4096, MIB - 4096)]


def test_any_other_failure_is_raised(sparse, monkeypatch):
    Seeks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        list(extents.data_extents(sparse.fileno(), MIB))


@pytest.mark.root
def test_a_loop_device_is_data_throughout(loop_device):
    device = loop_device(MIB)
    fd = os.open(device, os.O_RDONLY)
    try:
        assert list(extents.data_extents(fd, MIB)) == [Extent(0, MIB)]
    finally:
        os.close(fd)
