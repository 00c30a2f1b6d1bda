"""Sync points of a target volume: how many are kept, going back to one, copying one out, dropping one."""

import contextlib

import pytest
from agents import MIB, b3sum
from security.hand import Control, commit_nothing

from qrep.daemon.statedb import StateDb
from qrep.protocol import messages as say

pytestmark = pytest.mark.root
SIZE = 16 * MIB


@pytest.fixture
def five_generations(agents, loop_device, fill):
    """(source agent, target agent, target device, root by generation): five runs of a job that keeps three sync points."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    a, b = agents.replica(source, target, job=("--sync-points", 3), volume=("--undo-space", "8x"))
    roots = {}
    for generation in range(1, 6):
        fill(source, MIB, offset=generation * MIB)
        roots[generation] = a.run()["root"]
        assert roots[generation] == b3sum(target)
    return a, b, target, roots


def test_three_are_kept_and_each_is_reached_by_a_rollback_exactly(five_generations):
    a, b, target, roots = five_generations
    points = b.qrep("snapshot", "db")
    assert [point["point"] for point in points] == ["5", "4", "3", "2"], "the present one and three before it"
    assert [point["root"] for point in points] == [roots[generation] for generation in (5, 4, 3, 2)]
    assert points[0]["current"] and all(point["fuzzy"] and point["time"] for point in points)

    plan = b.qrep("snapshot", "rollback", "db@3", "-n")
    assert plan["bytes"] > 0 and b3sum(target) == roots[5], "a plan writes nothing"
    assert b.refused("snapshot", "rollback", "db@3")["code"] == "needs-confirmation"
    assert b.refused("snapshot", "rollback", "db@1", "-y")["code"] == "no-such-point"
    assert b.refused("snapshot", "rollback", "db@5", "-y")["code"] == "already-there"

    result = b.qrep("snapshot", "rollback", "db@3", "-y")
    assert b3sum(target) == roots[3] == result["root"] and result["counter"] == 6
    assert b.job()["root"] == roots[3]
    assert b.events("rolled-back")[0]["data"]["counter"] == 6
    b.qrep("snapshot", "rollback", "db@5", "-y")
    assert b3sum(target) == roots[5], "what was rolled back from is a sync point, too"

    report = a.run()
    assert report["root"] == b3sum(target) and report["counter"] == 8


def test_a_sync_point_is_copied_to_a_file_and_to_a_device(five_generations, loop_device, memory_dir):
    _a, b, target, roots = five_generations
    image, device = memory_dir / "copy.img", loop_device(SIZE)
    copied = b.qrep("snapshot", "copy", "db@2", image)
    assert copied["root"] == roots[2] == b3sum(image)
    assert image.stat().st_mode & 0o777 == 0o600
    assert b.qrep("snapshot", "copy", "db@4", device)["root"] == roots[4] == b3sum(device)
    assert b3sum(target) == roots[5]
    assert b.refused("snapshot", "copy", "db@4", target)["code"] in ("target-in-use", "same-device")
    assert b.refused("snapshot", "copy", "db@4", image)["code"] == "exists"
    assert b.codes().count("snapshot-copied") == 2


def test_a_file_that_is_in_use_or_has_no_directory_is_refused_and_keeps_its_bytes(five_generations, loop_device, memory_dir):
    _a, b, target, roots = five_generations
    other = loop_device(MIB)
    other.backing.write_bytes(b"mine" * (MIB // 4))
    assert b.refused("snapshot", "copy", "db@4", other.backing, "-y")["exit"] == 5
    assert other.backing.read_bytes() == b"mine" * (MIB // 4)
    assert b.refused("snapshot", "copy", "db@4", target.backing, "-y")["exit"] == 5
    assert b3sum(target) == roots[5]
    other.detach()
    assert b.qrep("snapshot", "copy", "db@4", other.backing, "-y")["root"] == roots[4] == b3sum(other.backing), "of any size before"
    assert b.refused("snapshot", "copy", "db@4", memory_dir / "none" / "copy.img")["code"] == "no-such-directory"


def test_any_but_the_present_one_can_be_deleted_and_the_others_stay_what_they_were(five_generations, memory_dir):
    _a, b, target, roots = five_generations
    image = memory_dir / "point.img"
    assert b.refused("snapshot", "delete", "db@5", "-y")["code"] == "current-point"
    assert b.refused("snapshot", "delete", "db@4")["code"] == "needs-confirmation"
    plan = b.qrep("snapshot", "delete", "db@4", "-n")
    assert plan["merged"] and plan["bytes"] > 0 and len(b.qrep("snapshot", "db")) == 4
    assert b.qrep("snapshot", "delete", "db@4", "-y")["deleted"] == ["4"]
    assert [point["point"] for point in b.qrep("snapshot", "db")] == ["5", "3", "2"]
    for point in ("3", "2"):
        assert b.qrep("snapshot", "copy", f"db@{point}", image, "-y")["root"] == roots[int(point)] == b3sum(image)
    assert not b.qrep("snapshot", "delete", "db@2", "-n")["merged"]
    assert b.qrep("snapshot", "delete", "db@2", "-y")["deleted"] == ["2"]
    assert [point["point"] for point in b.qrep("snapshot", "db")] == ["5", "3"]
    assert b.codes().count("snapshot-deleted") == 2
    b.qrep("snapshot", "rollback", "db@3", "-y")
    assert b3sum(target) == roots[3]


def test_a_damaged_undo_file_ends_the_list_there_and_the_newer_sync_points_are_reached(five_generations):
    _a, b, target, roots = five_generations
    by_point = {point["point"]: point["id"] for point in b.qrep("snapshot", "db")}
    (undo,) = (b.state / "targets").rglob(f"{by_point['4']}.undo")  # the way from 4 to 3
    undo.write_bytes(bytes(undo.stat().st_size))
    assert [point["point"] for point in b.qrep("snapshot", "db")] == ["5", "4"]
    assert b.refused("snapshot", "rollback", "db@3", "-y")["code"] == "no-such-point"
    (told,) = b.events("points-out-of-reach")
    assert told["volume"] == "db" and by_point["4"] in told["text"] and undo.name in told["text"]
    assert b.qrep("volume", "show", "db")["out_of_reach"] == told["text"] in b.text("volume", "show", "db")[0]
    b.kill()
    (noted,) = (b.state / "targets").rglob("points.json")
    noted.write_bytes(noted.read_bytes().replace(b"true", b"True"))
    b.start()
    assert [each["text"] for each in b.events("points-out-of-reach")] == [told["text"]] * 2, "and once after each start"
    assert str(noted) in b.events("points-forgotten")[0]["text"]
    assert all(point["fuzzy"] is point["consistency"] is point["time"] is None for point in b.qrep("snapshot", "db"))
    assert b.text("snapshot", "db")[0].count("not known") == 2 and b.job()["fuzzy"] is None
    b.qrep("snapshot", "rollback", "db@4", "-y")
    assert b3sum(target) == roots[4]


def test_fewer_sync_points_are_kept_from_the_next_run_on(five_generations):
    a, b, _target, _roots = five_generations
    a.qrep("job", "set", "db", "--sync-points", 1)
    a.run()
    assert [point["point"] for point in b.qrep("snapshot", "db")] == ["6", "5"]
    b.kill()
    b.start()
    assert b.job()["sync_points"] == 1 and len(b.qrep("snapshot", "db")) == 2
    assert "job-changed" in a.codes()


def test_an_agent_that_died_before_it_noted_a_root_knows_it_again_and_says_what_nothing_vouches_for(five_generations, memory_dir):
    _a, b, _target, _roots = five_generations
    points = b.qrep("snapshot", "db")
    b.kill()
    with contextlib.closing(StateDb(b.state / "state.db")) as db:
        for value in list(db._found.values("root").values()):
            db.keep_roots(value["volume"], [])
    b.start()
    again = b.qrep("snapshot", "db")
    assert [point["root"] for point in again] == [points[0]["root"], *(None for _ in points[1:])]
    for point, vouched in ((again[0], True), (again[1], False)):
        copied = b.qrep("snapshot", "copy", f"db@{point['point']}", memory_dir / point["point"])
        assert copied["checked"] is vouched and copied["root"] == points[again.index(point)]["root"]


def test_the_root_of_a_sync_point_is_known_before_its_session_has_ended(five_generations):
    """The next run may begin before it has, and then nobody would know the root of this one."""
    a, b, target, _roots = five_generations
    with Control(a, b) as control:
        assert commit_nothing(control).counter == 6
        points = b.qrep("snapshot", "db")
        assert isinstance(control.say(say.Ping()), say.Pong), "it goes on"
    assert [point["point"] for point in points] == ["6", "5", "4", "3"]
    assert points[0]["root"] == points[1]["root"] == b3sum(target)
