"""volume, job, snapshot and peer against an agent that is only its API."""

from fake_agent import FINGERPRINT, JOB, VOLUME, Failure

ROOT = "c0" * 32


def test_volume_add_set_show_and_remove(agent, qrep):
    agent.on("POST", "/volumes", VOLUME).on("PATCH", "/volumes/db", VOLUME).on("GET", "/volumes/db", VOLUME).on("DELETE", "/volumes/db", {})
    assert qrep("volume", "add", "db", "/dev/vg0/db").out == "db  /dev/vg0/db  500 GiB  snapshots: reflink\n"
    assert agent.bodies("POST", "/volumes") == [{"name": "db", "device": "/dev/vg0/db"}]
    assert qrep("volume", "set", "db", "--accept", "site-a", "--undo-space", "100G").code == 0
    assert agent.bodies("PATCH", "/volumes/db") == [{"accept": ["site-a"], "undo_space": "100G"}]
    assert "serial" in qrep("volume", "show", "db").out
    assert "would be forgotten" in qrep("volume", "remove", "db", "-n").out
    assert not agent.bodies("DELETE", "/volumes/db")
    assert qrep("volume", "remove", "db", "-y").out == "db: removed\n"
    agent.on("GET", "/volumes/db", VOLUME | {"jobs": ["nightly"]})
    answer = qrep("volume", "remove", "db", "-y")
    assert (answer.code, answer.err) == (5, "refused: volume db is used by nightly\n  action: qrep job delete nightly\n")


def test_volume_create_says_what_it_makes_and_of_a_logical_volume_where_its_snapshots_find_space(agent, qrep):
    plan = {"name": "db", "kind": "thin", "device": "/dev/vg0/db", "size": 500 << 30, "group": "vg0", "pool": "thin"}
    thin = VOLUME | {"snapshots": {"backend": "lvm-thin", "fuzzy": False, "reason": "pool vg0/thin, 620 GiB free"}}
    agent.on("POST", "/volumes/create", lambda body, _query: plan if body.get("dry_run") else thin)
    assert qrep("volume", "create", "db", "--size", "500G", "--in", "vg0", "-n").out == (
        "Would make /dev/vg0/db, a thin volume of pool vg0/thin, 500 GiB, and call it db.\n"
    )
    made = qrep("volume", "create", "db", "--size", "500G", "--in", "vg0", "--freeze-after", "/bin/thaw -a 'b c'")
    assert made.out == "db  /dev/vg0/db  500 GiB  snapshots: lvm-thin (pool vg0/thin, 620 GiB free)\n"
    assert agent.bodies("POST", "/volumes/create")[-1] == {"name": "db", "size": "500G", "in": "vg0", "freeze_after": ["/bin/thaw", "-a", "b c"]}
    assert qrep("volume", "create", "db", "--size", "500G").code == 2
    assert qrep("volume", "set", "db", "--freeze-before", "'open").code == 2


def test_volume_set_can_take_every_peer_back_and_refuses_what_says_nothing(agent, qrep):
    agent.on("PATCH", "/volumes/db", VOLUME)
    assert qrep("volume", "set", "db", "--accept-nobody").code == 0
    assert agent.bodies("PATCH", "/volumes/db") == [{"accept": []}]
    both, nothing = qrep("volume", "set", "db", "--accept-nobody", "--accept", "site-a"), qrep("volume", "set", "db")
    assert (both.code, nothing.code) == (2, 2) and "contradict" in both.err and "nothing to change" in nothing.err
    assert len(agent.bodies("PATCH", "/volumes/db")) == 1


def test_a_volume_that_is_out_of_service_says_why_and_what_to_do(agent, qrep):
    problem = {"code": "no-such-device", "exit": 7, "message": "/dev/vg0/db: no such device", "hint": "lsblk"}
    agent.on("GET", "/volumes", [VOLUME | {"problem": problem}]).on("GET", "/volumes/db", VOLUME | {"problem": problem, "sector_size": None})
    for arguments in (("volume",), ("volume", "show", "db")):
        assert qrep(*arguments).out.splitlines()[-2:] == ["db: /dev/vg0/db: no such device", "    action: lsblk"]


