"""qrep shape, and what shapes add to other commands, against an agent that is only its API."""

from fake_agent import JOB, PROGRESS, SHAPE, Failure


def test_shapes_are_listed_with_the_rate_in_force(agent, qrep):
    night = SHAPE | {"name": "night", "hours": [], "peak_bytes_per_s": None, "rate_bytes_per_s": None, "until": None, "jobs": []}
    agent.on("GET", "/shapes", [SHAPE, night]).on("GET", "/limit", {"rate_bytes_per_s": 2 << 30})
    assert qrep("shape").out.splitlines() == [
        "SHAPE   NOW        PEAK       HOURS                OFF-PEAK   JOBS", "office  1 GiB/s    1 GiB/s    mon-fri 07:00-19:00  unlimited  db, web",
        "night   unlimited  unlimited  always               -          -", "", "node: 2 GiB/s for all jobs together",
    ]  # fmt: skip
    agent.on("GET", "/shapes", []).on("GET", "/limit", {"rate_bytes_per_s": None})
    assert qrep("shape").out == "no shapes\n  action: qrep shape set GROUP --peak RATE\n"


def test_shape_set_says_only_what_was_said(agent, qrep):
    agent.on("PATCH", "/shapes/office", SHAPE)
    answer = qrep("shape", "set", "office", "--peak", "1G", "--hours", "mon-fri 07:00-19:00", "--hours", "sat")
    assert answer.out.splitlines() == [
        "office", "  peak      1 GiB/s  mon-fri 07:00-19:00", "  off-peak  unlimited", "  now       1 GiB/s  peak, until 2026-11-23 19:00",
        "  jobs      db, web",
    ]  # fmt: skip
    assert qrep("shape", "set", "office", "--hours", "always", "--off-peak", "2G", "-n").out.startswith("Would be: office\n")
    assert agent.bodies("PATCH", "/shapes/office") == [
        {"peak": "1G", "hours": ["mon-fri 07:00-19:00", "sat"], "dry_run": False}, {"hours": [], "off_peak": "2G", "dry_run": True},
    ]  # fmt: skip


def test_shape_show_delete_and_node(agent, qrep):
    refusal = Failure("shape-in-use", 5, "shape office is used by jobs db, web", "qrep job set db --shape none, or another shape")
    agent.on("GET", "/shapes/office", SHAPE).on("DELETE", "/shapes/office", refusal).on("DELETE", "/shapes/old", {"deleted": "old"})
    assert qrep("shape", "show", "office").out.startswith("office\n")
    answer = qrep("shape", "delete", "office")
    assert (answer.code, answer.err.splitlines()[0]) == (5, "refused: shape office is used by jobs db, web")
    assert qrep("shape", "delete", "old").out == "old: deleted\n" and qrep("shape", "delete", "old", "-n").out == "old: would be deleted\n"
    assert [query for method, _path, _body, query in agent.asked if method == "DELETE"] == [{}, {}, {"dry_run": ["1"]}]
    agent.on("GET", "/limit", {"rate_bytes_per_s": None}).on("PATCH", "/limit", {"rate_bytes_per_s": 50 << 20})
    assert qrep("shape", "node").out == "node: unlimited for all jobs together\n"
    assert qrep("shape", "node", "50M").out == "node: 50 MiB/s for all jobs together\n"
    assert qrep("shape", "node", "50M", "-n").out == "node would have: 50 MiB/s for all jobs together\n"
    assert agent.bodies("PATCH", "/limit") == [{"rate": "50M", "dry_run": False}, {"rate": "50M", "dry_run": True}]


def test_a_job_is_put_into_a_group_and_taken_out_of_it(agent, qrep):
    agent.on("PATCH", "/jobs/db", JOB | {"shape": "office"})
    assert "  shape            office\n" in qrep("job", "set", "db", "--shape", "office").out
    qrep("job", "set", "db", "--shape", "none")
    assert agent.bodies("PATCH", "/jobs/db") == [{"shape": "office"}, {"shape": ""}]


def test_status_shows_the_limit_and_why(agent, qrep):
    limit = {"rate_bytes_per_s": 1 << 30, "why": "shape office: peak 1 GiB/s mon-fri 07:00-19:00, until 19:00", "shape": "office", "shared_with": ["web"]}
    busy = JOB | {"state": "syncing", "progress": PROGRESS, "rate_bytes_per_s": 812 << 20, "limit": limit}
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [busy]})
    assert qrep("status").out.splitlines()[1].endswith("  812 MiB/s <= 1 GiB/s office")
    assert "  shape office: peak 1 GiB/s mon-fri 07:00-19:00, until 19:00, shared with web" in qrep("status", "db").out.splitlines()
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [busy | {"limit": limit | {"shape": None, "why": "node: 1 GiB/s for all jobs", "shared_with": []}}]})
    assert qrep("status").out.splitlines()[1].endswith("  812 MiB/s <= 1 GiB/s")
    assert "  node: 1 GiB/s for all jobs" in qrep("status", "db").out.splitlines()


def test_an_estimate_without_a_limit_is_reckoned_with_the_last_run(agent, qrep):
    estimate = {"would_send": 3 << 30, "size": 500 << 30, "full": False, "changed_since": None, "seconds": 64, "limit_bytes_per_s": None}
    agent.task("GET", "/jobs/db/estimate", result=estimate)
    assert qrep("start", "db", "-n").out == "Would send 3 GiB of 500 GiB, about 1 min 04 s at the speed of the last run.\n"
