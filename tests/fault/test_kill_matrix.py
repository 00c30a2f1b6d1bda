"""kill -9 of the source, the target or both at every named crash point and at random times; each time the target comes back by itself
to its last committed generation, no map lies, and the next run completes. Every opinion on the content is b3sum's and the packaged blake3's.

QREP_KILLS=n random kills (default 6). The matrix of "both" and of later passages is in the slow tier.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import blake3
import pytest

from qrep._native import disk, hasher
from qrep._native.wire import Geometry
from qrep.crashpoint import POINTS
from qrep.digestmap import DigestMap
from qrep.store import Directory
from qrep.target.superblock import SuperblockFile

pytestmark = pytest.mark.root
ENDS = Path(__file__).with_name("ends.py")
MIB = 1 << 20
SIZE, LEAF, GRANULE = 6 * MIB, 4096, MIB
JOB, VOLUME = bytes([1]) * 16, bytes([2]) * 16
READY_S = 5.0

SOURCE_POINTS = (
    "source-frozen", "source-run-saved", "source-send", "source-lanes-before", "source-leaf-page", "source-frame-sent", "source-end",
    "source-lanes-done", "source-release-before", "map-pending-before", "map-pending-durable", "map-fold-before", "map-fold-durable",
    "store-write-unflushed", "store-rename-before", "store-rename-unflushed", "store-remove-unflushed",
)  # fmt: skip
TARGET_POINTS = (
    "undo-create-before", "undo-create-durable", "superblock-write-before", "superblock-write-durable", "target-claimed",
    "target-lanes-started", "target-frame-received", "target-undo-written", "target-undo-flushed", "target-write-submitted",
    "target-write-done", "target-end", "target-flush-before", "target-flush-done", "target-reply", "map-pending-before",
    "map-pending-durable", "map-fold-before", "map-fold-durable", "store-write-unflushed", "store-rename-before", "store-rename-unflushed",
)  # fmt: skip
RECOVERY_POINTS = ("undo-restore-before", "undo-restore-batch", "target-flush-before", "target-flush-done", "superblock-write-before", "superblock-write-durable", "undo-prune-before")
INITIAL_POINTS = ("superblock-create-before", "map-forget-before", "target-write-done", "superblock-write-before", "map-fold-before")
ROLLBACK_POINTS = ("undo-create-durable", "rollback-undo-durable", "rollback-applied", "superblock-write-before", "superblock-write-durable", "map-fold-before")
COMPARE_POINTS = ("source-searched", "source-leaf-page", "source-lanes-before", "source-frame-sent", "map-pending-durable")
# Passed where a whole run on plain devices does not come by; each has its own test.
ELSEWHERE = {
    "map-drop-before", "map-adopt-durable", "map-checkpoint-before", "map-checkpoint-durable", "target-drained",
    "snapshot-frozen", "snapshot-cloned", "snapshot-named",
}  # fmt: skip


def test_every_crash_point_is_in_the_matrix():
    matrix = {*SOURCE_POINTS, *TARGET_POINTS, *RECOVERY_POINTS, *INITIAL_POINTS, *ROLLBACK_POINTS, *COMPARE_POINTS}
    assert matrix | ELSEWHERE == set(POINTS) and not matrix & ELSEWHERE


class Scene:
    """Two loop devices, their state on tmpfs, and what every generation's image is."""

    def __init__(self, source, target, state):
        self.source, self.target, self.state = str(source), str(target), Path(state)
        self.images = {}  # counter -> content
        self._running = []

    def start(self, role, *arguments, crash=""):
        device = self.source if role == "source" else self.target
        process = subprocess.Popen(
            [sys.executable, str(ENDS), role, device, str(self.state), *map(str, arguments)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "QREP_CRASH": crash},
        )  # fmt: skip
        self._running.append(process)
        return process

    def ready(self, process):
        """What a target says when it is ready, or None if it died before."""
        line = process.stdout.readline()
        return json.loads(line) if line else None

    def stop_all(self):
        for process in self._running:
            process.kill()
            process.communicate()
        self._running.clear()

    def write(self, data):
        with open(self.source, "r+b") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def run(self, crash_source="", crash_target=""):
        """One run with crashes asked for; both processes are gone afterwards. Returns (source's, target's) exit codes."""
        target = self.start("target", crash=crash_target)
        ready = self.ready(target)
        codes = [None, None]
        if ready is not None:
            source = self.start("source", ready["port"], crash=crash_source)
            source.communicate(timeout=60)
            codes[0] = source.returncode
        self.settle(target, crash_target)
        codes[1] = target.poll()
        self.stop_all()
        return codes

    @staticmethod
    def settle(target, crash):
        """What a target still does after its source has ended (folding, pruning) is given a moment."""
        deadline = time.monotonic() + (1.0 if crash else 0.2)
        while target.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)

    def recover(self):
        """A target comes up by itself, in time, holding exactly its committed generation, and no map lies."""
        target = self.start("target")
        ready = self.ready(target)
        assert ready is not None, target.communicate()[1]
        assert ready["seconds"] < READY_S and ready["damaged"] is None
        counter = ready["committed_counter"]
        if counter:
            self.holds(self.images[counter])
        self.stop_all()
        self.maps_are_true()
        return counter

    def holds(self, image):
        wanted = blake3.blake3(image).hexdigest()
        with open(self.target, "rb") as file:
            assert blake3.blake3(file.read()).hexdigest() == wanted
        assert subprocess.run(["b3sum", "--no-names", self.target], capture_output=True, text=True).stdout.strip() == wanted

    def maps_are_true(self):
        """INV-I: a map whose tag is T says of every granule what the device holds, or nothing."""
        with Directory(self.state / "target") as directory:
            file = SuperblockFile(directory)
            committed = file.load().committed_id
            file.close()
        data = Path(self.target).read_bytes()
        for place in (self.state / "target" / "map", self.state / "sources" / JOB.hex() / "map"):
            if not place.exists():
                continue
            digest_map = DigestMap(place, Geometry(SIZE, LEAF, GRANULE), VOLUME)
            if digest_map.tag == committed and any(committed):
                for granule, state in enumerate(digest_map.states):
                    part = data[granule * GRANULE : (granule + 1) * GRANULE]
                    if state & disk.STATE_MASK == disk.STATE_ZERO:
                        assert not any(part)
                    elif state & disk.STATE_MASK == disk.STATE_HASHED:
                        assert digest_map.value(granule) == hasher.subtree(part, granule * GRANULE, LEAF), f"{place}: {granule}"
            digest_map.close()

    def complete(self, image):
        """The next run commits what the source holds."""
        target = self.start("target")
        source = self.start("source", self.ready(target)["port"])
        out, err = source.communicate(timeout=60)
        assert source.returncode == 0, out + err
        report = json.loads(out)
        assert report["root"] == blake3.blake3(image).hexdigest()
        self.settle(target, "")
        self.stop_all()
        self.images[report["counter"]] = image
        self.holds(image)
        self.maps_are_true()
        return report