def test_a_job_that_writes_here_is_shown_as_its_target_sees_it(agent, qrep):
    unknown = dict.fromkeys(("connections", "path", "rate_bytes_per_s", "last_sync_point", "lag_seconds", "counter", "generation"))
    progress = {"phase": "syncing", "percent": None, "sent": 3 << 20, "written": 2 << 20, "read": 0, "hashed": 0, "changed": 0}
    job = JOB | unknown | {"role": "target", "source": "site-a:db", "target": "db", "state": "syncing", "progress": progress}
    agent.on("GET", "/status", {"node": {"name": "b"}, "jobs": [job]})
    assert qrep("status").out.splitlines()[1].split() == ["db", "async", "syncing", "site-a:db", "->", "db", "-", "-", "-", "-"]
    assert "received 3 MiB  written 2 MiB" in qrep("status", "db").out


def test_job_create_tells_the_first_run_and_the_next_step(agent, qrep):
    made = {"name": "db", "mode": "async", "source": "db", "target": "site-b:db", "size": 500 << 30, "full": True, "via": "10.0.1.2", "notes": []}
    agent.on("POST", "/jobs", made)
    assert qrep("job", "create", "db", "--source", "db", "--target", "site-b:db").out == (
        "Created job db (async): db -> site-b:db via 10.0.1.2\n  first run: full copy, 500 GiB\nNext: qrep start db\n"
    )
    assert qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "-n").out.startswith("Would create job db")
    assert agent.bodies("POST", "/jobs")[-1]["dry_run"] is True


def test_job_create_over_a_signature_asks_and_without_a_terminal_refuses(agent, qrep):
    def create(body, _query):
        if not body["overwrite"]:
            return Failure("signature", 5, "target /dev/sdb is not qrep's and carries ext4")
        return {"name": "db", "mode": "async", "source": "db", "target": "b", "size": 1, "full": True}

    agent.on("POST", "/jobs", create)
    answer = qrep("job", "create", "db", "--source", "db", "--target", "b")
    assert answer.code == 5 and "carries ext4" in answer.err and "add -y" in answer.err
    assert [body["overwrite"] for body in agent.bodies("POST", "/jobs")] == [False]
    assert qrep("job", "create", "db", "--source", "db", "--target", "b", "-y").code == 0


def test_job_set_show_and_delete(agent, qrep):
    agent.on("PATCH", "/jobs/db", JOB).on("GET", "/jobs/db", JOB).on("DELETE", "/jobs/db", {})
    assert "generation" in qrep("job", "set", "db", "--connections", "4").out
    assert qrep("job", "set", "db", "--connections", "4", "-n").out.startswith("Would be: db\n")
    assert agent.bodies("PATCH", "/jobs/db") == [{"connections": 4}, {"connections": 4, "dry_run": True}]
    nothing = qrep("job", "set", "db")
    assert nothing.code == 2 and "nothing to change was given" in nothing.err
    assert qrep("job", "show", "db").out.startswith("db\n")
    assert "would be forgotten" in qrep("job", "delete", "db", "--dry-run").out
    assert qrep("job", "delete", "db", "--yes").out == "db: deleted\n"


