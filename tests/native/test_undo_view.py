"""A view of the committed content while lanes overwrite the device under it: it never sees a byte of the open attempt."""

import mmap
import os
import random
import threading

import pytest
from native.test_target_random import send_pass
from target_rig import LEAF, Target, mixed_content

from qrep._native import disk, undo_view

ROUNDS = 2


@pytest.fixture
def shared(undo_after):
    """shared(size) -> writable shared memory."""

    def make(size):
        descriptor, memory = undo_view.shared_memory("test", size)
        undo_after.callback(os.close, descriptor)
        return memory

    return make


def open_view(target, epoch, undo_after):
    fd = os.open(target.device_path, os.O_RDONLY | os.O_DIRECT)
    undo_after.callback(os.close, fd)
    view = undo_view.UndoView(fd, target.geometry.size, 512, target.geometry.granule_size, epoch)
    undo_after.callback(view.close)
    view.set_epoch(0)
    return view


def read(view, offset, size):
    buffer = mmap.mmap(-1, max(size, 4096))
    with memoryview(buffer)[:size] as part:
        assert view.read_into(part, offset)
    return buffer[:size]


class Watcher:
    """Threads that read random ranges through a view until stop(); wrong: what was not as it has to be."""

    def __init__(self, view, content, seed, threads=2):
        self.view, self.content, self.wrong, self.reads = view, content, [], 0
        self.going = True
        self.threads = [threading.Thread(target=self.work, args=(random.Random(f"{seed}{i}"),)) for i in range(threads)]
        for thread in self.threads:
            thread.start()

    def work(self, dice):
        sectors, going = len(self.content) // 512, True
        while going:  # at least once
            going = self.going
            first = dice.randrange(sectors)
            count = min(dice.choice([1, 8, 64, 700]), sectors - first)
            try:
                found = read(self.view, first * 512, count * 512)
            except Exception as err:
                self.wrong.append(err)
                return
            if found != self.content[first * 512 : (first + count) * 512]:
                self.wrong.append((first * 512, count * 512))
                return
            self.reads += 1

    def stop(self):
        self.going = False
        for thread in self.threads:
            thread.join()
        assert not self.wrong, self.wrong
        assert self.reads


def feed(session, granules, dice):
    for granule in dice.choices(granules, k=3 * len(granules)):
        send_pass(session, granule, dice.choice(["full", "runs", "zero"]), 64)
    session.hang_up()


@pytest.mark.parametrize("attached", ["before", "in-the-middle"])
def test_what_lanes_overwrite_is_still_read_as_it_was(memory_dir, undo_after, shared, random_source, attached):
    for round_ in range(ROUNDS):
        seed = random_source.randrange(1 << 32)
        dice = random.Random(seed)
        directory = memory_dir / f"{attached}{round_}"
        directory.mkdir()
        size = 24 * LEAF * 64 + dice.choice([0, 512, LEAF + 1024])
        old = bytes(mixed_content(seed, size))
        device = directory / "device"
        device.write_bytes(old)
        marks = shared(undo_view.REACH_SIZE)
        target = Target(directory, device, None, size, undo_reach=marks, frame_limit=4 << 20)
        undo_after.callback(target.close)
        view = open_view(target, shared(4096), undo_after)
        if attached == "before":
            view.add(target.undo_fd, target.undo_header(), marks)
            watcher = Watcher(view, old, seed)
        lanes = 3
        content = bytearray(dice.randbytes(size))
        sessions = [target.serve(content, index=index) for index in range(lanes)]
        feeders = [
            threading.Thread(target=feed, args=(session, range(target.geometry.granules), random.Random(dice.random()))) for session in sessions
        ]
        for feeder in feeders:
            feeder.start()
        if attached != "before":
            view.add(target.undo_fd, target.undo_header(), marks)
            watcher = Watcher(view, old, seed)
        for feeder in feeders:
            feeder.join()
        for session in sessions:
            session.result(20)
        watcher.stop()
        assert read(view, 0, size) == old, f"seed {seed}"
        assert target.device != old
        # The attempt is over: the file grows no more, and is indexed as a whole.
        view.keep(0)
        view.add(target.undo_fd, target.undo_header())
        assert read(view, 0, size) == old, f"seed {seed}"
        target.close()


