"""kill -9 of the source, the target or both at every step of a group's commit: both volumes hold the one generation or both the other, the target comes
up by itself, no record stays, and the next run completes. Opinions on the content are b3sum's and the packaged blake3's.
"""

import json
import os
import subprocess
from pathlib import Path

import blake3
import pytest
from fault.scene import MIB, SIZE, changed, kill_standing
from fault.test_kill_matrix import GROUP_POINTS

from qrep import sealed

pytestmark = pytest.mark.root
TARGET_POINTS = tuple(point for point in GROUP_POINTS if point.startswith("group-"))
SOURCE_POINTS = ("source-agreed", "map-fold-before")


class Group:
    """images: counter -> contents of both volumes."""

    def __init__(self, nest, sources, targets, state, kind):
        self.nest, self.state, self.kind = nest, Path(state), kind
        self.sources, self.targets = [str(path) for path in sources], [str(path) for path in targets]
        self.images, self._running = {}, []

    def start(self, role, *arguments, crash=""):
        process = self.nest.start(role, self.state, *arguments, crash=crash)
        self._running.append(process)
        return process

    def stop_all(self):
        for process in self._running:
            process.close()
        self._running.clear()

    def end_all(self):
        """As Scene.end_all()."""
        for process in self._running:
            process.end()
        try:
            return tuple(process.judge() for process in self._running)
        finally:
            self.stop_all()

    def target(self, crash=""):
        """(process, what it says when it is ready, or None)."""
        process = self.start("grouptarget", *self.targets, crash=crash)
        line = process.readline()
        return process, json.loads(line) if line else None

    def run(self, crash_source="", crash_target=""):
        """One attempt of the group. (exit codes of source and target, reports)."""
        source, target = self._begin(crash_source, crash_target)
        out, _err = source.communicate()
        target.stdin.close()
        target.wait()
        return self.end_all()[::-1], json.loads(out) if out.strip() else None

    def _begin(self, crash_source, crash_target):
        target, ready = self.target(crash_target)
        assert ready is not None, target.errors()
        return self.start("groupsource", json.dumps(ready["ports"]), self.kind, *self.sources, crash=crash_source), target

    def kill_both(self, crash_source="", crash_target=""):
        """As Scene.kill_both()."""
        kill_standing(self._begin(*(f"{crash}:stop" if crash else "" for crash in (crash_source, crash_target))))
        codes = self.end_all()
        assert codes == (-9, -9), f"{codes}: not both were killed"

    def write(self, images):
        for path, image in zip(self.sources, images, strict=True):
            with open(path, "r+b") as file:
                file.write(image)
                file.flush()
                os.fsync(file.fileno())

    def recover(self):
        """The target by itself: the counter of both volumes, which hold exactly what was committed then."""
        process, ready = self.target()
        assert ready is not None, process.errors()
        assert all(status["damaged"] is None for status in ready["volumes"]) and ready["records"] == 0
        assert not list((self.state / "groups").iterdir())
        counters = {status["committed_counter"] for status in ready["volumes"]}
        assert len(counters) == 1, f"the volumes hold generations {counters}"
        process.stdin.close()
        process.wait()
        assert self.end_all() == (0,)
        [counter] = counters
        if counter:
            self.holds(self.images[counter])
        return counter

    def holds(self, images):
        for path, image in zip(self.targets, images, strict=True):
            stranger = subprocess.run(["b3sum", "--no-names", path], capture_output=True, text=True, check=True).stdout.strip()
            assert blake3.blake3(image).hexdigest() == blake3.blake3(Path(path).read_bytes()).hexdigest() == stranger

    def complete(self, images):
        codes, reports = self.run()
        assert codes == (0, 0), reports
        [counter] = {report["counter"] for report in reports}
        self.images[counter] = images
        self.holds(images)
        return counter


def make(nest, sources, targets, state, random_source, kind):
    made = Group(nest, sources, targets, state, kind)
    first = [random_source.randbytes(2 * MIB) + bytes(SIZE - 2 * MIB) for _ in sources]
    made.write(first)
    assert made.complete(first) == 1
    made.second = [changed(image, random_source) for image in first]
    made.write(made.second)
    made.images[2] = made.second
    return made


@pytest.fixture
def group(nest, loop_device, memory_dir, random_source, undo_after):
    """Two volumes of one group with one committed generation, and sources that have changed since."""
    made = make(nest, [loop_device(SIZE), loop_device(SIZE)], [loop_device(SIZE), loop_device(SIZE)], memory_dir / "state", random_source, "none")
    undo_after.callback(made.stop_all)
    return made


@pytest.fixture
def frozen(nest, xfs, loop_device, memory_dir, random_source, undo_after):
    """The same of two image files that are frozen."""
    images = [xfs / "data.img", xfs / "log.img"]
    for image in images:
        image.write_bytes(bytes(SIZE))
    made = make(nest, images, [loop_device(SIZE), loop_device(SIZE)], memory_dir / "state", random_source, "reflink")
    undo_after.callback(made.stop_all)
    return made


