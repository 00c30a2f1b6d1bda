"""The digest map: it survives a restart, follows commits and nothing else, and is not believed when anything is wrong."""

import os
import random
import subprocess
import sys

import blake3
import pytest

from qrep import digesttree, mapvalues
from qrep._native import disk, hasher
from qrep._native.wire import Geometry
from qrep.digestmap import DigestMap

LEAF, GRANULE = 4096, 64 << 10
VOLUME, FIRST, SECOND = bytes([7]) * 16, bytes([1]) * 16, bytes([2]) * 16
HASHED, ZERO = disk.STATE_HASHED | disk.STATE_VALUE, disk.STATE_ZERO


def describe(data, geometry):
    """States and values of an image, as lanes would fill them; zero granules without a value."""
    states, values = bytearray(), bytearray()
    for start in range(0, len(data), GRANULE):
        granule = data[start : start + GRANULE]
        zero = not any(granule)
        states.append(ZERO if zero else HASHED)
        values += bytes(32) if zero else hasher.subtree(granule, start, LEAF)
    return states, values


def replace(found, states, values):
    """Make it the map of FIRST, as a commit does."""
    found.write_pending(FIRST, bytes(16), 1, states, values)
    found.fold(FIRST)


@pytest.fixture
def image(random_source):
    """5.5 granules and a short leaf; the third granule is zero."""
    data = bytearray(random_source.randbytes(5 * GRANULE + 3 * LEAF + 512))
    data[2 * GRANULE : 3 * GRANULE] = bytes(GRANULE)
    return bytes(data)


@pytest.fixture
def geometry(image):
    return Geometry(len(image), LEAF, GRANULE)


@pytest.fixture
def opened(tmp_path, geometry, undo_after):
    def make(**changes):
        found = DigestMap(tmp_path / "map", changes.get("geometry", geometry), changes.get("volume_id", VOLUME))
        undo_after.callback(found.close)
        return found

    return make


def store_page(found, granule, page):
    """Keep a granule's leaf values, as lanes do."""
    found.states[granule] |= disk.STATE_PAGE
    os.pwrite(found.leaves_fd, page, digesttree.page_offset(found.geometry, granule, found.states[granule]))


def committed(opened, image, geometry, tag=FIRST):
    found = opened()
    found.write_pending(tag, disk.ZERO_ID, 1, *describe(image, geometry))
    found.fold(tag)
    return found


def test_a_new_map_knows_nothing(opened):
    found = opened()
    assert found.tag == disk.ZERO_ID and found.reason == "" and found.root() is None
    assert len(found.states) == 6 and digesttree.has_unknown(found.states)


def test_a_folded_map_is_there_after_a_restart_and_a_pending_one_is_not_the_map(opened, image, geometry):
    committed(opened, image, geometry)
    again = opened()
    assert (again.tag, again.counter) == (FIRST, 1)
    assert (again.states, again.values) == describe(image, geometry)
    again.write_pending(SECOND, FIRST, 2, bytearray(6), bytearray(6 * 32))
    third = opened()
    assert third.tag == FIRST and (third.pending.tag, third.pending.base) == (SECOND, FIRST)
    third.drop_pending()
    assert opened().pending is None


def test_only_the_pending_generation_can_be_folded(opened, image, geometry):
    found = committed(opened, image, geometry)
    with pytest.raises(ValueError, match="no pending map"):
        found.fold(SECOND)
    found.write_pending(SECOND, found.tag, 2, found.states, found.values)
    with pytest.raises(ValueError, match="no pending map"):
        found.fold(bytes(15) + b"x")
    found.fold(SECOND)
    assert found.tag == SECOND


def test_the_root_is_the_plain_blake3_of_the_device(opened, image, geometry):
    found = committed(opened, image, geometry)
    assert found.root() == blake3.blake3(image).digest()
    assert found.states[2] == ZERO | disk.STATE_VALUE  # computed on the way, and kept


def test_the_root_of_a_device_of_one_granule_comes_from_its_leaves(opened, image):
    small = image[: 5 * LEAF + 512]
    geometry = Geometry(len(small), LEAF, GRANULE)
    found = opened(geometry=geometry)
    page = bytearray(6 * 32)
    value = hasher.subtree(small, 0, LEAF, page)
    replace(found, bytearray([HASHED]), bytearray(value))
    assert found.root() is None  # the page is not there yet
    store_page(found, 0, page)
    assert found.root() == blake3.blake3(small).digest()


