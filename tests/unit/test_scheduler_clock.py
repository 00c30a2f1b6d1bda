"""The scheduler when the agent was down, when the clock is set, and when clocks change."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scheduler_world import NOON, World

from qrep.daemon.scheduler import LOOK_S


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "state.db")
    yield world
    world.db.close()


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
    world.jobs["db"].activity, world.jobs["db"].state = "run", "queued"
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


def catches_up_once(world, before):
    """What was passed over is one run, beside the one whose time comes while that is looked at."""
    then = world.clock.now
    world.looks(1)
    assert len(world.started) - before <= 1 + int(world.clock.now // 600 > then // 600)


@given(st.lists(st.tuples(st.sampled_from(["pass", "jump", "boot"]), st.integers(-200_000, 200_000)), max_size=12))
@settings(max_examples=60)
@example([("pass", 0), ("jump", 101399)])
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
                catches_up_once(world, before)
            else:
                world.boot()
                catches_up_once(world, before)
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
