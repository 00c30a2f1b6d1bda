import errno
import os

import pytest

from qrep import extents
from qrep.extents import Extent

MIB = 1 << 20


def is_normal(some):
    return all(extent.size > 0 for extent in some) and all(
        a.end < b.offset for a, b in zip(some, some[1:], strict=False)
    )


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
    assert all(any(extent.offset <= start and end <= extent.end for extent in found) for start, end in ((MIB, MIB + 65536), (5 * MIB, 5 * MIB + 1)))
    assert sum(extent.size for extent in found) < MIB  # a huge page or a block of the filesystem at most


def test_a_file_without_holes_an_empty_one_and_a_hole_throughout(memory_dir):
    with open(memory_dir / "file", "wb+") as image:
        assert list(extents.data_extents(image.fileno(), 0)) == []
        image.truncate(MIB)
        assert list(extents.data_extents(image.fileno(), MIB)) == []
        os.pwrite(image.fileno(), b"z" * MIB, 0)
        assert list(extents.data_extents(image.fileno(), MIB)) == [Extent(0, MIB)]
        assert list(extents.data_extents(image.fileno(), 4096)) == [Extent(0, 4096)]


def test_a_size_past_the_end_of_the_file_is_a_hole(sparse):
    found = list(extents.data_extents(sparse.fileno(), 100 * MIB))
    assert found[-1].end <= 8 * MIB


def test_each_granule_with_data_is_named_once(sparse):
    assert list(extents.granules_of(extents.data_extents(sparse.fileno(), 8 * MIB), MIB)) == [1, 5]
    assert list(extents.granules_of(extents.data_extents(sparse.fileno(), 8 * MIB), 8 * MIB)) == [0]


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
