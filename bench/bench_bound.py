"""S3: the CPU that an unchanged scan takes, against reading plus hashing. C3: a verified full copy over TCP, against what the CPUs allow its steps.

The steps are measured in the same rounds (bounds.py), and have rows of their own.
"""

import os

from bench_copy import GEOMETRY, SIZE, copy_rate
from bounds import allowed, cost, device_cost, own_hash_cost, packaged_hash_cost, tcp_cost
from lane_pair import LANES, scan, whole_map
from measure import FULL, add_row, figure_row

PASSES = 4 if FULL else 1


def steps_row(step, figures):
    add_row(figure_row("", step, figures, unit="core-s/GB", family="what the steps cost"))


def test_the_cpu_of_an_unchanged_scan(compare, memory_device, open_direct):
    device = memory_device(SIZE)
    descriptor = open_direct(device, os.O_RDONLY)
    known = whole_map(GEOMETRY, descriptor)
    reads, hashes = [], []

    def scans():
        return cost(lambda: [scan(GEOMETRY, descriptor, known, lanes=LANES) for _ in range(PASSES)], PASSES * SIZE)

    def steps():
        reads.append(device_cost(device, "read", SIZE))
        hashes.append(own_hash_cost())
        return reads[-1] + hashes[-1]

    compare("S3", "CPU of an unchanged scan, M / reading (fio) + hashing (one thread)", scans, steps, at_most=True, first=1.25, goal=1.08, unit="core-s/GB")
    steps_row("reading M, fio", reads)
    steps_row("hashing, ours", hashes)


def test_a_full_copy_against_what_the_cpus_allow(compare, memory_device, open_direct):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    source_fd, target_fd = open_direct(source, os.O_RDONLY), open_direct(target)
    writes, sends, packaged = [], [], []

    def bound():
        writes.append(device_cost(target, "write", SIZE))
        sends.append(tcp_cost())
        packaged.append(packaged_hash_cost())
        return allowed(device_cost(source, "read", SIZE), 2 * own_hash_cost(), sends[-1], writes[-1])

    compare("C3", "verified full copy over TCP, M -> M / cores over the sum of its steps", lambda: copy_rate(source_fd, target_fd), bound, first=0.70, goal=0.88)
    steps_row("hashing, packaged blake3", packaged)
    steps_row("TCP loopback, send and receive", sends)
    steps_row("writing M, fio", writes)