def write_undo(path, base, attempt, batches, size):
    """An undo file of batches [(extents, payload)], back to back."""
    at = disk.UNDO_SEGMENT_SIZE
    with open(path, "wb") as file:
        for sequence, (extents, payload) in enumerate(batches):
            packed = disk.UndoBatch(base_id=base, attempt=attempt, sequence=sequence, position=at, flushed=at, extents=extents, payload=payload).pack(size)
            file.seek(at)
            file.write(packed)
            at += len(packed)
    return at


BASE, SIZE = b"b" * 16, 64 * LEAF


def make_small(memory_dir, undo_after, shared, *files):
    """A device of 1s, and a view with these undo files over it. files: lists of (extents, payload), oldest first."""
    device = memory_dir / "device"
    device.write_bytes(b"\1" * SIZE)
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    epoch = shared(4096)
    view = undo_view.UndoView(fd, SIZE, 512, 4 * LEAF, epoch)
    view.set_epoch(0)
    for number, batches in enumerate(files):
        path = memory_dir / f"undo{number}"
        write_undo(path, BASE, number + 1, batches, SIZE)
        undo_fd = os.open(path, os.O_RDONLY)
        undo_after.callback(os.close, undo_fd)
        view.add(undo_fd, disk.UndoHeader(volume_id=b"v" * 16, base_id=BASE, new_id=b"n" * 16, attempt=number + 1, size=SIZE))
    undo_after.callback(view.close)
    undo_after.callback(os.close, fd)
    return view, epoch


DATA, ZERO = disk.UNDO_DATA, disk.UNDO_ZERO


def test_the_oldest_before_image_counts_whatever_order_the_files_and_batches_tell(memory_dir, undo_after, shared):
    older = [([(0, 512, DATA), (0, 1024, DATA)], b"\2" * 512 + b"\3" * 1024), ([(0, 2048, DATA)], b"\4" * 2048)]
    newer = [([(1024, 4096, DATA), (8192, 512, ZERO)], b"\5" * 4096)]
    view, _ = make_small(memory_dir, undo_after, shared, older, newer)
    expected = b"\2" * 512 + b"\3" * 512 + b"\4" * 1024 + b"\5" * 3072 + b"\1" * 3072 + bytes(512) + b"\1" * 512
    assert read(view, 0, len(expected)) == expected
    assert read(view, 512, 1024) == expected[512:1536]
    assert view.batches == 3


def test_a_read_under_another_epoch_says_so_and_reads_nothing(memory_dir, undo_after, shared):
    view, epoch = make_small(memory_dir, undo_after, shared, [([(0, 512, ZERO)], b"")])
    undo_view.raise_counter(epoch)
    assert not view.read_into(bytearray(512), 0)
    view.set_epoch(undo_view.read_counter(epoch))
    assert view.read_into(bytearray(512), 0)


def test_a_before_image_whose_payload_rotted_is_an_error_and_never_data(memory_dir, undo_after, shared):
    view, _ = make_small(memory_dir, undo_after, shared, [([(0, 4096, DATA)], b"\2" * 4096)])
    with open(memory_dir / "undo0", "r+b") as file:
        file.seek(disk.UNDO_SEGMENT_SIZE + 4096 + 100)
        file.write(b"\7")
    with pytest.raises(OSError, match="Bad message"):
        view.read_into(bytearray(512), 0)
    assert view.read_into(bytearray(512), 4096)


