"""States that a power cut may leave of what qrep wrote, enumerated from recorded logs and recovered by the shipping code, with one crash and with two."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from crash import canaries, recorder, scenes
from crash.harness import Bench, Counts, Failure
from crash.told import Told
from crash.trial import COMMITTED, CONTENT, POINTS, QUIET, SERVICE
from qrep.errors import QrepError
from qrep.target.undostore import UndoStore
from qrep.target.volume import TargetVolume

SEED = 1
LIMIT, RECOVERIES, DOUBLE_LIMIT = 25, 5, 20

pytestmark = pytest.mark.root


class Lives:
    """The recorded scenes, each made when it is asked for."""

    def __init__(self, directory):
        self.directory, self.program, self._made = directory, recorder.build(directory), {}

    def __getitem__(self, name):
        if name not in self._made:
            self._made[name] = scenes.record(name, self.directory / name.replace(" ", "-"), self.program, SEED)
        return self._made[name]


@pytest.fixture(scope="module")
def lives():
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no /dev/fuse")
    directory = Path(tempfile.mkdtemp(prefix="qrep-test-", dir="/dev/shm"))
    yield Lives(directory)
    shutil.rmtree(directory)


@pytest.mark.parametrize("name", scenes.LIVES)
def test_after_a_crash_and_after_one_in_its_recovery_a_volume_is_what_it_was(lives, name):
    scene, slow, counts = lives[name], 5 if name in scenes.SLOW else 1, Counts()
    with Told() as told:
        bench = Bench(lives.directory / f"bench-{name}", lives.program, scene, SEED, told)
        bench.doubles(counts, RECOVERIES, DOUBLE_LIMIT)  # of one alone all may be as after one crash
        bench.singles(counts, LIMIT // slow)
    print(f"seed {SEED}: {vars(counts)}")
    assert counts.distinct and counts.distinct_doubles and counts.taken_back or name == "merged"


def control(lives, wanted, place):
    scene = lives[wanted[0]]
    with Told() as told:
        canaries.control(scene, wanted, lives.directory / place, lives.program, SEED, told)


def catch(lives, canary, place, monkeypatch):
    scene = lives[canary.scene]
    with Told() as told:
        return canaries.caught(canary, lives.directory / place, lives.program, scene, SEED, told, monkeypatch)


CONTROLS = tuple(dict.fromkeys(each.control for each in canaries.CANARIES.values() if not each.doubles))  # the campaign has those of two crashes, too


@pytest.mark.parametrize("wanted", CONTROLS, ids=lambda wanted: f"{wanted[0]}, {CONTROLS.index(wanted)}")
def test_nothing_is_noticed_without_a_defect(lives, wanted):
    control(lives, wanted, f"control-{CONTROLS.index(wanted)}")


@pytest.mark.parametrize("name", canaries.CANARIES)
def test_a_defect_is_noticed(lives, name, monkeypatch):
    print(catch(lives, canaries.CANARIES[name], f"canary-{list(canaries.CANARIES).index(name)}", monkeypatch))


def fits_no_more(patch):
    """What a patch does of which the code has moved on: other arguments."""
    patch.setattr(UndoStore, "restore", lambda self, base, new: 0)


def asks_for_what_is_not_there(patch):
    patch.setattr(UndoStore, "restore", lambda self, *arguments, **options: self.nothing_of_this_name())


def breaks_what_judges(patch):
    patch.setattr(Told, "judge", lambda self, **_options: self.nothing_of_this_name())


def refuses(patch):
    def restore(self, *arguments, **options):
        raise QrepError("not today")

    patch.setattr(UndoStore, "restore", restore)


def does_nothing(patch):
    pass


@pytest.mark.parametrize(
    "patch, why",
    [
        (fits_no_more, QUIET), (asks_for_what_is_not_there, QUIET), (breaks_what_judges, "AttributeError"), (refuses, SERVICE),
        (does_nothing, "nobody noticed"),
    ],
)  # fmt: skip
def test_a_patch_that_fits_no_more_is_no_defect_that_was_noticed(lives, patch, why, monkeypatch):
    canary = canaries.CANARIES["recovery skips the last undo record"]
    with pytest.raises(canaries.NotCaught, match=why):
        catch(lives, canary._replace(patch=patch), f"no-canary-{patch.__name__}", monkeypatch)


def test_a_defect_that_is_there_without_the_canary_fails_the_control(lives, monkeypatch):
    canaries.skips_the_first_logged(monkeypatch)
    with pytest.raises(Failure, match=CONTENT):
        control(lives, canaries.CANARIES["recovery skips the last undo record"].control, "no-control")


def test_the_same_bytes_are_recovered_once_and_judged_by_what_each_place_expects(lives):
    scene, counts = lives["runs"], Counts()
    with Told() as told:
        bench = Bench(lives.directory / "twice", lives.program, scene, SEED, told)
        bench.keeping = False
        bench.singles(counts, LIMIT)
        assert len(bench.tried) == counts.recovered < counts.all
        files, (committed, points) = next((dict(key), reached) for key, reached in bench.tried.items() if len(reached[1]) > 1)
        step = scene.steps[-1]._replace(committed=frozenset({committed}), points=points)
        assert not bench.attempt(files, step, "again")
        for wrong, promise in ((step._replace(committed=frozenset({bytes(16)})), COMMITTED), (step._replace(points=points | {bytes(16)}), POINTS)):
            with pytest.raises(Failure, match=promise):
                bench.attempt(files, wrong, "again")


def test_an_event_that_must_not_be_is_a_fault_where_everything_else_is_right(lives, monkeypatch):
    opened = TargetVolume.open

    def tells(self, *arguments):
        opened(self, *arguments)
        self.observer("volume-damaged", "it is not", volume=self.name)

    monkeypatch.setattr(TargetVolume, "open", tells)
    with pytest.raises(Failure, match=QUIET):
        control(lives, CONTROLS[0], "no-event")
