"""Both sides primary: on purpose, refused with one code, joined by naming the side that wins; and one-command switches between hosts that allow it."""

import os
import pathlib
import signal
import time

import pytest
from agents import b3sum, wait_until

pytestmark = pytest.mark.root


def split(scene):
    """Both sides are written; returns the files of each."""
    assert scene.b.qrep("job", "split", "db", "-n")["would"] == "forced" and scene.b.qrep("volume", "show", "db")["role"] == "replica"
    assert scene.b.refused("job", "split", "db")["code"] == "needs-confirmation"
    scene.b.qrep("job", "split", "db", "-y")
    base = dict(scene.files)
    scene.write("site-a", "only-on-a", b"a" * 30000)
    on_a, scene.files = scene.files, dict(base)
    scene.write("site-b", "only-on-b", b"b" * 30000)
    on_b = scene.files
    return {"site-a": on_a, "site-b": on_b}


def both_refuse(scene):
    before = {site: b3sum(device) for site, device in scene.device.items()}
    for agent in (scene.a, scene.b):
        error = agent.refused("start", "db", "--wait")
        assert (error["code"], error["exit"]) == ("split-brain", 5)
        wait_until(lambda agent=agent: (agent.job()["problem"] or {}).get("code") == "split-brain")
        assert "split-brain" in agent.codes() or agent.events("run-failed")[-1]["data"]["reason"] == "split-brain"
    assert {site: b3sum(device) for site, device in scene.device.items()} == before
    return before


@pytest.mark.parametrize(("winner", "loser"), [("site-a", "site-b"), pytest.param("site-b", "site-a", marks=pytest.mark.slow)])
def test_a_split_pair_is_joined_by_naming_the_side_that_wins_and_the_other_one_is_kept(sites, winner, loser):
    scene = sites()
    files = split(scene)
    before = both_refuse(scene)
    winning, losing = scene.sites[winner], scene.sites[loser]

    assert winning.refused("job", "resync", "db", "--authoritative", "nobody", "-y")["code"] == "no-such-side"
    error = winning.refused("job", "resync", "db", "--authoritative", winner, "-y")
    assert (error["code"], error["exit"]) == ("not-allowed", 5) and f"on {loser}" in error["hint"]
    plan = losing.qrep("job", "resync", "db", "--authoritative", winner, "-n")
    assert plan["changed"] > 30000
    answer = losing.qrep("job", "resync", "db", "--authoritative", winner, "-y")
    assert answer["loser"] == "here" and answer["changed"] == plan["changed"]
    scene.idle(winner)
    scene.equal()
    scene.files = files[winner]
    scene.holds(winner)
    assert losing.qrep("volume", "show", "db")["role"] == "replica" and winning.job()["problem"] is None

    (kept,) = [point for point in losing.qrep("snapshot", "db") if not point["current"]]
    losing.qrep("snapshot", "rollback", f"db@{kept['point']}", "-y")
    assert b3sum(scene.device[loser]) == before[loser], "what only the losing side had"
    winning.run()
    scene.equal()


@pytest.mark.slow
def test_hosts_that_allow_it_switch_back_and_forth_by_one_command_each(sites):
    scene = sites(switch=True)
    scene.write("site-a", "second", b"2" * 5000)
    assert scene.b.qrep("job", "promote", "db", "-n")["would"] == "ask"
    assert scene.b.qrep("job", "promote", "db", "-y")["what"] == "planned"
    scene.equal()
    scene.holds("site-b")
    scene.write("site-b", "third", b"3" * 5000)
    assert scene.a.qrep("job", "promote", "db", "-y")["what"] == "planned"
    scene.equal()
    scene.holds("site-a")
    assert [agent.qrep("status", "db")["jobs"][0]["role"] for agent in (scene.a, scene.b)] == ["source", "target"]
    scene.write("site-a", "fourth", b"4" * 5000)
    scene.sync("site-a", "site-b")


@pytest.mark.slow
def test_a_demoted_source_takes_back_what_it_gave_up_and_the_other_side_cannot_then_take_over(sites):
    scene = sites()
    scene.a.qrep("job", "demote", "db", "-y")
    assert scene.a.refused("job", "demote", "db", "-y")["code"] == "already-replica"
    scene.a.qrep("job", "promote", "db", "-y")
    assert scene.b.refused("job", "promote", "db", "-y")["code"] == "source-answers"
    scene.write("site-a", "second", b"2" * 5000)
    scene.sync("site-a", "site-b")


@pytest.mark.slow
@pytest.mark.parametrize("all_of_it", [True, False], ids=["the whole host", "only who decides, and the front goes on"])
def test_force_takes_over_while_a_planned_promote_waits_for_a_source_that_hangs(sites, all_of_it):
    scene = sites(switch=True)
    client, source = scene.b.client(), scene.a.process.pid
    stopped = [source, *map(int, pathlib.Path(f"/proc/{source}/task/{source}/children").read_text().split())] if all_of_it else [source]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        planned = client.post("/jobs/db/promote", {})["id"]
        assert scene.b.refused("job", "promote", "db", "-y")["code"] == "busy"
        began = time.monotonic()
        assert scene.b.qrep("job", "promote", "db", "--force", "-y")["what"] == "forced"
        assert time.monotonic() - began < 50, "a question to the source may take 30 s"
        wait_until(lambda: client.get(f"/tasks/{planned}")["state"] == "failed", seconds=40)
        error = client.get(f"/tasks/{planned}")["error"]
        assert error["code"] == "ended" and "--force" in error["message"] and error["hint"]
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
    assert scene.b.qrep("volume", "show", "db")["role"] == "primary"
    scene.holds("site-b")
    wait_until(lambda: scene.a.call("job", "show", "db")[0] == 0, seconds=60)
    both_refuse(scene)
