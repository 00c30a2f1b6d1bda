"""The undo space of a target runs out."""

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 64 * MIB


def test_a_run_that_does_not_fit_into_the_undo_space_is_taken_back_exactly_and_says_so(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, volume=("--undo-space", "32M"), job=("--sync-points", 0))
    first = a.run()["root"]

    fill(source, SIZE)
    error = a.refused("start", "db", "--wait")
    assert error["code"] == "undo-space" and "rolled back" in error["message"] and error["hint"]
    assert b3sum(target) == first, "exactly the last sync point"
    job = a.job()
    assert job["state"] == "failed" and job["problem"]["code"] == "undo-space" and job["problem"]["action"]
    assert b.job()["state"] == "idle" and b.job()["root"] == first
    assert "run-failed" in a.codes()

    b.qrep("volume", "set", "db", "--undo-space", "4x")
    assert "volume-changed" in b.codes()
    assert a.run()["root"] == b3sum(target) == b3sum(source)
