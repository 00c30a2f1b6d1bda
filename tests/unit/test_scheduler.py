"""The scheduler with a clock of the test's own: what is started when, what is told, and what a restart or a clock that jumps leads to."""

from datetime import UTC, datetime
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from agents import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep.config import Job
from qrep.daemon.events import EventLog
from qrep.daemon.scheduler import LOOK_S, Scheduler
from qrep.daemon.statedb import StateDb
from qrep.errors import QrepError, Refused
from qrep.jobs.schedule import Timing

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
FIELDS = {"source": "db", "target": "db2", "target_volume": "cd" * 16, "size": 1 << 20, "leaf": 4096, "granule": 8192}


class GivenClock:
    def __init__(self, wall):
        self.now, self.uptime = wall, 1000.0

    def wall(self):
        return self.now

    def monotonic(self):
        return self.uptime

    def pass_time(self, seconds):
        self.now += seconds
        self.uptime += seconds

    def set_forward(self, seconds):
        self.now += seconds


class World:
    """Jobs that are only what the scheduler sees of them. looks() goes through time as the thread does."""

    def __init__(self, path, wall=NOON, zone=UTC):
        self.db, self.clock, self.zone = StateDb(path), GivenClock(wall), zone
        self.events = EventLog(self.db, echo=False)
        self.jobs, self.started = {}, []
        self.boot()

    def boot(self):
        """An agent that starts: it finds the jobs and what the database knows."""
        for name, job in self.jobs.items():
            self.jobs[name] = self._runner(job.settings, committed_at=job.committed_at)
        self.scheduler = Scheduler(jobs=lambda: sorted(self.jobs.items()), start=self.start, db=self.db, events=self.events, clock=self.clock)
        self.wait_s = 0.0

    def _runner(self, settings, committed_at=None):
        timing = Timing(settings, lambda: self.zone, self.db.timer(settings.id))
        return SimpleNamespace(settings=settings, timing=timing, committed_at=committed_at, activity=None, state="idle", begun=0)

    def job(self, name="db", **settings):
        job_id = f"{len(self.jobs):032x}"
        self.jobs[name] = self._runner(Job(id=job_id, **FIELDS, **settings))
        return self.jobs[name]

    def start(self, name, cause):
        runner = self.jobs[name]
        if runner.activity is not None:
            raise Refused("busy", code="busy")
        runner.begun += 1
        runner.activity = "run" if runner in getattr(self, "slow", ()) else None
        self.started.append((self.clock.now - NOON, name))

    def looks(self, seconds):
        """Look whenever the thread would, for so long. Returns how often."""
        end, count = self.clock.now + seconds, 0
        while True:
            self.wait_s = self.scheduler.look()
            count += 1
            if self.clock.now + self.wait_s > end:
                self.clock.pass_time(end - self.clock.now)
                return count
            self.clock.pass_time(self.wait_s)

    def codes(self):
        return [event["code"] for event in self._events()]

    def texts(self, code):
        return [event["text"] for event in self._events() if event["code"] == code]

    def _events(self):
        return self.events.read()[0]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "state.db")
    yield world
    world.db.close()


def test_a_job_is_started_at_its_times_and_a_job_without_a_schedule_is_not(world):
    world.job("quarter", schedule="every 15m")
    world.job("hour", schedule="5 * * * *")
    world.job("never")
    world.looks(3601)
    assert world.started == [(300, "hour"), (900, "quarter"), (1800, "quarter"), (2700, "quarter"), (3600, "quarter")] and world.codes() == []


def test_a_schedule_that_is_new_or_another_starts_nothing_that_lay_before_it(world):
    runner = world.job(schedule="every 15m")
    world.looks(1000)
    assert [at for at, _name in world.started] == [900]
    runner.settings.schedule = "every 10m"  # 600 lies before
    world.looks(500)
    assert [at for at, _name in world.started] == [900, 1200]
    runner.settings.schedule = ""
    world.looks(3600)
    runner.settings.schedule = "every 1h"
    world.looks(60)
    assert len(world.started) == 2 and world.codes() == []


def test_a_change_of_the_schedule_takes_effect_at_the_look_that_wake_brings(world):
    runner = world.job(schedule="0 0 1 1 *")
    world.looks(1)
    runner.settings.schedule = "every 2s"
    assert world.scheduler.look() <= 2
    world.looks(4)
    assert [at for at, _name in world.started] == [2, 4]


def test_a_time_that_comes_while_a_run_goes_on_starts_nothing_is_told_once_and_not_caught_up(world):
    runner = world.job(schedule="every 1m")
    world.slow = [runner]
    world.looks(59.5)
    runner.activity, runner.state, runner.begun = "run", "running", 1
    world.looks(300)
    assert world.started == [] and world.codes() == ["run-coalesced"]
    assert "12:01:00 UTC; a run still goes on" in world.texts("run-coalesced")[0]
    runner.activity = None
    world.looks(0.2)
    assert world.started == []
    world.looks(61)
    assert [at for at, _name in world.started] == [360]
    world.looks(60)  # that run goes on, too
    assert world.codes() == ["run-coalesced"] * 2


