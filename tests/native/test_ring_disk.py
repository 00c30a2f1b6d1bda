"""Reads, writes and flushes through the ring, on real loop devices and files, the same on both backends."""

import errno
import os
import subprocess

import pytest

from qrep._native.buffers import BufferPool
from qrep._native.ring import read_device, write_device

MIB = 1 << 20
pytestmark = pytest.mark.root


def test_what_is_written_and_flushed_is_read_back(open_ring, open_direct, loop_device, pool, random_source):
    device = loop_device(8 * MIB)
    ring = open_ring([open_direct(device)])
    ring.register_buffers(pool)
    data = random_source.randbytes(MIB)
    with pool.lease_nowait() as written, pool.lease_nowait() as read:
        memoryview(written)[:] = data
        assert ring.write(0, written, 3 * MIB) == MIB
        ring.fsync(0)
        assert ring.read(0, read, 3 * MIB) == MIB
        assert bytes(read) == data
    with open(device, "rb") as plain:
        plain.seek(3 * MIB)
        assert plain.read(MIB) == data


def test_many_requests_in_flight_complete_once_each_whatever_their_order(open_ring, open_direct, loop_device, random_source):
    device = loop_device(16 * MIB)
    data = random_source.randbytes(16 * MIB)
    with open(device, "wb") as plain:
        plain.write(data)
    ring = open_ring([open_direct(device)], entries=16)
    pool = BufferPool(64 << 10, 16)
    slots = [pool.lease_nowait() for _ in range(16)]
    offsets = [number * (64 << 10) for number in range(256)]
    random_source.shuffle(offsets)
    waiting, seen = list(range(16)), {}
    in_slot = {}
    while offsets or in_slot:
        while waiting and offsets:
            slot = waiting.pop()
            in_slot[slot] = offsets.pop()
            ring.start_read(0, slots[slot], in_slot[slot], slot)
        for tag, result, flags in ring.wait():
            assert (result, flags) == (64 << 10, 0)
            offset = in_slot.pop(tag)
            assert offset not in seen
            seen[offset] = bytes(slots[tag])
            waiting.append(tag)
    assert ring.in_flight == 0
    assert b"".join(seen[offset] for offset in sorted(seen)) == data


def test_the_ring_refuses_more_than_its_entries_and_takes_them_after_reaping(open_ring, open_direct, loop_device):
    ring = open_ring([open_direct(loop_device(MIB))], entries=2)
    pool = BufferPool(4096, 3)
    slots = [pool.lease_nowait() for _ in range(3)]
    ring.start_read(0, slots[0], 0, 0)
    ring.start_read(0, slots[1], 0, 1)
    with pytest.raises(OSError) as refusal:
        ring.start_read(0, slots[2], 0, 2)
    assert refusal.value.errno == errno.EBUSY
    tag, result, _ = ring.wait()[0]
    ring.start_read(0, slots[2], 0, 2)
    assert result == 4096 and ring.in_flight in (1, 2) and tag in (0, 1)


def test_a_file_index_that_was_not_registered_is_refused(open_ring, open_direct, loop_device, pool):
    ring = open_ring([open_direct(loop_device(MIB))])
    with pytest.raises(OSError) as refusal:
        ring.read(1, pool.lease_nowait(), 0)
    assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize("size", [MIB, MIB + 4096, MIB + 512, MIB + 1000, 700])
def test_a_direct_read_ends_short_exactly_at_the_end_of_the_file(open_ring, open_direct, ext4, random_source, size):
    data = random_source.randbytes(size)
    path = ext4 / "image"
    path.write_bytes(data)
    ring = open_ring([open_direct(path)])
    with BufferPool(2 * MIB, 1).lease_nowait() as slot:
        assert ring.read(0, slot, 0) == size
        with memoryview(slot) as view:
            assert view[:size] == data
        assert ring.read(0, slot, 4 * MIB) == 0


def test_a_read_of_a_device_ends_short_at_its_end(open_ring, open_direct, loop_device, pool):
    device = loop_device(MIB + 512)
    ring = open_ring([open_direct(device)])
    with pool.lease_nowait() as slot:
        assert ring.read(0, slot, MIB // 2) == MIB // 2 + 512


def test_buffered_files_may_be_read_at_any_offset_and_size(open_ring, tmp_path, random_source):
    data = random_source.randbytes(100_001)
    (tmp_path / "file").write_bytes(data)
    with open(tmp_path / "file", "rb") as plain:
        ring = open_ring([plain])
        buffer = bytearray(70_003)
        assert ring.read(0, buffer, 777) == 70_003
        assert bytes(buffer) == data[777 : 777 + 70_003]
        assert ring.read(0, buffer, 100_000) == 1
        ring.close()


def test_a_failed_read_is_an_error_with_its_errno_and_the_ring_goes_on(open_ring, open_direct, loop_device, pool):
    device = loop_device(4 * MIB)
    descriptor = open_direct(device)
    os.truncate(device.backing, 2 * MIB)  # the device keeps its size; past the end of its file reads fail with EIO
    ring = open_ring([descriptor])
    with pool.lease_nowait() as slot:
        with pytest.raises(OSError) as failure:
            ring.read(0, slot, 3 * MIB)
        assert failure.value.errno == errno.EIO
        assert ring.read(0, slot, MIB) == MIB


def test_a_write_without_space_is_an_error(open_ring, memory_dir, undo_after):
    # 64 KiB of tmpfs behind a sparse file of 1 MiB
    point = memory_dir / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", point], check=True)
    undo_after.callback(subprocess.run, ["umount", point], check=True)
    with open(point / "file", "w+b") as plain:
        plain.truncate(MIB)
        ring = open_ring([plain])
        with pytest.raises(OSError) as failure:
            ring.write(0, bytes(MIB), 0)
        assert failure.value.errno == errno.ENOSPC
        ring.close()


def test_closing_waits_for_every_write_in_flight(open_ring, open_direct, loop_device, random_source):
    device = loop_device(8 * MIB)
    data = random_source.randbytes(8 * MIB)
    ring = open_ring([open_direct(device)], entries=8)
    pool = BufferPool(MIB, 8)
    for number in range(8):
        slot = pool.lease_nowait()
        memoryview(slot)[:] = data[number * MIB : (number + 1) * MIB]
        ring.start_write(0, slot, number * MIB, number)
        del slot  # the ring keeps it
    ring.close()
    with open(open_direct(device, os.O_RDONLY), "rb", closefd=False, buffering=0) as plain:
        view = memoryview(pool.lease_nowait())
        for number in range(8):
            assert plain.readinto(view) == MIB
            assert view == data[number * MIB : (number + 1) * MIB]


def test_a_whole_device_is_written_and_read_by_the_loops(backend, open_direct, loop_device, random_source):
    device = loop_device(5 * MIB + 4096)
    descriptor = open_direct(device)
    block = random_source.randbytes(256 << 10)
    assert write_device(descriptor, device.size, block, depth=4, backend=backend) == device.size
    assert read_device(descriptor, device.size, 256 << 10, depth=4, backend=backend) == device.size
    with open(device, "rb") as plain:
        assert plain.read() == (block * 21)[: device.size]


def test_the_read_loop_stops_at_an_error_and_says_which(backend, open_direct, loop_device):
    device = loop_device(4 * MIB)
    descriptor = open_direct(device)
    os.truncate(device.backing, 2 * MIB)
    with pytest.raises(OSError) as failure:
        read_device(descriptor, device.size, 64 << 10, depth=4, backend=backend)
    assert failure.value.errno == errno.EIO
