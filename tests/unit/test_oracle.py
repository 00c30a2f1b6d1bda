"""The oracle of the campaign is right where it agrees, and does not agree where something is wrong."""

import os
import random

import blake3
import oracle
import plainblake3
import pytest

from qrep._native import disk
from qrep._native.wire import Geometry
from qrep.digestmap import DigestMap
from qrep.store import Directory
from qrep.target.superblock import SuperblockFile

KIB = 1 << 10
LEAF, GRANULE, SIZE = 4 * KIB, 32 * KIB, 108 * KIB + 512
COMMITTED, VOLUME = b"c" * 16, b"v" * 16


@pytest.fixture
def content(random_source):
    return random_source.randbytes(64 * KIB) + bytes(32 * KIB) + random_source.randbytes(SIZE - 96 * KIB)


@pytest.mark.parametrize("size", [2 * GRANULE, SIZE, 3 * GRANULE, 7 * GRANULE + 1024, 5 * GRANULE + 64])
def test_values_put_together_from_the_specification_are_the_packages_blake3(size):
    data = random.Random(size).randbytes(size)
    values = [plainblake3.subtree(data[start : start + GRANULE], start) for start in range(0, size, GRANULE)]
    assert plainblake3.root(values) == blake3.blake3(data).digest()


def test_a_device_is_read_whole_and_the_first_leaf_that_differs_is_named(tmp_path, content):
    images, path = oracle.Images(), tmp_path / "device"
    images.keep(7, content)
    path.write_bytes(content)
    assert images.are_on(path, 7) == blake3.blake3(content).hexdigest()
    path.write_bytes(content[:70000] + b"!" + content[70001:])
    with pytest.raises(oracle.Wrong, match="1 leaves differ, the first at 69632"):
        images.are_on(path, 7)
    path.write_bytes(content[:-512])
    with pytest.raises(oracle.Wrong, match="bytes instead of"):
        images.are_on(path, 7)
    with pytest.raises(oracle.Wrong, match="never sent"):
        images.are_on(path, 8)


