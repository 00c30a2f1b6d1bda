"""The campaign's own works: what counts as passed, what a harness that says nothing is, and who runs beside whom."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from agents import wait_until
from campaign import long_tier, outcome, pytests, report, running
from campaign.__main__ import Cores, main, run_all
from campaign.harnesses import HARNESSES, Harness
from campaign.outcome import Outcome

HARNESS = Harness("H0", "an example", ("nothing",), 100, "tries", 1.0, also=(("double tries", 10),))
GOOD = {"count": 100, "also": {"double tries": 10}, "canaries": (2, 2)}


def test_a_harness_passes_with_its_counts_and_all_canaries():
    assert report.passed(HARNESS, Outcome(**GOOD))


@pytest.mark.parametrize("worse", [{"count": 99}, {"also": {}}, {"also": {"double tries": 9}}, {"canaries": (1, 2)}, {"canaries": (0, 0)}, {"failures": ["seed 7"]}])
def test_less_than_asked_a_living_canary_or_a_failure_fails_it(worse):
    outcome = Outcome(**{**GOOD, **worse})
    assert not report.passed(HARNESS, outcome)
    assert "**fail**" in report.row(HARNESS, outcome)


def test_an_outcome_is_the_last_line_of_what_was_printed():
    outcome = Outcome(**{**GOOD, "canaries": [2, 2]}, failures=["seed 7: torn"], seed=3, seconds=1.5)
    assert running.understood(f"something\n{outcome.line()}\n") == outcome


@pytest.mark.parametrize("output", ["", "Traceback\n", "{}x\n", '{"other": 1}\n', "[1]\n"])
def test_a_harness_that_says_nothing_did_not_pass(output):
    assert running.understood(output) is None
    assert not report.passed(HARNESS, None)
    assert "**no answer**" in report.row(HARNESS, None)


@pytest.mark.parametrize("end, answered", [("sys.exit(0)", True), ("sys.exit(1)", True), ("os.abort()", False), ("sys.exit(3)", False)])
def test_a_harness_that_does_not_end_well_has_no_answer_whatever_it_said(monkeypatch, end, answered):
    code = f"import os, sys; print({Outcome(**GOOD).line()!r}, flush=True); {end}"
    monkeypatch.setattr(Harness, "command", lambda self, seed: [sys.executable, "-S", "-c", code])
    assert (running.run_one(HARNESS, 1)[0] is not None) == answered


def test_who_was_left_behind_with_the_output_open_is_not_waited_for():
    process = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process.wait(30)
    said = running.last_words(process, 0.2)
    os.kill(int(said), signal.SIGKILL)


FAILING = """
import pytest

@pytest.fixture
def broken():
    raise AssertionError("not set up")

def test_wrong():
    assert 1 == 2

def test_not_set_up(broken):
    pass

def test_not_loaded():
    import nothing_of_this_name