def test_a_zero_device_has_a_root_without_being_read(opened):
    geometry = Geometry(9 * GRANULE, LEAF, GRANULE)
    found = opened(geometry=geometry)
    replace(found, bytearray([ZERO]) * 9, bytearray(9 * 32))
    assert found.root() == blake3.blake3(bytes(9 * GRANULE)).digest()


def test_too_many_zeroes_are_left_for_later(geometry):
    states, values = bytearray([ZERO]) * 6, bytearray(6 * 32)
    assert not digesttree.fill_zero_values(geometry, states, values, limit=6 * GRANULE - 1)
    assert states == bytearray([ZERO]) * 6


def test_a_root_is_not_made_up_for_a_map_that_does_not_know_everything(opened, image, geometry):
    states, values = describe(image, geometry)
    states[4] = disk.STATE_UNKNOWN
    found = opened()
    replace(found, states, values)
    assert found.root() is None


def test_a_leaf_page_is_believed_only_if_it_merges_to_the_value(opened, image, geometry):
    found = committed(opened, image, geometry)
    page = bytearray(16 * 32)
    hasher.subtree(image[GRANULE : 2 * GRANULE], GRANULE, LEAF, page)
    assert found.leaf_page(1) is None
    store_page(found, 1, page)
    assert found.leaf_page(1) == page
    found.values[2 * 32 - 1] ^= 1  # all of the value counts (R11)
    assert found.leaf_page(1) is None
    found.values[2 * 32 - 1] ^= 1
    offset = digesttree.page_offset(geometry, 1, found.states[1])
    os.pwrite(found.leaves_fd, bytes([page[0] ^ 1]), offset)
    assert found.leaf_page(1) is None


def test_every_flipped_byte_of_the_map_file_makes_it_unknown(opened, image, geometry, tmp_path, random_source):
    committed(opened, image, geometry).close()
    path = tmp_path / "map" / "root"
    good = path.read_bytes()
    for place in sorted({*random_source.sample(range(len(good)), 60), 0, len(good) - 1}):
        bad = bytearray(good)
        bad[place] ^= 1 << random_source.randrange(8)
        path.write_bytes(bad)
        found = opened()
        assert found.tag == disk.ZERO_ID and not any(found.states), f"byte {place}"
        assert str(path) in found.reason
        found.close()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 300])
def test_a_cut_map_file_makes_it_unknown(opened, image, geometry, tmp_path, size):
    committed(opened, image, geometry).close()
    os.truncate(tmp_path / "map" / "root", size)
    assert opened().tag == disk.ZERO_ID


def test_a_damaged_pending_map_is_dropped_and_the_map_stays(opened, image, geometry, tmp_path):
    found = committed(opened, image, geometry)
    found.write_pending(SECOND, FIRST, 2, *describe(image, geometry))
    with open(tmp_path / "map" / "pending", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 0x80]))
    again = opened()
    assert again.tag == FIRST and again.pending is None and "pending" in again.pending_reason


def test_the_map_of_another_volume_is_not_ours(opened, image, geometry):
    committed(opened, image, geometry)
    found = opened(volume_id=bytes(16))
    assert found.tag == disk.ZERO_ID and "another volume" in found.reason


def test_a_checkpoint_counts_only_for_its_own_generation(opened, image, geometry):
    found = opened()
    found.write_checkpoint(FIRST, 1, *describe(image, geometry))
    again = opened()
    assert again.read_checkpoint(SECOND) is None
    assert again.read_checkpoint(FIRST).states == describe(image, geometry)[0]
    assert again.tag == disk.ZERO_ID  # it is not the map
    again.forget()
    assert opened().read_checkpoint(FIRST) is None


CRASHES = {
    "map-pending-before": FIRST, "map-pending-durable": FIRST, "map-fold-before": FIRST, "store-rename-before": FIRST,
    "map-fold-durable": SECOND, "map-values-before": SECOND, "map-values-durable": SECOND,
}  # fmt: skip


