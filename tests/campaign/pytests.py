"""Tests of pytest's as part of a harness: which passed, which did not, and what they printed. Loaded into that pytest it writes the account itself."""

import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from campaign.running import last_words

TESTS = Path(__file__).resolve().parents[1]
PLACES = os.pathsep.join(dict.fromkeys([str(TESTS), *(os.path.abspath(place) for place in sys.path if place)]))  # where this process finds what it imports
REPORT = "QREP_CAMPAIGN_REPORT"
OUTSIDE = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST_")}  # this may be a worker of pytest's itself
NOT_NOTICED = re.compile(r"^E +(ImportError|ModuleNotFoundError|SyntaxError|NameError)\b", re.MULTILINE)


class Account:
    """passed: number. failed: names, with the first lines of why. skipped: reasons. output: what all tests printed, stdout and log.
    noticed: of `failed`, those where a test itself found something wrong; not what could not be loaded, set up or taken down, or had no time."""

    def __init__(self, passed, failed, skipped, output, noticed):
        self.passed, self.failed, self.skipped, self.output, self.noticed = passed, failed, skipped, output, noticed


def why_skipped(skipped):
    """A note of what was skipped, each reason once; "" of nothing. skipped: as of accounts."""
    counts = collections.Counter(each.split(": ", 1)[1][:100] for each in skipped)
    return "skipped: " + "; ".join(f"{number} {reason}" for reason, number in sorted(counts.items())) if counts else ""


def run(arguments, seed, clock, environment=None):
    """Run pytest with these arguments, at most as long as the clock says; the Account. What had no time is a failure."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "campaign.pytests", "-p", "no:cacheprovider", "--rootdir", str(TESTS.parent), *arguments]
        result = subprocess.Popen(
            command, cwd=TESTS.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**OUTSIDE, "PYTHONPATH": PLACES, "QREP_SEED": str(seed), REPORT: str(report), **(environment or {})},
        )  # fmt: skip
        try:
            output, _none = result.communicate(timeout=max(1.0, clock.left()))
        except subprocess.TimeoutExpired:
            result.terminate()  # so that its fixtures take down what they made
            try:
                output, _none = result.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                result.kill()
                output = last_words(result)
            output += "\nthe time was over"
        lines = [json.loads(text) for text in report.read_text().splitlines()] if report.exists() else []
    failed = [f"{each['name']}: {each['why']}" for each in lines if each["outcome"] == "failed"]
    if result.returncode not in (0, 1) or not lines or (result.returncode == 1 and not failed):
        failed.append(f"pytest ended with {result.returncode}: {output[-4000:]}")
    return Account(
        sum(each["outcome"] == "passed" for each in lines), failed,
        [f"{each['name']}: {each['why']}" for each in lines if each["outcome"] == "skipped"], output,
        [f"{each['name']}: {each['why']}" for each in lines if each["noticed"]],
    )  # fmt: skip


@contextlib.contextmanager
def scratch_test(text):
    """The path of a test file of this text, beside the others' conftest, for as long as the block lasts: for canaries."""
    with tempfile.TemporaryDirectory(prefix="canary-", dir=TESTS / "campaign") as directory:
        path = Path(directory, f"test_{Path(directory).name.replace('-', '_')}.py")
        path.write_text(text)
        yield str(path)


def pytest_runtest_logreport(report):
    if REPORT not in os.environ or "PYTEST_XDIST_WORKER" in os.environ or not (report.when == "call" or report.outcome != "passed"):
        return
    why = ""
    if report.outcome == "skipped":
        why = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    elif report.outcome == "failed":
        why = str(report.longreprtext)[-1000:]
    with open(os.environ[REPORT], "a") as file:
        noticed = report.outcome == "failed" and report.when == "call" and not NOT_NOTICED.search(why)
        file.write(json.dumps({"name": report.nodeid, "outcome": report.outcome, "why": why, "noticed": noticed}) + "\n")
