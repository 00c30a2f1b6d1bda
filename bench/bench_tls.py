"""T1: a first run between two agents, over TLS 1.3, against what two cores could do at best. (T2, plain against TLS: bench_network.py.)

The bound is cores / sum of what each step costs (bounds.py): reading, hashing at both ends, TLS at both ends, writing.
"""

import os

import pytest
from agents import Agents
from bounds import allowed, device_cost, own_hash_cost, tls_cost
from lane_pair import scan, whole_map
from measure import FULL, GIB, MIB
from replica import Replica

from qrep._native.wire import Geometry
from qrep.daemon.identity import Identity
from qrep.store import Directory

LEAF, GRANULE = 4096, 8 * MIB
SIZE = GIB if FULL else 64 * MIB


def bound(identity, source, target):
    """Bytes per second that the cores of this machine allow."""
    return allowed(device_cost(source, "read", SIZE), 2 * own_hash_cost(), tls_cost(identity), device_cost(target, "write", SIZE))


@pytest.mark.slow  # tests/system has runs between two agents; here only the figure is new
def test_a_first_run_over_tls(compare, memory_device, open_direct, tmp_path):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    with Directory(str(directory)) as keys, Agents(tmp_path) as agents:
        identity, replica = Identity(keys, "bench"), Replica(agents, [(source, target)], SIZE)
        compare("T1", "full run of two agents over TLS, start --wait / bound", replica.run, lambda: bound(identity, source, target),
                setup=replica.renew, first=0.6, goal=0.85)  # fmt: skip
    descriptor = open_direct(source, os.O_RDONLY)
    geometry = Geometry(SIZE, LEAF, GRANULE)
    assert scan(geometry, open_direct(target, os.O_RDONLY), whole_map(geometry, descriptor)).counters()["changed"] == 0
