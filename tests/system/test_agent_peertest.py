"""qrep peer test between two agents: what it measures, what it says of paths that fail, how it ends, and what a peer may not do with it."""

import os
import signal
import subprocess
import time

import pytest
from agents import MIB, QREP, Agents, b3sum, inside, wait_until
from intruder import CLOSED, admitted, hears, identity_of, plain_join, read_message
from machine import need_tool, run

from qrep._native.wire import FrameWriter
from qrep.daemon import tls
from qrep.daemon.peertested import GEOMETRY
from qrep.protocol import messages

pytestmark = [pytest.mark.root, pytest.mark.alone]


@pytest.fixture
def pair(agents):
    return agents.pair()


@pytest.fixture(scope="module")
def listening(tmp_path_factory):
    """(site-a, site-b) for tests that change nothing of them."""
    with Agents(tmp_path_factory.mktemp("agents")) as agents:
        yield agents.pair()
        assert "Traceback" not in "".join(agent.log for agent in agents.all)


def test_every_path_is_measured_and_said_how_it_is_carried(pair, memory_dir):
    a, b = pair
    (memory_dir / "image").write_bytes(bytes(64 * MIB))
    a.qrep("volume", "add", "db", memory_dir / "image")
    result = a.qrep("peer", "test", "site-b", "--seconds", "1", "--connections", "2,1")
    (path,) = result["paths"]
    assert result["transport"] == "tls" and path["zero_copy"] is None and path["error"] is None
    assert [each["connections"] for each in path["measurements"]] == [1, 2]
    for each in path["measurements"]:
        assert each["bytes"] > MIB and each["rate_bytes_per_s"] == pytest.approx(each["bytes"] / each["seconds"], rel=0.01)
    assert 0 < path["rtt_ms"] < 1000 and result["best"]["address"] == path["address"] == f"127.0.0.1:{b.port}"
    assert [copy["volume"] for copy in result["copies"]] == ["db"] and result["copies"][0]["seconds"] >= 1
    (event,) = a.events("peer-tested")
    assert "connection" in event["text"] and not b.events("peer-refused")[3:]
    a.qrep("peer", "set", "site-b", "--trusted")
    b.qrep("peer", "set", "site-a", "--trusted")
    result = a.qrep("peer", "test", "site-b", "--seconds", "1", "--connections", "2")
    assert result["transport"] == "plain" and not result["paths"][0]["zero_copy"], "loopback copies"
    text, code = a.text("peer", "test", "site-b", "--seconds", "1", "--connections", "1")
    lines = text.splitlines()
    assert code == 0 and lines[0].startswith(f"127.0.0.1:{b.port}   1 connection   ") and lines[0].endswith("plain   zero-copy send: no")
    assert lines[2].startswith("best: 1 connection over 127.0.0.1") and lines[3].startswith("  full copy of db, 64 MiB: ")


@pytest.mark.slow
def test_paths_of_jobs_are_measured_beside_the_addresses(agents, loop_device):
    a, b = agents.replica(loop_device(8 * MIB), loop_device(8 * MIB))
    a.qrep("path", "add", "db", "--from", "127.0.0.1", "--to", b.host)
    result = a.qrep("peer", "test", "site-b", "--seconds", "1", "--connections", "1")
    assert [(path["from"], path["error"]) for path in result["paths"]] == [(None, None), ("127.0.0.1", None)]
    assert [copy["volume"] for copy in result["copies"]] == ["db"]
    text, code = a.text("peer", "test", "site-b", "--seconds", "1", "--connections", "1")
    assert code == 0 and text.splitlines()[1].startswith("127.0.0.1 -> 127.0.0.1")


def test_a_path_that_does_not_answer_is_one_line_and_none_that_does_is_an_error(pair):
    a, b = pair
    file = a.config / "peers" / "site-b.toml"
    text = file.read_text()
    dead = "127.0.0.1:9"
    a.terminate()
    file.write_text(text.replace(f'"127.0.0.1:{b.port}"', f'"127.0.0.1:{b.port}", "{dead}"'))
    a.start()
    code, result, _err = a.call("peer", "test", "site-b", "--seconds", "1", "--connections", "1")
    good, bad = result["paths"]
    assert code == 3 and good["error"] is None and bad["error"]["code"] and bad["measurements"] == []
    shown, code = a.text("peer", "test", "site-b", "--seconds", "1", "--connections", "1")
    assert code == 3 and shown.splitlines()[1].split(maxsplit=1) == [dead, "Connection refused"]
    b.terminate()
    error = a.refused("peer", "test", "site-b", "--seconds", "1")
    assert (error["code"], error["exit"]) == ("peer-unreachable", 4) and dead in error["message"] and str(b.port) in error["message"]


