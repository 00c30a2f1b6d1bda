"""A sync point copied out over what was there before: nothing of that may show through, wherever the replica has holes."""

import errno
import os

import pytest
from flow.harness import GRANULE, MIB, Site, b3sum, packaged, write_at

from qrep.target import rollback

SIZE = 24 * MIB
TAIL = 3 * MIB
OLD = b"\xa5" * GRANULE


@pytest.fixture
def sparse(loop_device, memory_dir, random_source, undo_after):
    """A source with data, zeroes and data again; its replica is an image file, with a hole in the middle and one at its end."""
    source, target = loop_device(SIZE), memory_dir / "replica.img"
    for offset, size in ((4096, 3 * MIB), (12 * MIB - 4096, MIB)):
        write_at(source, offset, random_source.randbytes(size))
    with open(target, "wb") as file:
        file.truncate(SIZE)
    made = Site(memory_dir, source, target)
    undo_after.callback(made.close)
    return made


def fill(path, size):
    with open(path, "r+b") as file:
        for _ in range(0, size, len(OLD)):
            file.write(OLD)
        file.flush()
        os.fsync(file.fileno())


def two_points(site, random_source):
    """[(id, root)], newest first: the second has zeroes where the first has data, and the other way round."""
    roots = [site.run().root]
    write_at(site.source, 12 * MIB, bytes(MIB))
    write_at(site.source, 20 * MIB + 8192, random_source.randbytes(MIB))
    roots.append(site.run().root)
    assert os.stat(site.target_path).st_blocks * 512 < SIZE // 2  # the replica has holes
    return [(point.id, root) for point, root in zip(site.volume.sync_points(), reversed(roots), strict=True)]


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_device_that_was_used_holds_the_sync_point_and_what_lies_behind_it_is_left_alone(sparse, loop_device, random_source, sector_size):
    copy = loop_device(SIZE + TAIL, sector_size=sector_size)
    with sparse:
        for point, root in two_points(sparse, random_source):
            fill(copy, SIZE + TAIL)
            sparse.volume.copy_out(point, str(copy), overwrite=True)
            assert b3sum(copy, SIZE) == packaged(copy, SIZE) == root
            with open(copy, "rb") as file:
                file.seek(SIZE)
                assert file.read() == OLD * (TAIL // GRANULE)


def test_a_file_that_was_used_is_as_one_that_is_made(sparse, memory_dir, random_source):
    used, made = memory_dir / "used.img", memory_dir / "made.img"
    with sparse:
        for point, root in two_points(sparse, random_source):
            used.write_bytes(OLD * ((SIZE + TAIL) // GRANULE))
            sparse.volume.copy_out(point, str(used), overwrite=True)
            sparse.volume.copy_out(point, str(made))
            assert used.stat().st_blocks == made.stat().st_blocks < SIZE // 1024 and used.stat().st_size == made.stat().st_size == SIZE
            assert packaged(used) == b3sum(made) == root
            made.unlink()


def test_a_device_that_is_zero_already_is_not_written_where_the_replica_has_holes(sparse, loop_device, random_source):
    copy = loop_device(SIZE)
    with sparse:
        point, root = two_points(sparse, random_source)[0]
        sparse.volume.copy_out(point, str(copy), overwrite=True)
    assert b3sum(copy) == root and os.stat(copy.backing).st_blocks * 512 < SIZE // 2


def test_a_device_of_which_nothing_can_be_read_before_it_is_written_is_written(sparse, loop_device, random_source, monkeypatch):
    copy, read_into, refused = loop_device(SIZE), rollback.read_into, []

    def read(descriptor, view, offset):
        if descriptor != sparse.volume.device_fd:
            refused.append(offset)
            raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ))
        return read_into(descriptor, view, offset)

    with sparse:
        point, root = two_points(sparse, random_source)[0]
        fill(copy, SIZE)
        monkeypatch.setattr(rollback, "read_into", read)
        sparse.volume.copy_out(point, str(copy), overwrite=True)
    assert b3sum(copy) == root and refused


def test_zeroes_that_the_replica_does_not_have_as_holes_are_written(site, loop_device):
    copy = loop_device(SIZE)
    with site:
        root = site.run().root
        fill(copy, SIZE)
        site.volume.copy_out(site.volume.sync_points()[0].id, str(copy), overwrite=True)
    assert b3sum(copy) == root
