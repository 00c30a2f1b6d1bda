"""Hooks: commands that are run because of events, and never hold anyone up."""

import json
import os
import time

import pytest
from agents import wait_until

from qrep.daemon import hooks as module
from qrep.daemon.events import EventLog
from qrep.daemon.hooks import Hooks, wants
from qrep.daemon.statedb import StateDb
from qrep.settings import Hook


@pytest.fixture
def log(tmp_path):
    db = StateDb(tmp_path / "state.db")
    yield EventLog(db, echo=False)
    db.close()


@pytest.fixture
def script(tmp_path):
    """script(text): a shell script in a file; its path."""

    def make(text, name="hook.sh", mode=0o755):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return str(path)

    return make


@pytest.fixture
def make(log):
    """make(Hook, ...): Hooks that are stopped after the test."""
    made = []

    def hooks(*wanted):
        made.append(Hooks(list(wanted), log))
        return made[-1]

    yield hooks
    for one in made:
        one.stop(0)


def texts(log, code):
    return [event["text"] for event in log.read(codes=[code])[0]]


def event(code, level, **data):
    return {"id": 1, "time": "", "level": level, "code": code, "job": None, "volume": None, "text": "", "data": data}


@pytest.mark.parametrize(
    ("words", "code", "level", "wanted"),
    [
        (["run-failed"], "run-failed", "error", True), (["run-failed"], "run-stopped", "info", False), (["error"], "run-failed", "error", True),
        (["warning"], "run-failed", "error", True), (["error"], "run-interrupted", "warning", False), (["info"], "run-stopped", "info", True),
        (["info", "hook-failed"], "hook-failed", "warning", False), (["info", "hooks-dropped"], "hooks-dropped", "warning", False),
    ],
)  # fmt: skip
def test_a_hook_is_for_codes_and_for_levels_and_worse_but_never_for_what_hooks_themselves_do(words, code, level, wanted):
    assert wants(Hook(events=words, command=["/x"]), event(code, level)) is wanted


def test_that_failures_of_hooks_were_counted_runs_no_hook_either():
    assert not wants(Hook(events=["info"], command=["/x"]), event("events-suppressed", "warning", suppressed="hook-failed"))
    assert wants(Hook(events=["info"], command=["/x"]), event("events-suppressed", "warning", suppressed="run-failed"))


def test_a_hook_gets_its_arguments_the_event_as_json_and_in_its_environment_and_nothing_of_the_agents(make, log, script, tmp_path):
    out = tmp_path / "out"
    path = script(f'{{ echo "$1|$2|$QREP_EVENT_CODE|$QREP_EVENT_JOB|$QREP_EVENT_VOLUME|$SECRET"; pwd; ls /proc/self/fd | wc -l; cat; }} > {out}.new; mv {out}.new {out}')
    os.environ["SECRET"] = "of the agent"
    hooks = make(Hook(events=["run-failed"], command=[path, "ops", "$(reboot); *"]))
    try:
        log.add("run-started", "nothing to do", job="db")
        log.add("run-failed", "no route", job="db", reason="x")
        wait_until(out.exists)
    finally:
        del os.environ["SECRET"]
    first, directory, descriptors, given = out.read_text().splitlines()
    assert (first, directory) == ("ops|$(reboot); *|run-failed|db||", "/")
    assert int(descriptors) <= 4  # the standard three and the directory that ls reads
    assert json.loads(given) == log.read(codes=["run-failed"])[0][0]
    wait_until(lambda: hooks.counts["ok"] == 1)


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [("echo what is wrong >&2; exit 3", 0o755, "ended with 3: what is wrong"), ("kill -TERM $$", 0o755, "was ended by signal 15"),
     ("", 0o644, "cannot be started: Permission denied")],
)  # fmt: skip
def test_a_hook_that_fails_is_an_event_that_names_it(make, log, script, text, mode, told):
    path = script(text, mode=mode)
    hooks = make(Hook(events=["info"], command=[path]))
    log.add("run-started", "x", job="db")
    wait_until(lambda: texts(log, "hook-failed"))
    assert texts(log, "hook-failed") == [f"{path} for run-started {told}"] and hooks.counts["failed"] == 1


def test_a_hook_that_is_not_there_is_an_event(make, log):
    make(Hook(events=["info"], command=["/nonexistent"]))
    log.add("run-started", "x")
    wait_until(lambda: texts(log, "hook-failed") == ["/nonexistent for run-started cannot be started: No such file or directory"])


def test_one_that_takes_too_long_is_killed_with_all_it_started(make, log, script, tmp_path):
    pid = tmp_path / "pid"
    path = script(f"trap '' TERM; sleep 1000 & echo $! > {pid}.new; mv {pid}.new {pid}; wait")
    hooks = make(Hook(events=["info"], command=[path], timeout="300ms"))
    log.add("run-started", "x")
    wait_until(lambda: texts(log, "hook-failed") == [f"{path} for run-started was killed after 300ms"])
    assert hooks.counts["timed-out"] == 1
    wait_until(lambda: not alive(int(pid.read_text())))


def alive(pid):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_output_without_end_and_input_that_nobody_reads_hold_nothing_up(make, log, script):
    hooks = make(Hook(events=["error"], command=[script("yes; true", "a.sh")], timeout="300ms"), Hook(events=["error"], command=[script("exit 0", "b.sh")]))
    log.add("verify-differs", "x", job="db", extents=["y" * 1000] * 300)  # more than a pipe holds
    wait_until(lambda: (hooks.counts["timed-out"], hooks.counts["ok"]) == (1, 1))
    assert texts(log, "hook-failed")[0].endswith("was killed after 300ms: y")


def test_what_a_hook_leaves_running_is_not_waited_for(make, log, script, tmp_path):
    pid = tmp_path / "pid"
    hooks = make(Hook(events=["info"], command=[script(f"sleep 1000 & echo $! > {pid}")]))
    log.add("run-started", "x")
    wait_until(lambda: hooks.counts["ok"] == 1)
    os.kill(int(pid.read_text()), 9)


def test_hooks_that_hang_never_hold_up_who_tells_and_what_does_not_fit_is_counted(make, log, script, monkeypatch):
    monkeypatch.setattr(module, "QUEUE_MAX", 8)
    hooks = make(Hook(events=["info"], command=[script("sleep 1000")]))
    for number in range(100):
        log.add("run-started", "x", job=f"job{number}")  # would never come back if it waited for one
    assert hooks.counts["dropped"] >= 100 - 8 - module.AT_ONCE
    wait_until(lambda: len(hooks._running) == module.AT_ONCE)
    hooks.tell_dropped()
    assert texts(log, "hooks-dropped") == [f"{hooks.counts['dropped']} hooks were not run: 8 were waiting already"]
    running = [process._process.pid for process in hooks._running]
    before = time.monotonic()
    hooks.stop(0.1)
    assert time.monotonic() - before < 8
    wait_until(lambda: not any(alive(pid) for pid in running))


def test_at_the_end_what_waits_is_run_if_it_is_quick(make, log, script, tmp_path):
    out = tmp_path / "out"
    hooks = make(Hook(events=["agent-stopped"], command=[script(f"echo $QREP_EVENT_CODE >> {out}")]))
    log.add("agent-stopped", "in order")
    hooks.stop(15)
    assert out.read_text() == "agent-stopped\n"
