"""Before-images: what a run overwrote comes back to the byte, whenever it ended and whatever was written twice."""

import contextlib
import errno
import os
import random
import threading
import time

import pytest
from machine import MIB, run
from target_rig import BASE_ID, GRANULE, LEAF, SEGMENT, Target, mixed_content, random_bytes

from qrep._native import disk, undo

SIZE = 4 * GRANULE


@pytest.fixture
def make_target(memory_dir, backend, undo_after):
    """make_target(content, ...) -> Target with an undo file, on an image file in memory."""

    def make(content, **options):
        device = memory_dir / "device.img"
        with open(device, "wb") as file:
            file.write(content)
        target = Target(memory_dir, device, None, len(content), ring_backend=backend, **options)
        undo_after.callback(target.close)
        return target

    return make


def scan(target):
    return undo.scan(target.undo_fd, os.fstat(target.undo_fd).st_size, target.undo_header())


def restore(target, batches=None, **options):
    batches = undo.restore_order(scan(target).batches) if batches is None else batches
    return undo.restore(target.device_fd, target.undo_fd, batches, target.geometry.size, is_file=target.is_file, **options)


def twin(target):
    """What disk.py's own scan, segment by segment, finds: [(position, sequence, extents)], damaged places."""
    found, damaged = [], []
    with open(target.undo_path, "rb") as file:
        data = file.read()
    for start in range(SEGMENT, len(data), SEGMENT):
        segment = disk.scan_undo_segment(data[start:start + SEGMENT], start, target.geometry.size, BASE_ID, target.undo_header().attempt)
        found += [(batch.position, batch.sequence, batch.extents) for batch in segment.batches]
        damaged += [segment.damaged] * (segment.damaged is not None)
    return found, damaged


def overwrite(target, content, kinds=("full", "runs", "full", "zero")):
    session = target.serve(content)
    for granule, kind in enumerate(kinds):
        if kind == "full":
            session.source.full(granule)
        elif kind == "zero":
            session.source.zero(granule)
        elif kind == "runs":
            zeroes = [not any(session.source.node(granule, leaf, 1)[1]) for leaf in range(64)]
            runs = [(leaf, 1, zeroes[leaf]) for leaf in range(0, 64, 2)]
            session.source.runs(granule, runs)
    return session


@pytest.mark.parametrize("restore_backend", ["uring", "threads"])
@pytest.mark.parametrize("punch", [True, False], ids=["punch", "zeroes"])
def test_a_run_of_every_kind_of_frame_is_undone_to_the_byte(make_target, restore_backend, punch):
    old, content = mixed_content(1, SIZE), mixed_content(2, SIZE)
    content[3 * GRANULE:] = bytes(GRANULE)
    target = make_target(old)
    assert overwrite(target, content).finish() == 0
    assert target.device != old
    restored = restore(target, punch=punch, ring_backend=restore_backend)
    assert target.device == old
    # Two granules full, half the leaves of one; of the zeroed one what was not zero (the runs' zeroes too, so this is the most).
    assert 2 * GRANULE < restored <= 3.5 * GRANULE
    assert restore(target) == restored  # once more changes nothing
    assert target.device == old


def test_both_scans_find_the_same_batches(make_target):
    target = make_target(mixed_content(3, SIZE))
    assert overwrite(target, mixed_content(4, SIZE), kinds=("full", "runs", "full")).finish() == 0
    found, damaged = twin(target)
    ours = scan(target)
    assert [(batch.position, batch.sequence) for batch in ours.batches] == [batch[:2] for batch in found]
    assert len(found) == 3 and damaged == [] and ours.damaged is None
    kinds = {extent.kind for _, _, extents in found for extent in extents}
    assert kinds == {disk.UNDO_DATA, disk.UNDO_ZERO}


