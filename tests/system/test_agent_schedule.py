"""Jobs that run by themselves: schedules, what passed while the agent was down, and how old a sync point may become."""

import contextlib
from datetime import datetime

import pytest
from agents import MIB, b3sum, wait_until

from qrep.daemon.statedb import StateDb

pytestmark = pytest.mark.root
SIZE = 8 * MIB
YEAR_S = 366 * 86400


def commits(agent):
    return agent.codes().count("run-committed")


def handled_before(agent, seconds):
    """What the database of an agent that is down would say had it been down for so long."""
    with contextlib.closing(StateDb(agent.state / "state.db")) as db:
        for job_id, record in db._found.values("timer").items():
            db.set_timer(job_id, record | {"handled": record["handled"] - seconds})


def test_a_job_runs_by_itself_again_and_again_until_its_schedule_is_taken_away(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, job=("--schedule", "every 2s"))
    wait_until(lambda: commits(a) >= 2)
    assert b3sum(target) == b3sum(source)
    fill(source, 64 << 10, 3 * MIB)
    wait_until(lambda: b3sum(target) == b3sum(source))

    job = a.job()
    assert job["schedule"] == "every 2s" and job["missed"] == "run" and len(job["next"]) == 3
    times = [datetime.fromisoformat(moment) for moment in job["next"]]
    assert [(later - earlier).seconds for earlier, later in zip(times, times[1:], strict=False)] == [2, 2]
    assert all(moment.second % 2 == 0 for moment in times)

    a.qrep("job", "set", "db", "--schedule", "none")
    wait_until(lambda: a.job()["state"] == "idle")
    before = commits(a)
    changed = a.qrep("job", "set", "db", "--schedule", "@yearly", "-n")
    assert changed["schedule"] == "@yearly" and changed["next"] and a.job()["schedule"] is None and a.job()["next"] is None
    a.qrep("job", "set", "db", "--schedule", "@yearly")
    a.qrep("job", "set", "db", "--schedule", "every 1s")  # counts at once, although the next time was months away
    wait_until(lambda: commits(a) >= before + 2)
    assert not {"run-missed", "run-failed", "clock-jumped"} & set(a.codes())


def test_times_that_come_in_a_run_start_nothing_and_are_told_once(agents, loop_device, fill):
    size = 24 * MIB
    source, target = loop_device(size), loop_device(size)
    fill(source, size)
    a, _b = agents.replica(source, target, link_rate=6 * MIB, source_volume=("--granule", "1M"))
    a.qrep("start", "db")
    wait_until(lambda: a.job()["state"] == "syncing")
    a.qrep("job", "set", "db", "--schedule", "every 1s")
    wait_until(lambda: "run-coalesced" in a.codes())
    wait_until(lambda: "run-committed" in a.codes(), 60)
    codes = a.codes()
    until_commit = codes[: codes.index("run-committed")]
    assert until_commit.count("run-coalesced") == 1 and until_commit.count("run-started") == 1
    wait_until(lambda: commits(a) >= 3)


@pytest.mark.parametrize(("missed", "runs"), [("run", 1), ("skip", 0)])
def test_a_time_that_passed_while_the_agent_was_down_runs_once_at_start_or_is_left_out(agents, loop_device, fill, missed, runs):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a = agents.agent("site-a")
    a.qrep("volume", "add", "db", source)
    a.qrep("volume", "add", "copy", target)
    a.qrep("job", "create", "db", "--source", "db", "--target", "copy", "--schedule", "@yearly; 0 1 1 1 *", "--missed", missed)
    a.terminate()
    a.start()  # nothing was missed
    a.terminate()
    handled_before(a, 2 * YEAR_S)
    a.start()
    told = wait_until(lambda: a.events("run-missed"))
    assert len(told) == 1 and told[0]["data"]["count"] in (4, 5, 6) and "while the agent was down" in told[0]["text"]
    if runs:
        wait_until(lambda: commits(a) == 1)
        assert b3sum(target) == b3sum(source)
        assert "scheduled for" in a.events("run-started")[0]["text"]
    a.terminate()
    a.start()
    assert len(a.events("run-missed")) == 1 and a.codes().count("run-started") == runs


