"""Whole runs through the engine as it ships, against its bare lanes: what freezing, the map, the commit and Python add to them.

flow: copy_local(), full, unchanged and 1 % changed. V1: the root that each of these runs reports is what b3sum says of both devices.
"""

import itertools
import secrets
import time

import pytest
from agents import b3sum
from content import change_leaves
from lane_pair import LANES, replicate, scan_rate, socket_pairs, whole_map
from measure import DEVICE_SIZE, MIB, add_row, figure_row

from qrep._native.wire import Geometry
from qrep.copy import copy_local

GEOMETRY = Geometry(DEVICE_SIZE, 4096, 8 * MIB)


class Flow:
    """Two devices, the state of a copy between them, and whether every root so far was right."""

    def __init__(self, source, target, directory):
        self.source, self.target, self.directory = source, target, directory
        self.state, self.exact = None, []

    def fresh(self):
        """Forget: the next run is a full one."""
        self.state = str(self.directory / f"state-{secrets.token_hex(4)}")

    def run(self):
        """Bytes of the volume per second of one run, from nothing opened to everything closed."""
        started = time.perf_counter()
        self.report = copy_local(self.source, self.target, self.state, overwrite=True)
        return DEVICE_SIZE / (time.perf_counter() - started)

    def check(self):
        self.exact.append(b3sum(self.source) == self.report.root == b3sum(self.target))


@pytest.fixture
def flow(memory_device, tmp_path):
    flow = Flow(memory_device(), memory_device(fill="zero"), tmp_path)
    flow.fresh()
    return flow


def test_runs_through_the_engine_against_bare_lanes(compare, flow, open_direct):
    source_fd, target_fd = open_direct(flow.source), open_direct(flow.target)

    def bare_copy():
        return DEVICE_SIZE / replicate(GEOMETRY, source_fd, target_fd, pairs=socket_pairs, flush=True)[2]

    compare("", "full run / bare lanes", flow.run, bare_copy, setup=flow.fresh, first=0.85, goal=0.97)
    flow.check()
    known = whole_map(GEOMETRY, source_fd)
    # The bare scan goes on comparing with the map of now: what differs from it later is not sent, and costs it next to nothing.
    compare("", "unchanged run / bare scan", flow.run, lambda: scan_rate(GEOMETRY, source_fd, known, LANES), first=0.85, goal=0.97)
    flow.check()
    seeds = itertools.count(1)
    with open(flow.source, "r+b", buffering=0) as plain:
        compare(
            "", "1 % changed, before-images kept / bare scan", flow.run, lambda: scan_rate(GEOMETRY, source_fd, known, LANES),
            setup=lambda: change_leaves(plain.fileno(), 0.01, next(seeds)), first=0.6, goal=0.8,
        )  # fmt: skip
    flow.check()
    add_row(figure_row("V1", "root reported == b3sum of source and target", [sum(flow.exact) / len(flow.exact)], first=1, goal=1, at_most=False,
                       note=f"{len(flow.exact)} runs"))  # fmt: skip
    assert all(flow.exact)