def test_a_superblock_is_read_as_the_document_describes_it(tmp_path):
    assert oracle.superblock(tmp_path) is None
    record = disk.Superblock(size=SIZE // LEAF * LEAF, leaf_size=LEAF, granule_size=GRANULE, volume_id=VOLUME)
    with Directory(tmp_path) as directory:
        file = SuperblockFile(directory)
        file.write(record)
        file.write(record.replace(committed_id=COMMITTED, committed_counter=3))
        file.close()
    found = oracle.superblock(tmp_path)
    assert (found.committed_id, found.counter, found.volume_id, found.sequence, found.granule_size) == (COMMITTED, 3, VOLUME, 2, GRANULE)
    data = bytearray((tmp_path / "superblock").read_bytes())
    newest = 4096 * (found.sequence % 2)
    data[newest + 60] ^= 1
    (tmp_path / "superblock").write_bytes(data)
    assert oracle.superblock(tmp_path).counter == 0
    data[(4096 - newest) + 60] ^= 1
    (tmp_path / "superblock").write_bytes(data)
    with pytest.raises(oracle.Wrong, match="no slot"):
        oracle.superblock(tmp_path)


@pytest.fixture
def map_of(tmp_path):
    def make(content, root=True):
        """A map that says of every granule what it holds, written by qrep."""
        digest_map = DigestMap(tmp_path / "map", Geometry(SIZE, LEAF, GRANULE), VOLUME)
        states, values = bytearray(), bytearray()
        for start in range(0, SIZE, GRANULE):
            part = content[start : start + GRANULE]
            values += plainblake3.subtree(part, start)
            states.append(0x20 | (oracle.HASHED if any(part) else oracle.ZERO))
        digest_map.write_pending(COMMITTED, bytes(16), 1, states, values, root=blake3.blake3(content).digest() if root else None)
        digest_map.fold(COMMITTED)
        digest_map.close()
        return tmp_path / "map"

    return make


def test_a_map_is_compared_with_what_was_committed(content, map_of):
    path = map_of(content)
    assert oracle.map_is_true(path, COMMITTED, content) == 4
    assert oracle.map_is_true(path, b"o" * 16, content) == 0
    for root, start, what in ((True, 5, "root"), (False, 5, "value of granule 0"), (False, 70000, "granule 2 is not zero")):
        path = map_of(content, root)
        other = bytearray(content)
        other[start] ^= 1
        with pytest.raises(oracle.Wrong, match=what):
            oracle.map_is_true(path, COMMITTED, bytes(other))
    data = bytearray((path / "root").read_bytes())
    data[300] ^= 4
    (path / "root").write_bytes(data)
    with pytest.raises(oracle.Wrong, match="damaged"):
        oracle.map_is_true(path, COMMITTED, content)


@pytest.mark.parametrize("text", ["Traceback (most recent call last)", "Task exception was never retrieved", "x.c:3: runtime error: shift", "an internal error"])
def test_what_must_not_be_in_a_log_is_found(text):
    oracle.nothing_forbidden("qrep: serving\n")
    with pytest.raises(oracle.Forbidden):
        oracle.nothing_forbidden(f"qrep: serving\n{text}\n")


def test_an_event_that_must_not_be_is_found_unless_it_was_asked_for():
    events = [{"code": "run-done"}, {"code": "volume-damaged"}]
    with pytest.raises(oracle.Forbidden, match="volume-damaged"):
        oracle.nothing_forbidden("", events)
    oracle.nothing_forbidden("", events, allowed=["volume-damaged"])


def test_a_descriptor_that_is_left_open_is_named(tmp_path):
    before = oracle.held(os.getpid())
    with open(tmp_path / "left", "w"):
        assert "left 0 to 1" in oracle.leaked(before, oracle.held(os.getpid()))
    assert not oracle.leaked(before, oracle.held(os.getpid()))


def undo_file(path, flushed):
    """Of three batches in one segment, of which the third says how far the ones before it were flushed. Returns their positions."""
    header = disk.UndoHeader(volume_id=VOLUME, base_id=COMMITTED, new_id=b"n" * 16, attempt=7, size=SIZE, leaf_size=LEAF, granule_size=GRANULE)
    places, position = [], oracle.SEGMENT
    with open(path, "wb") as file:
        file.write(header.pack())
        for number in range(3):
            batch = disk.UndoBatch(
                base_id=COMMITTED, attempt=7, sequence=number, position=position, flushed=flushed(places) if number == 2 else 0,
                extents=[(number * LEAF, LEAF, disk.UNDO_DATA), (GRANULE, LEAF, disk.UNDO_ZERO)], payload=bytes([number + 1]) * LEAF,
            )  # fmt: skip
            os.pwrite(file.fileno(), batch.pack(SIZE), position)
            places.append(position)
            position += len(batch.pack(SIZE))
        os.ftruncate(file.fileno(), position)
    return places


@pytest.mark.parametrize(("flushed", "told"), [(lambda places: 0, []), (lambda places: places[1], [0]), (lambda places: places[1] + 1, [0, 1])])
def test_a_batch_that_rots_is_missed_if_a_later_one_says_that_it_was_flushed(tmp_path, flushed, told):
    path = tmp_path / "undo"
    places = undo_file(path, flushed)
    whole, before = path.read_bytes(), oracle.undo_batches(path, SIZE)
    assert [batch.extents for batch in before.values()] == [((number * LEAF, LEAF), (GRANULE, LEAF)) for number in range(3)]
    assert list(before) == places and not oracle.lost_untold(before, before)
    for number, place in enumerate(places):
        for at in (place, place + 70, place + 130, place + 150, place + 4096, place + 8191):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            now = oracle.undo_batches(path, SIZE)
            assert sorted(set(before) - set(now)) == [place] and oracle.lost_untold(before, now) is (number not in told)


def test_an_undo_file_whose_header_and_copy_rotted_is_not_believed(tmp_path):
    path = tmp_path / "undo"
    undo_file(path, lambda places: 0)
    os.truncate(path, 0)
    with pytest.raises(oracle.Wrong, match="no header"):
        oracle.undo_batches(path, SIZE)
