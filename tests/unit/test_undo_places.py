"""The order in which batches of before-images are put back, whatever lanes logged at once, and the memory that finding it takes."""

import errno
import os
import random
import tracemalloc

import pytest

from qrep._native import disk, undo
from qrep._native.wire import Geometry
from qrep.errors import DamagedError
from qrep.store import Directory
from qrep.target import undoplaces, undostore
from qrep.target.rollback import copy_out
from qrep.target.undoplaces import SEGMENT, Places
from qrep.target.undostore import UndoStore

A, B = b"a" * 16, b"b" * 16
PAGE, ATTEMPT = 4096, 7
SIZE = 64 * PAGE
IN_A_SEGMENT = SEGMENT // PAGE


@pytest.fixture
def store(memory_dir):
    with Directory(memory_dir / "undo") as directory:
        yield UndoStore(directory, b"v" * 16, Geometry(SIZE, 4096, 1 << 20), limit=1 << 30)


@pytest.fixture
def device(memory_dir, undo_after):
    """A descriptor of a file of ones."""
    path = memory_dir / "device"
    path.write_bytes(b"\1" * SIZE)
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    undo_after.callback(os.close, descriptor)
    return descriptor


def log(store, batches, *, told=None):
    """Make the file of A <- B. batches: [(segment, extents, payload)] in the order of their logging, placed in each segment one behind the other."""
    os.close(store.create(A, B, ATTEMPT))
    ends, positions = {}, []
    with open(f"{store.directory.path}/{store.name(B)}", "r+b") as file:
        for sequence, (segment, extents, payload) in enumerate(batches):
            at = ends.get(segment, segment * SEGMENT)
            packed = disk.UndoBatch(base_id=A, attempt=ATTEMPT, sequence=sequence, position=at, flushed=at, extents=extents, payload=payload).pack(SIZE)
            os.pwrite(file.fileno(), packed, at)
            positions.append(at)
            ends[segment] = at + len(packed)
    store.seal(B, len(batches) if told is None else told)
    return positions


def zero(page):
    return [(page * PAGE, PAGE, disk.UNDO_ZERO)], b""


def data(page, byte):
    return [(page * PAGE, PAGE, disk.UNDO_DATA)], bytes([byte]) * PAGE


@pytest.fixture(params=[0, 40, 1 << 16], ids=["none", "some", "all"])
def remembered(request, monkeypatch):
    """How many places are remembered, over windows of two segments."""
    monkeypatch.setattr(undoplaces, "REMEMBERED", request.param)
    monkeypatch.setattr(undoplaces, "WINDOW", 2 * SEGMENT)
    return request.param


def turns(dice, lanes, count):
    """A segment for each of `count` batches: each lane fills one at a time, and then takes the next that is free."""
    current, free = list(range(1, lanes + 1)), lanes + 1
    for _ in range(count):
        lane = dice.randrange(lanes)
        if dice.random() < 0.1:
            current[lane], free = free, free + 1
        yield current[lane]


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("lanes", [1, 3])
def test_batches_come_latest_first_over_all_segments_and_reversed_as_they_were_logged(store, random_source, lanes):
    positions = log(store, [(segment, *zero(0)) for segment in turns(random_source, lanes, 200)])
    descriptor, _header, places = store.batches(A, B)
    assert [(place.sequence, place.position) for place in reversed(places)] == list(enumerate(positions))
    assert list(places) == list(reversed(list(reversed(places))))
    assert len(places) == 200 and places.size == 200 * PAGE
    os.close(descriptor)