"""


def test_only_what_a_test_found_itself_has_noticed_a_defect(tmp_path):
    (tmp_path / "test_failing.py").write_text(FAILING)
    account = pytests.run([str(tmp_path / "test_failing.py")], 1, outcome.Clock(60))
    assert len(account.failed) == 3
    assert len(account.noticed) == 1 and "test_wrong" in account.noticed[0]


def test_names_are_unique_and_every_module_is_there():
    assert len({harness.name for harness in HARNESSES}) == len(HARNESSES)
    for harness in HARNESSES:
        assert (running.TESTS / "campaign" / f"{harness.module[0]}.py").is_file()


def test_what_the_long_tier_leaves_to_harnesses_is_there():
    paths = long_tier.elsewhere()
    assert paths and all((running.TESTS.parent / path).exists() for path in paths)


def test_the_longest_that_fits_the_free_cores_goes_next():
    cores, order = Cores(2), []
    waiting = [dataclasses.replace(HARNESS, name=name, cores=count) for name, count in (("a", 1), ("b", 0.5), ("c", 1), ("d", 0.5), ("e", 1))]

    def take():
        while waiting:
            order.append(cores.take(waiting).name)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    for expected, given in (("abd", 1), ("abdc", 1), ("abdce", 0)):
        wait_until(lambda expected=expected: "".join(order) == expected)
        cores.give(given)
    thread.join(10)
    assert not waiting


def test_the_document_has_the_place_for_the_table():
    text = report.DOCUMENT.read_text()
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    assert text.index(report.BEGIN) < text.index(report.END)


def test_the_readme_quotes_what_the_document_says():
    assert report.README_BEGIN + report.quoted() + report.README_END in report.README.read_text()


def test_a_row_that_was_run_alone_replaces_its_own_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "RELIABILITY.md")
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    report.DOCUMENT.write_text(f"before\n{report.BEGIN}none\n{report.END}after\n")
    report.README.write_text(f"first\n{report.README_BEGIN}none\n{report.README_END}last\n")
    other = Harness("H1", "another", ("nothing",), 1, "tries", 1.0, canaries=0)
    monkeypatch.setattr(report, "commit", lambda: "first")
    report.write([other, HARNESS], {"H1": (Outcome(count=1), ""), "H0": (None, "")}, 7, 3.0)
    monkeypatch.setattr(report, "commit", lambda: "second")
    report.amend([HARNESS], {"H0": (Outcome(**GOOD), "")}, ["H1", "H0", "H7"])
    rows = [text for text in report.DOCUMENT.read_text().splitlines() if text.startswith("| H")]
    assert len(rows) == 2 and "| first | pass |" in rows[0] and "| second; failed on first | pass |" in rows[1] and "2 of 2" in rows[1]
    assert report.DOCUMENT.read_text().startswith("before\n") and report.DOCUMENT.read_text().endswith("after\n")
    readme = report.README.read_text()
    assert "| H0 | an example | 100 tries, 10 double tries | 0 | 2 of 2 | pass |" in readme and readme.startswith("first\n") and readme.endswith("last\n")
    assert "Run again by itself: H0 on second; failed on first." in readme and "H1 on" not in readme
    assert report.seed_written() == 7
    monkeypatch.setattr(report, "commit", lambda: "third")
    report.amend([HARNESS], {"H0": (Outcome(count=1), "")}, ["H1", "H0", "H7"])
    report.amend([HARNESS], {"H0": (Outcome(**GOOD), "")}, ["H1", "H0", "H7"])
    assert "| third; failed on third; failed on first | pass |" in report.DOCUMENT.read_text()
    assert report.verdicts() == {"H1": "pass", "H0": "pass"}
    report.amend([dataclasses.replace(HARNESS, name="H7")], {"H7": (None, "")}, ["H7", "H1", "H0"])
    assert [text[:5] for text in report.DOCUMENT.read_text().splitlines() if text.startswith("| H")] == ["| H7 ", "| H1 ", "| H0 "]
    report.DOCUMENT.write_text(f"before\n{report.BEGIN}none\n{report.END}after\n")
    with pytest.raises(ValueError, match="run it whole first"):
        report.amend([HARNESS], {"H0": (Outcome(**GOOD), "")}, ["H0"])


def test_the_document_has_a_row_of_every_harness_and_each_passed():
    assert report.verdicts() == {harness.name: "pass" for harness in HARNESSES}


@pytest.mark.parametrize("arguments, commit, told", [
    (["--amend"], "1234567", "needs --only"),
    (["--amend", "--only", "H2"], "1234567-dirty", "commit what was changed"),
    (["--amend", "--only", "H2", "--seed", "1"], "1234567", "has to pass with that"),
])  # fmt: skip
def test_a_row_is_amended_only_of_a_commit_and_with_the_seed_of_the_campaign(monkeypatch, capsys, arguments, commit, told):
    monkeypatch.setattr(report, "commit", lambda: commit)
    monkeypatch.setattr(sys, "argv", ["campaign", *arguments])
    monkeypatch.setattr("campaign.__main__.run_all", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit):
        main()
    assert told in capsys.readouterr().err


def test_every_harness_that_there_is_belongs_to_the_campaign():
    written = {path.stem for path in (running.TESTS / "campaign").glob("h[0-9]*.py")}
    assert written == {harness.module[0] for harness in HARNESSES} - {"long_tier"}


def test_an_interrupted_campaign_ends_what_runs_and_says_so(monkeypatch):
    slow = dataclasses.replace(HARNESS, name="H8", module=("sleep",), seconds=60.0)
    monkeypatch.setattr(Harness, "command", lambda self, seed: ["sleep", "60"])
    told = []

    def tell(text):
        told.append(text)
        if "begins" in text:
            threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()

    began = time.monotonic()
    results = run_all([slow, dataclasses.replace(slow, name="H9", cores=2)], 7, tell)
    assert time.monotonic() - began < 30 and "interrupted" in told
    assert all(outcome is None for outcome, _text in results.values()) and len(results) == 2
