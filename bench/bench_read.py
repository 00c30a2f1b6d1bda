"""Reading a device through the ring, against fio with the same block size and depth on the same device."""

import os

from measure import DEVICE_SIZE, FULL, MEASURED_BYTES, MIB, fio, rate

from qrep._native.ring import read_device

PASSES = max(1, MEASURED_BYTES // DEVICE_SIZE)


def read_passes(descriptor, block_size, depth, backend):
    return sum(read_device(descriptor, DEVICE_SIZE, block_size, depth, backend) for _ in range(PASSES))


def test_read_memory_device(compare, memory_device, open_direct, block_size=8 * MIB, depth=2):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    compare(
        "", f"ring, M, {block_size // MIB}M q{depth} / fio",
        lambda: rate(read_passes, descriptor, block_size, depth, "uring"),
        lambda: fio(device, "read", block_size, depth), first=0.9, goal=0.97,
    )


def test_read_memory_device_without_io_uring(compare, memory_device, open_direct):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    compare(
        "", "threads, M, 8M q2 / fio", lambda: rate(read_passes, descriptor, 8 * MIB, 2, "threads"),
        lambda: fio(device, "read", 8 * MIB, 2), first=0.7, goal=0.9,
    )


def test_read_disk_device(compare, disk_device, open_direct):
    size = DEVICE_SIZE // 4
    device = disk_device(size)
    descriptor = open_direct(device, os.O_RDONLY)
    compare(
        "", "ring, D, 1M q16 / fio", lambda: rate(read_device, descriptor, size, MIB, 16, "uring"),
        lambda: fio(device, "read", MIB, 16, size, passes=1), first=0.9, goal=0.97,
    )


def test_reading_with_much_in_flight_against_little(compare, memory_device, open_direct):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    for size in (4, 128):
        compare(
            "", f"ring, M, {size} MiB in flight (1M q{size}) / 16 MiB", lambda size=size: rate(read_passes, descriptor, MIB, size, "uring"),
            lambda: rate(read_passes, descriptor, MIB, 16, "uring"), rounds=3 if FULL else 1,
        )  # fmt: skip
