"""The scheduler with a clock of the test's own: what is started when, what is told, and how old a sync point may become."""

import pytest
from agents import wait_until
from scheduler_world import NOON, GivenClock, World

from qrep.daemon.scheduler import LOOK_S, Scheduler
from qrep.errors import QrepError, Refused


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


def test_a_time_that_comes_while_a_start_may_yet_be_refused_is_not_lost_with_it(world):
    runner = world.job(schedule="every 1m")
    world.looks(59.5)
    runner.activity = "run"  # and it is no run yet: the rest of its group is asked
    world.looks(2)
    assert world.started == world.codes() == []
    runner.activity = None
    world.looks(1)
    assert [at for at, _name in world.started] == [61.5] and world.codes() == []


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
