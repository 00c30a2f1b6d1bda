"""Mode copy: one run, and then the target is an ordinary device again, whatever dies around the commit."""

import contextlib
from pathlib import Path

import pytest
from agents import MIB, b3sum, wait_until
from cables import Cables
from machine import is_free, run
from system.hosts import two_hosts

pytestmark = pytest.mark.root
SIZE = 16 * MIB


@pytest.fixture
def hosts(agents):
    with contextlib.ExitStack() as stack:
        try:
            cables = stack.enter_context(Cables([0]))
        except RuntimeError as err:
            pytest.skip(f"no network namespaces here: {err}")
        yield two_hosts(agents, cables)


@pytest.fixture
def devices(loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, 6 * MIB)
    return source, target


def make(a, b, source, target, **environment):
    a.qrep("volume", "add", "db", source)
    b.qrep("volume", "add", "copy", target, *(["--accept", "site-a"] if a is not b else []))
    a.qrep("job", "create", "db", "--source", "db", "--target", "copy" if a is b else "site-b:copy", "--mode", "copy")


def nothing_is_left(b, device):
    """The target's host keeps nothing of a copy but the device itself."""
    shown = b.qrep("volume", "show", "copy")
    assert shown["role"] is None and shown["sync_points"] == 0 and shown["jobs"] == []
    assert not b.db_pairs() and is_free(device)
    assert not (Path(b.state) / "targets" / shown["id"]).exists()


def test_a_copy_to_another_host_is_made_once_and_its_target_can_be_used_at_once(hosts, loop_device, filesystem, tmp_path, fill):
    a, b = hosts
    source, target = loop_device(SIZE), loop_device(SIZE)
    run("mkfs.ext4", "-q", "-F", source)
    make(a, b, source, target)
    first = a.run()
    assert is_free(target)  # when the run has ended, not some time later
    nothing_is_left(b, target)
    assert first["root"] == b3sum(target) == b3sum(source)
    job = a.job()
    assert (job["mode"], job["state"], job["problem"], job["counter"], job["lag_seconds"]) == ("copy", "made", None, 1, None)

    fill(source, MIB, 4 * MIB)  # later writes to the source are nobody's business
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    run("mount", target, mounted)
    try:
        (mounted / "mine").write_text("written to the copy")
    finally:
        run("umount", mounted)
    mine = b3sum(target)
    for command in (("start", "db"), ("start", "db", "-n"), ("start", "db", "--wait")):
        error = a.refused(*command)
        assert (error["code"], error["exit"]) == ("copy-finished", 5) and "qrep job delete db" in error["hint"]
    assert a.refused("job", "demote", "db", "-y")["code"] == "no-roles"
    error = a.refused("verify", "db")
    assert error["code"] == "copy-finished" and first["root"] in error["hint"]
    for agent in (a, b):
        agent.end()
        agent.start()
    assert a.job()["state"] == "made" and a.refused("start", "db")["exit"] == 5
    nothing_is_left(b, target)
    assert b3sum(target) == mine

    # What was a copy may be a source now, and what was its source may be copied again by another job.
    b.qrep("volume", "add", "far", loop_device(SIZE))
    b.qrep("job", "create", "on", "--source", "copy", "--target", "far")
    assert b.run("on")["root"] == mine
    a.qrep("job", "delete", "db", "-y")
    error = a.refused("job", "create", "db", "--source", "db", "--target", "site-b:copy", "--mode", "copy")
    assert error["code"] == "cascading"
    assert {"copy-made", "run-committed"} <= set(a.codes()) and "target-given-back" in b.codes()


