"""A target with blocks that take no write: the run ends degraded on both sides, the rest is applied, and the way back stays exact."""

import pytest
from agents import MIB, b3sum
from machine import BadBlocks

pytestmark = pytest.mark.root
SIZE, LEAF = 24 * MIB, 4096
BAD = [(5 * MIB + 1024, 512), (17 * MIB, 8192)]
ELSEWHERE = 9 * MIB


@pytest.fixture
def blocks(memory_dir, undo_after):
    return BadBlocks(memory_dir, SIZE, undo_after)


@pytest.fixture
def replica(agents, blocks, loop_device, random_source):
    """A pair of agents after a first run: (site-a, site-b, the source's device, the target's device, its b3sum)."""
    source, target = loop_device(SIZE), loop_device(backing=blocks.path)
    with open(source.path, "wb") as device:
        device.write(random_source.randbytes(SIZE))
    a, b = agents.replica(source, target)
    return a, b, source, target, a.run()["root"]


def rewrite(source, random_source):
    with open(source.path, "r+b") as device:
        for offset in (0, ELSEWHERE, 20 * MIB, *(start // LEAF * LEAF for start, _ in BAD)):
            device.seek(offset)
            device.write(random_source.randbytes(64 << 10))


def contents(device):
    with open(device.path, "rb") as file:
        return bytearray(file.read(SIZE))


def degraded(agent):
    error = agent.refused("start", "db", "--wait")
    assert (error["exit"], error["code"]) == (3, "unsynced"), error
    return error


def test_the_rest_is_applied_and_named_on_both_sides_and_sent_again_once_it_can_be_written(replica, blocks, random_source):
    a, b, source, target, first = replica
    before = contents(target)
    rewrite(source, random_source)
    blocks.unwritable(*BAD)
    error = degraded(a)
    assert "the target cannot write 512 bytes at 5243904, 8192 bytes at 17825792" in error["message"]
    expected = contents(source)
    for offset, size in BAD:  # down to the sector
        assert expected[offset : offset + size] != before[offset : offset + size]
        expected[offset : offset + size] = before[offset : offset + size]
    assert contents(target) == expected

    places = [{"offset": offset, "size": size} for offset, size in BAD]
    for agent in (a, b):
        job = agent.job()
        assert job["state"] == "degraded" and job["unsynced"] == {"source": [], "target": places}
        assert "repair or replace the target device" in job["problem"]["action"]
        [event] = agent.events("target-unwritable")
        assert event["data"]["extents"] == places
    assert "run-degraded" in a.codes() and b.job()["counter"] == 1

    degraded(a)  # still bad: tried again, and nothing else is lost
    assert contents(target) == expected
    blocks.heal()
    report = a.run()
    assert report["resumed"] and report["root"] == b3sum(target) == b3sum(source) != first
    assert (a.job()["state"], b.job()["state"]) == ("idle", "idle")
    b.qrep("snapshot", "rollback", "db@1", "-y")
    assert b3sum(target) == first, "what was logged over several runs leads back exactly"


def test_the_way_back_does_not_need_what_was_never_written(replica, blocks, random_source):
    a, b, source, target, first = replica
    rewrite(source, random_source)
    blocks.unwritable(*BAD)
    degraded(a)
    assert b3sum(target) != first
    b.kill()
    b.start()
    assert b.job()["state"] == "idle" and b3sum(target) == first
    blocks.heal()
    assert a.run()["root"] == b3sum(target) == b3sum(source)


def test_a_block_that_was_written_and_cannot_be_put_back_takes_the_volume_out_of_service(replica, blocks, random_source):
    a, b, source, target, first = replica
    rewrite(source, random_source)
    blocks.unwritable(*BAD)
    degraded(a)
    blocks.unwritable(*BAD, (ELSEWHERE, 512))
    b.kill()
    b.start()
    job = b.job()
    assert job["state"] == "failed" and job["problem"]["code"] == "damaged" and "volume-damaged" in b.codes()
    assert a.refused("start", "db", "--wait")["code"] == "damaged"
    blocks.heal()
    b.kill()
    b.start()
    assert b.job()["state"] == "idle" and b3sum(target) == first
    assert a.run()["root"] == b3sum(target) == b3sum(source)


def test_a_device_that_takes_hardly_anything_is_given_up(agents, blocks, loop_device, random_source):
    source, target = loop_device(SIZE), loop_device(backing=blocks.path, sector_size=4096)
    a, b = agents.replica(source, target)
    first = a.run()["root"]
    rewrite(source, random_source)
    with open(source.path, "r+b") as device:
        device.seek(MIB)
        device.write(random_source.randbytes(MIB // 2))
    blocks.unwritable((MIB, MIB // 2))  # more than the bound of a device with a few bad blocks
    error = a.refused("start", "db", "--wait")
    assert error["code"] == "rolled-back" and "did not take a write" in error["message"]
    assert b3sum(target) == first and b.job()["state"] == "idle"
    blocks.heal()
    assert a.run()["root"] == b3sum(target) == b3sum(source)
