"""kill -9 around a repair: a damaged leaf is then damaged as it was, healed, or some sectors of each, and nothing else has changed; and around
the moment when the source notes what the target holds instead of what it should."""

import json
import os
import time
from pathlib import Path

import blake3
import pytest
from fault.scene import LEAF, SIZE

pytestmark = pytest.mark.root
REPAIR_POINTS = ("target-repair-before", "target-repair-written", "target-repair-durable")
CORRECTION_POINTS = ("map-replace-before", "map-replace-durable")
SECTOR = 512


def damaged(scene, random_source, count=3):
    """Rot in some leaves of the target, one of them the last. Returns the image as it is then."""
    leaves = [*random_source.sample(range(4 << 20 >> 12), count - 1), SIZE // LEAF - 1]
    image = bytearray(scene.images[1])
    with open(scene.target, "r+b") as file:
        for leaf in leaves:
            image[leaf * LEAF : (leaf + 1) * LEAF] = random_source.randbytes(LEAF)
            os.pwrite(file.fileno(), image[leaf * LEAF : (leaf + 1) * LEAF], leaf * LEAF)
        os.fsync(file.fileno())
    return bytes(image), sorted(leaves)


def verify(scene, how="", crash_source="", crash_target=""):
    """(report or None, source's and target's exit codes)."""
    target = scene.start("target", crash=crash_target)
    source = scene.start("verify", scene.ready(target)["port"], crash=crash_source, how=how)
    out, _ = source.communicate()
    scene.finish(target)
    return json.loads(out) if out.strip() else None, scene.end_all()[::-1]


def held(scene):
    return Path(scene.target).read_bytes()


@pytest.mark.parametrize("passage", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", REPAIR_POINTS)
def test_the_target_is_killed_while_it_heals(committed, random_source, point, passage):
    right = committed.images[1]
    committed.write(right)  # the source still holds that generation
    wrong, leaves = damaged(committed, random_source)
    _, codes = verify(committed, crash_target=f"{point}:{passage}")
    assert codes[1] == -9, f"nobody came by the crash point: {codes}"
    now, healed = held(committed), 0
    for place in range(0, SIZE, SECTOR):
        sector = now[place : place + SECTOR]
        assert sector in (wrong[place : place + SECTOR], right[place : place + SECTOR]), f"{place}: neither damaged nor healed"
        healed += sector != wrong[place : place + SECTOR]
    assert healed <= passage * LEAF // SECTOR
    report, codes = verify(committed)
    assert codes == [0, 0] and report["ok"], report
    assert blake3.blake3(held(committed)).digest() == blake3.blake3(right).digest()
    committed.recover()
    committed.write(committed.second)
    committed.complete(committed.second)


@pytest.mark.parametrize("point", CORRECTION_POINTS)
def test_the_source_is_killed_while_its_map_learns_what_the_target_holds(committed, random_source, point):
    _, leaves = damaged(committed, random_source)
    report, _ = verify(committed, how="look")
    assert [place["offset"] for place in report["differences"]] == [leaf * LEAF for leaf in leaves]
    assert committed.run(crash_source=f"{point}:1")[0] == -9
    committed.complete(committed.second)


@pytest.mark.slow
def test_the_target_is_killed_at_any_time_while_it_heals_many_leaves(committed, random_source):
    right = committed.images[1]
    committed.write(right)
    killed = 0
    for number in range(12):
        wrong, _ = damaged(committed, random_source, count=200)
        target = committed.start("target")
        source = committed.start("verify", committed.ready(target)["port"])
        time.sleep(random_source.random() * 0.5)
        killed += target.poll() is None
        target.kill()
        source.communicate()
        committed.end_all()
        now = held(committed)
        for place in range(0, SIZE, SECTOR):
            assert now[place : place + SECTOR] in (wrong[place : place + SECTOR], right[place : place + SECTOR]), f"kill {number}, {place}"
        report, codes = verify(committed)
        assert codes == [0, 0] and report["ok"] and held(committed) == right, report
    assert killed > 6
    committed.recover()
