"""Two clones of an image on XFS and btrfs: what FIEMAP calls unchanged is unchanged, whatever was done to the image in between, and little else is named."""

import os
import subprocess
from pathlib import Path

import pytest
from machine import MIB, image

from qrep import device
from qrep.extents import Extent
from qrep.volumes import fiemap
from qrep.volumes.fiemap import Mapped, differing
from qrep.volumes.reflink import Reflink

pytestmark = pytest.mark.root
SIZE, BLOCK = 8 * MIB, 4096


class Clones:
    """An image, and clones of it one after the other."""

    def __init__(self, path):
        self.path, self.backend, self.tokens = str(path), Reflink(), []

    def freeze(self):
        self.tokens.append(self.backend.freeze(device.inspect(self.path), "run").token)

    def changes(self):
        return self.backend.changes(device.inspect(self.path), *self.tokens[-2:])

    def content(self, number):
        with open(self.tokens[number].partition(":")[2], "rb") as file:
            return file.read()

    def are_right(self):
        """What is not named is the same. Returns (bytes named, bytes that differ by the block)."""
        old, new, named = self.content(-2), self.content(-1), bytearray(SIZE // BLOCK)
        for extent in self.changes():
            for block in range(extent.offset // BLOCK, -(-extent.end // BLOCK)):
                named[block] = 1
        differ = [block for block in range(SIZE // BLOCK) if old[block * BLOCK : (block + 1) * BLOCK] != new[block * BLOCK : (block + 1) * BLOCK]]
        assert all(named[block] for block in differ), "a changed block was not named"
        return sum(named) * BLOCK, len(differ) * BLOCK


@pytest.fixture(params=["xfs", "btrfs"])
def clones(request, filesystem):
    return Clones(image(filesystem(request.param), size=SIZE))


def put(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.slow
def test_nothing_is_named_where_nothing_was_written(clones, random_source):
    put(clones.path, MIB, random_source.randbytes(3 * MIB))
    clones.freeze()
    clones.freeze()
    assert clones.changes() == []


def test_what_was_written_is_named_and_little_else(clones, random_source):
    put(clones.path, 0, random_source.randbytes(6 * MIB))
    clones.freeze()
    for block in (0, 7, 8, 300, 1500, 2047):
        put(clones.path, block * BLOCK, random_source.randbytes(BLOCK))
    clones.freeze()
    named, differ = clones.are_right()
    assert differ == 6 * BLOCK and named == differ


def test_blocks_that_were_punched_out_or_zeroed_are_named(clones, random_source):
    put(clones.path, 0, random_source.randbytes(6 * MIB))
    clones.freeze()
    subprocess.run(["fallocate", "--punch-hole", "-o", str(MIB), "-l", str(MIB), clones.path], check=True)
    subprocess.run(["fallocate", "--zero-range", "-o", str(3 * MIB), "-l", str(64 << 10), clones.path], check=True)
    clones.freeze()
    named, differ = clones.are_right()
    assert named == differ == MIB + (64 << 10)


@pytest.mark.slow
def test_room_that_was_reserved_and_not_written_reads_as_the_hole_it_was(clones):
    clones.freeze()
    subprocess.run(["fallocate", "-o", "0", "-l", str(2 * MIB), clones.path], check=True)
    clones.freeze()
    assert clones.are_right()[1] == 0


@pytest.mark.slow
def test_two_clones_of_other_sizes_cannot_be_compared(clones):
    clones.freeze()
    os.truncate(clones.path, SIZE // 2)
    clones.freeze()
    assert clones.changes() is None


@pytest.mark.slow
def test_a_clone_that_is_gone_is_an_error_and_no_answer(clones):
    clones.freeze()
    clones.freeze()
    clones.backend.release(clones.tokens[0])
    with pytest.raises(OSError):
        clones.changes()


@pytest.mark.slow
def test_another_image_in_its_place_shares_nothing(clones, random_source):
    put(clones.path, 0, random_source.randbytes(2 * MIB))
    clones.freeze()
    content = clones.content(0)
    os.unlink(clones.path)
    image(Path(clones.path).parent, os.path.basename(clones.path), size=SIZE)
    put(clones.path, 0, content[: 2 * MIB])
    clones.freeze()
    named, differ = clones.are_right()
    assert differ == 0 and named == 2 * MIB


def test_any_sequence_of_writes_punches_and_clones_inside_the_image_is_named(clones, random_source):
    put(clones.path, 0, random_source.randbytes(4 * MIB))
    clones.freeze()
    for _ in range(3):
        for _ in range(random_source.randrange(1, 12)):
            offset = random_source.randrange(SIZE // BLOCK - 16) * BLOCK
            size = random_source.randrange(1, 16) * BLOCK
            what = random_source.choice(["write", "write", "zero", "punch", "copy"])
            if what == "write":
                put(clones.path, offset, random_source.randbytes(size))
            elif what == "copy":  # shares blocks inside the image
                source = random_source.randrange(SIZE // BLOCK - 16) * BLOCK
                command = f"reflink {clones.path} {source} {offset} {size}"
                subprocess.run(["xfs_io", "-f", "-c", command, clones.path], check=False, capture_output=True)
            else:
                option = "--zero-range" if what == "zero" else "--punch-hole"
                subprocess.run(["fallocate", option, "-o", str(offset), "-l", str(size), clones.path], check=True)
        clones.freeze()
        named, differ = clones.are_right()
        assert named <= SIZE and differ <= named


def test_compressed_extents_say_nothing_by_their_place(filesystem, random_source):
    directory = filesystem("btrfs")
    subprocess.run(["btrfs", "property", "set", str(directory), "compression", "zstd"], check=True)
    clones = Clones(image(directory, size=SIZE))
    put(clones.path, 0, b"the same again and again " * 80000)
    clones.freeze()
    clones.freeze()
    named, differ = clones.are_right()
    assert differ == 0 and named >= MIB


def test_a_filesystem_that_cannot_map_files_cannot_say(memory_dir):
    for name in ("old", "new"):
        (memory_dir / name).write_bytes(bytes(MIB))
    with open(memory_dir / "old", "rb") as old, open(memory_dir / "new", "rb") as new:
        assert fiemap.changes(old.fileno(), new.fileno()) is None


# ---- what the kernel says ----


class Kernel:
    """Answers FIEMAP from rows (logical, physical, length, flags), in bytes; so many of them at a time."""

    def __init__(self, rows, at_once=fiemap.ROOM):
        self.rows, self.at_once, self.asked = rows, at_once, []

    def ioctl(self, _fd, request, buffer):
        start, length, flags, _, _, _ = fiemap.HEADER.unpack_from(buffer)
        assert request == fiemap.FS_IOC_FIEMAP and flags & fiemap.FLAG_SYNC
        self.asked.append(start)
        found = [row for row in self.rows if row[0] < start + length and row[0] + row[2] > start][: self.at_once]
        fiemap.HEADER.pack_into(buffer, 0, start, length, flags, len(found), fiemap.ROOM, 0)
        for index, (logical, physical, size, about) in enumerate(found):
            fiemap.RECORD.pack_into(buffer, fiemap.HEADER.size + index * fiemap.RECORD.size, logical, physical, size, 0, 0, about, 0, 0, 0)


@pytest.fixture
def answers(monkeypatch):
    """Of fiemap.mapping where the kernel has these rows."""

    def told(rows, size=8 * BLOCK, **options):
        kernel = Kernel(rows, **options)
        monkeypatch.setattr(fiemap.fcntl, "ioctl", kernel.ioctl)
        return list(fiemap.mapping(-1, size)), kernel

    return told


S, L = fiemap.SHARED, fiemap.LAST


@pytest.mark.parametrize(("flags", "zeroes"), [(S, False), (fiemap.UNWRITTEN, True), (fiemap.UNWRITTEN | S, True)])
def test_a_place_that_says_what_is_there(answers, flags, zeroes):
    found, _ = answers([(2 * BLOCK, 100 * BLOCK, 4 * BLOCK, flags | L)])
    assert found == [Mapped(0, 2 * BLOCK, None, False), Mapped(2 * BLOCK, 4 * BLOCK, None if zeroes else 100 * BLOCK, False), Mapped(6 * BLOCK, 2 * BLOCK, None, False)]


@pytest.mark.parametrize("flags", [
    0, fiemap.UNKNOWN | S, fiemap.ENCODED | S, fiemap.DATA_ENCRYPTED | S, fiemap.NOT_ALIGNED | S, fiemap.DATA_INLINE | S, fiemap.DATA_TAIL | S, fiemap.ENCODED | fiemap.UNWRITTEN,
])  # fmt: skip
def test_a_place_that_says_nothing_differs_from_itself(answers, flags):
    found, _ = answers([(0, 100 * BLOCK, 8 * BLOCK, flags | L)])
    assert found[0].unclear and differing(found, found) == [Extent(0, 8 * BLOCK)]


def test_data_that_waits_for_a_place_is_no_answer(answers):
    for flags in (fiemap.DELALLOC, fiemap.DELALLOC | fiemap.UNKNOWN, fiemap.DELALLOC | S):
        with pytest.raises(fiemap.Moving):
            answers([(0, 100 * BLOCK, 4 * BLOCK, S), (4 * BLOCK, 0, 4 * BLOCK, flags | L)])


def test_a_map_in_several_answers_is_the_map_in_one_and_an_extent_that_begins_before_the_question_or_ends_behind_the_file_is_cut(answers):
    rows = [(0, 100 * BLOCK, 3 * BLOCK, S), (3 * BLOCK, 50 * BLOCK, BLOCK, S), (6 * BLOCK, 200 * BLOCK, 9 * BLOCK, S | L)]
    whole, kernel = answers(rows)
    assert kernel.asked == [0] and whole[-1] == Mapped(6 * BLOCK, 2 * BLOCK, 200 * BLOCK, False)
    parts, kernel = answers(rows, at_once=1)
    assert parts == whole and len(kernel.asked) == 3
    overlapping = [rows[0], (2 * BLOCK, 49 * BLOCK, 2 * BLOCK, S), rows[2]]
    assert answers(overlapping)[0] == whole


def test_a_map_that_ends_without_a_last_extent_is_a_hole_from_there_and_one_that_does_not_go_on_is_no_answer(answers, monkeypatch):
    found, _ = answers([(0, 100 * BLOCK, 3 * BLOCK, S)])
    assert found == [Mapped(0, 3 * BLOCK, 100 * BLOCK, False), Mapped(3 * BLOCK, 5 * BLOCK, None, False)]
    kernel = Kernel([(0, 100 * BLOCK, 3 * BLOCK, S)])
    answer = kernel.ioctl

    def stuck(fd, request, buffer):
        fiemap.HEADER.pack_into(buffer, 0, 0, 8 * BLOCK, fiemap.FLAG_SYNC, 0, fiemap.ROOM, 0)
        answer(fd, request, buffer)

    monkeypatch.setattr(fiemap.fcntl, "ioctl", stuck)
    with pytest.raises(OSError, match="does not go on"):
        list(fiemap.mapping(-1, 8 * BLOCK))


# ---- the comparison itself ----


@pytest.mark.parametrize(
    "old, new, named",
    [
        ([(0, 8, 100)], [(0, 8, 100)], []),
        ([(0, 8, 100)], [(0, 4, 100), (4, 4, 104)], []),
        ([(0, 8, 100)], [(0, 4, 100), (4, 4, 200)], [(4, 4)]),
        ([(0, 4, 100), (4, 4, 104)], [(0, 2, 50), (2, 4, 102), (6, 2, 60)], [(0, 2), (6, 2)]),
        ([(0, 8, None)], [(0, 3, None), (3, 2, 7), (5, 3, None)], [(3, 2)]),
        ([(0, 8, 7)], [(0, 8, None)], [(0, 8)]),
        ([(0, 8, "unclear")], [(0, 8, "unclear")], [(0, 8)]),
        ([(0, 4, 100), (4, 4, "unclear")], [(0, 4, 100), (4, 4, 104)], [(4, 4)]),
        ([(0, 2, 1), (2, 6, 20)], [(0, 2, 5), (2, 6, 21)], [(0, 8)]),
    ],
)
def test_mappings_are_compared_piece_by_piece(old, new, named):
    def mapped(rows):
        return [Mapped(offset, size, None if place == "unclear" else place, place == "unclear") for offset, size, place in rows]

    assert differing(mapped(old), mapped(new)) == [Extent(*row) for row in named]
