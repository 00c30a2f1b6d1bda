"""Rot of what qrep keeps on disk costs bandwidth, or service until somebody has looked; it never makes qrep say what is not so (INV-C)."""

import mmap
import os
import random
import re
import tempfile

import pytest
from fault.rot import SCENES, Lie, Rot, Tree

from qrep import digestmap
from qrep._native import disk
from qrep.digestmap import DigestMap
from qrep.errors import DamagedError, QrepError, Refused
from qrep.protocol.target_machine import TargetMachine
from qrep.source.flow import Run
from qrep.target import view
from qrep.target.points import Points
from qrep.target.superblock import SuperblockFile
from qrep.target.undostore import UndoStore
from qrep.target.volume import TargetVolume

TRIALS, CANARY_TRIALS = 200, 1500
SUPERBLOCK, UNDO, MAP, POINTS = "target/superblock", "target/undo", "target/map", "target/points.json"


@pytest.fixture(scope="module")
def rot():
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch:
        yield Rot(scratch, 1)


def test_rot_of_any_record_is_never_believed(rot):
    for number in range(TRIALS):
        rot.trial(number)
    print(f"{rot.refused} refused, {rot.healed} healed or without effect, {rot.undecidable} not to be told from a batch that was never flushed")
    assert rot.healed > TRIALS / 2 and rot.finished and rot.rolled_back and rot.copied and rot.shown


def test_the_same_place_is_corrupted_in_the_same_way_by_the_same_seed(rot, memory_dir, monkeypatch):
    """Of what is made, too: names, content, the sectors that an attempt had written."""
    again = Rot(memory_dir, rot.seed)
    for scene, trees in rot.trees.items():
        assert [tree.files for tree in trees] == [tree.files for tree in again.trees[scene]], scene
    monkeypatch.setattr(Rot, "_look", lambda *_: None)
    for number in range(50):
        assert rot.trial(number) == again.trial(number)
        assert Tree(rot.directory).files == Tree(again.directory).files


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_no_bit_of_the_superblock_is_believed_that_was_not_written(rot, scene, seed):
    chance = random.Random(seed)
    for _ in range(20):
        rot.superblock_bit(scene, chance.randrange(2 * 512), chance.randrange(8))


@pytest.mark.parametrize("scene", ["committed", "open"])
def test_a_superblock_of_two_generations_ago_is_not_acted_upon(rot, scene):
    rot.trees[scene][-1].restore()
    before = (rot.directory / "device").read_bytes()
    rot._put_file("target/superblock", *rot.trees[scene][1].files["target/superblock"])
    with rot.site() as site:
        assert "was committed on top of it" in site.volume.damaged
    assert (rot.directory / "device").read_bytes() == before


def test_a_retained_undo_file_whose_last_batch_rotted_is_not_put_back(rot):
    rot.trees["committed"][-1].restore()
    with rot.site() as site:
        newest, point = site.volume.sync_points()[:2]
        descriptor, _header, batches = site.volume.undo.batches(point.id, newest.id)
        os.close(descriptor)
        last = max(batches, key=lambda batch: batch.position)
        path = f"target/undo/{site.volume.undo.name(newest.id)}"
        rot._put(path, last.position, bytes(4096))
        with pytest.raises(Exception, match="batches of before-images"):
            site.volume.rollback(point.id)
    rot._holds(rot.images[newest.counter], "after the rollback was refused, the device")


# ---- canaries ----


class Whatever:
    """A digest that is the right one."""

    digest = property(lambda self: self)

    def __ne__(self, other):
        return False


def believing(read):
    def read_all(self, descriptor):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(digestmap, "Row", lambda states, values: Whatever())
            content = read(self, descriptor)
        content.row = None
        return content

    return read_all


def instead(patch, where, name, what):
    """what(real, *arguments) is called in the place of a function."""
    real = getattr(where, name)
    patch.setattr(where, name, lambda *arguments, **options: what(real, *arguments, **options))


class Always:
    """An attribute that is this, whatever is set."""

    def __init__(self, value):
        self.value = value

    def __get__(self, _instance, _owner):
        return self.value

    def __set__(self, _instance, _value):
        pass


def a_bug(patch):
    def scan(real, *arguments):
        try:
            return real(*arguments)
        except DamagedError as err:
            raise KeyError(str(err)) from None

    instead(patch, UndoStore, "_scan", scan)


def a_bug_that_is_only_logged(patch):
    a_bug(patch)
    instead(patch, TargetMachine, "broken", lambda real, self, _why: real(self, "it cannot be put back"))


def a_finalizer(patch):
    class Bad:
        def __del__(self):
            raise OSError("in a finalizer")

    instead(patch, SuperblockFile, "_damaged", lambda real, *arguments: (Bad(), real(*arguments))[1])


def a_descriptor(patch):
    instead(patch, UndoStore, "_damaged", lambda real, *arguments: (os.open("/dev/null", os.O_RDONLY), real(*arguments))[1])


def made_anew(patch):
    def load(real, superblock):
        try:
            return real(superblock)
        except DamagedError:
            return None

    instead(patch, SuperblockFile, "load", load)


