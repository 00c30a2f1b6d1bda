"""H4: kill -9 of source, target and both, at every named crash point and at random times; the oracle is b3sum, the packaged blake3 and tests/oracle.py.

Its canaries first: targets whose recovery or map is defective, looked at in the same way.
"""

import re
import sys

from campaign import outcome, pytests

CANARIES = "tests/fault/test_kill_canaries.py"
RANDOM = "tests/fault/test_random_kills.py"
SLOW = tuple(f"tests/fault/{path.name}" for path in sorted((pytests.TESTS / "fault").glob("test_*kill*.py")))
MATRIX = [path for path in SLOW if path not in (CANARIES, RANDOM)]


def run(seed, count, clock):
    found = outcome.Outcome()
    canaries = pytests.run([CANARIES], seed, clock)
    found.canaries = canaries.passed, canaries.passed + len(canaries.failed + canaries.skipped)
    kills = pytests.run([RANDOM, "-m", "slow or not slow", "-s"], seed, clock, {"QREP_KILLS": str(count)})
    found.failures += kills.failed + kills.skipped
    told = re.search(r"^(\d+) kills .*worst restart-ready time ([\d.]+) s", kills.output, re.MULTILINE)
    if told:
        found.count, found.note = int(told[1]), f"ready again in {told[2]} s at worst"
    matrix = pytests.run([*MATRIX, "-m", "slow or not slow"], seed, clock)
    found.also["cases of the matrix"] = matrix.passed
    found.failures += matrix.failed + matrix.skipped
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=300, seconds=540))
