"""Rot of what qrep keeps on disk costs bandwidth, or service until somebody has looked; it never makes qrep say what is not so (INV-C)."""

import random
import shutil

import pytest
from fault.rot import SCENES, Lie, Rot

from qrep import digestmap
from qrep.digestmap import DigestMap
from qrep.target import view
from qrep.target.undostore import UndoStore

TRIALS, CANARY_TRIALS = 200, 1500


@pytest.fixture(scope="module")
def rot(tmp_path_factory):
    made = Rot(tmp_path_factory.mktemp("rot"), 1)
    yield made
    made.close()
    shutil.rmtree(made.directory)


def test_rot_of_any_record_is_never_believed(rot):
    for number in range(TRIALS):
        rot.trial(number)
    print(f"{rot.refused} refused, {rot.healed} healed or without effect, {rot.undecidable} not to be told from a batch that was never flushed")
    assert rot.healed > TRIALS / 2 and rot.finished and rot.rolled_back and rot.shown


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
        last = max(batches, key=lambda batch: batch.position)
        path = f"target/undo/{site.volume.undo.name(newest.id)}"
        rot._put(path, last.position, bytes(4096))
        with pytest.raises(Exception, match="batches of before-images"):
            site.volume.rollback(point.id)
    rot._holds(rot.images[newest.counter], "after the rollback was refused, the device")


CANARIES = {
    "undo files whose number of batches is not looked at": lambda patch: patch.setattr(UndoStore, "batches_told", lambda self, header: 0),
    "views that do not look at the number of batches": lambda patch: patch.setattr(view, "_walk", uncounted(view._walk)),
    "a superblock whose age is not looked at": lambda patch: patch.setattr(UndoStore, "newer", lambda self, committed: None),
    "a map whose body is not checked": lambda patch: patch.setattr(DigestMap, "_read_open", believing(DigestMap._read_open)),
}


class Whatever:
    """A digest that is the right one."""

    digest = property(lambda self: self)

    def __ne__(self, other):
        return False


def uncounted(walk):
    def walk_on(volume, point, files):
        found = walk(volume, point, files)
        for file in files:
            file.header = file.header.replace(batches=0)
        return found

    return walk_on


def believing(read):
    def read_all(self, descriptor):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(digestmap, "Row", lambda states, values: Whatever())
            content = read(self, descriptor)
        content.row = None
        return content

    return read_all


@pytest.mark.parametrize("canary", CANARIES)
def test_a_defect_is_caught(rot, canary, monkeypatch):
    CANARIES[canary](monkeypatch)
    for number in range(CANARY_TRIALS):
        try:
            rot.trial(number)
        except Lie as lie:
            print(f"trial {number}: {lie}")
            return
    pytest.fail(f"{CANARY_TRIALS} trials did not notice")
