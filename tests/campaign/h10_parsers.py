"""H10: the C parsers of frames and of what is on the disk under libFuzzer with ASan and UBSan, from the corpus on; their canaries first."""

import sys
import tempfile
from pathlib import Path

from campaign import outcome
from fuzz.programs import CANARIES, HARNESSES, HERE, build, fuzz, statistics

CANARY_S = 20
SHARES = {"wire": 0.7, "disk": 0.3}  # of the time: frames come from peers


def run(seed, count, clock):
    """count: executions of all programs together; each has its share of the time."""
    found, caught = outcome.Outcome(), 0
    with tempfile.TemporaryDirectory() as scratch:
        programs = build(Path(scratch))

        def run_one(name, canary, seconds):
            directory = Path(scratch, f"{name}-{canary}")
            directory.mkdir()
            return fuzz(programs[name, canary], directory, seed, seconds, HERE / f"corpus_{name}")

        for name in HARNESSES:
            caught += sum(run_one(name, canary, CANARY_S).returncode != 0 for canary in CANARIES)
        found.canaries = caught, len(HARNESSES) * len(CANARIES)
        rest = clock.left()
        for name in HARNESSES:
            result = run_one(name, None, max(1, int(rest * SHARES[name])))
            found.count += int(statistics(result).get("number_of_executed_units", 0))
            if result.returncode:
                found.failures.append(f"{name}, seed {seed}: {result.stderr[-1500:]}")
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=100_000_000, seconds=360))
