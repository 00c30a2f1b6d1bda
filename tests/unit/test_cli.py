"""The everyday commands against an agent that is only its API: what is asked, what is shown, how it ends."""

import json

import pytest
from fake_agent import FINGERPRINT, JOB, PROGRESS, VOLUME, Failure

ROOT = "c0" * 32
RUN = {"counter": 42, "sent": 3 << 20, "size": 500 << 30, "seconds": 64, "resumed": False, "fuzzy": False, "root": ROOT}


def running(**changes):
    return JOB | {"state": "syncing", "progress": PROGRESS, "rate_bytes_per_s": 812 << 20} | changes


def test_status_shows_a_line_for_every_job_and_what_to_do_about_those_that_are_not_fine(agent, qrep):
    problem = {"code": "path-down", "text": "path 1 is down since 02:41", "action": "check the link; nothing is out of sync."}
    jobs = [running(), JOB | {"name": "mail", "state": "degraded", "problem": problem, "path": {"active": 2, "total": 2, "connections": 1, "ok": False}}]
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": jobs})
    answer = qrep("status")
    assert answer.code == 0
    assert answer.out.splitlines() == [
        "JOB   MODE   STATE        SOURCE -> TARGET  LAST SYNC POINT   LAG    PATH    RATE",
        "db    async  syncing 63%  db -> site-b:db   2026-11-22 00:00  3h12m  1/1 x2  812 MiB/s",
        "mail  async  degraded     db -> site-b:db   2026-11-22 00:00  3h12m  2/2 !   -",
        "",
        "mail: path 1 is down since 02:41",
        "      action: check the link; nothing is out of sync.",
    ]


def test_status_of_one_job_shows_where_it_would_roll_back_to_and_the_bottleneck(agent, qrep):
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [running()]})
    answer = qrep("status", "db")
    assert answer.out.splitlines()[:4] == [
        "db  async  source: this host  syncing  63.1% done, 00:03:51 to go, bottleneck: network",
        "  source  db  500 GiB",
        "  target  site-b:db  open generation on top of 2026-11-22T00:00:03 (would roll back there)",
        "  read 315 GiB  hashed 315 GiB at 4 GiB/s  changed 2 GiB  sent 19 GiB at 812 MiB/s",
    ]
    assert agent.asked[-1][3] == {"job": ["db"]}


def test_status_without_jobs_says_how_to_make_one(agent, qrep):
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": []})
    assert "action: qrep volume add" in qrep("status").out


def test_status_check_prints_only_what_is_not_fine_and_ends_in_3(agent, qrep):
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [JOB, JOB | {"name": "web", "state": "failed"}]})
    answer = qrep("status", "--check")
    assert (answer.code, answer.out.splitlines()) == (3, ["web: failed", "     action: qrep events web shows what led to it"])
    assert [job["name"] for job in json.loads(qrep("status", "--check", "--json").out)["jobs"]] == ["web"]
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [JOB]})
    assert (qrep("status", "--check").code, qrep("status", "--check").out) == (0, "all jobs are fine\n")


@pytest.mark.parametrize("arguments", [("--json", "status"), ("status", "--json"), ("status", "db", "--json")])
def test_json_is_taken_before_and_after_the_command(agent, qrep, arguments):
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [JOB]})
    assert json.loads(qrep(*arguments).out) == {"node": {"name": "a"}, "jobs": [JOB]}


@pytest.mark.parametrize("noun", ["volume", "job", "peer", "snapshot"])
def test_a_noun_alone_lists_also_as_json(agent, qrep, noun):
    agent.on("GET", "/volumes", [VOLUME | {"role": "replica"}]).on("GET", "/jobs", [JOB])
    agent.on("GET", "/volumes/db/snapshots", [{"point": "41", "time": JOB["last_sync_point"], "fuzzy": False, "undo_bytes": 4096, "current": True}])
    agent.on("GET", "/peers", [{"name": "site-b", "addresses": ["10.0.1.2"], "fingerprint": FINGERPRINT}])
    shown = {"volume": "/dev/vg0/db", "job": "site-b:db", "peer": FINGERPRINT, "snapshot": "db@41"}[noun]
    assert shown in qrep(noun).out
    assert json.loads(qrep(noun, "--json").out) == json.loads(qrep("--json", noun).out)


def test_an_empty_list_says_what_to_do(agent, qrep):
    agent.on("GET", "/volumes", []).on("GET", "/jobs", []).on("GET", "/peers", [])
    assert all("action: qrep " in qrep(noun).out for noun in ("volume", "job", "peer"))
    assert qrep("snapshot").out == "no target volumes on this host\n"


def test_start_dry_run_says_how_much_would_move_and_how_long_it_takes(agent, qrep):
    estimate = {"would_send": 31 * (1 << 30) // 10, "size": 500 << 30, "full": False, "changed_since": "2026-11-21T00:00:00+00:00", "seconds": 64,
                "limit_bytes_per_s": 50 << 20}  # fmt: skip
    agent.task("GET", "/jobs/db/estimate", result=estimate)
    assert qrep("start", "db", "-n").out == (
        "Would send 3.1 GiB of 500 GiB (changed since 2026-11-21 00:00), about 1 min 04 s at the present limit.\n"
    )
    agent.task("GET", "/jobs/db/estimate", result=estimate | {"full": True, "seconds": None})
    assert qrep("start", "db", "-n").out == "Would send up to 3.1 GiB of 500 GiB (full copy).\n"
    assert not agent.bodies("POST", "/jobs/db/start")


