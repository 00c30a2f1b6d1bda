"""Scanning a volume with the lanes a run has by default, against fio reading the same device as it likes best.

S1: unchanged, memory-backed. S2: unchanged, disk-backed. S4: all zero. S0: the first scan, which also writes every leaf page.
"""

import os
import tempfile

import pytest
from lane_pair import LANES, scan
from measure import DEVICE_SIZE, MEASURED_BYTES, MIB, fio, rate

from qrep._native.wire import Geometry

GRANULE, LEAF = 8 * MIB, 4096
PASSES = max(1, MEASURED_BYTES // DEVICE_SIZE)
GEOMETRY = Geometry(DEVICE_SIZE, LEAF, GRANULE)


def unknown():
    return bytes(GEOMETRY.granules), bytes(32 * GEOMETRY.granules)


def known_now(run):
    return run.fresh_states, run.fresh_values


def scan_again(descriptor, known, **options):
    """PASSES passes over what did not change; bytes."""
    total = 0
    for _ in range(PASSES):
        counters = scan(GEOMETRY, descriptor, known, **options).counters()
        assert counters["changed"] == 0
        total += counters["read"]
    return total


def waits(run):
    counters = run.counters()
    total = counters["busy_ns"] + counters["wait_device_ns"]
    return f"waits for the device {counters['wait_device_ns'] / total:.0%}"


def compare_unchanged(compare, id, case, descriptor, ceiling, lanes=LANES, **options):
    known = known_now(scan(GEOMETRY, descriptor, unknown()))
    compare(
        id, case, lambda: rate(lambda: scan_again(descriptor, known, lanes=lanes)), ceiling,
        note=waits(scan(GEOMETRY, descriptor, known, lanes=lanes)), **options,
    )  # fmt: skip


def test_an_unchanged_scan_of_a_memory_device(compare, memory_device, open_direct):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    compare_unchanged(
        compare, "S1", "unchanged scan, M / fio 8M q2", descriptor, lambda: fio(device, "read", 8 * MIB, 2), first=0.65, goal=0.80
    )
    # Better where the hash outruns the device, worse where it does not; which it is, is up to the day (see the hash rows).
    compare_unchanged(compare, "", "unchanged scan, M, one lane / fio 8M q2", descriptor, lambda: fio(device, "read", 8 * MIB, 2), lanes=1)


@pytest.mark.parametrize("backend", ["threads"])
def test_an_unchanged_scan_without_io_uring(compare, memory_device, open_direct, backend):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    known = known_now(scan(GEOMETRY, descriptor, unknown()))
    compare(
        "", f"unchanged scan, M, {backend} / fio 8M q2", lambda: rate(lambda: scan_again(descriptor, known, lanes=LANES, ring_backend=backend)),
        lambda: fio(device, "read", 8 * MIB, 2), first=0.5, goal=0.75,
    )  # fmt: skip


def test_an_unchanged_scan_of_a_disk_device(compare, disk_device, open_direct):
    device = disk_device()
    descriptor = open_direct(device, os.O_RDONLY)
    compare_unchanged(
        compare, "S2", "unchanged scan, D / fio 8M q2", descriptor, lambda: fio(device, "read", 8 * MIB, 2), first=0.90, goal=0.97
    )


def test_a_scan_of_zeroes(compare, memory_device, open_direct):
    device = memory_device(fill="zero")
    descriptor = open_direct(device, os.O_RDONLY)
    compare_unchanged(
        compare, "S4", "all-zero scan, M / fio 8M q2", descriptor, lambda: fio(device, "read", 8 * MIB, 2), first=0.85, goal=0.97
    )


def test_a_first_scan_that_fills_the_map(compare, memory_device, open_direct):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    with tempfile.TemporaryFile() as leaves:
        compare(
            "S0", "first scan with leaf pages, M / fio 8M q2",
            lambda: rate(lambda: sum(scan(GEOMETRY, descriptor, unknown(), leaves.fileno(), LANES).counters()["read"] for _ in range(PASSES))),
            lambda: fio(device, "read", 8 * MIB, 2), first=0.5, goal=0.7,
        )  # fmt: skip