def changed(image, random_source):
    """Some leaves rewritten, one granule zeroed, one that was zero filled."""
    data = bytearray(image)
    for _ in range(12):
        leaf = random_source.randrange(SIZE // LEAF)
        data[leaf * LEAF : (leaf + 1) * LEAF] = random_source.randbytes(LEAF)
    zeroed, filled = random_source.sample(range(SIZE // GRANULE), 2)
    data[zeroed * GRANULE : (zeroed + 1) * GRANULE] = bytes(GRANULE)
    data[filled * GRANULE : (filled + 1) * GRANULE] = random_source.randbytes(GRANULE)
    return bytes(data)


@pytest.fixture
def scene(loop_device, memory_dir, random_source, undo_after):
    """A scene whose source holds an image that was never replicated."""
    made = Scene(loop_device(SIZE), loop_device(SIZE), memory_dir / "state")
    undo_after.callback(made.stop_all)
    made.first = random_source.randbytes(4 * MIB) + bytes(2 * MIB)
    made.write(made.first)
    return made


@pytest.fixture
def committed(scene, random_source):
    """A scene with one committed generation, and a source that has changed since."""
    scene.complete(scene.first)
    scene.second = changed(scene.first, random_source)
    scene.write(scene.second)
    scene.images[2] = scene.second
    return scene


def crash_and_recover(scene, source="", target=""):
    codes = scene.run(source, target)
    assert -9 in codes, f"nobody came by the crash point: {codes}"
    scene.recover()
    scene.complete(scene.second)


@pytest.mark.parametrize("point", SOURCE_POINTS)
def test_the_source_is_killed(committed, point):
    crash_and_recover(committed, source=f"{point}:1")


@pytest.mark.parametrize("point", COMPARE_POINTS)
def test_the_source_is_killed_in_a_run_without_a_map(committed, point):
    (committed.state / "sources" / JOB.hex() / "map" / "root").unlink()
    crash_and_recover(committed, source=f"{point}:1")


@pytest.mark.parametrize("point", TARGET_POINTS)
def test_the_target_is_killed(committed, point):
    crash_and_recover(committed, target=f"{point}:1")


@pytest.mark.slow
@pytest.mark.parametrize("passage", [2, 3, 4])
@pytest.mark.parametrize("point", ["superblock-write-before", "superblock-write-durable", "target-reply", "target-write-done", "target-flush-before"])
def test_the_target_is_killed_at_a_later_passage(committed, point, passage):
    committed.run("", f"{point}:{passage}")
    committed.recover()
    committed.complete(committed.second)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGET_POINTS)
def test_both_are_killed(committed, target):
    committed.run("source-lanes-done:1", f"{target}:1")
    committed.recover()
    committed.complete(committed.second)


@pytest.mark.parametrize("point", RECOVERY_POINTS)
def test_the_target_is_killed_again_while_it_recovers(committed, point):
    codes = committed.run("", "target-flush-before:1")  # everything is written, nothing committed
    assert codes[1] == -9
    again = committed.start("target", crash=f"{point}:1")
    assert committed.ready(again) is None and again.wait() == -9
    assert committed.recover() == 1
    committed.complete(committed.second)


@pytest.mark.parametrize("point", INITIAL_POINTS)
def test_the_target_is_killed_in_its_first_run(scene, point):
    codes = scene.run("", f"{point}:1")
    assert codes[1] == -9
    scene.images[1] = scene.first
    scene.recover()
    scene.complete(scene.first)


@pytest.mark.parametrize("point", ROLLBACK_POINTS)
def test_the_target_is_killed_while_it_rolls_back(committed, point):
    committed.complete(committed.second)
    process = committed.start("rollback", 1, crash=f"{point}:1")
    process.communicate(timeout=60)
    assert process.returncode == -9
    committed.images[3] = committed.first
    assert committed.recover() in (2, 3)
    committed.complete(committed.second)


def test_kills_at_random_times(scene, seed, random_source):
    """Whoever is killed whenever: seed and time of each kill are printed."""
    image = scene.first
    for number in range(int(os.environ.get("QREP_KILLS", "6"))):
        chance = random.Random(f"{seed}:{number}")
        victims, delay = chance.choice(["s", "t", "st"]), chance.uniform(0.0, 0.7)
        print(f"kill {number}: {victims} after {delay:.3f} s")
        target = scene.start("target")
        ready = scene.ready(target)
        counter = ready["committed_counter"]
        scene.images[counter + 1] = image
        source = scene.start("source", ready["port"])
        time.sleep(delay)
        for letter, process in (("s", source), ("t", target)):
            if letter in victims:
                process.kill()
        if "s" in victims and victims != "st":
            time.sleep(0.1)  # the target sees the end of its sessions before it goes, too
        scene.stop_all()
        after = scene.recover()
        assert after in (counter, counter + 1)
        if after > counter or chance.random() < 0.3:
            scene.complete(image)
            image = changed(image, random_source)
            scene.write(image)
    scene.complete(image)
    shutil.rmtree(scene.state)
