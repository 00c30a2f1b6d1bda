"""What is marked slow and no harness runs: long scenarios of agents, and all that needs a stock kernel in a guest."""

import sys

from campaign import outcome, pytests

ELSEWHERE = {"tests/fault": "H4", "tests/model": "H14", "tests/system/test_soak.py": "H11", "tests/security": "H17"}  # slow tests of these are run by that harness


def run(seed, count, clock):
    tests = pytests.run(["tests", "bench", "-m", "slow", *(f"--ignore={path}" for path in ELSEWHERE)], seed, clock)
    return outcome.Outcome(count=tests.passed, failures=tests.failed, note="; ".join(sorted({each.split(": ", 1)[1][:100] for each in tests.skipped})))


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=1, seconds=1500))
