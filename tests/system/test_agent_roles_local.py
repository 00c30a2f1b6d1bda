"""Roles of a pair within one host, where its operator speaks for both sides."""

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 16 * MIB


@pytest.fixture
def pair(agents, loop_device, fill):
    """(agent, source, target, fill): job db from db to copy, with one sync point."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    agent = agents.agent("site-a")
    fill(source, SIZE // 2)
    agent.qrep("volume", "add", "db", source, "--granule", "1M")
    agent.qrep("volume", "add", "copy", target, "--granule", "1M")
    agent.qrep("job", "create", "db", "--source", "db", "--target", "copy")
    agent.run()
    return agent, source, target


def roles(agent):
    return [agent.qrep("volume", "show", name)["role"] for name in ("db", "copy")]


def test_a_local_pair_is_switched_by_one_command_and_back(pair, fill):
    agent, source, target = pair
    fill(source, MIB)
    assert agent.qrep("job", "promote", "db", "-n")["would"] == "ask"
    answer = agent.qrep("job", "promote", "db", "-y")
    assert answer["what"] == "planned" and roles(agent) == ["replica", "primary"]
    assert b3sum(source) == b3sum(target)
    fill(target, MIB, offset=4 * MIB)
    report = agent.run()
    assert report["root"] == b3sum(source) and report["sent"] < 2 * MIB
    agent.qrep("job", "promote", "db", "-y")
    assert roles(agent) == ["primary", "replica"] and b3sum(source) == b3sum(target)
    fill(source, MIB, offset=5 * MIB)
    report = agent.run()
    assert report["root"] == b3sum(target) and report["sent"] < 2 * MIB


@pytest.mark.slow
def test_a_local_source_that_is_mounted_is_not_switched_and_the_mount_is_named(agents, ext4, loop_device):
    device = next(line.split()[0] for line in open("/proc/mounts") if line.split()[1] == str(ext4))
    agent = agents.agent("site-a")
    agent.qrep("volume", "add", "db", device)
    size = agent.qrep("volume", "show", "db")["size"]
    agent.qrep("volume", "add", "copy", loop_device(size))
    agent.qrep("job", "create", "db", "--source", "db", "--target", "copy")
    agent.run()
    error = agent.refused("job", "promote", "db", "-y")
    assert error["code"] == "source-in-use" and str(ext4) in error["message"] and "umount" in error["hint"]
    assert roles(agent)[0] in (None, "primary") and agent.run()["counter"] == 2


@pytest.mark.slow
def test_a_volume_whose_demotion_failed_is_as_if_nobody_had_asked(pair, loop_device):
    agent, source, target = pair
    agent.terminate()
    agent.start(QREP_CRASH="role-give-up-before:1")
    agent.run_command("job", "promote", "db", "-y")
    agent.process.wait(30)
    agent.start()
    assert roles(agent) == [None, "replica"]
    agent.qrep("job", "delete", "db", "-y")
    agent.qrep("volume", "add", "third", loop_device(SIZE))
    agent.qrep("job", "create", "other", "--source", "third", "--target", "db", "-y")
    assert agent.run("other")["root"] == b3sum(source)


@pytest.mark.slow
def test_a_local_source_that_was_lost_and_comes_back_gets_the_differences(pair, fill):
    agent, source, target = pair
    fill(source, MIB)
    lost = b3sum(source)
    answer = agent.qrep("job", "promote", "db", "--force", "-y")
    assert answer["what"] == "forced"
    fill(target, MIB, offset=6 * MIB)
    assert agent.refused("start", "db", "--wait")["exit"] == 5
    plan = agent.qrep("job", "failback", "db", "-n")
    assert (plan["changed_here"], plan["changed_there"]) == (MIB, MIB)
    answer = agent.qrep("job", "resync", "db", "--authoritative", "copy", "-y")
    assert b3sum(source) == b3sum(target) != lost
    (kept,) = [point for point in agent.qrep("snapshot", "db") if not point["current"]]
    agent.qrep("snapshot", "rollback", f"db@{kept['point']}", "-y")
    assert b3sum(source) == lost
    agent.run()
    assert agent.qrep("job", "failback", "db", "-y")["swapped"]
    assert roles(agent) == ["primary", "replica"] and b3sum(source) == b3sum(target)
