"""A device that is read and compared with its map: what cannot be read is named, and everything around it is compared all the same."""

import os
import random

import pytest

from qrep import rehash
from qrep._native import hasher
from qrep._native.disk import STATE_HASHED, STATE_PAGE, STATE_UNKNOWN, STATE_VALUE
from qrep._native.nice import ReadLimit
from qrep._native.wire import Geometry
from qrep.errors import DeviceReadError
from qrep.maptree import HASHED, MapTree

LEAF, GRANULE, SIZE = 4096, 65536, 5 * 65536 + 2 * 4096 + 512


@pytest.fixture
def device(tmp_path):
    """(descriptor, content, tree of its map)."""
    content = bytearray(random.Random(4).randbytes(SIZE))
    content[GRANULE : 2 * GRANULE] = bytes(GRANULE)
    path = tmp_path / "device"
    path.write_bytes(content)
    pages, values = [], b""
    for start in range(0, SIZE, GRANULE):
        part = content[start : start + GRANULE]
        page = bytearray(-(-len(part) // LEAF) * 32)
        values += hasher.subtree(part, start, LEAF, page)
        pages.append(page)
    states = bytes([STATE_HASHED | STATE_VALUE | STATE_PAGE]) * len(pages)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor, content, MapTree(Geometry(SIZE, LEAF, GRANULE), states, values, lambda granule: pages[granule])
    os.close(descriptor)


def look(device, first=0, **options):
    descriptor, _content, tree = device
    return list(rehash.Rehash(descriptor, tree, 512, **options).pieces(first))


def test_a_device_that_is_as_its_map_says_is_told_in_few_words(device):
    (piece,) = look(device)
    assert (piece.first, piece.count, piece.size) == (0, 6, SIZE)
    assert piece.bad == piece.whole == piece.unreadable == [] and piece.fresh == {}
    assert [(piece.first, piece.count) for piece in look(device, 4)] == [(4, 2)] and look(device, 6) == []


def test_leaves_that_are_wrong_are_told_with_what_they_are_now(device):
    descriptor, content, _tree = device
    wrong = [0, 17, 5 * 16 + 2]  # one in zeroes, one the short tail
    for leaf in wrong:
        os.pwrite(descriptor, b"rot", leaf * LEAF)
        content[leaf * LEAF : leaf * LEAF + 3] = b"rot"
    (piece,) = look(device)
    assert piece.bad == [(leaf, hasher.subtree(bytes(content[leaf * LEAF : (leaf + 1) * LEAF]), leaf * LEAF, LEAF)) for leaf in wrong]


def test_what_cannot_be_read_is_named_and_its_neighbours_are_compared(device, monkeypatch):
    descriptor, _content, _tree = device
    os.pwrite(descriptor, b"rot", 3 * GRANULE + 9 * LEAF)
    real, bad = rehash.read_range, range(3 * GRANULE + 4 * LEAF, 3 * GRANULE + 6 * LEAF)

    def read_range(fd, buffer, start, size, sector_size, read):
        if start < bad.stop and bad.start < start + size:
            raise DeviceReadError("EIO")
        return real(fd, buffer, start, size, sector_size, read)

    monkeypatch.setattr(rehash, "read_range", read_range)
    (piece,) = look(device)
    assert piece.unreadable == [(bad.start, len(bad))] and [leaf for leaf, _ in piece.bad] == [3 * 16 + 9]


def test_a_granule_of_which_the_map_knows_nothing_is_told_as_it_is(device):
    descriptor, content, tree = device
    tree.kinds[2] = STATE_UNKNOWN
    (piece,) = look(device)
    part = bytes(content[2 * GRANULE : 3 * GRANULE])
    assert piece.fresh == {2: (HASHED, hasher.subtree(part, 2 * GRANULE, LEAF))} and piece.bad == []
    (only,) = rehash.Rehash(descriptor, tree, 512).only([2])
    assert only.fresh == piece.fresh


def test_a_rate_makes_small_pieces_and_a_stop_ends_the_waiting(device):
    stopped = []
    pieces = rehash.Rehash(device[0], device[2], 512, rate=GRANULE, stopped=lambda: bool(stopped)).pieces(0)
    assert next(pieces).count == 1
    stopped.append(True)
    assert list(pieces) == []


def test_a_limiter_is_obeyed_in_pieces_and_what_is_found_is_the_same(device):
    descriptor, _content, _tree = device
    os.pwrite(descriptor, b"rot", 17 * LEAF)
    limit = ReadLimit()
    limit.order(0, LEAF, False)
    assert look(device, nice=limit) == look(device)
    counters = limit.counters()
    assert (counters["reads"], counters["bytes"], counters["in_flight"]) == (-(-SIZE // LEAF), SIZE, 0)
