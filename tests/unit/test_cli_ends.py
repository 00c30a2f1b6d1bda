"""How commands end: exit codes, refusals without a terminal, answers on one, Ctrl-C, closed pipes, agents that are no good."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import pytest
from cli_process import COMMAND, Terminal, environment, start
from fake_agent import FINGERPRINT, JOB, PROGRESS, VOLUME, Failure, serving


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("failed", 1), ("config", 2), ("degraded", 3), ("unreachable", 4), ("target-mounted", 5), ("differences", 6), ("no-such-job", 7), ("timed-out", 8)],
)  # fmt: skip
def test_an_error_of_the_agent_keeps_its_code_its_exit_code_and_its_way_out(agent, qrep, code, exit_code):
    agent.on("GET", "/jobs/db", Failure(code, exit_code, "it is like that", "do this"))
    answer = qrep("job", "show", "db")
    prefix = "refused" if exit_code == 5 else "qrep"
    assert (answer.code, answer.out, answer.err) == (exit_code, "", f"{prefix}: it is like that\n  action: do this\n")
    answer = qrep("job", "show", "db", "--json")
    assert answer.code == exit_code
    assert json.loads(answer.out) == {"error": {"code": code, "exit": exit_code, "message": "it is like that", "hint": "do this"}}


def test_a_message_cannot_move_the_cursor(agent, qrep):
    agent.on("GET", "/jobs/db", Failure("failed", 1, "evil\x1b[2J\x07"))
    assert "\x1b" not in qrep("job", "show", "db").err


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("start",), ("volume", "add", "x"), ("job", "create", "x"), ("volume", "add", "a", "b", "--snapshots", "lvm2"),
     ("job", "set", "db", "--connections", "17"), ("completion", "tcsh"), ("status", "--nope")],
)  # fmt: skip
def test_wrong_usage_ends_in_2_and_asks_the_agent_nothing(agent, qrep, arguments):
    answer = qrep(*arguments)
    assert (answer.code, answer.out) == (2, "") and answer.err.startswith("qrep: ")
    assert json.loads(qrep(*arguments, "--json").out)["error"]["exit"] == 2
    assert not agent.asked


def test_a_mistyped_command_names_the_one_that_was_meant(qrep):
    assert "did you mean status?" in qrep("statsu").err


@pytest.mark.parametrize(
    ("kind", "text"), [("nothing", "no agent at"), ("dead", "is gone"), ("hangs-up", "broke off"), ("nonsense", "broke off")]
)
def test_without_a_good_agent_every_command_ends_in_4_and_says_where_it_looked(tmp_path, monkeypatch, qrep, kind, text):
    path = str(tmp_path / "agent.sock")
    monkeypatch.setenv("QREP_SOCKET", path)
    listening = socket.socket(socket.AF_UNIX)
    if kind != "nothing":
        listening.bind(path)
    if kind in ("hangs-up", "nonsense"):
        listening.listen()

        def serve():
            for _ in range(4):  # events -f asks once more before it says that there is nobody
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(b"what?\r\n\r\n" if kind == "nonsense" else b"")

        threading.Thread(target=serve, daemon=True).start()
    for arguments in (("status",), ("start", "db"), ("events", "-f")):
        answer = qrep(*arguments)
        assert answer.code == 4 and text in answer.err and path in answer.err and "action: " in answer.err
    listening.close()


def test_who_follows_events_goes_on_after_the_agent_was_away_and_asks_only_for_what_is_new(tmp_path):
    path = tmp_path / "s"
    event = {"id": 41, "time": JOB["last_sync_point"], "level": "info", "code": "x", "text": "first", "job": None, "volume": None}
    with serving(path) as agent:
        agent.on("GET", "/events", [event]).on("GET", "/node", {"name": "a"})
        process = start(path, "events", "-f", "--level", "info")
        assert "first" in process.stdout.readline()
    path.unlink()
    assert "is gone; this goes on when it is back" in process.stderr.readline()
    with serving(path, [("GET", "/events", [event | {"id": 42, "text": "second"}]), ("GET", "/node", {"name": "a"})]) as agent:
        assert "second" in process.stdout.readline()
        assert "is back" in process.stderr.readline()
        assert agent.asked[-1][3] == {"after": ["41"], "level": ["info"], "follow": ["1"]}
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


CHANGES = {
    ("volume", "remove", "db"): ("DELETE", "/volumes/db"),
    ("job", "delete", "db"): ("DELETE", "/jobs/db"),
    ("peer", "remove", "site-b"): ("DELETE", "/peers/site-b"),
    ("peer", "add", "site-b", "10.0.0.1"): ("POST", "/peers"),
}


def scripted(agent):
    agent.on("GET", "/volumes/db", VOLUME).on("GET", "/jobs/db", JOB)
    agent.on("POST", "/peers/look", {"fingerprint": FINGERPRINT, "address": "10.0.0.1"})
    agent.on("POST", "/peers", {"name": "site-b", "reachable": 1})
    for method, path in CHANGES.values():
        if method == "DELETE":
            agent.on(method, path, {})


@pytest.mark.parametrize("arguments", CHANGES, ids=" ".join)
def test_what_cannot_be_undone_is_refused_without_a_terminal_and_done_with_yes(agent, qrep, arguments):
    scripted(agent)
    for more in ((), ("--json",)):
        answer = qrep(*arguments, *more)
        assert answer.code == 5 and "-y" in answer.err + answer.out
        assert not agent.bodies(*CHANGES[arguments])
    assert qrep(*arguments, "-y").code == 0
    assert len(agent.bodies(*CHANGES[arguments])) == 1


def test_on_a_terminal_it_asks_naming_the_object_and_only_yes_goes_on(agent):
    scripted(agent)
    terminal = Terminal(agent.path, "volume", "remove", "db").expect("Continue? [y/N]").type("n\n")
    assert terminal.end() == 130
    assert "db: 0 sync points" in terminal.seen and "nothing was changed" in terminal.seen
    assert not agent.bodies("DELETE", "/volumes/db")
    terminal = Terminal(agent.path, "peer", "add", "site-b", "10.0.0.1")
    assert terminal.expect(f"site-b presents {FINGERPRINT} (10.0.0.1). Pin it? [y/N]").type("y\n").end() == 0
    assert "site-b added: 1 address reachable" in terminal.seen


def never_ending(agent):
    agent.on("POST", "/jobs/db/start", {"id": "1", "state": "running", "progress": PROGRESS})

    def state(_body, _query):
        time.sleep(0.05)
        return {"id": "1", "state": "running", "progress": PROGRESS, "result": None, "error": None}

    agent.on("GET", "/tasks/1", state)


def test_ctrl_c_detaches_with_130_says_how_to_go_on_and_stops_nothing(agent):
    never_ending(agent)
    terminal = Terminal(agent.path, "start", "db", "--wait").expect("bottleneck: network").interrupt()
    assert terminal.end() == 130
    assert "db goes on in the agent" in terminal.seen and "qrep stop" in terminal.seen
    assert not agent.bodies("POST", "/jobs/db/stop")


def test_ctrl_c_ends_a_test_of_a_peer(agent):
    never_ending(agent)
    agent.on("POST", "/peers/site-b/test", {"id": "1", "state": "running", "progress": PROGRESS}).on("DELETE", "/tasks/1", {})
    terminal = Terminal(agent.path, "peer", "test", "site-b").expect("bottleneck: network").interrupt()
    assert terminal.end() == 130 and "the test of site-b was ended" in terminal.seen
    assert [(method, path) for method, path, *_ in agent.asked if method == "DELETE"] == [("DELETE", "/tasks/1")]


def test_no_color_leaves_a_bar_without_colours(agent):
    never_ending(agent)
    terminal = Terminal(agent.path, "start", "db", "--wait", NO_COLOR="1").expect("bottleneck: network").interrupt()
    terminal.end()
    assert "\x1b[3" not in terminal.seen and "\x1b[9" not in terminal.seen


def test_in_a_pipe_there_is_no_bar_and_no_escape(agent):
    agent.task("POST", "/jobs/db/start", result={"counter": 1, "sent": 1, "size": 2, "seconds": 1}, progress=[PROGRESS] * 3)
    out, err = start(agent.path, "start", "db", "--wait").communicate(timeout=30)
    assert "\x1b" not in out + err and out.startswith("db: generation 1 committed")


def test_watch_redraws_on_a_terminal_and_ends_with_ctrl_c_in_0(agent):
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [JOB]})
    terminal = Terminal(agent.path, "status", "--watch").expect("site-b:db").interrupt()
    assert terminal.end() == 0


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_watch_in_a_pipe_goes_on_line_by_line(agent, more):
    agent.on("GET", "/status", {"node": {"name": "a"}, "jobs": [JOB]})
    process = start(agent.path, "status", "--watch", *more)
    seen = 0
    for line in process.stdout:
        seen += "site-b:db" in line
        if seen == 2:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert (seen, process.returncode) == (2, 0)


def test_a_reader_that_goes_away_is_not_a_traceback(agent):
    event = {"time": JOB["last_sync_point"], "level": "info", "code": "x", "text": "y" * 200}
    agent.on("GET", "/events", [event] * 5000)
    process = start(agent.path, "events")
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()
    assert process.wait(20) == 1 and err == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_for_qrep_and_complete_commands(shell, qrep):
    assert "_QREP_COMPLETE" in qrep("completion", shell).out
    words = {"bash": "qrep sta", "zsh": "qrep sta", "fish": "qrep sta"}[shell]
    env = environment("/nonexistent", _QREP_COMPLETE=f"{shell}_complete", COMP_WORDS=words, COMP_CWORD="sta" if shell == "fish" else "1")
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert "status" in done.stdout and "start" in done.stdout and "serve" not in done.stdout


def test_bash_takes_the_completion_script(qrep, tmp_path):
    script = tmp_path / "qrep"
    script.write_text(qrep("completion", "bash").out)
    subprocess.run(["bash", "-n", script], check=True)


def test_status_imports_nothing_that_is_slow_to_start(tmp_path):
    """How long it takes is bench/bench_cli.py's; importing numpy alone would be 120 ms."""
    code = "import sys; from qrep.cli.main import root; from qrep.cli.app import run; code = run(root, ['status']); " \
           "print(code, [m for m in ('numpy', 'rich', 'msgspec', 'cryptography', 'starlette', 'asyncio', 'qrep._native') if m in sys.modules])"  # fmt: skip
    done = subprocess.run([COMMAND[0], "-c", code], env=environment(tmp_path / "none"), capture_output=True, text=True, check=True)
    assert done.stdout.endswith("4 []\n")