def test_a_local_copy_is_given_back_too_and_is_no_target_for_its_configuration_any_more(agents, devices, loop_device):
    source, target = devices
    a = agents.agent("site-a")
    make(a, a, source, target)
    assert a.run()["root"] == b3sum(target)
    nothing_is_left(a, target)
    text, code = a.text("status")
    assert code == 0 and "made" in text.splitlines()[1] and "action" not in text and a.text("status", "--check")[1] == 0
    assert a.refused("start", "db")["code"] == "copy-finished"
    a.qrep("volume", "add", "third", loop_device(SIZE))
    a.qrep("job", "create", "on", "--source", "copy", "--target", "third")
    assert a.qrep("check")["problems"] == [] and not a.qrep("reload")["failed"]
    error = a.refused("job", "create", "back", "--source", "third", "--target", "copy")
    assert error["code"] == "cascading"
    a.qrep("job", "delete", "on", "-y")
    a.qrep("volume", "remove", "copy", "-y")
    assert a.qrep("check")["problems"] == []


def test_what_a_copy_cannot_have_is_refused(agents, devices, loop_device):
    source, target = devices
    a = agents.agent("site-a")
    a.qrep("volume", "add", "db", source)
    a.qrep("volume", "add", "copy", target)
    create = ("job", "create", "db", "--source", "db", "--target", "copy", "--mode", "copy")
    for option in (("--schedule", "every 15m"), ("--rpo", "4h"), ("--group", "both")):
        error = a.refused(*create, *option)
        assert error["exit"] == 2 and "made once" in error["message"]
    a.qrep(*create)
    assert a.refused("job", "set", "db", "--schedule", "every 15m")["exit"] == 2
    a.qrep("job", "delete", "db", "-y")

    a.qrep(*create[:-1], "async")
    a.run()
    a.qrep("job", "delete", "db", "-y")
    error = a.refused(*create)  # its sync points would go
    assert (error["code"], error["exit"]) == ("has-sync-points", 5) and "qrep volume remove copy" in error["hint"]
    assert a.qrep("volume", "show", "copy")["sync_points"] == 0 and b3sum(target) == b3sum(source)


@pytest.mark.parametrize(
    "point", ["copy-given-back", *(pytest.param(point, marks=pytest.mark.slow) for point in ("copy-committed", "superblock-write-before"))]
)
def test_a_target_that_dies_around_the_commit_gives_the_device_back_when_it_comes_up(agents, devices, point):
    source, target = devices
    a, b = agents.pair()
    make(a, b, source, target)
    b.end()
    b.start(QREP_CRASH=f"{point}:{3 if point.startswith('superblock') else 1}")
    a.qrep("start", "db")
    assert wait_until(lambda: b.process.poll()) == -9
    b.start()
    wait_until(lambda: a.job()["state"] == "made", seconds=40)
    assert a.job()["root"] == b3sum(target) == b3sum(source) and a.job()["counter"] == 1
    wait_until(lambda: is_free(target))
    nothing_is_left(b, target)


@pytest.mark.parametrize(
    "point", ["map-fold-before:1", *(pytest.param(point, marks=pytest.mark.slow) for point in ("map-pending-durable:1", "source-release-before:1"))]
)
def test_a_source_that_dies_around_the_commit_finds_the_copy_made_and_makes_no_other(agents, devices, point):
    source, target = devices
    a, b = agents.pair()
    make(a, b, source, target)
    a.end()
    a.start(QREP_CRASH=point)
    a.qrep("start", "db")
    assert wait_until(lambda: a.process.poll()) == -9
    a.start()  # takes the run up
    wait_until(lambda: a.job()["state"] == "made", seconds=40)
    assert a.job()["counter"] == 1 and a.job()["root"] == b3sum(target)
    wait_until(lambda: is_free(target))
    nothing_is_left(b, target)
    assert a.refused("start", "db")["code"] == "copy-finished"


@pytest.mark.slow
def test_an_interrupted_copy_resumes(agents, devices, fill):
    source, target = devices
    fill(source, SIZE)
    a, b = agents.pair(link_rate=6 * MIB)
    make(a, b, source, target)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > 10 * MIB)
    a.qrep("stop", "db")
    assert a.job()["state"] == "stopped" and not is_free(target)
    report = a.run()
    assert report["resumed"] and report["root"] == b3sum(target) == b3sum(source)
    nothing_is_left(b, target)
