"""H17: every attack of the threat model (tests/security/rows.py), and agents without one of their checks, which those tests must notice."""

import sys
import tempfile

from campaign import outcome, pytests
from security.rows import NODES
from security.sabotage import SABOTAGE
from security.test_canaries import noticed

SLOW = ("tests/security",)


def run(seed, count, clock):
    """count: checks, of which each is a test of pytest's."""
    found = outcome.Outcome()
    suite = pytests.run([*NODES, "-m", "slow or not slow"], seed, clock)
    found.count = suite.passed
    found.failures += suite.failed
    found.failures += [f"skipped: {why}" for why in suite.skipped]
    caught = 0
    for name in SABOTAGE:
        with tempfile.TemporaryDirectory() as scratch:
            why = noticed(name, scratch, max(60.0, min(120.0, clock.left())))
        caught += bool(why)
        if not why:
            found.failures.append(f"nobody noticed that {name} ({SABOTAGE[name][1]})")
    found.canaries = caught, len(SABOTAGE)
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=580, seconds=300))