@pytest.mark.parametrize("point", TARGET_POINTS)
def test_the_target_is_killed(group, point):
    codes, _reports = group.run(crash_target=f"{point}:1")
    assert codes[1] == -9
    assert group.recover() == (1 if point == "group-record-before" else 2)
    assert group.complete(group.second) in (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["superblock-write-before", "superblock-write-durable"])
def test_the_target_is_killed_between_the_superblocks_of_the_commit(group, point):
    # Of each volume: Hello, Begin, and then the commit; so the fifth is the first of the commit, the sixth the second.
    for passage in (5, 6):
        codes, _reports = group.run(crash_target=f"{point}:{passage}")
        assert codes[1] == -9
        counter = group.recover()
        group.images[counter + 1] = group.second
    group.complete(group.second)


@pytest.mark.parametrize("point", SOURCE_POINTS)
def test_the_source_is_killed(group, point):
    codes, _reports = group.run(crash_source=f"{point}:1")
    assert codes[0] == -9
    counter = group.recover()
    assert counter == (2 if point == "map-fold-before" else 1)
    group.images[counter + 1] = group.second
    group.complete(group.second)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["superblock-write-before", "group-settle-before"])
def test_the_target_is_killed_again_while_it_rolls_forward(group, point):
    assert group.run(crash_target="group-record-durable:1")[0][1] == -9
    process, ready = group.target(crash=f"{point}:1")
    assert ready is None and process.wait() == -9
    group.end_all()
    assert group.recover() == 2
    group.images[3] = group.second
    group.complete(group.second)


# Of the commit, with the passage that is of it.
COMMIT_POINTS = (*(f"{point}:1" for point in TARGET_POINTS), "group-settled:2", "superblock-write-before:5", "target-reply:6")


@pytest.mark.slow
@pytest.mark.parametrize("target", COMMIT_POINTS)
def test_both_are_killed_where_the_target_stands(group, target):
    group.kill_both("", target)
    group.images[group.recover() + 1] = group.second
    group.complete(group.second)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["source-agreed:1", "source-agreed:2", "map-fold-before:1", "map-fold-before:2", "source-send:8"])
def test_both_are_killed_where_the_source_stands(group, source):
    group.kill_both(source)
    group.images[group.recover() + 1] = group.second
    group.complete(group.second)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["source-agreed:2", "map-fold-before:1"])
@pytest.mark.parametrize("target", COMMIT_POINTS)
def test_the_target_is_killed_and_then_the_source_in_the_next_attempt(group, target, source):
    assert group.run(crash_target=target)[0][1] == -9
    group.images[3] = group.second
    assert group.run(crash_source=source)[0] == (-9, 0)
    group.images[group.recover() + 1] = group.second
    group.complete(group.second)


@pytest.mark.parametrize("point", ["together-frozen:2", *(pytest.param(point, marks=pytest.mark.slow) for point in ("together-frozen:1", "source-agreed:2"))])
def test_a_group_of_frozen_sources_goes_on_after_a_kill_of_its_source(frozen, point):
    codes, _reports = frozen.run(crash_source=point)
    assert codes[0] == -9
    assert frozen.recover() == 1
    assert frozen.complete(frozen.second) == 2
    assert not list((Path(frozen.sources[0]).parent / ".qrep-snapshots").iterdir()), "of all clones none is left"


SHARED_POINTS = ("shared-frozen:1", "shared-token-held:1", "shared-token-released:1", "shared-token-released:2", "source-run-saved:2", "source-frame-sent:3")


@pytest.mark.parametrize("point", [*SHARED_POINTS[:3], *(pytest.param(point, marks=pytest.mark.slow) for point in SHARED_POINTS[3:])])
def test_two_jobs_of_one_snapshot_are_killed(nest, xfs, loop_device, memory_dir, random_source, undo_after, point):
    image, targets, state = xfs / "db.img", [loop_device(SIZE), loop_device(SIZE)], memory_dir / "state"
    content = random_source.randbytes(SIZE)
    image.write_bytes(content)
    pair = Group(nest, [image, image], targets, state, "reflink")
    undo_after.callback(pair.stop_all)
    for crash in (point, ""):
        target, ready = pair.target()
        source = pair.start("groupshared", json.dumps(ready["ports"]), image, 2, crash=crash)
        out, _err = source.communicate()
        target.stdin.close()
        target.wait()
        assert pair.end_all() == (0, -9 if crash else 0), out
    pair.holds([content, content])
    assert not list((image.parent / ".qrep-snapshots").iterdir()), "the snapshot was given back by the last of them"
    assert sealed.load((state / "shared.json").read_bytes(), "") == {}
