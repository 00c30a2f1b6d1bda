"""Shaping groups with real agents over TLS: shares, rates that change while a run goes on, hours that end, and the limit of the node."""

import struct
import time
from datetime import UTC, datetime, timedelta

import pytest
from agents import MIB, wait_until

pytestmark = [pytest.mark.root, pytest.mark.alone]
KIB = 1 << 10
BROKEN = {"run-interrupted", "run-resumed", "run-failed"}


@pytest.fixture
def replicas(agents, loop_device, fill):
    """replicas({name: MiB}, *job options, **options of the agents) -> (site-a, site-b), with a job of each name, full of data and not yet run."""

    def make(sizes, *options, **environment):
        a, b = agents.pair(**environment)
        for name, size in sizes.items():
            source, target = loop_device(size * MIB), loop_device(size * MIB)
            fill(source, size * MIB)
            a.qrep("volume", "add", name, source)
            b.qrep("volume", "add", name, target, "--accept", "site-a")
            a.qrep("job", "create", name, "--source", name, "--target", f"site-b:{name}", *options)
        return a, b

    return make


def sent(agent, name):
    """Bytes that a run has sent; of one that ended, all."""
    job = agent.job(name)
    if job["state"] == "idle" and job["last_run"]:
        return job["last_run"]["sent"]
    return (job["progress"] or {}).get("sent", 0)


def is_idle(agent, *names):
    return all(agent.job(name)["state"] == "idle" and agent.job(name)["last_run"] for name in names)


def test_two_jobs_share_a_group_and_one_takes_over_when_the_other_has_ended(replicas):
    a, _b = replicas({"db": 40, "web": 8})
    a.qrep("shape", "set", "office", "--peak", "8M")
    for name, connections in (("db", 1), ("web", 4)):
        a.qrep("job", "set", name, "--shape", "office", "--connections", connections)
    a.qrep("start", "db", "web")
    wait_until(lambda: sent(a, "db") > MIB and sent(a, "web") > MIB)
    job = a.job("db")
    assert job["limit"] == {"rate_bytes_per_s": 8 * MIB, "why": "shape office: peak 8 MiB/s", "shape": "office", "shared_with": ["web"]}
    assert "<= 8 MiB/s office" in a.text("status")[0]
    assert "  shape office: peak 8 MiB/s, shared with web\n" in a.text("status", "db")[0]
    before = {name: sent(a, name) for name in ("db", "web")}
    wait_until(lambda: sent(a, "web") >= 6 * MIB)
    during = {name: sent(a, name) - before[name] for name in ("db", "web")}
    # Alike, though one has four connections and the other one; the two were not asked at the same moment.
    assert 0.5 < during["db"] / during["web"] < 2
    wait_until(lambda: is_idle(a, "web"))
    fastest, last = 0, (time.monotonic(), sent(a, "db"))
    while not is_idle(a, "db"):
        time.sleep(0.5)
        now = (time.monotonic(), sent(a, "db"))
        fastest, last = max(fastest, (now[1] - last[1]) / (now[0] - last[0])), now
    assert fastest > 5 * MIB  # alone it has 8, and half of it before
    assert not BROKEN & set(a.codes())


def test_a_rate_that_changes_counts_for_the_run_that_goes_on_and_costs_no_connection(replicas):
    a, _b = replicas({"db": 24})
    a.qrep("shape", "set", "office", "--peak", "256K")  # 96 s
    a.qrep("job", "set", "db", "--shape", "office")
    a.qrep("start", "db")
    wait_until(lambda: sent(a, "db") > 256 * KIB)
    a.qrep("shape", "set", "office", "--peak", "1G")
    wait_until(lambda: is_idle(a, "db"))
    assert [event["code"] for event in a.events() if event["code"].startswith("shape-")] == ["shape-changed"] * 2
    assert not BROKEN & set(a.codes()) and a.codes().count("run-committed") == 1


def test_a_job_that_is_taken_out_of_its_group_has_its_rate_no_longer_at_once(replicas):
    a, _b = replicas({"db": 24})
    a.qrep("shape", "set", "office", "--peak", "256K")
    a.qrep("job", "set", "db", "--shape", "office")
    a.qrep("start", "db")
    wait_until(lambda: sent(a, "db") > 256 * KIB)
    error = a.refused("shape", "delete", "office")
    assert (error["code"], error["exit"]) == ("shape-in-use", 5) and "job db" in error["message"]
    a.qrep("job", "set", "db", "--shape", "none")
    wait_until(lambda: is_idle(a, "db"))
    assert a.job()["limit"] is None and not BROKEN & set(a.codes())
    assert a.qrep("shape", "delete", "office", "-n") == {"would_delete": "office"} and a.qrep("shape")["shapes"]
    a.qrep("shape", "delete", "office")
    assert not a.qrep("shape")["shapes"] and a.codes()[-1] == "shape-deleted"
    assert a.refused("job", "set", "db", "--shape", "office")["code"] == "no-such-shape"


