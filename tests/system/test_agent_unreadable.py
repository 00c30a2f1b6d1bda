"""A source with sectors that cannot be read: the run ends degraded and says where, the rest is applied, and nothing is committed."""

import pytest
from agents import MIB, b3sum, wait_until
from machine import BadBlocks

pytestmark = pytest.mark.root
SIZE, LEAF = 24 * MIB, 4096
BAD = [(3 * MIB + 8192, 4096), (11 * MIB + 512, 512)]
LEAVES = [(3 * MIB + 8192, LEAF), (11 * MIB, LEAF)]  # what is left out of them


@pytest.fixture
def blocks(memory_dir, undo_after, random_source):
    blocks = BadBlocks(memory_dir, SIZE, undo_after)
    blocks.content.write_bytes(random_source.randbytes(SIZE))
    return blocks


@pytest.fixture
def replica(agents, blocks, loop_device):
    """A pair of agents after a first run, its blocks rewritten then: (site-a, site-b, the target's device, its b3sum)."""
    target = loop_device(SIZE)
    a, b = agents.replica(loop_device(backing=blocks.path), target)
    return a, b, target, a.run()["root"]


def rewrite(blocks, random_source):
    """Other content in every granule; also where nothing can be read."""
    with open(blocks.content, "r+b") as file:
        for offset in (0, 2 * MIB, 9 * MIB, 20 * MIB, *(start for start, _ in BAD)):
            file.seek(offset // LEAF * LEAF)
            file.write(random_source.randbytes(64 << 10))


def equal_outside(blocks, device, holes):
    """Both hold the same but for these (offset, size)."""
    source, target = bytearray(blocks.content.read_bytes()), bytearray(device_content(device))
    for offset, size in holes:
        assert source[offset : offset + size] != target[offset : offset + size], "what could not be read was made up"
        source[offset : offset + size] = target[offset : offset + size] = bytes(size)
    return source == target


def device_content(device):
    with open(device.path, "rb") as file:
        return file.read(SIZE)


def extents_of(event):
    return [(extent["offset"], extent["size"]) for extent in event["data"]["extents"]]


def degraded(agent):
    error = agent.refused("start", "db", "--wait")
    assert (error["exit"], error["code"]) == (3, "unsynced"), error
    return error


def test_the_rest_is_applied_and_named_and_the_next_run_after_the_repair_commits(replica, blocks, random_source):
    a, b, target, first = replica
    rewrite(blocks, random_source)
    blocks.unreadable(*BAD)
    error = degraded(a)
    assert "4096 bytes at 3153920, 512 bytes at 11534848 cannot be read" in error["message"]
    assert error["hint"].startswith("repair or replace the source device")
    assert equal_outside(blocks, target, LEAVES)

    job, there = a.job(), b.job()
    assert (job["state"], there["state"], there["counter"]) == ("degraded", "degraded", 1)
    places = [{"offset": offset, "size": size} for offset, size in BAD]
    assert job["unsynced"] == there["unsynced"] == {"source": places, "target": []}
    for shown in (job, there):
        assert "512 bytes at 11534848" in shown["problem"]["text"] and shown["problem"]["action"]
    for agent in (a, b):
        assert [extents_of(event) for event in agent.events("source-unreadable")] == [BAD]
    assert "run-degraded" in a.codes()
    text, code = a.text("status", "db", "--check")
    assert code == 3 and "action: repair or replace the source device" in text
    assert [point["counter"] for point in b.qrep("snapshot", "db")] == [1], "an open generation is no sync point"

    # Still bad: newer data comes all the same, and what was applied and has not changed is not sent again.
    with open(blocks.content, "r+b") as file:
        file.seek(21 * MIB)
        file.write(random_source.randbytes(LEAF))
    degraded(a)
    assert equal_outside(blocks, target, LEAVES)
    assert b.job()["state"] == "degraded" and len(a.events("run-degraded")) == 2

    blocks.heal()
    report = a.run()
    assert report["resumed"] and report["counter"] == 2 and report["root"] == b3sum(target) == b3sum(blocks.content)
    assert report["sent"] < 2 * 8 * MIB + MIB, "the granules of the bad blocks, and nothing of the third"
    assert (a.job()["state"], a.job()["problem"], a.job()["unsynced"], b.job()["state"]) == ("idle", None, None, "idle")
    assert report["root"] != first


def test_the_target_goes_back_by_itself_when_it_is_told_to_or_restarted(replica, blocks, random_source):
    a, b, target, first = replica
    rewrite(blocks, random_source)
    blocks.unreadable(*BAD)
    degraded(a)
    assert b3sum(target) != first
    assert b.qrep("snapshot", "rollback", "db@1", "-y")["counter"] == 1
    assert b3sum(target) == first and b.job()["state"] == "idle"
    [event] = b.events("generation-abandoned")
    assert "by hand" in event["text"] and event["job"] == "db"

    degraded(a)
    assert b3sum(target) != first
    b.kill()
    b.start()
    assert b3sum(target) == first and b.job()["state"] == "idle"
    assert "volume-recovered" in b.codes()

    degraded(a)
    a.kill()
    a.start()
    assert a.job()["state"] == "degraded" and a.job()["unsynced"]["source"]
    blocks.heal()
    assert a.run()["root"] == b3sum(target) == b3sum(blocks.content)


def test_a_generation_that_nobody_comes_back_for_is_given_up(replica, blocks, random_source):
    a, b, target, first = replica
    rewrite(blocks, random_source)
    blocks.unreadable(*BAD)
    b.qrep("volume", "set", "db", "--open-generation", "1h")
    degraded(a)
    assert b.qrep("volume", "show", "db")["open_generation"] == "1h"
    assert b.job()["state"] == "degraded"
    b.qrep("volume", "set", "db", "--open-generation", "1s")
    wait_until(lambda: b.events("generation-abandoned"))
    assert "no run has come for 1s" in b.events("generation-abandoned")[0]["text"]
    assert b.job()["state"] == "idle" and b3sum(target) == first
    blocks.heal()
    assert a.run()["root"] == b3sum(target) == b3sum(blocks.content)


def test_a_generation_goes_with_its_job(replica, blocks, random_source):
    a, b, target, first = replica
    rewrite(blocks, random_source)
    blocks.unreadable(*BAD)
    degraded(a)
    a.qrep("job", "delete", "db", "-y")
    wait_until(lambda: b.events("generation-abandoned"))
    assert "job db was deleted" in b.events("generation-abandoned")[0]["text"]
    assert b3sum(target) == first


def test_a_first_run_keeps_what_it_could_read(agents, blocks, loop_device):
    target = loop_device(SIZE)
    blocks.unreadable(*BAD)
    a, b = agents.replica(loop_device(backing=blocks.path), target)
    degraded(a)
    assert equal_outside(blocks, target, LEAVES)
    assert b.qrep("snapshot", "db") == [] and b.job()["counter"] is None
    blocks.heal()
    assert a.run()["root"] == b3sum(target) == b3sum(blocks.content)