def test_snapshot_verbs_name_the_point(agent, qrep):
    time = JOB["last_sync_point"]
    agent.on("GET", "/volumes/db/snapshots", [{"point": "41", "time": time, "fuzzy": True, "undo_bytes": 4096, "current": False}])
    agent.on("GET", "/volumes/db", VOLUME)
    assert qrep("snapshot", "db").out.splitlines()[1] == "db@41  2026-11-22T00:00:03  fuzzy  4 KiB"
    agent.task("POST", "/volumes/db/rollback", result={"time": time, "bytes": 8192, "counter": 43, "root": ROOT})
    assert qrep("snapshot", "rollback", "db@41", "-n").out == "db would go back to 2026-11-22T00:00:03: 8 KiB would be put back.\n"
    assert f"root as recorded {ROOT}" in qrep("snapshot", "rollback", "db@41", "-y").out
    assert qrep("snapshot", "copy", "db@41", "/tmp/x", "-n").out == "Would write 500 GiB of db@41 to /tmp/x.\n"
    there = qrep("snapshot", "copy", "db@41", __file__, "-n")
    assert there.code == 5 and there.err.startswith(f"refused: {__file__} exists"), "what it would be refused for without -y"
    agent.task("POST", "/volumes/db/copy", result={"size": 8192, "root": ROOT, "checked": True})
    assert qrep("snapshot", "copy", "db@41", "/tmp/x").out == f"/tmp/x: 8 KiB of db@41\n  root {ROOT}\n"
    agent.task("POST", "/volumes/db/copy", result={"size": 8192, "root": ROOT, "checked": False})
    assert "nothing here vouches for this content" in qrep("snapshot", "copy", "db@41", "/tmp/x").out
    agent.task("POST", "/volumes/db/delete-point", result={"deleted": ["41"], "bytes": 8192, "merged": True})
    assert qrep("snapshot", "delete", "db@41", "-n").out == "db@41: this sync point would go; the undo files around it would be merged, 8 KiB.\n"
    assert qrep("snapshot", "delete", "db@41", "-y").code == 0
    assert qrep("snapshot", "rollback", "db").code == 2
    agent.task("POST", "/volumes/db/thin", result={"keep": ["43", "41"], "gone": ["42"]})
    assert qrep("snapshot", "thin", "db", "-n").out == "1 of 3 sync points would go: db@42\n"
    assert qrep("snapshot", "thin", "db").code == 5
    assert qrep("snapshot", "thin", "db", "-y").out == "db: 1 sync points are gone, 2 are kept\n"
    agent.on("POST", "/volumes/db/snapshots", {"jobs": ["db", "db-far"]})
    assert qrep("snapshot", "create", "db@before-upgrade", "-n").out == "Would run db, db-far.\n"
    assert agent.bodies("POST", "/volumes/db/snapshots") == [{"name": "before-upgrade", "dry_run": True}]
    assert qrep("snapshot", "create", "db@").code == 2


def test_peer_add_pins_what_is_presented_and_refuses_another_fingerprint(agent, qrep):
    agent.on("POST", "/peers/look", {"fingerprint": FINGERPRINT, "address": "10.0.1.2"})
    agent.on("POST", "/peers", {"name": "site-b", "reachable": 2, "version": "1.0.0", "mutual": True}).on("DELETE", "/peers/site-b", {})
    answer = qrep("peer", "add", "site-b", "10.0.1.2,10.0.2.2", "-y")
    assert answer.out == "site-b added: 2 addresses reachable, TLS 1.3, qrep 1.0.0\n"
    assert agent.bodies("POST", "/peers") == [{"name": "site-b", "addresses": ["10.0.1.2", "10.0.2.2"], "fingerprint": FINGERPRINT}]
    assert qrep("peer", "add", "site-b", "10.0.1.2", "--fingerprint", "SHA256:00").code == 5
    assert qrep("peer", "remove", "site-b", "-y").out == "site-b: removed\n"
    assert len(agent.bodies("POST", "/peers")) == 1


def test_a_peer_whose_other_end_does_not_agree_is_told_with_what_to_do(agent, qrep):
    agent.on("PATCH", "/peers/site-b", {"name": "site-b", "trusted": True, "agreed": False})
    assert qrep("peer", "set", "site-b", "--trusted").out == (
        "site-b: its paths are trusted: data travels plain, authenticated and not encrypted\n"
        "  action: site-b says that the path is not trusted; run there: qrep peer set NAME --trusted\n"
    )
    agent.on("PATCH", "/peers/site-b", {"name": "site-b", "trusted": False, "agreed": True})
    assert qrep("peer", "set", "site-b", "--no-trusted").out == "site-b: its paths are not trusted: everything is TLS\n"
    assert agent.bodies("PATCH", "/peers/site-b") == [{"trusted": True}, {"trusted": False}]
    assert qrep("peer", "set", "site-b").code == 2
    agent.on("GET", "/peers", [{"name": "site-b", "trusted": True}])
    assert qrep("peer", "set", "site-b", "--no-trusted", "-n").out == "site-b: its paths would no longer be trusted\n"
    assert qrep("peer", "set", "site-b", "--trusted", "-n").out == "site-b: its paths are trusted already\n"


def test_a_name_that_cannot_be_one_is_refused_before_the_agent_is_asked(agent, qrep):
    for name in ("../volumes/db", "db/1", ""):
        answer = qrep("job", "show", name)
        assert answer.code == 2 and f"{name!r} cannot be a name here" in answer.err
    assert not agent.asked
