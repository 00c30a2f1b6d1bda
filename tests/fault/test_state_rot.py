"""Rot of what the agent remembers: nobody may write who might not before, nothing is told that was not noted, and what is lost is told (INV-C)."""

import json
import logging
import random
import tempfile

import pytest
from fault.rot import Lie
from fault.staterot import FILES, StateRot

from qrep import sealed
from qrep.daemon import grants, standing, statedbage, statedbfile
from qrep.errors import DamagedError

TRIALS, CANARY_TRIALS = 200, 1500


@pytest.fixture(scope="module")
def rot():
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch:
        yield StateRot(scratch, 1)


def test_rot_of_what_the_agent_remembers_is_never_believed(rot):
    for number in range(TRIALS):
        rot.trial(number)
    print(f"{rot.refused} refused, {rot.rebuilt} rebuilt, {rot.healed} healed, {rot.untouched} without effect")
    assert rot.rebuilt > TRIALS / 10 and rot.healed > TRIALS / 10 and rot.untouched > TRIALS / 10


def test_the_same_place_is_corrupted_in_the_same_way_by_the_same_seed(rot, memory_dir, monkeypatch):
    again = StateRot(memory_dir, rot.seed)
    monkeypatch.setattr(StateRot, "_look", lambda *_: None)
    assert [rot.trial(number) for number in range(100)] == [again.trial(number) for number in range(100)]


def test_an_older_pair_of_pairs_is_the_only_one_that_cannot_be_told(rot):
    """What docs/FAILURES.md says is not told: both copies of before, put back together."""
    rot.trees["closed"][-1].restore()
    for name in grants.NAMES:
        (rot.directory / name).write_bytes(rot.trees["closed"][0].read(name, 0, rot.trees["closed"][0].files[name][0]))
    with pytest.raises(Lie, match="somebody else may write"):
        rot._look(random.Random(1), "both put back", set())


class Anything(int):
    """A number that is the right one."""

    def __ne__(self, other):
        return False


def unchecked(data, _name):
    try:
        return json.loads(bytes(data)[: -sealed.DIGEST_LINE])
    except (ValueError, RecursionError) as err:
        raise DamagedError(str(err)) from err


def _records(patch):
    class Right(bytes):
        __eq__ = lambda self, other: True  # noqa: E731
        __hash__ = bytes.__hash__

    of = statedbfile.sum_of_record
    patch.setattr(statedbfile, "sum_of_record", lambda *row: Right(of(*row) or b""))
    add = statedbfile.Found.add

    def add_any(self, *row):
        add(self, *row)
        self.digest = Anything(self.digest)

    patch.setattr(statedbfile.Found, "add", add_any)


def _seal(patch):
    add = statedbfile.Found.add

    def add_any(self, *row):
        add(self, *row)
        self.digest = Anything(self.digest)

    patch.setattr(statedbfile.Found, "add", add_any)


def _age(patch):
    read = statedbage.Age.__init__

    def young(self, path):
        read(self, path)
        self.sequence = min(self.sequence, 1)

    patch.setattr(statedbage.Age, "__init__", young)


def _pairs(patch):
    patch.setattr(grants.sealed, "load", unchecked)


def _sequence(patch):
    look = grants.look

    def first(directory):
        copies, wrong = look(directory)
        return {name: content | {"sequence": 1} for name, content in copies.items()}, wrong

    patch.setattr(grants, "look", first)


def _standing(patch):
    patch.setattr(standing.sealed, "read", lambda directory, name, limit: unchecked(directory.read(name, limit), name))


def _bug(patch):
    look = grants.look

    def logged(directory):
        copies, wrong = look(directory)
        if wrong:
            logging.getLogger("qrep.agent").error("internal error: %s", wrong)
        return copies, wrong

    patch.setattr(grants, "look", logged)


# What is left out: (seed_it(monkeypatch), files and kinds of the trials that are to notice).
CANARIES = {
    "records of the state database whose digests are not looked at": (_records, ("state.db",), ("flip", "zero")),
    "records of the state database of which some may be missing": (_seal, ("state.db",), ("older page",)),
    "a state database whose age is not looked at": (_age, FILES, ("older database",)),
    "pairs whose digest is not looked at": (_pairs, grants.NAMES, ("flip",)),
    "pairs whose sequence is not looked at": (_sequence, grants.NAMES, ("older file",)),
    "a bug where a copy of the pairs is damaged, in the log": (_bug, grants.NAMES, ("flip",)),
    "a standing whose digest is not looked at": (_standing, (standing.NAME,), ("flip",)),
}


def caught(rot, seed_it, names, kinds):
    """Whether some trial reports the defect."""
    with pytest.MonkeyPatch.context() as patch:
        seed_it(patch)
        for number in range(CANARY_TRIALS):
            try:
                rot.trial(number, names, kinds)
            except Lie as lie:
                print(f"trial {number}: {lie}")
                return True
    return False


@pytest.mark.parametrize("canary", CANARIES)
def test_a_defect_is_caught(rot, canary):
    assert caught(rot, *CANARIES[canary]), f"{CANARY_TRIALS} trials did not notice"