@pytest.mark.parametrize("ours", [True, False])
def test_ends_that_do_not_agree_on_trust_are_refused(pair, ours):
    a, b = pair
    (a if ours else b).qrep("peer", "set", "site-b" if ours else "site-a", "--trusted")
    error = a.refused("peer", "test", "site-b", "--seconds", "1")
    assert (error["code"], error["exit"]) == ("trust-mismatch", 5)


def test_one_test_of_a_peer_at_a_time_and_ctrl_c_ends_it_on_both_sides(listening):
    a, b = listening
    process = subprocess.Popen(
        [*QREP, "peer", "test", "site-b", "--seconds", "60", "--connections", "2"], env=a.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: is_measuring(b))
    error = a.refused("peer", "test", "site-b", "--seconds", "1")
    assert (error["code"], error["exit"]) == ("busy", 5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and out == "" and "was ended" in err
    assert time.monotonic() - began < 15
    assert a.qrep("peer", "test", "site-b", "--seconds", "1", "--connections", "1")["paths"][0]["error"] is None, "the place is free again"


def is_measuring(agent):
    """Whether data connections are there, beside the one that asks for them."""
    with open("/proc/net/tcp") as table:
        lines = [line.split() for line in table.readlines()[1:]]
    return sum(line[1].endswith(f":{agent.port:04X}") and line[3] == "01" for line in lines) >= 3


def test_an_agent_that_ends_ends_its_tests(pair):
    a, b = pair
    process = subprocess.Popen(
        [*QREP, "peer", "test", "site-b", "--seconds", "60", "--connections", "2"], env=a.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: is_measuring(b))
    for agent in (b, a):
        code, seconds = agent.terminate(20)
        assert code == 0 and seconds < 10, agent.log
    assert process.wait(30) != 0


def test_a_test_says_which_jobs_ran_meanwhile(agents, loop_device, fill):
    source, target = loop_device(16 * MIB), loop_device(16 * MIB)
    fill(source, 16 * MIB)
    a, b = agents.replica(source, target, link_rate=3 * MIB, source_volume=("--granule", "1M"))
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > MIB)
    result = a.qrep("peer", "test", "site-b", "--seconds", "1", "--connections", "1")
    assert result["jobs_running"] == ["db"] and result["jobs_running_there"] == 1
    assert [copy["volume"] for copy in result["copies"]] == ["db"]
    wait_until(lambda: a.job()["counter"] == 1, seconds=60)
    assert a.job()["root"] == b3sum(target) == b3sum(source)


# ---- through a wire of a known rate ----


