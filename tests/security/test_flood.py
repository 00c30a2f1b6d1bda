"""Much of everything, from a peer whose key is good: memory and descriptors stay bounded, and a run goes on."""

import contextlib
import os
import socket
import time
from pathlib import Path

import pytest
from agents import MIB, Agents, b3sum, wait_until
from intruder import admitted, identity_of
from machine import loop_devices
from security.hand import Control

from qrep.daemon import tls
from qrep.protocol import messages as say

pytestmark = [pytest.mark.root, pytest.mark.slow]
SIZE = 8 * MIB
GROWTH_MAX = 64 * MIB  # of what is resident, in both processes of an agent together
TINY = 1_000_000


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    directory = tmp_path_factory.mktemp("agents")
    for name in ("source", "target"):
        (directory / name).write_bytes(os.urandom(SIZE) if name == "source" else bytes(SIZE))
    with loop_devices(directory / "source", directory / "target") as (source, target), Agents(directory) as agents:
        a, b = agents.replica(source, target, source_volume=("--granule", "1M"))
        a.run()
        yield a, b, target
        assert a.run()["root"] == b3sum(target) == b3sum(source)
        assert "Traceback" not in b.log


def processes(agent):
    return [agent.process.pid, agent.client().get("/node")["front"]["pid"]]


def resident(agent):
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") for pid in processes(agent))


def descriptors(agent):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in processes(agent))


def test_tiny_messages_by_the_million_take_time_and_no_memory(replica):
    a, b, _target = replica
    before = resident(b), descriptors(b)
    with Control(a, b) as control:
        answer = control.hello()
        while isinstance(answer, say.Stale):
            answer = control.hello(epoch=answer.max_epoch + 1)
        assert isinstance(answer, say.State)
        control.stream.settimeout(120)
        block, answers, heard = say.encode(say.Ping()) * 1000, 1000 * len(say.encode(say.Pong())), 0
        for number in range(1, TINY // 1000 + 1):  # what it says is read, by the thread that asks: a TLS stream is not for two
            control.stream.sendall(block)
            while heard < number * answers:
                part = control.stream.recv(1 << 18)
                assert part, "the session was closed"
                heard += len(part)
        assert resident(b) - before[0] <= GROWTH_MAX
    wait_until(lambda: descriptors(b) <= before[1] + 2, seconds=10)


def test_a_peer_that_asks_and_never_reads_is_given_up_and_its_answers_are_not_kept(replica):
    """Each question is answered by half a megabyte; what nobody takes fills the socket, and then the questions wait."""
    a, b, _target = replica
    before = resident(b), descriptors(b)
    control = Control(a, b)
    answer = control.hello()
    while isinstance(answer, say.Stale):
        answer = control.hello(epoch=answer.max_epoch + 1)
    control.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    control.stream.settimeout(1)
    question = say.encode(say.GetLeaves([0, 1, 2, 3, 4, 5, 6, 7]))
    with contextlib.suppress(OSError):  # it takes no more, once nobody takes what it says
        for _ in range(200):
            control.stream.sendall(question * 1000)
    grown = resident(b) - before[0]
    assert grown <= GROWTH_MAX, "of 12 GB of answers"
    assert a.run()["root"], "a run of the same key takes its place"
    control.close()
    wait_until(lambda: descriptors(b) <= before[1] + 2, seconds=10)


def test_connections_of_a_good_key_are_bounded_and_leave_room(replica):
    """A peer has half of all places; what comes above is closed, and everything is as before in ten seconds."""
    a, b, _target = replica
    before, identity = (resident(b), descriptors(b)), identity_of(a)
    crowd = []
    for _ in range(150):
        with contextlib.suppress(OSError, AssertionError):
            crowd.append(admitted(b, identity, tls.CONTROL))
    began = time.monotonic()
    assert resident(b) - before[0] <= GROWTH_MAX
    for stream in crowd:
        stream.close()
    wait_until(lambda: descriptors(b) <= before[1] + 2, seconds=10)
    assert time.monotonic() - began < 60