def test_a_file_that_ends_with_its_batches_is_read_like_one_that_is_allocated_beyond_them(make_target):
    target = make_target(mixed_content(3, SIZE))
    assert overwrite(target, mixed_content(4, SIZE), kinds=("runs", "full")).finish() == 0
    batches, size = scan(target).batches, os.fstat(target.undo_fd).st_size
    last = max(batches)
    assert 0 < last.position + last.size - SEGMENT <= MIB < size - SEGMENT  # read at once, and with a ring
    for end in (last.position + last.size, last.position + last.size + 512):
        os.ftruncate(target.undo_fd, end)
        assert scan(target) == (batches, None)
    os.ftruncate(target.undo_fd, last.position + last.size - 4096)
    assert scan(target) == (batches[:-1], None)
    assert undo.scan(target.undo_fd, last.position + last.size, target.undo_header()) == (batches[:-1], None)  # it is shorter than it was said to be


def test_a_leaf_written_twice_goes_back_to_its_first_content(make_target):
    old = mixed_content(5, SIZE)
    target = make_target(old)
    session = target.serve(mixed_content(6, SIZE))
    for seed in (7, 8, 9):
        session.source.content = mixed_content(seed, SIZE)
        for granule in (0, 2):
            session.source.full(granule)
    assert session.finish() == 0
    assert target.run.undo_sequence == 6
    restore(target)
    assert target.device == old


def test_leaves_written_by_two_sessions_go_back_to_their_first_content(make_target, memory_dir):
    old = mixed_content(10, SIZE)
    first = make_target(old)
    assert overwrite(first, mixed_content(11, SIZE), kinds=("full", "full")).finish() == 0
    second = Target(memory_dir, first.device_path, None, SIZE, undo_next=first.run.undo_next, undo_sequence=first.run.undo_sequence)
    assert overwrite(second, mixed_content(12, SIZE), kinds=("runs", "full", "full")).finish() == 0
    restore(second)
    assert second.device == old
    second.close()


def test_a_full_undo_store_ends_the_run_and_the_way_back_is_whole(make_target, random_source):
    old = random_bytes(random_source, 80 * GRANULE)  # 20 MiB: more than the one segment allowed
    target = make_target(old, undo_limit=2 * SEGMENT)
    session = target.serve(mixed_content(14, 80 * GRANULE))
    for granule in range(80):
        session.source.full(granule)
    assert session.result() == errno.ENOSPC
    kind, number, _, granule = target.run.failure()
    assert (kind, number) == ("undo-space", errno.ENOSPC) and 0 < granule < 80
    assert target.run.undo_next == 2 * SEGMENT
    assert target.device != old
    restore(target)
    assert target.device == old


@pytest.mark.root
def test_a_full_file_system_below_the_undo_store_ends_the_run_cleanly(make_target, filesystem, random_source):
    old = random_bytes(random_source, 160 * GRANULE)  # 40 MiB
    store = filesystem("ext4", 48 * MIB)  # room for two segments of 16 MiB
    target = make_target(old, undo_path=store / "undo")
    session = target.serve(mixed_content(16, 160 * GRANULE))
    for granule in range(160):
        session.source.full(granule)
    assert session.result() == errno.ENOSPC
    assert target.run.failure()[0] == "undo-space"
    restore(target)
    assert target.device == old
    target.close()


def test_a_device_that_cannot_be_read_is_not_overwritten(make_target):
    old = mixed_content(17, SIZE)
    target = make_target(old)
    os.close(target.device_fd)
    target.open_files.remove(target.device_fd)
    target.device_fd = target.open(target.device_path, os.O_WRONLY | os.O_DIRECT)
    session = overwrite(target, mixed_content(18, SIZE), kinds=("full",))
    session.hang_up()
    assert session.result() == errno.EBADF
    assert target.run.failure() == ("read", errno.EBADF, 0, 0)
    assert target.device == old


def test_a_device_that_ended_before_what_is_overwritten_is_not_overwritten(make_target):
    """What would be logged is nothing that it held."""
    target = make_target(mixed_content(17, SIZE))
    os.truncate(target.device_path, GRANULE + LEAF)
    old = target.device
    session = target.serve(mixed_content(18, SIZE))
    session.source.full(1)
    session.hang_up()
    assert session.result() == errno.ENODATA
    assert target.run.failure() == ("shrunk", errno.ENODATA, 0, 1)
    assert target.device == old


