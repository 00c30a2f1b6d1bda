"""A job at its source: the states it may be in, one thing at a time, and runs that were going when the agent died."""

import threading
import time
from datetime import UTC

import pytest
from agents import wait_until

from qrep import states
from qrep.config import Job
from qrep.daemon.events import EventLog
from qrep.daemon.statedb import StateDb
from qrep.daemon.tasks import Task
from qrep.errors import Interrupted, Refused, Unreachable
from qrep.jobs.run import GOING, TAKE_UP_MAX, JobRunner
from qrep.jobs.shown import job_dict
from qrep.jobs.slots import Slots

JOB = Job(
    id="ab" * 16, source="db", target="site-b:db", target_volume="cd" * 16, size=1 << 20, leaf=4096, granule=8192, connections=1
)  # fmt: skip


@pytest.fixture
def make_runner(tmp_path):
    """make_runner(request=...): the job as an agent that has just started finds it; called again, as the next one does."""
    db = StateDb(tmp_path / "state.db")
    events = EventLog(db, echo=False)

    def make(request=None, slots=1, ended=lambda: None):
        def unreachable():
            raise Unreachable("nobody there", code="peer-unreachable", hint="look there")

        return JobRunner(
            "db", JOB, request=request or unreachable, dial=unreachable, connect=None, db=db, events=events, slots=Slots(slots), zone=lambda: UTC, ended=ended
        )

    yield make
    db.close()


def test_a_run_that_cannot_begin_leaves_the_job_failed_with_what_to_do_also_after_a_restart(make_runner):
    runner = make_runner()
    runner.begin("run")
    with pytest.raises(Unreachable):
        runner.run(Task("run", "db"))
    for job in (runner, make_runner()):
        shown = job_dict(job)
        assert shown["state"] == "failed" and shown["problem"] == {"code": "peer-unreachable", "text": "nobody there", "action": "look there"}


def test_a_bug_in_a_run_leaves_the_job_failed_and_it_can_be_started_again(make_runner):
    def bug():
        raise KeyError("a bug")

    runner = make_runner(request=bug)
    for _ in range(2):
        runner.begin("run")
        with pytest.raises(KeyError):
            runner.run(Task("run", "db"))
        shown = job_dict(runner)
        assert shown["state"] == "failed" and shown["problem"]["code"] == "internal" and "a bug" in shown["problem"]["text"]


def test_one_thing_at_a_time(make_runner):
    runner = make_runner()
    runner.begin("verify")
    assert job_dict(runner)["state"] == "verifying"
    with pytest.raises(Refused, match="db is being verified already"):
        runner.begin("run")
    runner.end()
    runner.begin("run")


def test_a_run_that_was_enqueued_is_seen_at_once_and_the_next_start_knows_of_it(make_runner):
    runner = make_runner()
    runner.begin("run")
    runner.enqueue()
    assert job_dict(runner)["state"] == "queued" and runner.is_going
    assert make_runner().may_take_up()


def test_a_run_that_is_taken_back_leaves_the_job_as_it_was_and_wakes_nobody(make_runner):
    woken = []
    runner = make_runner(ended=lambda: woken.append(1))
    runner.begin("run")
    with pytest.raises(Unreachable):
        runner.run(Task("run", "db"))
    before = job_dict(runner)
    assert woken.pop() and before["state"] == "failed"
    runner.begin("run")
    runner.enqueue()
    assert job_dict(runner)["problem"] is None
    runner.take_back()
    assert job_dict(runner) == before == job_dict(make_runner()) and not woken
    runner.begin("run")


def test_a_run_that_was_to_be_taken_up_and_is_taken_back_is_taken_up_by_the_next_start(make_runner):
    runner = make_runner()
    runner.begin("run")
    runner.enqueue()  # and here the agent dies
    runner = make_runner()
    assert runner.may_take_up()
    runner.begin("run")
    runner.enqueue()
    runner.timing.handle(time.time())  # the scheduler took it for a run
    runner.take_back()
    assert make_runner().may_take_up() and runner.timing.handled is None, "a time that came is still due"


def test_a_job_that_a_bug_left_in_a_run_can_be_started_again(make_runner):
    runner = make_runner()
    runner.state = "running"
    runner.begin("run")
    runner.enqueue()
    assert runner.state == "queued"


def test_connections_and_paths_that_change_while_a_run_waits_for_its_turn_are_those_it_begins_with(make_runner):
    runner = make_runner(slots=0)
    runner.begin("run")
    thread = threading.Thread(target=lambda: pytest.raises(Interrupted, runner.run, Task("run", "db")))
    thread.start()
    wait_until(lambda: runner.queue() is not None and runner.active is not None)
    runner.set_connections(2)
    runner.move("its path is down", at_once=True)
    runner.stop()
    thread.join(20)
    assert runner.state == "stopped"


def test_a_run_waits_for_its_turn_and_can_be_stopped_there(make_runner):
    runner = make_runner(slots=0)
    runner.begin("run")
    ended, task = [], Task("run", "db")

    def run():
        try:
            runner.run(task)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: job_dict(runner)["queue"] == {"position": 1, "waiting": 1})
    assert task.progress() == {"phase": "queued 1/1"}
    assert runner.stop() == "stopped; what has been applied is kept"
    thread.join()
    assert ended[0].code == "interrupted" and job_dict(runner)["state"] == "stopped" and job_dict(runner)["queue"] is None


@pytest.mark.parametrize("state", GOING)
def test_a_run_that_was_going_is_taken_up_three_times_in_a_row_and_then_left_to_a_person(make_runner, state):
    runner = make_runner()
    for _ in range(TAKE_UP_MAX):
        runner.state = state
        runner._keep()  # and here the agent dies
        runner = make_runner()
        assert runner.state == "stopped" and runner.may_take_up() and not runner.may_take_up()
    runner.state = state
    runner._keep()
    runner = make_runner()
    assert not runner.may_take_up()
    assert job_dict(runner)["problem"]["code"] == "agent-died" and "qrep start db" in job_dict(runner)["problem"]["action"]
    assert not make_runner().may_take_up()


def test_every_state_in_which_a_run_goes_on_can_be_stopped():
    assert all("stop" in states.JOB[state] for state in GOING)
