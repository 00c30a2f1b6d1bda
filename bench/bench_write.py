"""Writing a device through the ring, flush included, against fio with the same block size and depth on the same device."""

import random

import pytest
from measure import DEVICE_SIZE, MEASURED_BYTES, MIB, fio, rate

from qrep._native.ring import write_device

PASSES = max(1, MEASURED_BYTES // DEVICE_SIZE)


def write_passes(descriptor, pattern, depth, backend):
    return sum(write_device(descriptor, DEVICE_SIZE, pattern, depth, backend) for _ in range(PASSES))


@pytest.mark.parametrize("backend", ["uring", "threads"])
def test_write_memory_device(compare, memory_device, open_direct, backend, block_size=8 * MIB, depth=2):
    device = memory_device()  # filled: a first write to a hole would measure the page allocator
    descriptor = open_direct(device)
    pattern = random.Random(1).randbytes(block_size)
    compare(
        "", f"{backend}, M, {block_size // MIB}M q{depth} / fio", lambda: rate(write_passes, descriptor, pattern, depth, backend),
        lambda: fio(device, "write", block_size, depth), first=0.9 if backend == "uring" else 0.7, goal=0.97,
    )
