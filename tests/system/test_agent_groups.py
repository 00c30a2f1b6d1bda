"""Consistency groups between two agents in two network namespaces: frozen at one moment, committed all or none."""

import pytest
from agents import MIB, b3sum, inside, wait_until
from cables import Cables, addresses

pytestmark = pytest.mark.root
SIZE = 16 * MIB
JOBS = ("data", "log")


@pytest.fixture
def shop(agents, xfs, loop_device, fill):
    """Two agents, two image files at site-a in one group, their targets at site-b."""
    with Cables([0]) as cables:
        a, b = (
            agents.agent(name, host=host, port=7414, prefix=inside(space))
            for name, host, space in zip(("site-a", "site-b"), addresses(0), cables.spaces, strict=True)
        )
        a.qrep("peer", "add", "site-b", f"{b.host}:{b.port}", "-y")
        b.qrep("peer", "add", "site-a", f"{a.host}:{a.port}", "-y")
        images, targets = {}, {}
        for job in JOBS:
            images[job], targets[job] = xfs / f"{job}.img", loop_device(SIZE)
            images[job].write_bytes(b"")
            fill(images[job], SIZE)
            a.qrep("volume", "add", job, images[job])
            b.qrep("volume", "add", job, targets[job], "--accept", "site-a")
            a.qrep("job", "create", job, "--source", job, "--target", f"site-b:{job}", "--group", "shop", "--timeout", "2m")
        yield a, b, images, targets


def test_a_group_is_frozen_together_and_committed_together(shop):
    a, b, images, targets = shop
    tasks = a.qrep("start", "log", "--wait")
    assert set(tasks) == set(JOBS), "one member starts all"
    for job in JOBS:
        assert tasks[job]["root"] == b3sum(targets[job]) == b3sum(images[job])
    assert tasks["data"]["frozen_at_ns"] == tasks["log"]["frozen_at_ns"] and not tasks["data"]["fuzzy"]
    wait_until(lambda: "group-committed" in a.codes() and "group-committed" in b.codes())  # told when the answer is there
    assert {event["data"]["group"] for event in a.events() if event["code"].startswith(("run-", "group-"))} == {"shop"}, "all events name it"
    assert {job["group"] for job in a.qrep("status")["jobs"]} == {"shop"}
    assert "shop" in a.run_command("job")[1]


def test_a_target_that_dies_at_the_commit_point_comes_up_with_all_members_committed(shop):
    a, b, images, targets = shop
    b.kill()
    b.start(QREP_CRASH="group-record-durable:1")
    a.qrep("start", "data")
    wait_until(lambda: b.process.poll() is not None, 60)
    b.start()
    assert "group-unsettled" in b.codes()
    for job in JOBS:
        assert b3sum(targets[job]) == b3sum(images[job])
    wait_until(lambda: all(a.job(job)["state"] == "idle" and a.job(job)["counter"] == 1 for job in JOBS), 60)
    assert not any((b.state / "groups").iterdir())


@pytest.mark.slow
def test_a_target_that_dies_just_before_the_commit_point_leaves_both_as_they_were_and_the_run_goes_on(shop, fill):
    a, b, images, targets = shop
    a.qrep("start", "data", "--wait")
    before = {job: b3sum(targets[job]) for job in JOBS}
    for job in JOBS:
        fill(images[job], MIB)
    b.kill()
    b.start(QREP_CRASH="group-record-before:1")
    a.qrep("start", "data")
    wait_until(lambda: b.process.poll() is not None, 60)
    a.qrep("stop", "data")
    wait_until(lambda: {a.job(job)["state"] for job in JOBS} == {"stopped"}, 60)  # whoever stops one member stops all
    b.start()
    assert {job: b3sum(targets[job]) for job in JOBS} == before
    a.qrep("start", "log", "--wait")
    assert all(b3sum(targets[job]) == b3sum(images[job]) for job in JOBS)


@pytest.mark.slow
def test_a_sync_point_with_a_name_is_frozen_anew_though_an_interrupted_attempt_left_its_snapshots(shop, fill):
    a, b, images, targets = shop
    b.kill()
    b.start(QREP_CRASH="target-write-done:3")
    a.qrep("start", "data")
    wait_until(lambda: b.process.poll() is not None, 60)
    a.qrep("stop", "data")
    wait_until(lambda: all(a.job(job)["state"] == "stopped" for job in JOBS), 60)
    for job in JOBS:
        fill(images[job], MIB, 9 * MIB)
    b.start()
    a.qrep("snapshot", "create", "data@before-upgrade")
    for job in JOBS:
        assert b3sum(targets[job]) == b3sum(images[job]), "what was written before the command is in it"
        assert b.qrep("snapshot", job)[0]["name"] == "before-upgrade"


def test_a_member_that_cannot_run_keeps_the_others_from_it(shop, fill):
    a, _b, images, targets = shop
    a.qrep("start", "data", "--wait")
    before = b3sum(targets["data"])
    fill(images["data"], MIB)
    images["log"].rename(images["log"].with_name("away"))
    error = a.refused("start", "data", "--wait")
    assert "log" in error["message"] + error["hint"]
    wait_until(lambda: {a.job(job)["state"] for job in JOBS} == {"failed"})
    assert b3sum(targets["data"]) == before
    wait_until(lambda: "group-withdrawn" in a.codes())
    assert a.job("data")["problem"]["code"] == "group" and a.job("data")["problem"]["action"]
    images["log"].with_name("away").rename(images["log"])
    a.qrep("start", "data", "--wait")
    assert all(b3sum(targets[job]) == b3sum(images[job]) for job in JOBS)


def test_what_cannot_be_a_group_is_refused(shop, loop_device):
    a, b, images, _targets = shop
    here = loop_device(SIZE)
    a.qrep("volume", "add", "here", here)
    a.qrep("volume", "add", "live", loop_device(SIZE))
    for options, code in (
        (("--source", "live", "--target", "here", "--group", "shop"), "group-targets"),
        (("--source", "live", "--target", "here", "--group", "own"), "group-unfrozen"),
    ):
        assert a.refused("job", "create", "more", *options)["code"] == code
    assert a.refused("job", "set", "data", "--group", "a b")["exit"] == 2
    a.qrep("job", "set", "log", "--group", "none")
    assert set(a.qrep("start", "data", "--wait")) == {"data"}, "it is no member any more"
