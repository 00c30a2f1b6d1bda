"""kill -9 of the target's agent in the middle of a differential run."""

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 24 * MIB


def test_the_target_is_at_its_last_sync_point_before_its_port_opens_and_the_next_run_commits(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, link_rate=20 * MIB, job=("--timeout", "2s"))
    first = a.run()["root"]
    assert first == b3sum(target)

    fill(source, SIZE)
    a.qrep("start", "db")
    wait_until(lambda: b.job()["progress"] and b.job()["progress"]["written"] > 4 * MIB)
    b.kill()
    waiting = wait_until(lambda: a.job()["state"] == "waiting" and a.job())
    assert waiting["problem"]["action"].startswith("check the link")
    wait_until(lambda: a.job()["state"] == "failed")  # 2 s without it are over
    problem = a.job()["problem"]
    assert problem["code"] in ("peer-unreachable", "disconnected") and "qrep" in problem["action"]

    assert b.start() < 5
    assert b3sum(target) == first, "recovered without the source"
    assert "volume-recovered" in b.codes()
    assert b.job()["root"] == first and b.job()["counter"] == 1
    report = a.run()
    assert report["counter"] == 2 and report["root"] == b3sum(target) == b3sum(source)


def test_a_short_absence_is_ridden_out_by_the_run_itself(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, link_rate=20 * MIB)
    a.run()
    fill(source, SIZE)
    a.qrep("start", "db")
    wait_until(lambda: b.job()["progress"] and b.job()["progress"]["written"] > 4 * MIB)
    b.kill()
    b.start()
    wait_until(lambda: a.job()["counter"] == 2)
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    assert a.job()["last_run"]["interruptions"] >= 1 and "run-interrupted" in a.codes()
