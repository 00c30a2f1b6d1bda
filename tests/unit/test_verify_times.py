"""When jobs are verified by themselves: by a schedule of their own, beside runs, over interruptions and restarts."""

import pytest
from scheduler_world import NOON, World

from qrep.jobs.verified import GIVE_WAY_MAX

RESULT = {
    "equal": True, "generation": "ab" * 16, "counter": 3, "differences": [], "source_damage": [], "source_read": False, "repair": None,
}  # fmt: skip


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "state.db")
    yield world
    world.db.close()


def test_a_job_is_verified_at_its_times_once_it_has_a_sync_point(world):
    runner = world.job(verify_schedule="every 1h")
    world.looks(3700)
    assert world.verified == [] and world.started == [] and world.codes() == [], "there is nothing to compare yet"
    runner.committed_at = NOON
    world.looks(7200)
    assert [at for at, _name in world.verified] == [7200, 10800]


def test_a_verify_waits_for_the_run_that_is_due_at_the_same_time(world):
    runner = world.job(schedule="every 1h", verify_schedule="every 1h")
    runner.committed_at, world.slow = NOON, [runner]
    world.looks(3601)
    assert len(world.started) == 1 and world.verified == [] and runner.activity == "run"
    runner.activity = None
    world.looks(20)
    assert len(world.verified) == 1 and runner.activity == "verify"


def test_a_run_that_is_due_ends_a_scheduled_verify_a_few_times_and_then_waits_for_it(world):
    runner = world.job(schedule="every 1h", verify_schedule="every 30m")
    runner.committed_at, world.slow = NOON, [runner]
    for number in range(1, GIVE_WAY_MAX + 3):  # the first time it gets somewhere, then no further
        runner.activity = "verify"
        runner.verifies.begin(True)
        world.looks(3600)
        if number > GIVE_WAY_MAX + 1:
            assert world.stopped == [] and runner.activity == "verify", "this one comes to its end"
            runner.verifies.finished(RESULT)
            break
        assert world.stopped and runner.verifies.giving_way
        assert runner.verifies.interrupted(False, 5 if number == 1 else 3) and runner.verifies.as_dict()["waits"]
        world.stopped.clear()
        runner.activity = None
        world.looks(11)
        assert runner.activity == "run", "the run came first"
        runner.activity = None
        world.looks(11)
        assert runner.activity == "verify", "and the verify goes on after it"
    assert len(world.started) == GIVE_WAY_MAX + 1


def test_a_verify_that_a_person_asked_for_is_not_ended_by_a_run(world):
    runner = world.job(schedule="every 1h")
    runner.committed_at, runner.activity = NOON, "verify"
    runner.verifies.begin(False)
    world.looks(3700)
    assert world.stopped == [] and world.started == []
    runner.verifies.interrupted(True, 5)
    assert not runner.verifies.again, "nor begun again by itself"


def test_a_scheduled_verify_goes_on_after_a_restart_of_the_agent_and_what_it_found_is_known(world):
    runner = world.job(verify_schedule="0 3 * * *")
    runner.committed_at = NOON
    runner.verifies.begin(True)
    world.boot()  # killed: nobody said that it was interrupted
    assert world.jobs["db"].verifies.again
    world.jobs["db"].committed_at = NOON
    world.looks(1)
    assert [name for _at, name in world.verified] == ["db"]
    world.jobs["db"].verifies.finished(RESULT | {"equal": False, "differences": [{"offset": 4096, "size": 512}]})
    world.boot()
    verifies = world.jobs["db"].verifies
    assert not verifies.again and verifies.last["different_bytes"] == 512
    assert "512 bytes at 4096" in verifies.problem("db", RESULT["generation"])["text"]
    assert "--repair" in verifies.problem("db", RESULT["generation"])["action"]
    assert verifies.problem("db", "cd" * 16) is None, "a run has come since"


def test_a_job_that_is_deleted_leaves_nothing_of_its_verifies(world):
    runner = world.job(verify_schedule="every 1h")
    runner.committed_at = NOON
    world.looks(3700)
    runner.verifies.finished(RESULT)
    world.db.drop_job(runner.settings.id)
    assert world.db.timer(runner.verifies.timer_id) is None and world.db.verified(runner.settings.id)["last"] is None
