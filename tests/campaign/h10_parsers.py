"""H10: the C parsers of frames and of what is on the disk under libFuzzer with ASan and UBSan, from the corpus on; their canaries first."""

import shutil
import sys
import tempfile
from pathlib import Path

from campaign import outcome
from fuzz.programs import CANARIES, HARNESSES, HERE, build, fuzz, reported, statistics

CANARY_S = 20
SHARES = {"wire": 0.93, "disk": 0.07}  # of the executions: frames come from peers, and a record takes three times as long
SPARE = 1.002  # of a program's executions: libFuzzer counts those of the corpus in


def kept(directory, name):
    """What is to be done about the inputs that a program stopped at; they are kept."""
    place = Path(tempfile.mkdtemp(prefix="qrep-fuzz-"))
    inputs = [shutil.copy(path, place) for path in directory.iterdir() if path.is_file()]
    return f"{' '.join(inputs) or 'no input'} is kept; in tests/fuzz/corpus_{name} it is a regression test"


def run(seed, count, clock):
    """count: executions of all programs together."""
    found, caught = outcome.Outcome(), 0
    with tempfile.TemporaryDirectory() as scratch:
        programs = build(Path(scratch))

        def run_one(name, canary, seconds, runs=-1):
            directory = Path(scratch, f"{name}-{canary}")
            directory.mkdir()
            return fuzz(programs[name, canary], directory, seed, seconds, HERE / f"corpus_{name}", runs)

        for name in HARNESSES:
            caught += sum(reported(run_one(name, canary, CANARY_S)) for canary in CANARIES)
        found.canaries = caught, len(HARNESSES) * len(CANARIES)
        told = []
        for name in reversed(HARNESSES):  # the smaller part first: should the time be over, it is the larger one that misses some
            result = run_one(name, None, max(1, int(clock.left())), int(count * SHARES[name] * SPARE))
            runs = int(statistics(result).get("number_of_executed_units", 0))
            found.count += runs
            told.append(f"{name} {runs:,}, {int(statistics(result).get('average_exec_per_sec', 0)):,}/s")
            if result.returncode:
                found.failures.append(f"{name}, seed {seed}: {kept(Path(scratch, f'{name}-None'), name)}: {result.stderr[-1500:]}")
        found.note = "; ".join(told)
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=100_000_000, seconds=520))
