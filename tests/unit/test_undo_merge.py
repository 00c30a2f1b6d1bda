"""Undo files merged into one: what it leads back to is what the old ones led back to, whatever they held."""

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep._native import disk
from qrep._native.wire import Geometry
from qrep.errors import DamagedError, UndoSpaceError
from qrep.store import TEMPORARY, Directory
from qrep.target.undolog import SEGMENT, BatchWriter
from qrep.target.undomerge import BLOCK, PAGE, Covered, Merge
from qrep.target.undostore import UndoStore

VOLUME = b"v" * 16
SIZE = 3 * BLOCK + 5 * PAGE + 512
IDS = [bytes([number]) * 16 for number in range(1, 9)]  # oldest first


@pytest.fixture
def store(memory_dir):
    with Directory(memory_dir / "undo") as directory:
        yield UndoStore(directory, VOLUME, Geometry(SIZE, 4096, 1 << 20), limit=1 << 30)


class Image:
    """A device in memory, and the undo file of each generation that was made of it; images: id -> content."""

    def __init__(self, store, seed):
        self.store, self.random = store, random.Random(seed)
        self.content, self.images = bytearray(SIZE), {IDS[0]: bytes(SIZE)}

    def generation(self, base, new, writes, *, batch=3):
        """writes: (offset, size); a place written twice is logged twice. batch: places of one."""
        attempt = self.random.getrandbits(63) | 1
        descriptor = self.store.create(base, new, attempt)
        writer = BatchWriter(descriptor, base, attempt, SIZE, 1 << 30)
        for number, (offset, size) in enumerate(writes):
            size = min(size, SIZE - offset)
            before = bytes(self.content[offset : offset + size])
            writer.add(offset, size, before if any(before) else None)
            if number % batch == batch - 1:
                writer.write()
            fill = self.random.choice((bytes(size), self.random.randbytes(size)))
            self.content[offset : offset + size] = fill
        writer.write()
        os.close(descriptor)
        self.store.seal(new, writer.count)
        self.images[new] = bytes(self.content)

    def shown(self, way):
        """What the undo files show of way[-1]; way: ids, newest first. Read as a stranger would: by the format, byte for byte."""
        content = bytearray(self.content)
        for new, base in zip(way, way[1:], strict=False):
            descriptor, header, batches = self.store.batches(base, new)
            for place in batches:
                data = read(descriptor, place)
                (batch,) = disk.scan_undo_segment(data, place.position, SIZE, header.base_id, header.attempt).batches
                end = batch.payload_position - place.position + batch.payload_size
                for extent in reversed(batch.extents):
                    if extent.kind == disk.UNDO_DATA:
                        content[extent.offset : extent.offset + extent.size] = data[end - extent.size : end]
                        end -= extent.size
                    else:
                        content[extent.offset : extent.offset + extent.size] = bytes(extent.size)
            os.close(descriptor)
        return bytes(content)


def read(descriptor, place):
    with open(f"/proc/self/fd/{descriptor}", "rb") as file:
        return bytearray(os.pread(file.fileno(), place.size, place.position))


def merged(store, *ids):
    merge = Merge(store, ids)
    merge.check_room()
    merge.build()
    merge.finish()


def test_a_point_between_two_is_taken_out_and_both_still_show_their_images(store):
    image = Image(store, 1)
    image.generation(IDS[0], IDS[1], [(0, 2 * PAGE), (BLOCK - PAGE, 2 * PAGE), (SIZE - 512, 512)])
    image.generation(IDS[1], IDS[2], [(PAGE, 2 * PAGE), (BLOCK, 3 * PAGE), (SIZE - 512 - PAGE, PAGE + 512)])
    image.generation(IDS[2], IDS[3], [(0, PAGE)])
    before = store.used()
    merged(store, IDS[2], IDS[1], IDS[0])
    assert store.chain(IDS[3]).ids == (IDS[3], IDS[2], IDS[0])
    assert image.shown([IDS[3], IDS[2]]) == image.images[IDS[2]]
    assert image.shown([IDS[3], IDS[2], IDS[0]]) == image.images[IDS[0]]
    assert store.used() < before, "what both held is there once"


@pytest.mark.parametrize("written", [[[], []], [[], [], []], [[(0, PAGE)], []], [[], [(0, PAGE)]]])
def test_generations_in_which_nothing_changed_are_merged(store, written):
    image = Image(store, 1)
    for number, places in enumerate(written):
        image.generation(IDS[number], IDS[number + 1], places)
    ids = IDS[len(written) :: -1]
    merged(store, *ids)
    assert store.chain(ids[0]).ids == (ids[0], ids[-1])
    assert image.shown([ids[0], ids[-1]]) == image.images[ids[-1]]