def test_a_time_that_comes_while_a_run_waits_for_its_turn_is_not_queued_again(world):
    runner = world.job(schedule="every 1m")
    runner.activity, runner.state = "run", "queued"
    world.looks(200)
    assert world.started == [] and world.texts("run-coalesced")[0].endswith("a run waits for its turn and stands for the times until it ends")


@pytest.mark.parametrize("missed", ["run", "skip"])
def test_a_time_that_comes_while_the_job_is_verified_waits_for_its_end(world, missed):
    runner = world.job(schedule="every 1h", missed=missed)
    world.looks(3590)
    runner.activity = "verify"
    world.looks(1800)
    assert world.started == []
    runner.activity = None
    world.looks(1)
    assert [name for _at, name in world.started] == ["db"] and world.codes() == []
    world.looks(1900)
    assert [at for at, _name in world.started][1:] == [7200]


def test_a_run_that_failed_is_tried_again_at_the_next_time(world):
    runner = world.job(schedule="every 1m")
    world.looks(60.5)
    runner.state = "failed"
    world.looks(60)
    assert [at for at, _name in world.started] == [60, 120]


def test_a_run_that_cannot_be_started_is_told_and_tried_again(world):
    world.job(schedule="every 1h")
    world.job("other", schedule="every 1h")
    start, failures = world.start, [QrepError("can't start new thread"), Refused("busy", code="busy"), None]

    def failing(name, cause):
        failure = failures.pop(0) if name == "db" else None
        if failure is not None:
            raise failure
        start(name, cause)

    world.scheduler._start = failing
    world.looks(3610)
    assert sorted(name for _at, name in world.started) == ["db", "other"] and world.codes() == ["run-not-started"]


# ---- the agent was down ----


@pytest.mark.parametrize(("missed", "runs"), [("run", 1), ("skip", 0)])
def test_times_that_passed_while_the_agent_was_down_are_one_run_or_none(world, missed, runs):
    world.job(schedule="every 15m", missed=missed)
    world.looks(10)
    world.clock.pass_time(3 * 3600)
    world.boot()
    world.looks(60)
    assert [at for at, _name in world.started] == [3 * 3600 + 10] * runs
    assert world.codes() == ["run-missed"]
    text = world.texts("run-missed")[0]
    assert text.startswith("12 times since 2026-11-22 12:15:00 UTC were missed while the agent was down; ") and ("left out" in text) == (not runs)
    world.looks(900)
    assert len(world.started) == runs + 1
    world.boot()
    world.looks(5)
    assert len(world.started) == runs + 1 and world.codes() == ["run-missed"]


def test_a_restart_in_which_no_time_passed_starts_nothing(world):
    world.job(schedule="every 15m")
    world.looks(905)
    for _ in range(5):
        world.boot()
        world.looks(7)
    assert [at for at, _name in world.started] == [900] and world.codes() == []


def test_a_missed_time_and_a_run_that_is_taken_up_are_one_run(world):
    world.job(schedule="every 15m")
    world.looks(10)
    world.clock.pass_time(3600)
    world.boot()
    world.jobs["db"].activity = "run"
    world.looks(10)
    assert world.started == [] and world.codes() == ["run-coalesced"]


def test_a_schedule_that_was_changed_while_the_agent_was_down_misses_nothing(world):
    runner = world.job(schedule="every 15m")
    world.looks(10)
    world.clock.pass_time(3600)
    runner.settings.schedule = "every 10m"
    world.boot()
    world.looks(30)
    assert world.started == [] and world.codes() == []


def test_a_year_of_missed_seconds_is_told_without_being_counted_through(world):
    world.job(schedule="every 1s; * * * * *")
    world.looks(0.5)
    world.clock.pass_time(366 * 86400)
    world.boot()
    world.scheduler.look()
    assert len(world.started) == 1 and world.texts("run-missed")[0].startswith("100 or more times since")


# ---- the clock is set ----


def test_a_clock_that_is_set_forward_starts_each_job_once_and_goes_on_from_there(world):
    world.job("a", schedule="every 1m")
    world.job("b", schedule="0 * * * *", missed="skip")
    world.looks(30)
    world.clock.set_forward(3 * 86400 + 300)
    assert world.looks(LOOK_S) < 5
    assert [name for _at, name in world.started] == ["a"]
    assert world.codes() == ["clock-jumped", "run-missed"]
    assert "72 times since" in world.texts("run-missed")[0] and "while the host slept, or by its clock; left out" in world.texts("run-missed")[0]
    world.looks(60)
    assert [name for _at, name in world.started] == ["a", "a"]


def test_a_clock_that_is_set_back_makes_times_come_again_and_stalls_nothing(world):
    world.job(schedule="every 15m")
    world.looks(901)
    world.clock.set_forward(-30 * 86400)
    world.looks(1800)
    assert len(world.started) == 3 and world.codes() == ["clock-jumped"]
    assert "went 30d back" in world.texts("clock-jumped")[0]


