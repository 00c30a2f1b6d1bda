"""The process that faces the network: what it may, what becomes of a run when it dies, and what a crowd at the port costs."""

import contextlib
import os
import re
import resource
import signal
import socket
import stat
from datetime import datetime
from pathlib import Path

import pytest
from agents import MIB, b3sum, wait_until
from intruder import plain

pytestmark = pytest.mark.root
SIZE = 24 * MIB


def front_of(agent):
    """The pid of an agent's front, once there is one."""
    return wait_until(lambda: agent.client().get("/node")["front"]["pid"])


def status_of(pid):
    lines = (line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    return dict(lines)


def descriptors_of(pid):
    """{descriptor: what it is}"""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def internet_sockets_of(pid):
    """Inodes of TCP and UDP sockets that a process holds."""
    inodes = set()
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                inodes.add(line.split()[8 if table == "packet" else 9])
    held = (re.fullmatch(r"socket:\[(\d+)\]", what) for what in descriptors_of(pid).values())
    return {match[1] for match in held if match} & inodes


def test_the_front_has_no_rights_no_files_and_no_devices_and_the_engine_no_network(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=8 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > 4 * MIB)  # in the middle of a run, with all its connections
    for agent in (a, b):
        pid = front_of(agent)
        status = status_of(pid)
        assert "0" not in status["Uid"].split() + status["Gid"].split() and status["Groups"].strip() == ""
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        held = descriptors_of(pid)
        sockets = {number for number, what in held.items() if what.startswith("socket:")}
        assert {what for number, what in held.items() if number not in sockets} == {"/dev/null"}
        assert len(internet_sockets_of(pid)) >= 4, "the port, control and two connections"
        assert os.listdir(f"/proc/{pid}/root") == [], "its root directory is empty"
        assert "(deleted)" in os.readlink(f"/proc/{pid}/cwd")
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits) and int(re.search(r"Max open files +\d+ +(\d+)", limits)[1]) < 8192
        assert os.stat(f"/proc/{pid}/status").st_uid == 0, "not dumpable: nobody of the same user may trace it"
        told = agent.client().get("/node")["front"]
        assert (told["capabilities"], told["no_new_privileges"], told["seccomp"], told["uid"]) == (0, True, True, int(status["Uid"].split()[0]))

        assert internet_sockets_of(agent.process.pid) == set(), "everything that the engine hears has been through the front"
        devices = {what for number, what in descriptors_of(agent.process.pid).items() if is_device(agent.process.pid, number)}
        assert devices, "the engine has the devices"
    wait_until(lambda: a.job()["counter"] == 1)
    assert a.job()["root"] == b3sum(target) == b3sum(source)


def is_device(pid, number):
    with contextlib.suppress(FileNotFoundError):
        return stat.S_ISBLK(os.stat(f"/proc/{pid}/fd/{number}").st_mode)
    return False


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_front_is_killed_in_the_middle_of_a_run_and_the_run_resumes(agents, loop_device, fill, side):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=10 * MIB)
    victim = a if side == "source" else b
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > SIZE // 2)
    before, engine = agents.link.carried, victim.process.pid
    killed = front_of(victim)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: a.job()["counter"] == 1, seconds=30)
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    assert a.job()["last_run"]["resumed"] and agents.link.carried - before < SIZE * 0.8, "what was applied is not sent again"
    assert victim.process.pid == engine and victim.process.poll() is None
    codes = victim.codes()
    assert codes.index("front-ended") < codes.index("front-restarted")
    assert "killed by signal 9" in victim.events("front-ended")[0]["text"]
    node = victim.client().get("/node")["front"]
    assert node["restarts"] == 1 and node["pid"] != killed and node["seccomp"]


def test_a_front_that_dies_again_and_again_is_started_less_and_less_often(agents):
    agent = agents.agent("site-a")
    for restarts in range(4):
        os.kill(front_of(agent), signal.SIGKILL)
        wait_until(lambda restarts=restarts: agent.client().get("/node")["front"]["restarts"] == restarts + 1, seconds=30)
    wait_until(lambda: len(agent.events("front-restarted")) == 4)  # told after it was counted
    times = [datetime.fromisoformat(event["time"]) for code in ("front-ended", "front-restarted") for event in agent.events(code)]
    pauses = [(after - before).total_seconds() for before, after in zip(times[:4], times[4:], strict=True)]
    assert [pause >= 0.1 * 2**number for number, pause in enumerate(pauses)] == [True] * 4, pauses
    assert agent.process.poll() is None


def test_without_the_engine_there_is_no_front(agents):
    agent = agents.agent("site-a")
    pid = front_of(agent)
    os.kill(pid, signal.SIGTERM)  # as a service manager does to every process of a service: it is the engine that ends it
    assert plain(agent).close() is None
    agent.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_port_that_is_taken_is_told_before_anything_is_touched(agents):
    first = agents.agent("site-a")
    second = agents.agent("site-b", start=False, port=first.port)
    second.spawn()
    assert second.process.wait(20) == 5
    assert f"cannot listen on 127.0.0.1 port {first.port}" in second.log and "Traceback" not in second.log


def test_a_user_with_rights_is_refused_and_an_unknown_one_is_named(agents):
    for name, words in (("root", "that is root"), ("no-such-user", "there is no user no-such-user")):
        agent = agents.agent(f"as-{name}", start=False)
        path = agent.config / "qrep.toml"
        path.write_text(path.read_text().replace("[node]", f'[node]\nuser = "{name}"'))
        agent.spawn()
        assert agent.process.wait(20) in (2, 5)
        assert words in agent.log and "Traceback" not in agent.log


@pytest.mark.slow
def test_two_thousand_connections_at_the_port_cost_little_and_a_run_goes_on(agents, loop_device, fill):
    source, target = loop_device(8 * MIB), loop_device(8 * MIB)
    fill(source, 8 * MIB)
    a, b = agents.replica(source, target)
    pid, soft = front_of(b), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft[0], 4096), soft[1]))

    def resident():
        return int(status_of(pid)["VmRSS"].split()[0]) << 10

    before, crowd = resident(), []
    try:
        for number in range(2000):
            crowd.append(plain(b))
            if number % 2:
                crowd[-1].sendall(b"\x16\x03\x01\x02\x00\x01")
        assert a.run()["root"] == b3sum(target) == b3sum(source)
        assert resident() - before <= 64 * MIB
        assert len(descriptors_of(pid)) < 400
    finally:
        for stream in crowd:
            stream.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, soft)
    with socket.create_connection((b.host, b.port), 5):
        pass
    assert len(b.events("peer-refused")) <= 60, "told of, and bounded"
