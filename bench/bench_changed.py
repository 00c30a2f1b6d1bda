"""Runs of which a part has changed, over TCP, against an own scan of which nothing has, and beside peers.

D1: 1 % at random, in single blocks of 4 KiB. D2: 0.1 % and 10 % of the same. The last: 1 % in one run.
"""

import contextlib
import itertools
import os

import pytest
from content import change_leaves, change_one_run, same_content
from lane_pair import rate_of, replicate, scan_rate
from measure import FULL, GIB, MIB
from rivals import Rivals

from qrep._native.wire import Geometry

LEAF, GRANULE = 4096, 8 * MIB
SIZE = GIB if FULL else 32 * MIB
CONNECTIONS = 1  # as the goals were set; on two CPUs a second one makes the scan faster, and leaves less for what is sent
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)
WIRE_FIRST, WIRE_GOAL = 1.10, 1.03
# id, words, share, how, first and goal of the rate, whether peers take part
CASES = [
    ("D2", "0.1 % at random", 0.001, change_leaves, 0.85, 0.94, False),
    ("D1", "1 % at random", 0.01, change_leaves, 0.85, 0.95, True),
    ("D2", "10 % at random", 0.10, change_leaves, 0.50, 0.60, True),
    ("", "1 % in one run", 0.01, change_one_run, 0.85, 0.95, False),
]


class Replica:
    """Two devices that our lanes keep alike, and a number of further sources that change with the first."""

    def __init__(self, source, target, directory, stack):
        self._fds = [os.open(source, os.O_RDONLY | os.O_DIRECT), os.open(target, os.O_RDWR | os.O_DIRECT)]
        self._leaves = [os.open(directory / name, os.O_RDWR | os.O_CREAT) for name in ("source-leaves", "target-leaves")]
        for descriptor in (*self._fds, *self._leaves):
            stack.callback(os.close, descriptor)
        self.sources, self._seeds = [(source, SIZE)], itertools.count(1)
        self.known, self.changed = None, 0
        self.run()

    def run(self, base=None):
        """(SourceRun, seconds); what is known of both sides is what it left."""
        options = {"source_options": {"leaves_fd": self._leaves[0]}, "target_options": {"leaves_fd": self._leaves[1]}}
        run, _, seconds = replicate(GEOMETRY, *self._fds, base=base, connections=CONNECTIONS, flush=True, **options)
        self.known = (bytes(run.fresh_states), bytes(run.fresh_values))
        return run, seconds

    def change(self, how, share):
        """Every source differs from its target from now on."""
        seed = next(self._seeds)
        for path, size in self.sources:
            with open(path, "r+b", buffering=0) as device:
                count = how(device.fileno(), share, seed, size)
                if path == self.sources[0][0]:
                    self.changed = count * LEAF

    def idle_scan(self):
        """Bytes per second of a scan of what the last run left, so that it finds nothing."""
        return scan_rate(GEOMETRY, self._fds[0], self.known, CONNECTIONS)

    def differential(self):
        run, seconds = self.run(self.known)
        counters = run.counters()
        return rate_of(seconds, SIZE, wire=counters["sent"] / self.changed, read=counters["read"] / self.changed)


@pytest.mark.parametrize(("id", "words", "share", "how", "first", "goal", "peers"), CASES, ids=[case[1] for case in CASES])
def test_a_run_of_which_a_part_has_changed(compare, memory_device, tmp_path, id, words, share, how, first, goal, peers):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    with contextlib.ExitStack() as stack:
        replica = Replica(source, target, tmp_path, stack)
        rivals = Rivals(memory_device, tmp_path, stack)
        also = rivals.updating(source, SIZE) if peers else {}
        replica.sources = rivals.sources() or replica.sources
        replica.change(how, share)  # for the peers' first round: their next ones find what was changed for ours before
        replica.differential()
        row = compare(id, f"{words} changed / own unchanged scan", replica.differential, replica.idle_scan, first=first, goal=goal, family="changed",
                      setup=lambda: replica.change(how, share), also=also)  # fmt: skip
    row.note = f"bytes on the wire / bytes changed: goal {WIRE_GOAL}"
    assert not FULL or row.figures["wire"] <= WIRE_FIRST
    assert same_content(source, target)
