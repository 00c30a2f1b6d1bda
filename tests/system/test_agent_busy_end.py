"""SIGTERM while a target volume is busy with something long."""

import os

import pytest
from agents import MIB, wait_until
from machine import need_tool, slow_reads

pytestmark = pytest.mark.root
SIZE = 64 * MIB


def test_an_agent_that_reads_a_slow_device_afresh_still_ends_in_time_and_recovers(agents, loop_device, memory_dir, fill, undo_after):
    need_tool("nbdfuse")
    source = loop_device(SIZE)
    target = loop_device(backing=slow_reads(memory_dir, SIZE, "30ms", undo_after), direct_io=False)
    fill(source, SIZE)
    a, b = agents.replica(source, target)
    a.run()
    with open(target.backing, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # or the page cache answers; so a granule takes about two seconds
    a.client().post("/jobs/db/verify", {"independent": True})
    wait_until(lambda: a.job()["state"] == "verifying")
    code, seconds = b.terminate()
    assert code == 0 and seconds < 10
    b.start()
    wait_until(lambda: a.job()["state"] == "idle")
    assert "verify-failed" in a.codes()
    assert b.job()["counter"] == 1 and b.job()["state"] == "idle"
