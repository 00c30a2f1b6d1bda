"""The commit protocol with resume, model-checked: it holds, every seeded bug is caught, and what is proved is not empty."""

import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

MODEL = Path(__file__).parent / "commit.pml"
IMAGE = "Dd["  # INV-E, INV-R: the durable content is the committed generation
INDEX = "I["  # INV-I: the index claims only what the target holds
CHAIN = "stime["  # INV-M: the history is a chain
PROGRESS = "lost"  # INV-P: a session that lost nothing ends in PREPARED
REACHED = " 0 "  # assert(false), where being there is what is asked

SMALL = ["-DNB=1 -DMAXG=3", "-DNB=1 -DMAXG=3 -DLIVE"]
FULL = [
    "-DNB=2 -DMAXG=3",
    "-DNB=1 -DMAXG=3 -DMAXS=2 -DLIVE",
    "-DNB=1 -DMAXG=4",
    "-DNB=1 -DMAXG=4 -DLIVE",
    "-DNB=1 -DNC=2 -DMAXG=3 -DLIVE",
    "-DNB=1 -DMAXG=3 -DPROMOTE -DLIVE",
    "-DNB=2 -DMAXG=2 -DLIVE",
]
SMALL_FROZEN, SMALL_LIVE = SMALL
MUTANTS = [  # seeded bug, configuration, the invariant that must catch it
    ("M_NO_UUID_CHECK", SMALL_FROZEN, INDEX),
    ("M_REUSE_ID", SMALL_FROZEN + " -DSAFETY_ONLY", IMAGE),
    ("M_NO_BASE_CHECK", "-DNB=1 -DNC=2 -DMAXG=3", CHAIN),
    ("M_NO_ATTEMPT_ID", SMALL_FROZEN + " -DSAFETY_ONLY", IMAGE),
    ("M_REREAD", SMALL_FROZEN, PROGRESS),
    ("M_NO_UNDO_FLUSH", SMALL_FROZEN, IMAGE),
    ("M_NO_DATA_FLUSH", SMALL_FROZEN, IMAGE),
    ("M_NO_MANIFEST", SMALL_FROZEN, IMAGE),
    ("M_NO_DRAIN", SMALL_FROZEN, IMAGE),
    ("M_UNDO_ERASED_FIRST", SMALL_FROZEN, IMAGE),
    ("M_UNDO_UNTAGGED", SMALL_FROZEN, IMAGE),
    ("M_CLEAR_BEFORE_FLUSH", SMALL_FROZEN, IMAGE),
    ("M_STALE_UNDO", SMALL_FROZEN, IMAGE),
    ("M_EARLY_INDEX_OLDTAG", SMALL_FROZEN, INDEX),
    ("M_PROMOTE_SAME_ID", SMALL_FROZEN + " -DPROMOTE", INDEX),
    # resume
    ("M_NO_SESSION", SMALL_LIVE + " -DSAFETY_ONLY", IMAGE),
    ("M_RELOG_UNDO", SMALL_LIVE, IMAGE),
    ("M_RESUME_WRONG_APPLIED", SMALL_FROZEN, PROGRESS),
    ("M_LIVE_SKIP_APPLIED", SMALL_LIVE, PROGRESS),
    # what the manifest stands between: the last two corrupt as soon as it is gone
    ("M_RESUME_WRONG_APPLIED -DM_NO_MANIFEST", SMALL_FROZEN + " -DSAFETY_ONLY", IMAGE),
    ("M_LIVE_SKIP_APPLIED -DM_NO_MANIFEST", SMALL_LIVE + " -DSAFETY_ONLY", IMAGE),
]
# The pending delta saves work after a lost acknowledgement; losing it, or folding it early under the new tag, is no danger.
SAFE = [SMALL_FROZEN + " -DM_EARLY_INDEX", SMALL_FROZEN + " -DM_NO_PENDING"]
# The third commit, the second commit of a resumed attempt, and one of a live source.
REACHABLE = ["-DNB=1 -DMAXG=4 -DREACH=3", "-DNB=1 -DMAXG=3 -DREACH_RESUME=2", "-DNB=2 -DMAXG=3 -DLIVE -DREACH_RESUME=1"]

pytestmark = pytest.mark.skipif(
    not (shutil.which("spin") and shutil.which("gcc")), reason="no spin or no gcc: apt-get install spin gcc"
)


def check(definitions, scratch, seconds, optimise):
    """(violated assertion or None, states, seconds). The state space is exhausted if nothing is violated."""
    started = time.monotonic()

    def run(*command):
        return subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False, timeout=seconds)

    made = run("spin", "-a", *definitions.split(), str(MODEL))
    assert made.returncode == 0, made.stdout + made.stderr
    made = run("gcc", optimise, "-w", "-DSAFETY", "-DNOFAIR", "-DCOLLAPSE", "-DMEMLIM=6000", "-o", "pan", "pan.c")
    assert made.returncode == 0, made.stderr
    out = run("./pan", "-m2000000", "-w22").stdout
    assert "max search depth too small" not in out and "out of memory" not in out, out
    violated = re.search(r"assertion violated (.*) \(at depth", out)
    states = int(re.search(r"(\d+) states, stored", out)[1])
    assert int(re.search(r"errors: (\d+)", out)[1]) == (violated is not None), out
    return (f" {violated[1]} " if violated else None), states, time.monotonic() - started


@pytest.fixture(scope="module")
def checked(request, tmp_path_factory):
    """checked(definitions) -> (violated, states). Everything that was selected is checked side by side, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        jobs = {}
        for item in request.session.items:
            if item.module is request.module and "definitions" in item.callspec.params:
                definitions = item.callspec.params["definitions"]
                long = item.get_closest_marker("slow")
                stops_early = "invariant" in item.callspec.params  # then compiling it is most of the time
                scratch = tmp_path_factory.mktemp("model")
                jobs[definitions] = pool.submit(
                    check, definitions, scratch, 900 if long else 120, "-O2" if long else "-O0" if stops_early else "-O1")

        def wait(definitions):
            violated, states, seconds = jobs[definitions].result()
            print(f"{definitions}: {states} states, {seconds:.1f} s, {violated or 'no error'}")
            return violated, states

        yield wait
        for job in jobs.values():
            job.cancel()


@pytest.mark.parametrize("definitions", SMALL)
def test_the_protocol_holds(definitions, checked):
    violated, states = checked(definitions)
    assert violated is None
    assert states > 100_000


@pytest.mark.slow
@pytest.mark.parametrize("definitions", FULL)
def test_the_protocol_holds_at_full_size(definitions, checked):
    violated, states = checked(definitions)
    assert violated is None
    assert states > 300_000


@pytest.mark.parametrize(
    ("definitions", "invariant"), [(f"{definitions} -D{mutant}", invariant) for mutant, definitions, invariant in MUTANTS])
def test_a_seeded_bug_is_caught(definitions, invariant, checked):
    violated, _ = checked(definitions)
    assert violated is not None, "the mutant lives"
    assert invariant in violated


@pytest.mark.parametrize("definitions", SAFE)
def test_the_pending_delta_is_no_safety_device(definitions, checked):
    violated, _ = checked(definitions)
    assert violated is None


@pytest.mark.parametrize("definitions", REACHABLE)
def test_commits_and_resumed_commits_are_reached(definitions, checked):
    violated, _ = checked(definitions)
    assert violated == REACHED
