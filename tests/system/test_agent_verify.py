"""qrep verify: both sides are compared at the last sync point, by leaves, and once by a stranger's hash."""

import os

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 24 * MIB


@pytest.fixture
def replicated(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, 20 * MIB)
    a, b = agents.replica(source, target)
    a.run()
    return a, b, source, target


def damage(backing, offset, data):
    """Behind the agent's back: the loop device is claimed, its backing file is not."""
    with open(backing, "r+b") as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())


def test_equal_sides_are_proved_equal_by_the_map_and_by_the_packaged_blake3(replicated):
    a, _b, source, target = replicated
    for options in ([], ["--independent"]):
        result = a.qrep("verify", "db", *options)
        assert result["equal"] and result["differences"] == []
        assert result["root"] == result["target_root"] == b3sum(target) == b3sum(source)
    assert a.codes().count("verify-equal") == 2
    assert result["wire"]["digests"] == 1 and result["read"]["target"] == SIZE and not result["source_read"]
    out, code = a.text("verify", "db")
    assert code == 0 and "the two sides are equal at generation 1" in out


def test_planted_damage_is_found_leaf_by_leaf(replicated):
    a, _b, source, target = replicated
    damage(target.backing, 5 * MIB + 100, b"x")
    damage(target.backing, 9 * MIB, b"y" * 8192)
    damage(target.backing, SIZE - 1, b"z")
    wanted = [
        {"offset": 5 * MIB, "size": 4096},
        {"offset": 9 * MIB, "size": 8192},
        {"offset": SIZE - 4096, "size": 4096},
    ]
    for options in ([], ["--independent"]):
        code, result, _err = a.call("verify", "db", *options)
        assert code == 6 and result["differences"] == wanted and not result["equal"]
        assert result["root"] != result["target_root"] == b3sum(target)
        assert result["target_damage"] == wanted and result["exact"] and result["map_differences"] == []
    assert _b.events("device-differs"), "the administrator of the target is told, too"
    event = a.events("verify-differs")[0]
    assert event["level"] == "error" and event["data"]["extents"] == wanted
    assert "qrep start db" in a.run_command("verify", "db")[2]

    a.kill()
    a.start()
    report = a.run()
    assert report["root"] == b3sum(target) == b3sum(source), "the run that follows puts it right, what should be zero, too"
    assert report["changed"] == 4 * 4096 and a.qrep("verify", "db", "--independent")["equal"]
    assert a.run()["changed"] == 0, "and believes its map again"


def test_repair_heals_in_place_what_the_source_still_holds(replicated):
    a, b, source, target = replicated
    right = b3sum(target.backing)  # the page cache of the loop device would not see the damage
    damage(target.backing, 5 * MIB + 100, b"x")
    damage(target.backing, SIZE - 1, b"z")
    code, result, _err = a.call("verify", "db", "--repair", "-n")
    assert code == 6 and result["repair"]["healed_leaves"] == 2 and b3sum(target.backing) != right
    assert a.refused("verify", "db", "--repair")["code"] == "needs-confirmation"
    with open(source, "r+b") as file:  # the source has moved on in one of the two
        file.seek(5 * MIB)
        file.write(b"newer")
    code, result, _err = a.call("verify", "db", "--repair", "-y")
    assert code == 6 and [place["offset"] for place in result["repair"]["healed"]] == [SIZE - 4096]
    assert result["differences"] == [{"offset": 5 * MIB, "size": 4096}] == result["repair"]["left"]
    assert a.codes().count("verify-healed") == 1
    report = a.run()
    assert report["changed"] == 4096 and b3sum(target) == b3sum(source) == report["root"] and a.qrep("verify", "db")["equal"]
    assert b.qrep("status")["jobs"]


def test_there_is_nothing_to_compare_before_the_first_run(agents, loop_device):
    a, _b = agents.replica(loop_device(SIZE), loop_device(SIZE))
    assert a.refused("verify", "db")["code"] == "no-common-generation"
    assert "verify-failed" in a.codes() and a.job()["state"] == "idle"
