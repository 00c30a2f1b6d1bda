"""Consistency groups between two agents in two network namespaces: frozen at one moment, committed all or none."""

import pytest
from agents import MIB, b3sum
from cables import Cables, addresses

pytestmark = pytest.mark.root
SIZE = 16 * MIB
JOBS = ("data", "log")


@pytest.fixture
def shop(agents, xfs, loop_device, fill):
    """Two agents, two image files at site-a in one group, their targets at site-b."""
    with Cables([0]) as cables:
        a, b = (
            agents.agent(name, host=host, port=7414, prefix=("ip", "netns", "exec", space))
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
            a.qrep("job", "create", job, "--source", job, "--target", f"site-b:{job}", "--group", "shop")
        yield a, b, images, targets


def test_a_group_is_frozen_together_and_committed_together(shop):
    a, b, images, targets = shop
    tasks = a.qrep("start", "log", "--wait")
    assert set(tasks) == set(JOBS), "one member starts all"
    for job in JOBS:
        assert tasks[job]["root"] == b3sum(targets[job]) == b3sum(images[job])
    assert tasks["data"]["frozen_at_ns"] == tasks["log"]["frozen_at_ns"] and not tasks["data"]["fuzzy"]
    assert "group-committed" in a.codes() and "group-committed" in b.codes()
    assert {job["group"] for job in a.qrep("status")["jobs"]} == {"shop"}
    assert "shop" in a.run_command("job")[1]
