"""The most important cases once more as an operator has them: from `qrep start --wait` to its prompt, between two agents over TLS, with what each took.

Against the bare lanes over TCP, in the same rounds: a full copy, a run in which nothing has changed, and one in which 1 % has.
"""


import pytest
from agents import Agents
from content import LEAF, change_leaves, same_content
from lane_pair import LANES, rate_of, replicate, scan_rate, whole_map
from measure import FULL, GIB, MIB
from replica import Replica

from qrep._native.wire import Geometry

SIZE = GIB if FULL else 32 * MIB
GEOMETRY = Geometry(SIZE, LEAF, 8 * MIB)


@pytest.fixture
def replica(memory_device, tmp_path):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    with Agents(tmp_path) as agents:
        yield Replica(agents, [(source, target)], SIZE, LANES)


def test_runs_between_two_agents(compare, replica, open_direct, memory_device):
    source, target = replica.pairs[0]
    source_fd, other_fd = open_direct(source), open_direct(memory_device(SIZE, "zero"))
    known = whole_map(GEOMETRY, source_fd)
    compare("", "agents over TLS, full / bare lanes", replica.run, lambda: rate_of(replicate(GEOMETRY, source_fd, other_fd, flush=True)[2], SIZE),
            setup=replica.renew, family="two agents")  # fmt: skip
    compare("", "agents over TLS, unchanged / bare scan", replica.run, lambda: scan_rate(GEOMETRY, source_fd, known, LANES), family="two agents")
    changed, seed = [0], [0]

    def change():
        seed[0] += 1
        with open(source, "r+b", buffering=0) as device:
            changed[0] = change_leaves(device.fileno(), 0.01, seed[0], SIZE) * LEAF

    compare("", "agents over TLS, 1 % changed / bare scan", lambda: replica.run(changed[0]), lambda: scan_rate(GEOMETRY, source_fd, known, LANES),
            setup=change, family="two agents")  # fmt: skip
    assert same_content(source, target)