@pytest.fixture
def wire(undo_after):
    """(namespace of site-a, namespace of site-b): joined by a veth pair, 10.98.0.1 and 10.98.0.2, shaped to 100 Mbit/s."""
    need_tool("ip")
    names = [f"qrep-test-{os.getpid()}-{side}" for side in "ab"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            undo_after.callback(run, "ip", "netns", "delete", name)
        run("ip", "link", "add", "veth-a", "netns", names[0], "type", "veth", "peer", "name", "veth-b", "netns", names[1])
        for name, side, address in zip(names, "ab", ("10.98.0.1", "10.98.0.2"), strict=True):
            within = ["ip", "netns", "exec", name]
            run(*within, "ip", "address", "add", f"{address}/24", "dev", f"veth-{side}")
            run(*within, "ip", "link", "set", f"veth-{side}", "up")
            run(*within, "ip", "link", "set", "lo", "up")
        run("ip", "netns", "exec", names[0], "tc", "qdisc", "add", "dev", "veth-a", "root", "tbf", "rate", "100mbit", "burst", "64k", "latency", "50ms")
    except RuntimeError as err:
        pytest.skip(f"no network namespaces or no shaping here: {err}")
    return names


@pytest.mark.parametrize("trusted", [pytest.param(False, marks=pytest.mark.slow), True], ids=["TLS", "plain"])
def test_the_rate_of_a_known_wire_is_what_is_measured(agents, wire, trusted):
    a, b = (
        agents.agent(name, host=host, port=7414, prefix=inside(space))
        for name, host, space in zip(("site-a", "site-b"), ("10.98.0.1", "10.98.0.2"), wire, strict=True)
    )
    a.qrep("peer", "add", "site-b", "10.98.0.2", "-y", *["--trusted"] * trusted)
    b.qrep("peer", "add", "site-a", "10.98.0.1", "-y", *["--trusted"] * trusted)
    result = a.qrep("peer", "test", "site-b", "--seconds", "2", "--connections", "1,4")
    assert result["transport"] == ("plain" if trusted else "tls")
    # 100 Mbit/s are 12.5 MB/s with all headers; a busy machine may get less of it, and nothing gets more.
    for each in result["paths"][0]["measurements"]:
        assert 6e6 < each["rate_bytes_per_s"] < 13.2e6, result
    assert result["best"]["connections"] in (1, 4)


# ---- a peer that breaks the rules ----


def exchange(stream, message):
    stream.sendall(messages.encode(message))
    return read_message(stream)


@pytest.mark.parametrize("first", [
    messages.Halt(), messages.Commit(7), messages.Measure(1, 60, True), messages.Measure(17, 1, False), messages.Measure(1, 61, False),
], ids=["nothing to halt", "a message of a run", "plain, which this host does not trust", "17 connections", "61 seconds"])  # fmt: skip
def test_what_a_tester_may_not_say_ends_its_test(listening, first):
    a, b = listening
    stream = admitted(b, identity_of(a), tls.TEST)
    stream.sendall(messages.encode(first))
    said = hears(stream)
    if said:  # what is no message of a tester at all may find the door closed without a word
        answer = messages.decode(said[4:], "tested")
        assert isinstance(answer, messages.Error) and answer.code in ("protocol", "trust-mismatch")
    stream = admitted(b, identity_of(a), tls.TEST)
    assert isinstance(exchange(stream, messages.Ping()), messages.Pong), "the place is free again"
    stream.close()


def test_frames_of_a_test_go_nowhere_and_wrong_ones_end_it(listening):
    a, b = listening
    stream = admitted(b, identity_of(a), tls.TEST)
    ready = exchange(stream, messages.Measure(2, 5, False))
    data = admitted(b, identity_of(a), tls.DATA)
    data.sendall(messages.encode(messages.Join(token=ready.tokens[0])))
    assert read_message(data) == messages.Joined(0)
    assert hears(plain_join(b, ready.tokens[1])) == CLOSED, "what was agreed to be TLS is not plain"
    data.sendall(FrameWriter(GEOMETRY, ready.attempt, ready.session, 0, bytes(32)).end())
    assert hears(data) == CLOSED
    measured = exchange(stream, messages.Halt())
    assert isinstance(measured, messages.Measured) and measured.received < MIB
    stream.close()


def memory_of(agent):
    """Bytes that a process has in memory, huge pages included."""
    with open(f"/proc/{agent.process.pid}/smaps_rollup") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line and "kB" in line)
    return 1024 * sum(int(fields[name].split()[0]) for name in ("Rss", "Private_Hugetlb"))


def test_the_most_that_a_peer_may_ask_for_takes_bounded_memory(listening):
    a, b = listening
    before, highest = memory_of(b), 0
    process = subprocess.Popen(
        [*QREP, "peer", "test", "site-b", "--seconds", "2", "--connections", "16"], env=a.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        highest = max(highest, memory_of(b))
        time.sleep(0.05)
    assert process.returncode == 0
    assert highest - before < 192 * MIB  # 16 lanes of 4 MiB, their rings, threads and TLS


def test_a_second_test_of_the_same_peer_is_refused_and_two_peers_test_beside_each_other(listening, agents):
    a, b = listening
    c = agents.agent("site-c")
    b.qrep("peer", "add", "site-c", f"{c.host}:{c.port}", "-y")
    one, other, third = (admitted(b, identity_of(agent), tls.TEST) for agent in (a, c, a))
    assert isinstance(exchange(one, messages.Ping()), messages.Pong)
    assert isinstance(exchange(other, messages.Ping()), messages.Pong)
    answer = read_message(third)
    assert isinstance(answer, messages.Error) and answer.code == "busy"
    for stream in (one, other, third):
        stream.close()
