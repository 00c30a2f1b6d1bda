"""Names and files that are none, as an operator could type them or someone could put them there: told in one line, and nothing is made."""

import os

import pytest
from agents import MIB, Agents
from machine import loop_devices

pytestmark = pytest.mark.root
MARK = f"/tmp/qrep-test-{os.getpid()}-mark"
HOSTILE = ["../../dev/sda", "/etc/passwd", "x" * 4096, "a\nb", "\x1b[2Ja", f"$(touch {MARK})", "`id`", "a;b", "..", "", " ", "-rf", "a b", "é", "a/b", "a%00b", "%2e%2e"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    directory = tmp_path_factory.mktemp("agents")
    (directory / "disk").write_bytes(bytes(8 * MIB))
    with loop_devices(directory / "disk") as (disk,), Agents(directory) as agents:
        agent = agents.agent("site-a")
        agent.disk = disk
        yield agent
        assert "Traceback" not in agent.log


def made(agent):
    return sorted(str(path) for place in (agent.config, agent.state) for path in place.rglob("*") if "state.db" not in path.name)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:9])
def test_a_name_that_is_none_is_refused_in_one_line_and_makes_nothing(agent, name):
    before = made(agent)
    for command in (
        ("volume", "add", "--", name, agent.disk), ("job", "create", "--source", "x", "--target", "y", "--", name), ("shape", "create", "--rate", "1M", "--", name),
        ("volume", "add", "good", "--accept", name, agent.disk), ("peer", "add", "-y", "--", name, "127.0.0.1:9"), ("job", "delete", "-y", "--", name),
    ):  # fmt: skip
        code, out, err = agent.run_command(*command)
        assert code not in (0, 1), (command[:2], code, out, err)
        said = (out + err).strip()
        assert "Traceback" not in said and "\x1b[2J" not in said and len(said) < 2500 and said.count("\n") <= 8, said
    assert made(agent) == before and not os.path.exists(MARK)


@pytest.mark.parametrize("size", [str(1 << 64), "-1", "1e99", "nan", "0", "18446744073709551616k"])
def test_a_size_that_is_none_is_refused(agent, size):
    before = made(agent)
    for command in (("volume", "add", "good", agent.disk, "--granule", size), ("shape", "create", "slow", "--rate", f"={size}"), ("volume", "add", "good", agent.disk, "--keep-points", size)):
        if command[-2:] == ("--keep-points", "0"):
            continue
        code, out, err = agent.run_command(*command)
        assert code not in (0, 1) and "Traceback" not in out + err, (command, code, out, err)
    assert made(agent) == before


@pytest.mark.parametrize("what", ["the key", *(pytest.param(name, marks=pytest.mark.slow) for name in ("the directory of keys", "the state database", "the state directory"))])
def test_a_symbolic_link_in_place_of_what_the_agent_keeps_is_not_followed(agents, memory_dir, what):
    agent = agents.agent("site-b")
    agent.terminate()
    path = {"the key": agent.state / "keys" / "node.key", "the directory of keys": agent.state / "keys", "the state database": agent.state / "state.db", "the state directory": agent.state}[what]
    elsewhere = memory_dir / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    agent.spawn()
    assert agent.process.wait(20) not in (0, None)
    assert "Traceback" not in agent.log and path.is_symlink()
