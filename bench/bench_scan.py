"""Scanning a volume with the lanes a run has by default, against fio reading the same device as it likes best.

S1: unchanged, memory-backed. S2: unchanged, disk-backed. S4: all zero. S0: the first scan, which also writes every leaf page.
"""

import os
import tempfile

import pytest
from lane_pair import LANES, scan
from measure import DEVICE_SIZE, GIB, MEASURED_BYTES, MIB, Sample, cpu_of, fio, fio_huge

from qrep._native.wire import Geometry

GRANULE, LEAF = 8 * MIB, 4096
PASSES = max(1, MEASURED_BYTES // DEVICE_SIZE)
GEOMETRY = Geometry(DEVICE_SIZE, LEAF, GRANULE)
DISK_GEOMETRY = Geometry(DEVICE_SIZE // 2, LEAF, GRANULE)  # a disk takes its time over it as it is


def unknown(geometry=GEOMETRY):
    return bytes(geometry.granules), bytes(32 * geometry.granules)


def known_now(run):
    return run.fresh_states, run.fresh_values


def scan_again(descriptor, known, geometry=GEOMETRY, **options):
    """PASSES passes over what did not change; bytes."""
    total = 0
    for _ in range(PASSES):
        counters = scan(geometry, descriptor, known, **options).counters()
        assert counters["changed"] == 0
        total += counters["read"]
    return total


def waits(run):
    counters = run.counters()
    total = counters["busy_ns"] + counters["wait_device_ns"]
    return f"waits for the device {counters['wait_device_ns'] / total:.0%}"


def sampled(scans):
    """The rate of scans() -> bytes, and what it took of the CPUs."""
    total, cost = cpu_of(scans)
    return Sample(total / cost.seconds, cpu_source=cost.own / (total / GIB))


def compare_unchanged(compare, id, case, device, open_direct, geometry=GEOMETRY, lanes=LANES, **options):
    """Against fio as it comes, which is what the design's figures were set against, and fio with buffers such as ours."""
    descriptor = open_direct(device, os.O_RDONLY)
    known = known_now(scan(geometry, descriptor, unknown(geometry)))
    same = {"size": geometry.size, "passes": PASSES}
    compare(
        id, f"{case} / fio 8M q2", lambda: sampled(lambda: scan_again(descriptor, known, geometry, lanes=lanes)),
        lambda: fio(device, "read", 8 * MIB, 2, **same), note=waits(scan(geometry, descriptor, known, lanes=lanes)), family="scan",
        also=fio_huge(device, "read", 8 * MIB, 2, **same), **options,
    )  # fmt: skip


def test_an_unchanged_scan_of_a_memory_device(compare, memory_device, open_direct):
    device = memory_device()
    compare_unchanged(compare, "S1", "unchanged scan, M", device, open_direct, first=0.65, goal=0.80)


@pytest.mark.parametrize("backend", ["threads"])
def test_an_unchanged_scan_without_io_uring(compare, memory_device, open_direct, backend):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    known = known_now(scan(GEOMETRY, descriptor, unknown()))
    compare(
        "", f"unchanged scan, M, {backend} / fio 8M q2", lambda: sampled(lambda: scan_again(descriptor, known, lanes=LANES, ring_backend=backend)),
        lambda: fio(device, "read", 8 * MIB, 2), first=0.5, goal=0.75,
    )  # fmt: skip


def test_an_unchanged_scan_of_a_disk_device(compare, disk_device, open_direct):
    compare_unchanged(compare, "S2", "unchanged scan, D", disk_device(DISK_GEOMETRY.size), open_direct, DISK_GEOMETRY, first=0.90, goal=0.97)


def test_a_scan_of_zeroes(compare, memory_device, open_direct):
    compare_unchanged(compare, "S4", "all-zero scan, M", memory_device(fill="zero"), open_direct, first=0.85, goal=0.97)


def test_a_first_scan_that_fills_the_map(compare, memory_device, open_direct):
    device = memory_device()
    descriptor = open_direct(device, os.O_RDONLY)
    with tempfile.TemporaryFile() as leaves:
        compare(
            "S0", "first scan with leaf pages, M / fio 8M q2",
            lambda: sampled(lambda: sum(scan(GEOMETRY, descriptor, unknown(), leaves.fileno(), LANES).counters()["read"] for _ in range(PASSES))),
            lambda: fio(device, "read", 8 * MIB, 2), first=0.5, goal=0.7, family="scan",
        )  # fmt: skip
