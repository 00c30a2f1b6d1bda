"""H13: what programs of other versions say and leave on disk, message by message, field by field and file by file (tests/versions). Its canaries first."""

import sys
import tempfile

from campaign import outcome
from versions.skew import CANARIES, Skew


def run(seed, count, clock):
    """The cases are all there are; the seed decides nothing. What had no time is a failure."""
    found = outcome.Outcome()
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as scratch, Skew(scratch) as skew:
        missed = [name for name in CANARIES if skew.canary(name) is None]
        found.canaries = len(CANARIES) - len(missed), len(CANARIES)
        found.failures += [f"not noticed: {name}" for name in missed]
        for name, problem in skew.play():
            found.count += 1
            kind = name.partition(":")[0]
            found.also[kind] = found.also.get(kind, 0) + 1
            if problem:
                found.failures.append(f"{name}: {problem}")
            if clock.over():
                found.failures.append(f"there was no time for the cases after {name}")
                break
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=400, seconds=180))