def test_start_returns_at_once_and_start_wait_follows_to_the_commit(agent, qrep):
    agent.task("POST", "/jobs/db/start", result=RUN, progress=[None, PROGRESS, PROGRESS])
    assert qrep("start", "db").out == "db: started\n"
    answer = qrep("start", "db", "--wait")
    assert answer.out == f"db: generation 42 committed, sent 3 MiB of 500 GiB in 1 min 04 s\n  root {ROOT}\n"
    assert json.loads(qrep("start", "db", "--wait", "--json").out)["db"]["root"] == ROOT


@pytest.mark.parametrize(("name", "code", "text"), [("unreachable", 4, "site-b does not answer"), ("interrupted", 130, "the run was stopped; start resumes it")])
def test_one_run_that_fails_or_is_stopped_does_not_hide_the_one_that_ended(agent, qrep, name, code, text):
    agent.task("POST", "/jobs/web/start", error=Failure(name, code, text))
    agent.task("POST", "/jobs/db/start", result=RUN)
    answer = qrep("start", "web", "db", "--wait")
    assert answer.code == code
    assert text in answer.err and "db: generation 42 committed" in answer.err


def test_stop_tells_what_the_agent_says(agent, qrep):
    agent.on("POST", "/jobs/db/stop", {"text": "stopped; what has been applied is kept"})
    assert qrep("stop", "db").out == "db: stopped; what has been applied is kept\n"


FOUND = {
    "equal": True, "differences": [], "source_damage": [], "map_differences": [], "counter": 41, "root": ROOT, "last_sync_point": JOB["last_sync_point"],
    "independent": True, "read": {"target": 1 << 30, "source": 0}, "source_read": False, "note": "only the target was read", "repair": None,
    "wire": {"bytes": 188, "digests": 1, "nodes": 1},
}  # fmt: skip


def test_verify_names_the_root_and_differences_end_in_6(agent, qrep):
    agent.task("POST", "/jobs/db/verify", result=FOUND)
    answer = qrep("verify", "db", "--independent", "--rate", "50M")
    assert answer.out.splitlines() == [
        "db: the two sides are equal at generation 41 (2026-11-22 00:00)",
        f"  root {ROOT}  (confirmed by the packaged blake3)",
        "  read 1 GiB of the target; compared 1 digest, 188 bytes",
        "  only the target was read",
    ]
    assert agent.bodies("POST", "/jobs/db/verify") == [{"independent": True, "rate": "50M"}]
    wrong = FOUND | {"equal": False, "differences": [{"offset": 8192, "size": 4096}]}
    agent.task("POST", "/jobs/db/verify", result=wrong)
    answer = qrep("verify", "db")
    assert answer.code == 6 and "offset 8192  size 4096" in answer.err and "action: " in answer.err and "--repair" in answer.err
    answer = qrep("verify", "db", "--json")
    assert (answer.code, json.loads(answer.out)["differences"]) == (6, [{"offset": 8192, "size": 4096}])


def test_repair_is_asked_about_and_says_what_it_healed_and_what_is_left(agent, qrep):
    place = [{"offset": 8192, "size": 4096}]
    repair = {"dry_run": False, "healed": place, "healed_leaves": 1, "left": [], "left_leaves": 0, "reasons": []}
    agent.task("POST", "/jobs/db/verify", result=FOUND | {"repair": repair})
    assert qrep("verify", "db", "--repair").code == 5 and agent.bodies("POST", "/jobs/db/verify") == []
    answer = qrep("verify", "db", "--repair", "-y")
    assert answer.code == 0 and "4 KiB in 1 place healed" in answer.out
    rest = repair | {"dry_run": True, "left": place, "reasons": [{"offset": 8192, "why": "it is gone"}]}
    agent.task("POST", "/jobs/db/verify", result=FOUND | {"equal": False, "differences": place, "repair": rest})
    answer = qrep("verify", "db", "--repair", "-n")
    assert answer.code == 6 and "would be healed" in answer.err and "offset 8192: it is gone" in answer.err


def test_events_are_lines_and_json_lines(agent, qrep):
    event = {"id": 7, "time": "2026-11-22T00:00:03+00:00", "level": "info", "code": "run-committed", "job": "db", "volume": None, "text": "generation 41", "data": {}}
    agent.on("GET", "/events", [event, b"\n", event | {"job": None, "volume": "logs"}])
    answer = qrep("events", "--since", "3h", "db")
    assert answer.out.splitlines() == [
        "2026-11-22T00:00:03  info     run-committed         db  generation 41",
        "2026-11-22T00:00:03  info     run-committed         logs  generation 41",
    ]
    assert set(agent.asked[-1][3]) == {"since", "job"}
    assert [json.loads(line)["id"] for line in qrep("events", "--json").out.splitlines()] == [7, 7]
    assert qrep("events", "--since", "soon").code == 2
