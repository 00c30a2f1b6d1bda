"""What the kill tests look at after each kill would tell: targets with a defect are noticed by the same oracle."""

import oracle
import pytest
from fault import scene as scenes
from fault.misconduct import DEFECTS
from fault.scene import Torn

pytestmark = pytest.mark.root
OF_RECOVERY = ("nothing_is_put_back", "the_last_batch_is_not_put_back", "something_is_written_after_the_recovery")


@pytest.mark.parametrize("defect", OF_RECOVERY)
def test_a_recovery_that_leaves_something_else_is_noticed(committed, defect):
    assert committed.run("", "target-flush-before:1")[1] == -9
    committed.defect = defect
    with pytest.raises(Torn):
        committed.recover()


def test_a_map_that_tells_of_another_content_is_noticed(committed):
    committed.defect = "the_map_tells_of_another_content"
    committed.run("", "map-fold-durable:1")
    committed.defect = ""
    with pytest.raises(oracle.Wrong, match="the value of granule"):
        committed.recover()


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_target_that_does_what_none_may_is_noticed_although_all_data_are_right(committed, defect):
    committed.defect = defect
    with pytest.raises(oracle.Forbidden):
        committed.run("source-lanes-done:1") if defect != "an_internal_error_is_told" else committed.run()
    committed.defect = ""
    assert committed.recover() in (1, 2)


@pytest.mark.parametrize("defect", ["a_thread_ends_in_a_traceback", "a_descriptor_stays_open", "it_ends_with_another_code"])
def test_a_source_that_does_what_none_may_is_noticed(committed, defect):
    committed.defect_of_sources = defect
    with pytest.raises(oracle.Forbidden):
        committed.run()
    committed.defect_of_sources = ""
    assert committed.recover() == 2


def test_a_target_that_was_not_to_die_and_dies_is_noticed(committed):
    committed.start("target", crash="target-claimed:1").wait()
    committed._running[0].crash = ""
    with pytest.raises(oracle.Forbidden, match="ended with -9"):
        committed.end_all()


def test_a_kill_of_both_at_a_point_that_nobody_comes_by_is_noticed(committed, monkeypatch):
    monkeypatch.setattr(scenes, "PATIENCE_S", 2.0)
    with pytest.raises(AssertionError, match="nobody stands at"):
        committed.kill_both("source-end:1", "undo-merge-done:1")


def test_a_kill_of_both_that_one_survives_is_noticed(committed, monkeypatch):
    def only_one(processes):
        source, target = processes
        source.kill()
        committed.finish(target)

    monkeypatch.setattr(scenes, "kill_standing", only_one)
    with pytest.raises(AssertionError, match="not both"):
        committed.kill_both()