@pytest.mark.parametrize("point, expected", CRASHES.items())
def test_a_crash_leaves_the_map_of_one_generation(opened, image, geometry, tmp_path, point, expected):
    committed(opened, image, geometry)
    program = f"""
from qrep.digestmap import DigestMap
from qrep._native.wire import Geometry
found = DigestMap({str(tmp_path / "map")!r}, Geometry({len(image)}, {LEAF}, {GRANULE}), {VOLUME!r})
found.write_pending({SECOND!r}, {FIRST!r}, 2, found.states, found.values)
found.fold({SECOND!r})
if {point!r}.startswith("map-values"):
    assert found.root()
    found.keep_values()
"""
    died = subprocess.run([sys.executable, "-c", program], env={**os.environ, "QREP_CRASH": f"{point}:1"})
    assert died.returncode == -9
    found = opened()
    states, values = describe(image, geometry)
    if point == "map-values-durable":
        states[2] |= disk.STATE_VALUE  # that of the zero granule, and with it the root
        values[64:96] = hasher.zero_subtree(GRANULE, 2 * GRANULE, LEAF)
        assert found.root_value == blake3.blake3(image).digest()
    assert found.tag == expected and (found.states, found.values) == (states, values)


def test_a_map_made_of_what_changed_is_believed_and_tells_the_root(opened, tmp_path):
    """Generation after generation, with states, values and marks as the lanes of a run leave them, over blocks of 2048 granules."""
    small, size = 8192, 5000 * 8192
    geometry = Geometry(size, LEAF, small)
    data, drawn = bytearray(size), random.Random(5)
    found = opened(geometry=geometry)
    states, values, base = bytearray([ZERO]) * 5000, mapvalues.empty(5000), disk.ZERO_ID
    for number in range(1, 8):
        marked = bytearray(5000)
        for granule in drawn.sample(range(5000), 3):
            piece = drawn.randbytes(small)
            data[granule * small : (granule + 1) * small] = piece
            values[granule * 32 : granule * 32 + 32] = hasher.subtree(piece, granule * small, LEAF)
            states[granule], marked[granule] = HASHED, 2
        new = bytes([number]) * 16
        content = found.following(new, base, number, states, values, marked=marked, zeroes=size if number % 2 else None)
        found.write(content)
        found.fold(new)
        assert found.root() == blake3.blake3(data).digest()
        found = opened(geometry=geometry)
        assert found.reason == "" and (found.tag, found.states) == (new, content.states) and found.values[:] == content.values[:]
        assert found.digest == disk.map_digest(found.states, found.values)
        states, base = bytearray(found.states), new
        values = mapvalues.copied(states, found.values)


def test_a_root_that_was_told_does_not_spoil_the_generation_after_it(opened, image, geometry):
    """root() computes the value of a zero granule, which the map's file does not have; what follows is made of what has changed since."""
    found = committed(opened, image, geometry)
    assert found.root() is not None
    states, values = bytearray(found.states), mapvalues.copied(found.states, found.values)
    found.write(found.following(SECOND, FIRST, 2, states, values, marked=bytearray(6)))
    again = opened()
    assert again.pending.tag == SECOND and again.pending.states == states


def test_values_where_no_granule_has_one_are_read_and_dropped(opened, image, geometry, tmp_path):
    """As checkpoints of earlier versions had them."""
    committed(opened, image, geometry).close()
    states, values = bytearray(6), bytearray(b"\7" * 192)
    header = disk.MapHeader(
        volume_id=VOLUME, tag=FIRST, size=geometry.size, leaf_size=LEAF, granule_size=GRANULE, granules=6, digest=disk.map_digest(states, values),
    )  # fmt: skip
    (tmp_path / "map" / "root").write_bytes(header.pack() + states + bytes(26) + values)
    found = opened()
    assert found.tag == FIRST and found.values[:] == bytes(192)
    found.write(found.following(SECOND, FIRST, 2, bytearray(states), mapvalues.copied(states, found.values), marked=bytearray(6)))
    assert opened().pending.tag == SECOND


def test_the_map_of_a_sparse_volume_takes_little_room(opened, tmp_path):
    size = 4 << 40  # half a million granules of 8 MiB: 16.5 MiB of states and values
    found = opened(geometry=Geometry(size, LEAF, 8 << 20))
    states, values = bytearray([ZERO]) * (size >> 23), mapvalues.empty(size >> 23)
    states[77777] = HASHED
    values[77777 * 32 : 77778 * 32] = bytes(range(32))
    found.write_pending(FIRST, disk.ZERO_ID, 1, states, values)
    found.fold(FIRST)
    status = os.stat(tmp_path / "map" / "root")
    assert status.st_size == disk.map_size(size >> 23) and status.st_blocks * 512 < 1 << 20
    again = opened(geometry=Geometry(size, LEAF, 8 << 20))
    assert again.tag == FIRST and again.value(77777) == bytes(range(32))
    assert not again.root(), "4 TiB of zeroes are not hashed for it"