def test_help_names_every_command_and_imports_none_of_them(qrep):
    from qrep.cli.main import COMMANDS, HIDDEN

    out = qrep("--help").out
    assert all(f"\n  {name} " in out for name in COMMANDS if name not in HIDDEN) and "serve" not in out
    code = "import sys; from qrep.cli.main import root; from qrep.cli.app import run; run(root, ['--help']); " \
           "print([m for m in ('numpy', 'rich', 'http.client', 'msgspec', 'ssl') if m in sys.modules])"  # fmt: skip
    done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_state_lies_in_the_home_of_a_user_who_is_not_root(monkeypatch):
    from qrep.cli import app

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/x/state")
    assert app.default_state_dir() == "/home/x/state/qrep"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert app.default_state_dir() == "/var/lib/qrep"


@pytest.mark.parametrize(
    ("words", "expected"),
    [("qrep start d", "db"), ("qrep status ", "db"), ("qrep volume show d", "db"), ("qrep peer remove s", "site-b"), ("qrep snapshot list d", "db")],
)
def test_names_are_completed_as_the_agent_knows_them(agent, words, expected):
    agent.on("GET", "/jobs", [JOB]).on("GET", "/volumes", [VOLUME]).on("GET", "/peers", [{"name": "site-b"}])
    env = environment(agent.path, _QREP_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == [f"plain,{expected}"]
    env["QREP_SOCKET"] = "/nonexistent"
    done = subprocess.run(COMMAND, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_the_agent_of_these_tests_knows_the_requests_that_the_real_one_serves():
    from fake_agent import REQUESTS

    from qrep.daemon.control import routes

    real = {(method, re.sub(r"\{\w+\}", "{}", route.path.removeprefix("/v1"))) for route in routes(None) for method in route.methods - {"HEAD"}}
    assert set(REQUESTS) == real