def test_a_scheduled_run_that_is_killed_with_its_agent_is_taken_up_once(agents, loop_device, fill):
    size = 16 * MIB
    source, target = loop_device(size), loop_device(size)
    fill(source, size)
    a, _b = agents.replica(source, target, job=("--schedule", "@yearly"), link_rate=8 * MIB)
    a.terminate()
    handled_before(a, 2 * YEAR_S)
    a.start()
    wait_until(lambda: a.job()["state"] == "syncing")
    a.kill()
    a.start()
    wait_until(lambda: commits(a) == 1, 60)
    codes = a.codes()
    assert codes.count("run-missed") == 1 and codes.count("run-taken-up") == 1 and codes.count("run-started") == 2
    assert b3sum(target) == b3sum(source)


def test_a_run_that_failed_is_tried_again_at_the_next_time_without_anyone(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, job=("--timeout", "1s"))
    b.terminate()
    a.qrep("job", "set", "db", "--schedule", "every 2s")
    wait_until(lambda: a.codes().count("run-failed") >= 2, 60)
    b.start()
    wait_until(lambda: commits(a) >= 1, 60)
    assert b3sum(target) == b3sum(source)
    wait_until(lambda: a.job()["problem"] is None)


def test_an_rpo_that_is_passed_is_told_shown_with_what_to_do_and_met_again(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, job=("--rpo", "1h"))
    a.run()
    assert a.text("status", "--check")[1] == 0 and not a.job()["rpo_passed"]
    a.qrep("job", "set", "db", "--rpo", "1s")
    wait_until(lambda: "rpo-passed" in a.codes())
    job = a.job()
    assert job["rpo_passed"] and job["state"] == "idle" and job["problem"]["code"] == "rpo-passed"
    text, code = a.text("status", "--check")
    assert code == 3 and "old; the rpo is 1s" in text and "action: qrep start db" in text
    assert "no schedule" in text and "rpo     1s passed, lag " in a.text("status", "db")[0]
    a.qrep("job", "set", "db", "--rpo", "1h")
    wait_until(lambda: "rpo-met" in a.codes())
    assert a.text("status", "--check")[1] == 0
    a.qrep("job", "set", "db", "--rpo", "4s")
    wait_until(lambda: a.codes().count("rpo-passed") == 2)
    a.qrep("job", "set", "db", "--schedule", "every 1s")
    wait_until(lambda: a.codes().count("rpo-met") == 2)
    a.qrep("job", "set", "db", "--rpo", "none", "--schedule", "none")
    assert a.job()["rpo"] is None and not a.job()["rpo_passed"]


def test_times_are_those_of_the_configured_zone_and_bad_ones_are_refused_with_their_place(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    a = agents.agent("site-a", start=False)
    file = a.config / "qrep.toml"
    file.write_text(file.read_text().replace("[node]\n", '[node]\ntime_zone = "Asia/Tokyo"\n'))
    a.start()
    a.qrep("volume", "add", "db", source)
    a.qrep("volume", "add", "copy", target)
    create = ["job", "create", "db", "--source", "db", "--target", "copy"]
    error = a.refused(*create, "--schedule", "0 2 * * *; 0 25 * * *")
    assert error["exit"] == 2 and "schedule entry 2 ('0 25 * * *'): field 2, the hour: '25'" in error["message"] and "0-23" in error["hint"]
    assert a.refused(*create, "--rpo", "15")["exit"] == 2
    assert a.qrep(*create, "--schedule", "0 2 * * *", "-n")["next"][0].endswith("T02:00:00+09:00")
    text, code = a.text(*create, "--schedule", "0 2 * * *", "--rpo", "26h")
    assert code == 0 and "  schedule: 0 2 * * *, next 20" in text and " 02:00 (+09:00)" in text
    assert a.refused("job", "set", "db", "--schedule", "every 1x")["exit"] == 2
    assert all(moment.endswith("T02:00:00+09:00") for moment in a.job()["next"])
    assert a.qrep("status")["node"]["time_zone"] == "Asia/Tokyo" == a.client().get("/node")["time_zone"]
    assert "0 2 * * *, Asia/Tokyo)" in a.text("status", "db")[0]
    shown = a.text("job", "show", "db")[0]
    assert "schedule         0 2 * * *" in shown and "02:00  (+09:00)" in shown and "rpo              26h" in shown
    a.terminate()
    file.write_text(file.read_text().replace("Asia/Tokyo", "Asia/Tokio"))
    text, code = a.text("--config-dir", a.config, "check")
    assert code == 2 and "node.time_zone: 'Asia/Tokio' is no time zone" in text and "did you mean Asia/Tokyo?" in text
