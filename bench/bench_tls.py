"""T1: a first run between two agents, over TLS 1.3, against what two cores could do at best. T2: the same over a trusted path, plain, against TLS.
T3: what `qrep peer test` says of a path against what a run over it gets.

The bound is cores / sum of what each step costs (bounds.py): reading, hashing at both ends, TLS at both ends, writing.
"""

import os

import pytest
from agents import Agents
from bounds import allowed, device_cost, own_hash_cost, tls_cost
from lane_pair import scan, whole_map
from measure import FULL, GIB, MIB, rate

from qrep._native.wire import Geometry
from qrep.daemon.identity import Identity
from qrep.store import Directory

LEAF, GRANULE = 4096, 8 * MIB
SIZE = GIB if FULL else 64 * MIB


def bound(identity, source, target):
    """Bytes per second that the cores of this machine allow."""
    return allowed(device_cost(source, "read", SIZE), 2 * own_hash_cost(), tls_cost(identity), device_cost(target, "write", SIZE))


class Fulls:
    """First runs of one job again and again, between two agents."""

    def __init__(self, agents, source, target):
        self.target = target
        self.near, self.far = agents.replica(source, target, connections=2, source_volume=("--snapshots", "none"))
        self._runs = 0

    def new_job(self):
        """As if there had been no run."""
        if self._runs:
            self.near.qrep("job", "delete", "db", "-y")
            self.far.qrep("volume", "remove", "db", "-y")
            self.far.qrep("volume", "add", "db", self.target, "--accept", self.near.name)
            self.near.qrep("job", "create", "db", "--source", "db", "--target", f"{self.far.name}:db", "-y")
        self._runs += 1

    def run(self):
        return rate(self.near.run, size=SIZE)

    def trust(self, trusted):
        for end, other in ((self.near, self.far), (self.far, self.near)):
            end.qrep("peer", "set", other.name, "--trusted" if trusted else "--no-trusted")

    def run_over(self, trusted):
        self.trust(trusted)
        self.new_job()
        return self.run()

    def tested(self):
        result = self.near.qrep("peer", "test", self.far.name, "--seconds", "2" if FULL else "1", "--connections", "2")
        return result["best"]["rate_bytes_per_s"]


@pytest.mark.slow
def test_a_first_run_over_a_trusted_path(compare, memory_device, tmp_path):
    with Agents(tmp_path) as agents:
        fulls = Fulls(agents, memory_device(SIZE), memory_device(SIZE, "zero"))
        compare("T2", "full run of two agents, trusted path (plain) / TLS", lambda: fulls.run_over(True), lambda: fulls.run_over(False), first=1.0)
        assert fulls.near.job()["transport"] == "plain"


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True], ids=["TLS", "plain"])
def test_what_a_test_of_the_path_says(compare, memory_device, tmp_path, trusted):
    """The run has two devices to serve beside; so the test says more than a run gets, and not much more."""
    with Agents(tmp_path) as agents:
        fulls = Fulls(agents, memory_device(SIZE), memory_device(SIZE, "zero"))
        fulls.trust(trusted)
        words = "plain" if trusted else "TLS"
        compare(f"T3{'p' if trusted else 't'}", f"full run of two agents / what peer test says, 2 connections, {words}", fulls.run, fulls.tested, setup=fulls.new_job)


@pytest.mark.slow  # tests/system has runs between two agents; here only the figure is new
def test_a_first_run_over_tls(compare, memory_device, open_direct, tmp_path):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    with Directory(str(directory)) as keys, Agents(tmp_path) as agents:
        identity, fulls = Identity(keys, "bench"), Fulls(agents, source, target)
        compare("T1", "full run of two agents over TLS, start --wait / bound", fulls.run, lambda: bound(identity, source, target),
                setup=fulls.new_job, first=0.6, goal=0.85)  # fmt: skip
    descriptor = open_direct(source, os.O_RDONLY)
    geometry = Geometry(SIZE, LEAF, GRANULE)
    assert scan(geometry, open_direct(target, os.O_RDONLY), whole_map(geometry, descriptor)).counters()["changed"] == 0