@pytest.mark.usefixtures("remembered")
def test_the_first_logged_content_of_every_place_is_what_comes_back_and_what_a_copy_holds(store, device, random_source, memory_dir):
    expected, batches = bytearray(b"\1" * SIZE), []
    for number, segment in enumerate(turns(random_source, 4, 150)):
        page, byte = random_source.randrange(SIZE // PAGE), number % 250 + 2
        batches.append((segment, *data(page, byte)))
        if expected[page * PAGE] == 1:
            expected[page * PAGE : (page + 1) * PAGE] = bytes([byte]) * PAGE
    log(store, batches)
    copy = memory_dir / "copy"
    copy_out(store, (B, A), (B,), device, copy, is_file=True)
    assert copy.read_bytes() == expected
    assert os.pread(device, SIZE, 0) == b"\1" * SIZE
    assert store.restore(A, B, ATTEMPT, device, is_file=True) == 150 * PAGE
    assert os.pread(device, SIZE, 0) == expected


def peak(store, device):
    tracemalloc.start()
    try:
        store.restore(A, B, ATTEMPT, device, is_file=True)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_four_times_as_many_batches_take_no_more_memory_to_put_back(store, device, monkeypatch):
    """2 and 8 segments full of the smallest batches: as tuples alone 8192 of them take 1.2 MB, 32768 5 MB."""
    monkeypatch.setattr(undoplaces, "REMEMBERED", 1000)
    monkeypatch.setattr(undoplaces, "WINDOW", SEGMENT)
    monkeypatch.setattr(undostore.groups, "__defaults__", (SEGMENT,))
    peaks = []
    for segments in (2, 8):
        log(store, [(1 + number // IN_A_SEGMENT, *zero(number % 64)) for number in range(segments * IN_A_SEGMENT)])
        peaks.append(peak(store, device))
        store.directory.remove(store.name(B))
    assert peaks[1] < 1.2 * peaks[0], peaks


def corrupted_at(store, position):
    with open(f"{store.directory.path}/{store.name(B)}", "r+b") as file:
        file.seek(position + 40)
        file.write(b"\7" * 8)


@pytest.mark.parametrize("which", [0, 70, -1], ids=["first", "middle", "last"])
def test_what_rots_between_two_looks_at_a_segment_is_missed(store, device, monkeypatch, which):
    monkeypatch.setattr(undoplaces, "REMEMBERED", 0)
    positions = log(store, [(1 + number // 50, *zero(number % 64)) for number in range(150)])
    monkeypatch.setattr(undostore, "crashpoint", lambda name: corrupted_at(store, positions[which]) if name == "undo-restore-before" else None)
    with pytest.raises(DamagedError, match="changed while it was restored"):
        store.restore(A, B, ATTEMPT, device, is_file=True)


def test_a_segment_that_cannot_be_read_again_is_an_error_that_says_so(store, monkeypatch):
    monkeypatch.setattr(undoplaces, "REMEMBERED", 0)
    log(store, [(1 + number // 50, *zero(number % 64)) for number in range(150)])
    descriptor, _header, places = store.batches(A, B)
    os.close(descriptor)
    with pytest.raises(undo.RestoreError) as caught:
        list(places)
    assert (caught.value.errno, caught.value.position) == (errno.EBADF, 3 * SEGMENT)


@pytest.mark.usefixtures("remembered")
@pytest.mark.parametrize("which", [0, 60, -1], ids=["first", "middle", "last"])
def test_a_batch_that_is_missing_is_missed_in_whatever_window_it_was(store, which):
    positions = log(store, [(1 + number // 30, *zero(number % 64)) for number in range(150)])
    corrupted_at(store, positions[which])
    with pytest.raises(DamagedError):
        store.batches(A, B)


def test_the_first_damaged_place_is_the_one_that_is_named(store):
    os.close(store.create(A, B, ATTEMPT))
    with open(f"{store.directory.path}/{store.name(B)}", "r+b") as file:
        for segment in (2, 40):  # 40: of another window
            at = segment * SEGMENT + PAGE
            batch = disk.UndoBatch(base_id=A, attempt=ATTEMPT, sequence=segment, position=at, flushed=at, extents=zero(0)[0], payload=b"")
            os.pwrite(file.fileno(), batch.pack(SIZE), at)
        places = Places(file.fileno(), store.header(B))
    assert places.damaged == 2 * SEGMENT and [place.sequence for place in reversed([*places])] == [2, 40]


def test_places_of_a_file_without_batches(store):
    os.close(store.create(A, B, ATTEMPT))
    with open(f"{store.directory.path}/{store.name(B)}", "rb") as file:
        places = Places(file.fileno(), store.header(B))
    assert (len(places), places.size, list(places), places.damaged) == (0, 0, [], None)


@pytest.mark.parametrize("start", [0, PAGE, SEGMENT + PAGE])
def test_a_scan_starts_where_a_segment_of_batches_does(store, start):
    with pytest.raises(ValueError, match="no batches start"):
        undo.scan(-1, 1 << 30, disk.UndoHeader(base_id=A, attempt=ATTEMPT, size=SIZE), start=start)


def test_any_order_over_any_segments_is_merged(store, random_source, monkeypatch):
    """Also one that no lanes make."""
    monkeypatch.setattr(undoplaces, "REMEMBERED", 30)
    for _ in range(20):
        dice = random.Random(random_source.random())
        positions = log(store, [(dice.randrange(1, 40), *zero(0)) for _ in range(60)])
        descriptor, _header, places = store.batches(A, B)
        assert [place.position for place in reversed(places)] == positions
        os.close(descriptor)
        store.directory.remove(store.name(B))
