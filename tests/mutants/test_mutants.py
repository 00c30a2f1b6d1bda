"""The seeded defects follow the code that they are in, and a few of them are tried; all of them: python -m campaign --only H15."""

import json
import subprocess
import sys

import pytest
from mutants.mutant import CLASSES, DURABILITY, Mutant
from mutants.table import MUTANTS, NO_OPS
from mutants.tree import ROOT
from mutants.verdict import Verdict

TRIED = ("commit before the device is flushed", "base not compared", "frame limit of a begin not checked", NO_OPS[0].name)


def test_each_changes_one_place_and_its_tests_are_there():
    for mutant in (*MUTANTS, *NO_OPS):
        text = (ROOT / "src" / "qrep" / mutant.file).read_text()
        assert mutant.applied(text) != text
        assert mutant.kind in CLASSES and mutant.what
        for test in mutant.tests:
            path, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / path).read_text() if name else (ROOT / "tests" / path).is_file(), test


@pytest.mark.parametrize("text", ["nothing of it", "twice twice"])
def test_a_place_that_is_gone_or_no_longer_the_only_one_is_an_error(text):
    with pytest.raises(ValueError, match="not once"):
        Mutant("example", DURABILITY, "store.py", "an example", "twice", "once", ()).applied(text)


def test_names_are_unique_and_there_are_enough_of_them():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
    assert sum(mutant.kind == DURABILITY for mutant in MUTANTS) >= 20


def test_some_are_tried_and_noticed_and_a_change_that_changes_nothing_is_not():
    command = [sys.executable, "-m", "mutants", "--only", ",".join(TRIED)]
    result = subprocess.run(command, cwd=ROOT / "tests", capture_output=True, text=True, check=False, timeout=300)
    outcomes = json.loads(result.stdout.splitlines()[-1])
    assert outcomes == {name: "killed" if name != NO_OPS[0].name else "survived" for name in TRIED}, result.stdout + result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize(("failure", "when", "noticed"), [
    (AssertionError("torn"), "call", True), (OSError("torn"), "call", True), (AssertionError("torn"), "setup", False), (ImportError("nothing"), "call", False),
    (NameError("nothing"), "call", False), (SyntaxError("nothing"), "collect", False),
])  # fmt: skip
def test_only_a_test_that_fails_for_a_reason_of_its_own_has_noticed_anything(failure, when, noticed):
    verdict = Verdict()
    with pytest.raises(type(failure)) as info:
        raise failure
    verdict.pytest_exception_interact(Named("test"), Named(excinfo=info), Named(when=when))
    assert (len(verdict.failed), len(verdict.broken)) == (noticed, not noticed)


class Named:
    def __init__(self, nodeid="", **facts):
        self.nodeid = nodeid
        self.__dict__ |= facts
