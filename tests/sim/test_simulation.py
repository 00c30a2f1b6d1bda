"""Seeds of the simulator: no invariant of the commit protocol is broken, and the same seed is the same run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.scenario import play

TESTS = Path(__file__).resolve().parents[1]
FIRST = int(os.environ.get("QREP_SEED", "1")) * 10_000_000
PATHS = os.pathsep.join([str(TESTS), *sys.path])  # the qrep that is under test, built in place or installed
PROCESSES = 2


def run_seeds(first, count):
    """`count` seeds in two processes; every failed one is named with the line that replays it."""
    share = count // PROCESSES
    environment = {**os.environ, "PYTHONPATH": PATHS}
    print(f"seeds {first} to {first + count - 1}")
    command = [sys.executable, "-m", "sim"]
    workers = [
        subprocess.Popen([*command, str(first + i * share), str(share)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for i in range(PROCESSES)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    assert not any(worker.returncode for worker in workers), "\n".join(outputs)


def test_no_seed_breaks_an_invariant():
    run_seeds(FIRST, 2500)


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_is_a_run(seed):
    assert play(seed) == play(seed)


def test_a_seed_is_a_run_in_every_process():
    environment = {**os.environ, "PYTHONPATH": PATHS, "PYTHONHASHSEED": "7"}
    result = subprocess.run([sys.executable, "-m", "sim", "3"], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n", 1)[0] == play(3)
