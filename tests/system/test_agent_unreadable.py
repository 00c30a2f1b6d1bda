"""A source with sectors that cannot be read: the run fails, says where, and nothing is committed."""

import pytest
from agents import MIB, b3sum
from machine import bad_spots

pytestmark = pytest.mark.root
SIZE = 8 * MIB
BAD = [(3 * MIB + 8192, 4096), (6 * MIB, 512)]


def test_the_run_fails_with_the_extents_and_commits_nothing(agents, loop_device, memory_dir, undo_after):
    source = loop_device(backing=bad_spots(memory_dir, SIZE, BAD, undo_after), direct_io=False)
    target = loop_device(SIZE)
    a, b = agents.replica(source, target)
    error = a.refused("start", "db", "--wait")
    assert error["code"] == "device-read" and "nothing was committed" in error["message"]
    assert error["hint"].startswith("repair or replace the source device")
    (event,) = a.events("source-unreadable")
    found = [(extent["offset"], extent["size"]) for extent in event["data"]["extents"]]
    covered = [any(offset <= bad and bad + size <= offset + length for offset, length in found) for bad, size in BAD]
    assert all(covered), found
    assert sum(size for _offset, size in found) <= 64 << 10, "what is given up is small"

    job = a.job()
    assert job["state"] == "failed" and job["counter"] is None and job["problem"]["code"] == "device-read"
    assert job["problem"]["action"]
    assert b.job()["counter"] is None and b.job()["state"] == "idle"
    assert b.qrep("snapshot", "db") == []
    assert len(b3sum(target)) == 64