def no_way_back(patch):
    """The device of a volume whose undo file is damaged is written all the same; a sector of it."""

    def restore(real, self, base, new, attempt, device_fd, **options):
        try:
            return real(self, base, new, attempt, device_fd, **options)
        except DamagedError:
            zero_sector(device_fd)
            raise

    instead(patch, UndoStore, "restore", restore)


def too_much(patch):
    """Where a batch is missing, a sector is written as well that another one covers, or none."""
    most = []

    def restore(real, self, base, new, attempt, device_fd, **options):
        descriptor, _header, batches = self._scan(base, new, attempt)
        os.close(descriptor)
        most.append(len(batches))
        done = real(self, base, new, attempt, device_fd, **options)
        if len(batches) < max(most):
            zero_sector(device_fd)
        return done

    instead(patch, UndoStore, "restore", restore)


def zero_sector(device_fd):
    """The first that holds something."""
    with mmap.mmap(-1, 512) as page:
        offset = 0
        while os.preadv(device_fd, [page], offset) and not any(page[:512]):
            offset += 512
        page[:512] = bytes(512)
        os.pwritev(device_fd, [page], offset)


def refusing(patch):
    def read(real, self, descriptor):
        try:
            return real(self, descriptor)
        except disk.RecordDamaged as err:
            raise Refused(str(err), code="map-damaged", hint="") from err

    instead(patch, DigestMap, "_read_open", read)


def failing(patch):
    def run(real, self):
        if self._map.reason:
            raise QrepError("it does not get on")
        return real(self)

    instead(patch, Run, "run", run)


def uncounted(patch):
    patch.setattr(UndoStore, "batches_told", lambda self, header: 0)


def uncounted_views(patch):
    def walk(real, volume, point, files):
        found = real(volume, point, files)
        for file in files:
            file.header = file.header.replace(batches=0)
        return found

    instead(patch, view, "_walk", walk)


def ageless(patch):
    patch.setattr(UndoStore, "newer", lambda self, committed: None)


def unchecked_map(patch):
    patch.setattr(DigestMap, "_read_open", believing(DigestMap._read_open))


def known(patch):
    def facts(real, self, new, counter):
        found = real(self, new, counter)
        return found | {"fuzzy": bool(found["fuzzy"])}

    instead(patch, Points, "facts", facts)


def untold_damage(patch):
    patch.setattr(Points, "damage", Always(None), raising=False)


def untold_generation(patch):
    patch.setattr(TargetVolume, "recovered", Always(False), raising=False)


def untold_points(patch):
    patch.setattr(TargetVolume, "out_of_reach", Always(None))


# What is left out, or done: (seed_it(monkeypatch), the scenes and the parts of the trials that are to notice, what they are to say).
ALL = tuple(sorted(SCENES))
CANARIES = {
    "undo files whose number of batches is not looked at": (uncounted, ALL, (UNDO,), "holds something else"),
    "views that do not look at the number of batches": (uncounted_views, ALL, (UNDO,), "the view of sync point . shows something else"),
    "a superblock whose age is not looked at": (ageless, ALL, (SUPERBLOCK,), "it is back at 2"),
    "a map whose body is not checked": (unchecked_map, ALL, (MAP,), "a map lies"),
    "a bug where an undo file is damaged": (a_bug, ALL, (UNDO,), "a bug: damaged: .internal error"),
    "a bug that is only in the log": (a_bug_that_is_only_logged, ALL, (UNDO,), "the log says(?s:.*)Traceback"),
    "an exception in a finalizer": (a_finalizer, ALL, (SUPERBLOCK,), "unraisable in"),
    "a descriptor that stays open where an undo file is damaged": (a_descriptor, ALL, (UNDO,), "still open: /dev/null"),
    "a damaged superblock that is made anew": (made_anew, ALL, (SUPERBLOCK,), "generation 0 is committed"),
    "a generation that is lost and not told": (untold_generation, ("committed", "lost-ack"), (SUPERBLOCK,), "is back at 3, and that is not told"),
    "sync points that are lost and not told": (untold_points, ("committed", "lost-ack"), (UNDO,), "not there any more, and that is not told"),
    "a fuzzy sync point that is called frozen where nothing is known of it": (known, ALL, (POINTS,), "it calls a sync point frozen"),
    "what was noted of sync points lost and not told": (untold_damage, ALL, (POINTS,), "is lost, and that is not told"),
    "a device that is written although its undo file is damaged": (no_way_back, ("open",), (UNDO,), "it refuses, and the device holds something else"),
    "a sector of no batch that is written where a batch is missing": (too_much, ("open",), (UNDO,), "3 is committed, and the device holds something else"),
    "a damaged map that takes its volume out of service": (refusing, ALL, (MAP,), "nothing that this depends on was touched"),
    "a run that fails where the map of the source is damaged": (failing, ALL, ("sources",), "it does not get on, which nobody understands"),
}


def caught(rot, seed_it, scenes, parts, words):
    """Whether some trial reports the defect."""
    with pytest.MonkeyPatch.context() as patch:
        seed_it(patch)
        for number in range(CANARY_TRIALS):
            try:
                rot.trial(number, scenes, parts)
            except Lie as lie:
                if re.search(words, str(lie)):
                    return True
    return False


@pytest.mark.parametrize("canary", CANARIES)
def test_a_defect_is_caught(rot, canary):
    assert caught(rot, *CANARIES[canary]), f"{CANARY_TRIALS} trials did not notice"