def test_an_agent_that_finds_a_time_of_the_future_handled_does_not_wait_for_it(world):
    world.job(schedule="every 15m")
    world.clock.set_forward(365 * 86400)
    world.looks(901)
    world.clock.set_forward(-365 * 86400)
    world.boot()
    world.looks(1800)
    assert len(world.started) == 3


def test_a_clock_that_is_kept_right_neither_starts_twice_nor_leaves_out(world):
    """Set back by half a second and forth by a fifth, again and again."""
    world.job(schedule="every 1m")
    for number in range(200):
        world.looks(6)
        world.clock.set_forward(-0.5 if number % 2 else 0.2)
    minutes = round((world.clock.now - NOON) // 60)
    assert minutes - 1 <= len(world.started) <= minutes and world.codes() == []


@given(st.lists(st.tuples(st.sampled_from(["pass", "jump", "boot"]), st.integers(-200_000, 200_000)), max_size=12))
@settings(max_examples=60)
def test_whatever_the_clock_does_there_is_no_storm_and_no_stall(tmp_path_factory, steps):
    world = World(tmp_path_factory.mktemp("clock") / "state.db")
    try:
        world.job(schedule="every 10m")
        for what, number in steps:
            before = len(world.started)
            if what == "pass":
                seconds = abs(number) % 1800
                world.looks(seconds)
                assert len(world.started) - before <= seconds // 600 + 2
            elif what == "jump":
                world.clock.set_forward(number)
                world.looks(1)
                assert len(world.started) - before <= 1
            else:
                world.boot()
                world.looks(1)
                assert len(world.started) - before <= 1
        before = len(world.started)
        assert world.looks(1300) < 200
        assert len(world.started) - before in (2, 3)
    finally:
        world.db.close()


def test_a_change_of_clocks_is_no_jump(tmp_path):
    zone = ZoneInfo("Europe/Berlin")
    begin = datetime(2026, 3, 29, 1, 30, tzinfo=zone).timestamp()
    world = World(tmp_path / "state.db", wall=begin, zone=zone)
    world.job(schedule="30 2 * * *")
    world.looks(7200)
    assert [datetime.fromtimestamp(at + NOON, zone).strftime("%H:%M") for at, _name in world.started] == ["03:00"] and world.codes() == []
    world.db.close()


# ---- rpo ----


def test_an_rpo_that_is_passed_is_told_once_and_again_when_it_is_met(world):
    runner = world.job(rpo="15m")
    runner.committed_at = NOON
    world.looks(899)
    assert world.codes() == []
    world.looks(3600)
    assert world.texts("rpo-passed") == ["the last sync point is 15m old; the rpo is 15m"]
    world.boot()
    world.looks(60)
    assert world.codes() == ["rpo-passed"]
    world.jobs["db"].committed_at = world.clock.now - 60
    world.looks(10)
    assert world.codes() == ["rpo-passed", "rpo-met"] and world.texts("rpo-met") == ["the last sync point is 1m old; the rpo is 15m"]
    world.looks(900)
    assert world.codes() == ["rpo-passed", "rpo-met", "rpo-passed"]


def test_the_rpo_of_a_job_without_a_sync_point_counts_from_when_it_was_made(world):
    world.job(rpo="1h")
    world.looks(1800)
    world.boot()
    world.looks(1900)
    assert world.texts("rpo-passed") == ["there is no sync point yet after 1h; the rpo is 1h"]


def test_an_rpo_that_is_changed_or_taken_away_counts_at_once(world):
    runner = world.job(rpo="1h")
    runner.committed_at = NOON
    world.looks(600)
    runner.settings.rpo = "5m"
    world.looks(1)
    assert world.codes() == ["rpo-passed"]
    runner.settings.rpo = "1h"
    world.looks(1)
    assert world.codes() == ["rpo-passed", "rpo-met"]
    runner.settings.rpo = "5m"
    world.looks(1)
    runner.settings.rpo = ""
    world.looks(1)
    assert world.codes() == ["rpo-passed", "rpo-met", "rpo-passed"]


# ---- the thread ----


def test_the_thread_looks_again_when_woken_and_ends_when_stopped(tmp_path):
    world = World(tmp_path / "state.db")
    asleep = []

    class Clock(GivenClock):
        def wait(self, event, seconds):
            asleep.append(seconds)
            assert event.wait(20)

    world.scheduler = Scheduler(
        jobs=lambda: sorted(world.jobs.items()), start=world.start, db=world.db, events=world.events, clock=Clock(NOON - 1)
    )
    world.job(schedule="every 1h")
    world.scheduler.start()
    wait_until(lambda: len(asleep) == 1)
    assert asleep == [1.0]
    world.scheduler.clock.pass_time(1)
    world.scheduler.wake()
    wait_until(lambda: len(asleep) == 2)
    assert len(world.started) == 1 and asleep[1] == LOOK_S
    world.scheduler.stop()
    world.db.close()
