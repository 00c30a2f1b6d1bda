"""kill -9 of the target while sync points are given up: each that is left still shows its image, and none that was kept has gone.

What a sync point shows is copied out by a fresh process and hashed by the packaged blake3.
"""

import json

import blake3
import pytest

from fault.scene import changed

pytestmark = pytest.mark.root

MERGE_POINTS = ("undo-merge-written", "undo-merge-durable", "undo-merge-rename-before", "store-rename-before", "store-rename-unflushed", "undo-merge-renamed", "store-remove-unflushed", "undo-merge-done")
DELETE_POINTS = ("undo-cut-before", *MERGE_POINTS)


@pytest.fixture
def three(committed, random_source):
    """A scene with three generations, all within reach."""
    committed.complete(committed.second)
    third = changed(committed.second, random_source)
    committed.write(third)
    committed.complete(third)
    return committed


def shown(scene):
    out, err = scene.start("points").communicate()
    assert out, err
    scene.end_all()
    return {int(counter): root for counter, root in json.loads(out).items()}


def expected(scene, *counters):
    return {counter: blake3.blake3(scene.images[counter]).hexdigest() for counter in counters}


def test_the_target_is_killed_before_the_oldest_sync_point_goes(three):
    three.start("delete", 1, crash="undo-cut-before:1").communicate()
    assert three.end_all() == [-9]
    assert three.recover() == 3
    assert shown(three) == expected(three, 3, 2, 1)
    three.start("delete", 1).communicate()
    assert shown(three) == expected(three, 3, 2)
    three.complete(three.images[3])


def test_the_target_is_killed_before_a_commit_gives_up_what_nobody_wants(three, random_source):
    """Two are kept: the fourth generation ends the reach of the first."""
    image = changed(three.images[3], random_source)
    three.write(image)
    three.images[4] = image
    assert three.run(crash_target="undo-cut-before:1")[1] == -9
    assert three.recover() == 4
    assert shown(three) == expected(three, 4, 3, 2, 1)
    three.complete(image)
    assert shown(three) == expected(three, 5, 4, 3)


FAST = ("undo-merge-durable", "store-rename-unflushed", "undo-merge-renamed")


@pytest.mark.parametrize("point", [pytest.param(point, marks=() if point in FAST else pytest.mark.slow) for point in MERGE_POINTS])
def test_the_target_is_killed_while_a_sync_point_is_taken_out_of_the_middle(three, point):
    """Before the rename it is still there, whole; after it, it is gone, whole; what is left over goes with the next start."""
    three.start("delete", 2, crash=f"{point}:1").communicate()
    assert three.end_all() == [-9]
    there = point in MERGE_POINTS[:4]
    assert three.recover() == 3
    assert shown(three) == (expected(three, 3, 2, 1) if there else expected(three, 3, 1))
    assert sorted(path.suffix for path in (three.state / "target" / "undo").iterdir()) == [".undo"] * (2 if there else 1)
    if there:
        three.start("delete", 2).communicate()
        assert shown(three) == expected(three, 3, 1)
    three.complete(three.images[3])
    assert shown(three) == expected(three, 4, 3, 1)


@pytest.mark.parametrize("slot", [0, pytest.param(4096, marks=pytest.mark.slow)])
def test_a_slot_of_the_superblock_rots_after_the_undo_of_the_last_commit_was_merged(three, slot):
    """The older slot no longer speaks of an open generation whose undo file leads elsewhere now."""
    three.start("delete", 2).communicate()
    three.end_all()
    with open(three.state / "target" / "superblock", "r+b") as file:
        file.seek(slot)
        file.write(bytes(512))
    assert three.recover() == 3
    assert shown(three) == expected(three, 3, 1)
