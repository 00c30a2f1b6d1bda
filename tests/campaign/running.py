"""Running one harness as a process of its own, and understanding what it says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from campaign.outcome import Outcome

TESTS = Path(__file__).resolve().parents[1]
GRACE_S = 180.0  # beyond its time, for what it has begun
OUTPUT_KEPT = 20_000  # characters


_going = set()  # harnesses that run now


def end_all():
    """SIGTERM to what run_one() has started: harnesses, with all they have begun."""
    for process in list(_going):
        os.killpg(process.pid, signal.SIGTERM)


def run_one(harness, seed):
    """(Outcome, output); Outcome None: it ended without one, or had to be ended."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    process = subprocess.Popen(
        harness.command(seed), cwd=TESTS, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    _going.add(process)
    try:
        output, _none = process.communicate(timeout=harness.seconds + GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = last_words(process)
        return None, f"{output[-OUTPUT_KEPT:]}\nit did not end in {harness.seconds + GRACE_S:.0f} s"
    finally:
        _going.discard(process)
    if process.returncode not in (0, 1):  # of outcome.main(): whatever it said before, it did not end well
        return None, f"{output[-OUTPUT_KEPT:]}\nit ended with {process.returncode}"
    return understood(output), output[-OUTPUT_KEPT:]


def last_words(process, seconds=30.0):
    """What a process that was ended had printed. Whoever it has left behind may have its output open for ever, and is not waited for."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired as err:
        process.stdout.close()
        return (err.output or b"").decode(errors="replace")


def understood(output):
    """The Outcome in the last line, None if there is none."""
    lines = output.rstrip().splitlines()
    try:
        return Outcome.of(lines[-1]) if lines else None
    except (json.JSONDecodeError, TypeError):
        return None