writes = st.lists(
    st.tuples(st.integers(0, SIZE // PAGE).map(lambda page: page * PAGE), st.integers(1, 40).map(lambda pages: pages * PAGE)), max_size=8
)


@settings(max_examples=8, deadline=None)
@given(st.lists(writes, min_size=2, max_size=4), st.integers(0, 1 << 30), st.data())
def test_whatever_was_written_any_points_may_go_and_the_others_show_their_images(generations, seed, data):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as path, Directory(path + "/undo") as directory:
        store = UndoStore(directory, VOLUME, Geometry(SIZE, 4096, 1 << 20), limit=1 << 30)
        image = Image(store, seed)
        for number, places in enumerate(generations):
            image.generation(IDS[number], IDS[number + 1], places, batch=data.draw(st.integers(1, 4)))
        chain = IDS[len(generations) :: -1]
        while len(chain) > 2:
            first = data.draw(st.integers(0, len(chain) - 3))
            last = data.draw(st.integers(first + 2, len(chain) - 1))
            merged(store, *chain[first : last + 1])
            del chain[first + 1 : last]
            assert list(store.chain(chain[0]).ids) == chain
            for end in range(1, len(chain) + 1):
                assert image.shown(chain[:end]) == image.images[chain[end - 1]]


@given(st.lists(st.tuples(st.integers(0, 3 * BLOCK // PAGE), st.integers(1, 3 * BLOCK)), max_size=12))
def test_a_page_is_given_out_once(ranges):
    covered, seen = Covered(), set()
    for page, size in ranges:
        offset = page * PAGE
        fresh = set()
        for start, part in covered.take(offset, size):
            assert start % PAGE == 0 and part > 0 and offset <= start and start + part <= offset + size
            pages = set(range(start // PAGE, -(-(start + part) // PAGE)))
            assert not pages & (seen | fresh)
            fresh |= pages
        wanted = set(range(page, -(-(offset + size) // PAGE)))
        assert fresh == wanted - seen
        seen |= wanted


def damage(store, new, position):
    path = f"{store.directory.path}/{store.name(new)}"
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("which", [IDS[1], IDS[2]], ids=["the older", "the newer"])
@pytest.mark.parametrize("position", [SEGMENT + 8, SEGMENT + PAGE, 20], ids=["a batch", "its payload", "the header"])
def test_a_damaged_file_is_not_merged_and_nothing_is_changed(store, which, position):
    image = Image(store, 2)
    for old, new in ((0, 1), (1, 2)):
        image.generation(IDS[old], IDS[new], [(0, PAGE), (4 * PAGE, PAGE), (BLOCK, PAGE), (9 * PAGE, PAGE)], batch=1)
        image.generation(IDS[new], IDS[7], [(0, PAGE)])  # another lane's flush says nothing of this file: only its own batches do
        store.directory.remove(store.name(IDS[7]))
    damage(store, which, position)
    names = store.directory.names()
    contents = [(name, os.path.getsize(f"{store.directory.path}/{name}")) for name in names]
    with pytest.raises(DamagedError):
        merged(store, IDS[2], IDS[1], IDS[0])
    assert [(name, os.path.getsize(f"{store.directory.path}/{name}")) for name in store.directory.names()] == contents
    assert not [name for name in os.listdir(store.directory.path) if name.endswith(TEMPORARY)]


@pytest.mark.parametrize("last", [False, True])
def test_a_batch_that_a_merged_file_lost_is_missed_even_the_last(store, last):
    image = Image(store, 3)
    image.content[:] = image.random.randbytes(SIZE)
    image.generation(IDS[0], IDS[1], [(page * 64 * PAGE, 64 * PAGE) for page in range(24)])
    image.generation(IDS[1], IDS[2], [(page * 64 * PAGE, 64 * PAGE) for page in range(20, 44)])
    merged(store, IDS[2], IDS[1], IDS[0])
    descriptor, _, batches = store.batches(IDS[0], IDS[2])
    os.close(descriptor)
    places = sorted(place.position for place in batches)
    assert len(places) >= 2
    damage(store, IDS[2], (places[-1] if last else places[0]) + 8)
    with pytest.raises(DamagedError):
        store.batches(IDS[0], IDS[2])


def test_a_merged_file_fills_its_segments(store):
    """24 MiB of before-images: five batches of 3 MiB in a segment of 16 MiB, so two segments after the one of the header."""
    image = Image(store, 5)
    image.content[:] = image.random.randbytes(SIZE)
    image.images[IDS[0]] = bytes(image.content)
    image.generation(IDS[0], IDS[1], [(place << 20, 1 << 20) for place in range(16)], batch=2)
    image.generation(IDS[1], IDS[2], [(place << 20, 1 << 20) for place in range(8, 24)], batch=2)
    merged(store, IDS[2], IDS[1], IDS[0])
    assert os.path.getsize(f"{store.directory.path}/{store.name(IDS[2])}") <= 3 * SEGMENT
    assert image.shown([IDS[2], IDS[0]]) == image.images[IDS[0]]


def test_a_merge_that_finds_no_room_is_refused_before_anything_is_written(store):
    image = Image(store, 4)
    image.generation(IDS[0], IDS[1], [(0, 10 * PAGE)])
    image.generation(IDS[1], IDS[2], [(0, 10 * PAGE)])
    store.set_limit(store.used() + SEGMENT)
    with pytest.raises(UndoSpaceError) as refused:
        merged(store, IDS[2], IDS[1], IDS[0])
    assert "oldest" in refused.value.hint
    assert store.chain(IDS[2]).ids == (IDS[2], IDS[1], IDS[0])


def test_the_middle_of_a_page_is_not_guessed_at(store):
    attempt = 5
    descriptor = store.create(IDS[0], IDS[1], attempt)
    writer = BatchWriter(descriptor, IDS[0], attempt, SIZE, 1 << 30)
    writer.add(512, 512, None)
    writer.write()
    os.close(descriptor)
    store.seal(IDS[1], writer.count)
    Image(store, 6).generation(IDS[1], IDS[2], [(0, PAGE)])
    with pytest.raises(DamagedError, match="whole pages"):
        merged(store, IDS[2], IDS[1], IDS[0])
    assert store.chain(IDS[2]).ids == (IDS[2], IDS[1], IDS[0])
