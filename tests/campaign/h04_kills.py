"""H4: kill -9 of source, target and both, at every named crash point and at random times; the oracle is b3sum and the packaged blake3."""

import re
import sys

from campaign import outcome, pytests

MATRIX = ["tests/fault", "-m", "slow or not slow", "--ignore=tests/fault/test_random_kills.py"]
RANDOM = ["tests/fault/test_random_kills.py", "-m", "slow or not slow", "-s"]


def run(seed, count, clock):
    found = outcome.Outcome()
    matrix = pytests.run(MATRIX, seed, clock)
    found.also["cases of the matrix"] = matrix.passed
    found.failures += matrix.failed + matrix.skipped
    kills = pytests.run(RANDOM, seed, clock, {"QREP_KILLS": str(count)})
    found.failures += kills.failed + kills.skipped
    told = re.search(r"^(\d+) kills .*worst restart-ready time ([\d.]+) s", kills.output, re.MULTILINE)
    if told:
        found.count, found.note = int(told[1]), f"ready again in {told[2]} s at worst"
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=300, seconds=540))