def zone_file(path, offset_s):
    """A time zone that is so many seconds east of Greenwich, in the format of tzfile(5)."""
    block = struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbB", offset_s, 0, 0) + b"LMT\0"
    path.write_bytes((b"TZif2" + bytes(15) + block) * 2 + b"\n\n")
    return str(path)


@pytest.mark.slow
def test_peak_hours_that_end_while_a_run_goes_on_set_it_free(agents, loop_device, fill, memory_dir):
    source, target = loop_device(24 * MIB), loop_device(24 * MIB)
    fill(source, 24 * MIB)
    # Hours are whole minutes: the clock on this wall is set so that one ends some seconds from now.
    offset = timedelta(seconds=45 - datetime.now(UTC).second)
    agent = agents.agent("one", start=False)
    agent.start(TZ=zone_file(memory_dir / "zone", int(offset.total_seconds())))
    agent.qrep("volume", "add", "here", source)
    agent.qrep("volume", "add", "there", target)
    ends = (datetime.now(UTC) + offset + timedelta(seconds=66)).strftime("%H:%M")  # the next minute, or the one after if that is too near
    begins = f"{(int(ends[:2]) - 2) % 24:02}{ends[2:]}"
    shape = agent.qrep("shape", "set", "office", "--peak", "256K", "--hours", f"{begins}-{ends}", "--off-peak", "unlimited")
    assert shape["is_peak"] and shape["rate_bytes_per_s"] == 256 * KIB and f"until {ends}" in shape["why"]
    agent.qrep("job", "create", "db", "--source", "here", "--target", "there", "--shape", "office")
    agent.qrep("start", "db")
    wait_until(lambda: is_idle(agent, "db"), 90)  # at 256 KiB/s it would take 96 s
    switched = agent.events("shape-switched")
    assert len(switched) == 1 and switched[0]["data"]["peak"] is False and switched[0]["data"]["rate_bytes_per_s"] is None
    border, switch = datetime.fromisoformat(shape["until"]), datetime.fromisoformat(switched[0]["time"])
    assert border <= switch and not BROKEN & set(agent.codes())
    assert [code for code in agent.codes() if code in ("run-started", "shape-switched", "run-committed")] == ["run-started", "shape-switched", "run-committed"]
    assert agent.job()["limit"]["rate_bytes_per_s"] is None and agent.job()["limit"]["why"].startswith("shape office: off-peak unlimited, until ")


def test_the_limit_of_the_node_is_above_the_groups_and_is_changed_while_runs_go_on(replicas, agents):
    a, _b = replicas({"db": 12, "web": 12})
    (a.config / "qrep.toml").write_text("# by hand\n" + (a.config / "qrep.toml").read_text())
    for name in ("db", "web"):
        a.qrep("shape", "set", f"of-{name}", "--peak", "1G")
        a.qrep("job", "set", name, "--shape", f"of-{name}")
    assert a.qrep("shape", "node", "2M") == {"rate_bytes_per_s": 2 * MIB}
    began = time.monotonic()
    a.qrep("start", "db", "web")
    wait_until(lambda: sent(a, "db") > MIB and sent(a, "web") > MIB)
    moved = sent(a, "db") + sent(a, "web")
    assert moved <= 2 * MIB * (time.monotonic() - began + 0.1) + MIB
    assert a.job("db")["limit"] | {"shared_with": None} == {
        "rate_bytes_per_s": 2 * MIB, "why": "node: 2 MiB/s for all jobs; shape of-db: peak 1 GiB/s", "shape": "of-db", "shared_with": None,
    }  # fmt: skip
    text = (a.config / "qrep.toml").read_text()
    assert text.startswith("# by hand\n") and text.endswith('\n[limits]\nrate = "2M"\n')
    assert a.qrep("check")["problems"] == []
    assert a.qrep("shape", "node", "unlimited") == a.qrep("shape", "node") == {"rate_bytes_per_s": None}
    wait_until(lambda: is_idle(a, "db", "web"))
    assert not BROKEN & set(a.codes())
    a.qrep("shape", "node", "64K")
    a.terminate()
    a.start()
    assert a.qrep("shape", "node") == {"rate_bytes_per_s": 64 * KIB} and len(a.qrep("shape")["shapes"]) == 2


def test_an_estimate_says_how_long_it_takes_at_the_present_limit(replicas):
    a, _b = replicas({"db": 4})
    a.qrep("shape", "set", "office", "--peak", "128K")
    a.qrep("job", "set", "db", "--shape", "office")
    assert a.text("start", "db", "-n")[0] == "Would send up to 4 MiB of 4 MiB (full copy), about 32 s at the present limit.\n"
