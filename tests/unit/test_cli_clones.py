"""qrep clone and qrep job rebuild against an agent that is only its API: what a person reads, and what is asked before what cannot be undone."""

from fake_agent import Failure

ROOT = "c0" * 32
CLONE = {
    "source": "db", "target": "db-copy", "device": "/dev/vg1/db-copy", "job": "db", "state": "idle", "size": 500 << 30, "counter": 41,
    "generation": "ab" * 16, "time": "2026-11-22T00:00:03+00:00", "fuzzy": False, "root": ROOT, "progress": None, "problem": None, "last_run": None,
}  # fmt: skip
PLAN = {"job": "db", "source": "db", "volume": "db-copy", "device": "/dev/vg1/db-copy", "counter": 41, "generation": "ab" * 16}
FOUND = {
    "job": "db", "target": "site-b:logs", "generation": "cd" * 16, "counter": 42, "percent": 99.5, "differing_leaves": 3, "differing_bytes": 12288,
    "read": 500 << 30, "size": 500 << 30, "target_size": 500 << 30, "dry_run": False, "adopted_before": False, "text": "",
}  # fmt: skip


def done(result=None, error=None):
    return {"id": "0" * 16, "kind": "rebuild", "subject": "db", "state": "failed" if error else "done", "progress": None, "result": result, "error": error}


def test_a_clone_is_listed_and_shown_with_the_root_that_b3sum_finds(agent, qrep):
    agent.on("GET", "/clones", []).on("GET", "/clones/db", CLONE)
    assert "qrep clone create SOURCE TARGET" in qrep("clone").out
    agent.on("GET", "/clones", [CLONE])
    assert qrep("clone").out.splitlines()[1].split() == ["db", "db-copy", "500", "GiB", "idle", "41", "2026-11-22", "00:00"]
    shown = qrep("clone", "show", "db").out
    assert f"root        {ROOT}  (b3sum of /dev/vg1/db-copy)" in shown and "qrep clone convert db" in shown
    agent.on("GET", "/clones/db", CLONE | {"counter": None, "time": None, "root": None})
    assert "next    qrep clone start db" in qrep("clone", "show", "db").out


def test_a_clone_is_made_of_two_volumes_and_asks_before_it_overwrites_what_is_there(agent, qrep):
    made = {"name": "db", "mode": "clone", "source": "db", "target": "db-copy", "size": 500 << 30, "full": True, "via": None, "notes": []}
    agent.on("POST", "/clones", lambda body, _query: made if body["overwrite"] else Failure("signature", 5, "target /dev/vg1/db-copy carries ext4"))
    refused = qrep("clone", "create", "db", "db-copy")
    assert refused.code == 5 and "carries ext4 The first start overwrites it." in refused.err
    assert qrep("clone", "create", "db", "db-copy", "-y").out == (
        "Created clone: db -> db-copy\n  first run: full copy, 500 GiB\nNext: qrep clone start db\n"
    )
    assert agent.bodies("POST", "/clones")[-1] == {"source": "db", "target": "db-copy", "overwrite": True, "dry_run": False}


def test_convert_says_that_it_cannot_be_undone_and_then_what_to_do(agent, qrep):
    agent.on("POST", "/clones/db/convert", PLAN)
    refused = qrep("clone", "convert", "db")
    assert refused.code == 5 and "This cannot be undone. db keeps tracking changes from generation 41." in refused.err
    assert [body for body in agent.bodies("POST", "/clones/db/convert") if not body.get("dry_run")] == []
    assert "This could not be undone. db would keep tracking changes" in qrep("clone", "convert", "db", "-n").out
    assert qrep("clone", "convert", "db", "-y").out == "Move the disks of vg1/db-copy to the target site, then: qrep job rebuild db --target PEER:VOLUME\n"
    assert agent.bodies("POST", "/clones/db/convert")[-1] == {}


def test_rebuild_refuses_the_wrong_volume_in_one_line_and_tells_of_what_was_changed_on_the_way(agent, qrep):
    wrong = Failure("not-the-clone", 5, "site-b:logs is not the clone of db: 3 % of it matches", "nothing was written to it").fields
    agent.on("POST", "/jobs/db/rebuild", done(error=wrong)).on("GET", f"/tasks/{'0' * 16}", done(error=wrong))
    answer = qrep("job", "rebuild", "db", "--target", "site-b:logs")
    assert (answer.code, answer.err.splitlines()[0]) == (5, "refused: site-b:logs is not the clone of db: 3 % of it matches")
    assert agent.bodies("POST", "/jobs/db/rebuild") == [{"target": "site-b:logs", "dry_run": False}]

    texts = {}
    for name, fields in (("changed", {}), ("would", {"dry_run": True}), ("same", {"differing_leaves": 0}), ("before", {"adopted_before": True})):
        agent.on("POST", "/jobs/db/rebuild", done(FOUND | fields)).on("GET", f"/tasks/{'0' * 16}", done(FOUND | fields))
        texts[name] = qrep("job", "rebuild", "db", "--target", "site-b:logs").out
    assert "3 leaves (12 KiB) were changed on the way, 99.50 % of its data is as it was. What it holds now is sync point 42" in texts["changed"]
    assert "would be sync point 42" in texts["would"] and texts["would"].endswith("Next: qrep job rebuild db --target site-b:logs\n")
    assert "Every byte is as it was" in texts["same"] and texts["same"].endswith("Next: qrep start db\n")
    assert texts["before"] == "site-b:logs holds generation 42 of db already.\nNext: qrep start db\n"
