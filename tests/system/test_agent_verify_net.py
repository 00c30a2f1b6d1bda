"""qrep verify between two hosts joined by a cable: what crosses it, an end that goes away in the middle, a schedule, and repair."""

import os

import pytest
from agents import MIB, b3sum, wait_until
from cables import Cables
from system.hosts import two_hosts

pytestmark = pytest.mark.root
SIZE, LEAF = 16 * MIB, 4096


@pytest.fixture
def hosts(agents, loop_device, fill):
    """(site-a, site-b, cables, source, target), job db with one sync point."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, 14 * MIB)
    with Cables([0]) as cables:
        a, b = two_hosts(agents, cables)
        a.qrep("volume", "add", "db", source, "--granule", "1M")
        b.qrep("volume", "add", "db", target, "--granule", "1M", "--accept", "site-a")
        a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db")
        a.run()
        yield a, b, cables, source, target


def damage(target, *leaves):
    """Behind the agent's back: the loop device is claimed, its backing file is not."""
    with open(target.backing, "r+b") as file:
        for leaf in leaves:
            os.pwrite(file.fileno(), b"rot", leaf * LEAF + 9)
        os.fsync(file.fileno())


def places(result, kind="differences"):
    return [place["offset"] // LEAF for place in result[kind]]


def test_a_verify_survives_its_peer_says_exactly_what_is_wrong_and_heals_it(hosts):
    a, b, cables, source, target = hosts
    right, before = b3sum(target.backing), cables.sent(0)
    result = a.qrep("verify", "db", "--independent")
    crossed = cables.sent(0) - before
    assert result["equal"] and result["wire"]["digests"] == 1 and result["root"] == result["target_root"] == right
    print(f"{crossed} bytes left site-a, with TLS, heartbeats and the progress of {SIZE >> 20} MiB")
    assert crossed < 100_000
    damage(target, 5, 1000, SIZE // LEAF - 1)
    a.qrep("job", "set", "db", "--verify-rate", "4M")
    task = a.client().post("/jobs/db/verify", {})
    wait_until(lambda: (a.job()["progress"] or {}).get("percent", 0) > 10)
    assert a.job()["state"] == "verifying"
    assert a.refused("start", "db")["code"] == "busy"
    b.kill()  # in the middle of it
    wait_until(lambda: a.client().get(f"/tasks/{task['id']}")["state"] not in ("running", "queued"), seconds=30)
    b.start()
    assert a.events("verify-failed")
    code, result, _err = a.call("verify", "db", "--rate", "1G")
    assert code == 6 and result["resumed"] and places(result) == places(result, "target_damage") == [5, 1000, SIZE // LEAF - 1]
    assert result["read"]["target"] <= SIZE
    job = a.job()
    assert job["problem"]["code"] == "sides-differ" and "--repair" in job["problem"]["action"] and job["verify"]["last"]["different_bytes"] == 3 * LEAF
    assert "qrep_job_verify_differing_bytes{qrep_job=\"db\"} 12288" in a.text("metrics")[0]
    code, result, _err = a.call("verify", "db", "--rate", "1G", "--repair", "-y")
    assert code == 0 and result["equal"] and result["repair"]["healed_leaves"] == 3 and b3sum(target.backing) == right
    assert a.job()["problem"] is None and a.job()["counter"] == 1, "healed in place: no new generation"
    assert a.run()["changed"] == 0


@pytest.mark.slow
def test_a_verify_by_its_schedule_lets_a_run_go_first_and_tells_what_it_finds(hosts):
    a, _b, _cables, source, target = hosts
    damage(target, 3000)
    a.qrep("job", "set", "db", "--verify-schedule", "every 2s", "--verify-rate", "2M")
    wait_until(lambda: a.job()["state"] == "verifying")
    a.qrep("job", "set", "db", "--verify-schedule", "0 0 1 1 *", "--schedule", "every 2s")
    wait_until(lambda: "verify-gave-way" in a.codes() and a.job()["counter"] >= 2, seconds=60)
    a.qrep("job", "set", "db", "--schedule", "none", "--verify-rate", "none")
    wait_until(lambda: a.events("verify-differs"), seconds=60)
    assert [place["offset"] // LEAF for place in a.events("verify-differs")[0]["data"]["extents"]] == [3000]
    assert a.codes().count("verify-started") >= 2
    out, _code = a.text("status", "db")
    assert "the target does not hold its last sync point" in out and "action:" in out and "next 20" in out
    wait_until(lambda: a.job()["state"] == "idle")
    assert a.run()["root"] == b3sum(source) == b3sum(target.backing) and a.qrep("verify", "db")["equal"]