def test_a_flushed_batch_that_is_missing_is_found_when_the_file_is_added(memory_dir, undo_after, shared):
    batches = [([(0, 512, ZERO)], b""), ([(512, 512, ZERO)], b""), ([(1024, 512, ZERO)], b"")]
    path = memory_dir / "undo"
    write_undo(path, BASE, 1, batches, SIZE)
    with open(path, "r+b") as file:
        file.seek(disk.UNDO_SEGMENT_SIZE + 4096)
        file.write(bytes(4096))
    view, _ = make_small(memory_dir, undo_after, shared)
    with open(path, "rb") as file, pytest.raises(OSError, match="Bad message"):
        view.add(file.fileno(), disk.UndoHeader(volume_id=b"v" * 16, base_id=BASE, new_id=b"n" * 16, attempt=1, size=SIZE))
    assert read(view, 0, 512) == b"\1" * 512


@pytest.mark.parametrize("cut", [4096, 4096 - 100])
def test_a_batch_that_its_file_is_said_to_have_and_that_is_not_there_is_found_when_it_is_added(memory_dir, undo_after, shared, cut):
    path = memory_dir / "undo"
    end = write_undo(path, BASE, 1, [([(512 * i, 512, ZERO)], b"") for i in range(3)], SIZE)
    view, _ = make_small(memory_dir, undo_after, shared)
    header = disk.UndoHeader(volume_id=b"v" * 16, base_id=BASE, new_id=b"n" * 16, attempt=1, size=SIZE, batches=3)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    undo_after.callback(os.close, descriptor)
    view.add(descriptor, header)
    view.keep(0)
    os.truncate(path, end - cut)
    with pytest.raises(OSError, match="Bad message"):
        view.add(descriptor, header)
    view.add(descriptor, header.replace(batches=2))
    assert view.batches == 2


def test_marks_that_claim_what_the_file_does_not_hold_are_an_error(memory_dir, undo_after, shared):
    path = memory_dir / "undo"
    end = write_undo(path, BASE, 1, [([(0, 512, ZERO)], b"")], SIZE)
    view, _ = make_small(memory_dir, undo_after, shared)
    marks = shared(undo_view.REACH_SIZE)
    with open(path, "rb") as file:
        view.add(file.fileno(), disk.UndoHeader(volume_id=b"v" * 16, base_id=BASE, new_id=b"n" * 16, attempt=1, size=SIZE), marks)
        assert read(view, 0, 512) == b"\1" * 512, "nothing is marked yet"
        undo_view.set_reach(marks, end)
        assert read(view, 0, 512) == bytes(512)
        undo_view.set_reach(marks, end + 4096)
        with pytest.raises(OSError, match="Bad message"):
            view.read_into(bytearray(512), 0)


def test_a_file_larger_than_its_marks_is_an_error(memory_dir, undo_after, shared):
    path = memory_dir / "undo"
    write_undo(path, BASE, 1, [([(0, 512, ZERO)], b"")], SIZE)
    view, _ = make_small(memory_dir, undo_after, shared)
    marks = shared(4096)  # 1008 segments
    with open(path, "rb") as file:
        view.add(file.fileno(), disk.UndoHeader(volume_id=b"v" * 16, base_id=BASE, new_id=b"n" * 16, attempt=1, size=SIZE), marks)
        undo_view.set_reach(marks, 2000 * disk.UNDO_SEGMENT_SIZE)
        with pytest.raises(OSError, match="Value too large"):
            view.read_into(bytearray(512), 0)


@pytest.mark.parametrize(("offset", "size"), [(SIZE, 512), (SIZE - 512, 1024), (100, 512), (0, 100), (1 << 63, 512)])
def test_ranges_outside_the_volume_or_its_sectors_are_refused(memory_dir, undo_after, shared, offset, size):
    view, _ = make_small(memory_dir, undo_after, shared)
    with pytest.raises(OSError, match="Invalid"):
        view.read_into(bytearray(size), offset)