def test_an_undo_file_that_cannot_be_read_is_not_an_empty_one(make_target):
    target = make_target(mixed_content(17, SIZE))
    assert overwrite(target, mixed_content(18, SIZE), kinds=("full",)).finish() == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        undo.scan(target.open(target.undo_path, os.O_WRONLY | os.O_DIRECT), os.fstat(target.undo_fd).st_size, target.undo_header())


def damage(target, place):
    with open(target.undo_path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flushed_batch_that_was_lost_is_damage_and_the_last_one_is_the_tail(make_target):
    target = make_target(mixed_content(19, SIZE))
    session = target.serve(mixed_content(20, SIZE))
    for granule in range(4):
        session.source.full(granule)
        deadline = time.monotonic() + 10
        while granule < 3 and granule and target.run.marked[granule - 1] < 2:  # so that the next batch finds it flushed
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert session.finish() == 0
    batches = scan(target).batches
    assert len(batches) == 4
    damage(target, batches[3].position + 5000)
    assert scan(target).damaged is None and len(scan(target).batches) == 3
    damage(target, batches[0].position + 100)
    assert scan(target).damaged == batches[0].position == twin(target)[1][0]


def test_restoring_stops_at_a_batch_that_changed_and_goes_through_once_it_is_right(make_target):
    old = mixed_content(21, SIZE)
    target = make_target(old)
    assert overwrite(target, mixed_content(22, SIZE), kinds=("full",) * 4).finish() == 0
    order = undo.restore_order(scan(target).batches)
    damage(target, order[2].position + 9000)  # in the payload
    with pytest.raises(undo.RestoreError) as raised:
        restore(target, order)
    assert (raised.value.errno, raised.value.position) == (errno.EBADMSG, order[2].position)
    damage(target, order[2].position + 9000)
    restore(target, order)
    assert target.device == old


@pytest.mark.parametrize("count", [0, 1])
def test_places_that_are_no_batches_are_refused(make_target, count):
    target = make_target(mixed_content(23, SIZE))
    os.ftruncate(target.undo_fd, 2 * SEGMENT)
    assert scan(target) == ([], None)
    places = [undo.UndoPlace(SEGMENT, 8192, 0), undo.UndoPlace(SEGMENT + 1, 4096, 0)][count:]
    with pytest.raises(undo.RestoreError):
        restore(target, places)
    assert restore(target, []) == 0


def test_overlapping_extents_of_one_batch_are_restored_last_to_first(make_target):
    target = make_target(bytes(SIZE))
    first, second = b"1" * 2 * LEAF, b"2" * 2 * LEAF
    batch = disk.UndoBatch(base_id=BASE_ID, attempt=target.undo_header().attempt, position=SEGMENT,
                           extents=((0, 2 * LEAF, disk.UNDO_DATA), (LEAF, 2 * LEAF, disk.UNDO_DATA)), payload=first + second)
    with open(target.undo_path, "r+b") as file:
        file.seek(SEGMENT)
        file.write(batch.pack(SIZE))
    restore(target)
    assert target.device[:4 * LEAF] == first + second[LEAF:] + bytes(LEAF)


def test_random_batches_that_overlap_each_other_are_restored_in_order(make_target, random_source):
    """The native restore against a loop in Python over the same batches."""
    target = make_target(bytes(SIZE))
    position, expected, packed = SEGMENT, bytearray(SIZE), []
    for sequence in range(60):
        start, count = random_source.randrange(64), random_source.randrange(1, 64)
        payload = random_source.randbytes(count * LEAF)
        batch = disk.UndoBatch(base_id=BASE_ID, attempt=target.undo_header().attempt, position=position, sequence=sequence,
                               extents=((start * LEAF, count * LEAF, disk.UNDO_DATA),), payload=payload).pack(SIZE)
        if position % SEGMENT + len(batch) > SEGMENT:
            break
        packed.append((start, payload))
        with open(target.undo_path, "r+b") as file:
            file.seek(position)
            file.write(batch)
        position += len(batch)
    for start, payload in reversed(packed):
        expected[start * LEAF:start * LEAF + len(payload)] = payload
    restore(target)
    assert target.device == expected


@pytest.mark.slow
def test_a_gibibyte_of_4k_leaves_is_found_within_a_second_and_restored_within_five(make_target, memory_dir):
    """Rough: the machine may be busy. 1 GiB in batches of 20 scattered leaves, as a 1 % run leaves them."""
    size = 2 << 30
    source = random.Random(1)
    device = memory_dir / "device.img"
    with open(device, "wb") as file:
        file.truncate(size)
    target = Target(memory_dir, device, None, size, granule_size=8 * MIB)
    position, sequence = SEGMENT, 0
    payload = source.randbytes(20 * LEAF)
    with open(target.undo_path, "r+b") as file:
        while sequence * 20 * LEAF < 1 << 30:
            granule = sequence % 256
            leaves = sorted(source.sample(range(2048), 20))
            batch = disk.UndoBatch(base_id=BASE_ID, attempt=target.undo_header().attempt, position=position, sequence=sequence,
                                   extents=tuple((granule * 8 * MIB + leaf * LEAF, LEAF, disk.UNDO_DATA) for leaf in leaves),
                                   payload=payload).pack(size)
            file.seek(position)
            file.write(batch)
            position += len(batch)
            if position % SEGMENT + len(batch) > SEGMENT:
                position = (position // SEGMENT + 1) * SEGMENT
            sequence += 1
    start = time.monotonic()
    batches = scan(target).batches
    scanned = time.monotonic()
    restored = restore(target, undo.restore_order(batches))
    finished = time.monotonic()
    print(f"scan {scanned - start:.2f} s, restore {finished - scanned:.2f} s, {len(batches)} batches, {restored} bytes")
    assert len(batches) == sequence and restored == sequence * 20 * LEAF
    assert scanned - start < 3 and finished - scanned < 10
    target.close()


def test_the_undo_file_is_allocated_before_it_is_needed(make_target):
    target = make_target(mixed_content(24, SIZE))
    assert overwrite(target, mixed_content(25, SIZE), kinds=("full",)).finish() == 0
    assert os.stat(target.undo_path).st_size == 2 * SEGMENT
    assert run("stat", "-c", "%b", target.undo_path) == str(SEGMENT // 512)


@pytest.mark.parametrize("lanes", [1, 3])
def test_every_batch_in_the_file_is_counted_and_flushed_when_lanes_were_stopped_in_the_middle(memory_dir, backend, undo_after, random_source, lanes):
    """One that is not counted would stand in for one that is lost later. Which were written and not flushed is chance: 8 stops."""
    granules, logged = 80, 0
    for number in range(8):
        directory = memory_dir / str(number)
        directory.mkdir()
        device = directory / "device"
        device.write_bytes(random_source.randbytes(granules * GRANULE))
        target = Target(directory, device, None, granules * GRANULE, ring_backend=backend)
        undo_after.callback(target.close)
        sessions = [target.serve(mixed_content(3, granules * GRANULE), index=index) for index in range(lanes)]
        feeders = [threading.Thread(target=feed, args=(session, range(index, granules, lanes))) for index, session in enumerate(sessions)]
        for feeder in feeders:
            feeder.start()
        time.sleep(0.003 * (number + 1))
        target.run.stop()
        for session, feeder in zip(sessions, feeders, strict=True):
            assert session.result(20) == errno.ECANCELED
            feeder.join()
        found = len(undo.scan(target.undo_fd, os.fstat(target.undo_fd).st_size, target.undo_header()).batches)
        assert target.run.undo_flushed == found
        logged += found
        target.close()
    assert logged


def feed(session, granules):
    with contextlib.suppress(OSError):  # the lane ended
        for granule in granules:
            session.source.full(granule)
