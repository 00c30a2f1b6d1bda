"""Other programs beside ours where nothing has changed, in the same rounds; and whether each of them does what it is measured for.

S6: an unchanged scan / blocksync-fast with its file of digests. S7: / bdsync, and / rsync.
"""

import contextlib
import os

import pytest
from content import change_leaves, same_content
from lane_pair import LANES, scan_rate, whole_map
from measure import FULL, GIB, MIB, Against
from rivals import Rivals

from peers import COPY, all_peers
from peers.ceilings import B3SUM, b3sum
from qrep._native.wire import Geometry

SIZE = GIB if FULL else 32 * MIB
GEOMETRY = Geometry(SIZE, 4096, 8 * MIB)
GOALS = {"blocksync-fast, digests": ("S6", 1.0, 1.4), "bdsync": ("S7", 8, 14), "rsync": ("S7", 6, 10)}


@pytest.mark.parametrize("peer", all_peers(), ids=lambda peer: peer.name)
def test_a_peer_makes_the_target_like_the_source(peer, memory_device, tmp_path):
    if why := peer.missing():
        pytest.skip(f"not compared: {why}")
    size = 8 * MIB
    source, target = memory_device(size), memory_device(size, "zero")
    with peer.ready(source, target, size, tmp_path) as run:
        if COPY not in peer.jobs:
            run()
            with open(source, "r+b", buffering=0) as device:
                change_leaves(device.fileno(), 0.01, 1, size)
        assert run() > 0
    assert same_content(source, target)


def test_an_unchanged_scan_beside_peers(compare, memory_device, open_direct, tmp_path):
    """bench_scan.py has the same against fio."""
    if why := B3SUM.missing():
        pytest.skip(why)
    source = memory_device(SIZE)
    descriptor = open_direct(source, os.O_RDONLY)
    known = whole_map(GEOMETRY, descriptor)
    with contextlib.ExitStack() as stack:
        rivals = Rivals(memory_device, tmp_path, stack).updating(source, SIZE)
        also = {name: Against(run, *GOALS.get(name, ())) for name, run in rivals.items()}
        compare("", "unchanged / b3sum of the device", lambda: scan_rate(GEOMETRY, descriptor, known, LANES), lambda: b3sum(source, SIZE),
                family="unchanged", also=also)  # fmt: skip
