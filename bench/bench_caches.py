"""An unchanged scan of a disk whose page cache is full, one leaf in a hundred of it dirty, against one of which nothing is cached. A run reads past
the cache, so the first should cost no more than writing back what is dirty; b3sum, which reads through it, is beside it in both states."""

import fcntl
import os
import random

import pytest
from content import LEAF
from lane_pair import LANES, scan_rate, whole_map
from measure import FULL, MIB, tool

from peers.ceilings import B3SUM, b3sum
from qrep._native.wire import Geometry

SIZE = 512 * MIB if FULL else 32 * MIB
GEOMETRY = Geometry(SIZE, LEAF, 8 * MIB)
BLKFLSBUF = 0x1261


def drop(device):
    """Nothing of the device is cached."""
    with open(device, "rb") as file:
        os.fsync(file.fileno())
        fcntl.ioctl(file.fileno(), BLKFLSBUF)


def fill_and_dirty(device, descriptor):
    """All of it is cached, and one leaf in a hundred has to be written back, with what it held."""
    tool(["cat", device])
    for leaf in random.Random(1).sample(range(SIZE // LEAF), SIZE // LEAF // 100):
        os.pwrite(descriptor, os.pread(descriptor, LEAF, leaf * LEAF), leaf * LEAF)


def test_a_scan_of_a_disk_that_is_cached_and_dirty(compare, disk_device, open_direct):
    if why := B3SUM.missing():
        pytest.skip(why)
    device = disk_device(SIZE)
    direct = open_direct(device, os.O_RDONLY)
    known, cached = whole_map(GEOMETRY, direct), os.open(device, os.O_RDWR)

    def after(prepare, measured):
        prepare()
        return measured()

    def ours():
        return scan_rate(GEOMETRY, direct, known, LANES)

    try:
        also = {
            "b3sum, nothing cached": lambda: after(lambda: drop(device), lambda: b3sum(device, SIZE)),
            "b3sum, cached and dirty": lambda: after(lambda: fill_and_dirty(device, cached), lambda: b3sum(device, SIZE)),
        }
        compare("", "D, cached and dirty / the same, nothing cached", ours, lambda: after(lambda: drop(device), ours),
                setup=lambda: fill_and_dirty(device, cached), family="caches", peer="qrep, nothing cached", also=also)  # fmt: skip
    finally:
        os.close(cached)
