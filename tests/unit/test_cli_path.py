"""qrep path, and the paths in status, against an agent that is only its API."""

from fake_agent import JOB, PROGRESS, Failure

UP = {
    "job": "db", "number": 1, "from": "auto", "to": "10.0.1.2", "source": "10.0.1.1", "state": "up", "active": True, "in_use": True, "preferred": True,
    "since": None, "reason": "", "failures": 0, "returns_in_seconds": None,
    "connections": [{"number": number, "state": "up", "sent": 1 << 30, "rate_bytes_per_s": rate << 20, "text": None} for number, rate in ((1, 412), (2, 400))],
}  # fmt: skip
STANDBY = UP | {"number": 2, "from": "10.0.2.1", "source": "10.0.2.1", "to": "10.0.2.2", "active": False, "in_use": False, "preferred": False, "connections": []}
DOWN = UP | {
    "state": "down", "since": "2026-11-22T02:41:00+00:00", "reason": "10.0.1.2:7414: No route to host", "active": False, "in_use": False,
    "failures": 1, "connections": [],
}  # fmt: skip


def test_a_noun_alone_lists_the_paths_of_all_jobs(agent, qrep):
    agent.on("GET", "/paths", [DOWN, STANDBY | {"active": True, "in_use": True}, UP | {"job": "web", "in_use": False, "connections": []}])
    assert qrep("path").out.splitlines() == [
        "PATH     FROM -> TO                   STATE",
        "db/1     auto (10.0.1.1) -> 10.0.1.2  down   since 2026-11-22 02:41: 10.0.1.2:7414: No route to host",
        "db/2 *   10.0.2.1 -> 10.0.2.2         up     connected",
        "web/1 *  auto (10.0.1.1) -> 10.0.1.2  up     idle",
    ]
    agent.on("GET", "/paths", [])
    assert "no job has a target on another host" in qrep("path").out


def test_status_of_a_job_has_a_line_for_each_path(agent, qrep):
    job = JOB | {"state": "syncing", "progress": PROGRESS, "paths": [UP, STANDBY], "path": {"active": 1, "total": 2, "connections": 2, "ok": True}}
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [job]})
    lines = [line for line in qrep("status", "db").out.splitlines() if line.startswith("  path")]
    assert lines == [
        "  path 1 *  10.0.1.1 -> 10.0.1.2  up  2 connections  412 + 400 MiB/s",
        "  path 2    10.0.2.1 -> 10.0.2.2  up  standby",
    ]
    back = UP | {"active": False, "in_use": False, "connections": [], "returns_in_seconds": 12.4}
    job |= {"paths": [back, STANDBY | {"active": True, "in_use": True}], "state": "degraded"}
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [job]})
    assert "returned to in 12 s if it stays well" in qrep("status", "db").out
    assert "degraded 63%" in qrep("status").out


def test_path_show_says_everything_about_one(agent, qrep):
    agent.on("GET", "/jobs/db/paths/1", DOWN)
    assert qrep("path", "show", "db/1").out.splitlines() == [
        "db/1",
        "  from       auto, which is 10.0.1.1",
        "  to         10.0.1.2",
        "  state      down, since 2026-11-22 02:41",
        "  why        10.0.1.2:7414: No route to host",
        "  active     no",
        "  preferred  yes",
        "  failures   1",
    ]


def test_path_add_says_whether_it_answers(agent, qrep):
    added = {"job": "db", "number": 2, "from": "10.0.2.1", "to": "10.0.2.2", "source": "10.0.2.1", "reason": ""}
    agent.on("POST", "/jobs/db/paths", [added])
    assert qrep("path", "add", "db", "--from", "10.0.2.1", "--to", "10.0.2.2").out == "Added db/2: 10.0.2.1 -> 10.0.2.2, which answers\n"
    assert agent.bodies("POST", "/jobs/db/paths") == [{"from": "10.0.2.1", "to": "10.0.2.2", "dry_run": False}]
    agent.on("POST", "/jobs/db/paths", [added | {"from": "auto", "source": None, "reason": "10.0.2.2:7414: timed out"}])
    assert qrep("path", "add", "db", "--to", "10.0.2.2", "-n").out == "Would add db/2: auto -> 10.0.2.2\n  it does not answer now: 10.0.2.2:7414: timed out\n"
    assert agent.bodies("POST", "/jobs/db/paths")[-1] == {"from": "auto", "to": "10.0.2.2", "dry_run": True}
    agent.on("POST", "/jobs/db/paths", Failure("not-our-address", 2, "10.9.9.9 is no address of this host", "--from auto"))
    answer = qrep("path", "add", "db", "--from", "10.9.9.9", "--to", "10.0.2.2")
    assert (answer.code, answer.err) == (2, "qrep: 10.9.9.9 is no address of this host\n  action: --from auto\n")


def test_path_use_says_whether_a_run_moves(agent, qrep):
    done = {"job": "db", "number": 2, "from": "auto", "to": "10.0.2.2", "source": "10.0.2.1", "moves": True}
    agent.on("POST", "/jobs/db/paths/2/use", done)
    assert qrep("path", "use", "db/2").out == "db prefers path 2: auto (10.0.2.1) -> 10.0.2.2; the run moves there\n"
    assert qrep("path", "use", "db/2", "-n").out == "db would prefer path 2: auto (10.0.2.1) -> 10.0.2.2; the run would move there\n"
    assert agent.bodies("POST", "/jobs/db/paths/2/use") == [{"dry_run": False}, {"dry_run": True}]


def test_path_remove_can_be_tried_first(agent, qrep):
    agent.on("GET", "/jobs/db/paths/2", STANDBY).on("DELETE", "/jobs/db/paths/2", {"job": "db", "number": 2, "from": "auto", "to": "10.0.2.2"})
    assert qrep("path", "remove", "db/2", "-n").out == "Would remove db/2: 10.0.2.1 -> 10.0.2.2\n"
    assert not agent.bodies("DELETE", "/jobs/db/paths/2")
    assert qrep("path", "remove", "db/2").out == "Removed db/2: auto -> 10.0.2.2\n"


def test_what_names_no_path_is_a_mistake_in_the_command(qrep):
    for word in ("db", "db/", "/1", "db/x", "db/-1", "db/1/2"):
        answer = qrep("path", "show", word)
        assert answer.code == 2 and "names no path" in answer.err, word


def test_job_create_takes_the_first_path(agent, qrep):
    agent.on("POST", "/jobs", {"name": "db", "mode": "async", "source": "db", "target": "site-b:db", "size": 1 << 30, "via": "10.0.1.1 -> 10.0.1.2"})
    out = qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--from", "10.0.1.1", "--to", "10.0.1.2").out
    assert out.splitlines()[0] == "Created job db (async): db -> site-b:db via 10.0.1.1 -> 10.0.1.2"
    body = agent.bodies("POST", "/jobs")[0]
    assert (body["from"], body["to"]) == ("10.0.1.1", "10.0.1.2")
