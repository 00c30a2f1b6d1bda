"""qrep reload and qrep metrics, as a person or a script calls them."""

import json

PROBLEM = {"file": "/etc/qrep/qrep.toml", "line": 4, "place": "node.prot", "message": "unknown key", "hint": "did you mean port?"}
NOTHING = {"changes": [], "restart": [], "failed": [], "problems": []}


def test_a_reload_tells_what_changed_what_waits_and_what_could_not_be_done(agent, qrep):
    agent.on("POST", "/reload", NOTHING)
    assert (qrep("reload").out, qrep("reload").code) == ("nothing changed\n", 0)
    answer = NOTHING | {
        "changes": [{"kind": "job", "name": "db", "what": "changed", "fields": ["rpo", "shape"]}, {"kind": "peer", "name": "b", "what": "added", "fields": []}],
        "restart": ["node.port changed"],
    }  # fmt: skip
    agent.on("POST", "/reload", answer)
    told = qrep("reload")
    assert told.code == 0
    assert told.out.splitlines() == ["job db: rpo, shape changed", "peer b added", "node.port: counts from the next start of the agent on"]
    failed = {"change": "job db: source", "code": "busy", "exit": 5, "message": "db is running already", "hint": "qrep stop db"}
    agent.on("POST", "/reload", NOTHING | {"failed": [failed]})
    told = qrep("reload")
    assert (told.code, told.out) == (3, "job db: source: not done: db is running already\n  action: qrep stop db\n")


def test_errors_in_files_are_all_told_and_end_in_2(agent, qrep):
    agent.on("POST", "/reload", NOTHING | {"problems": [PROBLEM, PROBLEM | {"line": None, "place": "", "message": "\x1b[2J", "hint": ""}]})
    told = qrep("reload")
    assert told.code == 2 and told.err == "qrep: nothing was changed\n"
    assert told.out.splitlines() == ["/etc/qrep/qrep.toml:4: node.prot: unknown key", "  action: did you mean port?", "/etc/qrep/qrep.toml: \\x1b[2J"]
    assert json.loads(qrep("reload", "--json").out)["problems"][0] == PROBLEM


def test_a_dry_run_asks_for_one_and_says_so(agent, qrep):
    agent.on("POST", "/reload", NOTHING)
    assert "dry run" in qrep("reload", "-n").err
    assert agent.bodies("POST", "/reload") == [{"dry_run": True}]


def test_metrics_without_an_agent_end_in_4_and_leave_a_file_as_it_is(tmp_path, monkeypatch, qrep):
    monkeypatch.setenv("QREP_SOCKET", str(tmp_path / "nobody"))
    kept = tmp_path / "qrep.prom"
    kept.write_text("old\n")
    assert qrep("metrics").code == qrep("metrics", "--textfile", str(kept)).code == 4
    assert kept.read_text() == "old\n"
