"""kill -9 at every durable step of a change of role: the volume is then what it was or what it was to become, under a fresh id, no map lies, and
the change can be asked for again."""

import json

import pytest
from fault.scene import MIB

pytestmark = pytest.mark.root

TAKE_OVER_POINTS = ("role-take-over-before", "superblock-write-before", "superblock-write-durable", "role-taken-over")
GIVE_UP_POINTS = (
    "role-give-up-before", "map-pending-before", "map-pending-durable", "role-mapped", "target-flush-before", "target-flush-done",
    "superblock-write-before", "superblock-write-durable", "map-fold-before", "map-fold-durable", "role-given-up",
)  # fmt: skip
# After the sector: pair, job and what is said of the change; killed in tests/system/test_agent_roles_killed.py.
FINISH_POINTS = ("role-pair-written", "role-job-written", "role-done-before")
FAST = ("role-taken-over", "role-mapped")  # the others are in the long tier
DECIDED = ("superblock-write-durable", "role-taken-over", "map-fold-before", "map-fold-durable", "role-given-up")


def tiered(points):
    return [pytest.param(point, marks=() if point in FAST else pytest.mark.slow) for point in points]


def change(scene, what, crash=""):
    """Its JSON line, or None if it was killed."""
    process = scene.start(what, crash=crash)
    out, err = process.communicate()
    assert scene.end_all() == [-9 if crash else 0], out + err
    return None if crash else json.loads(out)


def host_writes(scene, random_source):
    """What a mounted filesystem does to a primary volume: nobody logs it. Returns the whole image."""
    with open(scene.target, "r+b", buffering=0) as device:
        device.seek(MIB)
        device.write(random_source.randbytes(MIB // 2))
        device.seek(0)
        return device.read()


@pytest.mark.parametrize("point", tiered(TAKE_OVER_POINTS))
def test_a_volume_killed_while_it_takes_over_is_a_replica_or_primary(committed, random_source, point):
    change(committed, "take-over", crash=f"{point}:1")
    found = change(committed, "role")
    assert found["role"] == ("primary" if point in DECIDED else "replica") and not found["damaged"]
    committed.holds(committed.first)
    if point not in DECIDED:
        assert found["committed_counter"] == 1
        change(committed, "take-over")
    image = host_writes(committed, random_source)
    assert change(committed, "give-up")["changed"] == MIB // 2
    comes_back(committed, image)


@pytest.mark.parametrize("point", tiered(GIVE_UP_POINTS))
def test_a_volume_killed_while_it_gives_up_is_primary_or_a_replica_of_what_its_host_left(committed, random_source, point):
    change(committed, "take-over")
    image = host_writes(committed, random_source)
    change(committed, "give-up", crash=f"{point}:1")
    found = change(committed, "role")
    assert found["role"] == ("replica" if point in DECIDED else "primary") and not found["damaged"]
    committed.maps_are_true()
    if point not in DECIDED:
        change(committed, "give-up")
    comes_back(committed, image)


def comes_back(scene, image):
    """The old source knows nothing of this generation: it compares, and what the host wrote here stays a sync point."""
    scene.images[3] = image
    assert scene.recover() == 3
    scene.complete(scene.second)
    assert change(scene, "role")["sync_points"] == 1
    scene.start("rollback", 3).communicate()
    scene.end_all()
    scene.holds(image)
