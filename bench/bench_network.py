"""Full copies over 1, 2 and 4 connections, plain and over TLS, between two agents; and of the bare lanes, over TCP and on one host.

T2: over a trusted path (plain) / over TLS, two connections. The network's bound is iperf3 with as many connections, both cubic.
"""

import contextlib
import os

import pytest
from agents import Agents
from content import same_content
from lane_pair import rate_of, replicate, socket_pairs, tcp_pairs
from measure import FULL, GIB, MIB, ROUNDS, Against
from replica import Replica

from peers.ceilings import IPERF3, iperf3
from qrep._native.wire import Geometry

SIZE = GIB if FULL else 32 * MIB
GEOMETRY = Geometry(SIZE, 4096, 8 * MIB)


@pytest.fixture
def network():
    """iperf3's run(size, connections), None where there is none."""
    with contextlib.ExitStack() as stack:
        yield None if IPERF3.missing() else stack.enter_context(iperf3())


def test_plain_and_tls_over_several_connections(compare, network, memory_device, tmp_path):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    with Agents(tmp_path) as agents:
        replica = Replica(agents, [(source, target)], SIZE)

        def full(trusted, connections):
            replica.trust(trusted)
            replica.renew(connections)
            return replica.run()

        for count in (1, 2, 4) if FULL else (2,):
            words = f"{count} connection{'s' if count > 1 else ''}"
            also = {f"iperf3, {words}": Against(lambda count=count: network(SIZE, count), bound=True)} if network else {}
            compare("T2" if count == 2 else "", f"agents, {words}, plain / the same over TLS", lambda count=count: full(True, count),
                    lambda count=count: full(False, count), first=1.0 if count == 2 else None, family="connections of two agents", peer="qrep over TLS",
                    also=also, rounds=ROUNDS if count == 2 else min(3, ROUNDS))  # fmt: skip
            assert replica.near.job("db0")["transport"] == "plain"
    assert same_content(source, target)


def test_lanes_over_tcp_and_on_one_host(compare, memory_device, open_direct):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    source_fd, target_fd = open_direct(source, os.O_RDONLY), open_direct(target)

    def copy(pairs, connections):
        return rate_of(replicate(GEOMETRY, source_fd, target_fd, pairs=pairs, connections=connections, flush=True)[2], SIZE)

    for pairs, where in ((tcp_pairs, "over TCP"), (socket_pairs, "on one host")):
        compare("", f"lanes {where}, 2 connections / 1 connection", lambda pairs=pairs: copy(pairs, 2), lambda pairs=pairs: copy(pairs, 1),
                family="connections of lanes", peer="qrep, 1 connection", also={"qrep, 4 connections": lambda pairs=pairs: copy(pairs, 4)})  # fmt: skip
    assert same_content(source, target)
