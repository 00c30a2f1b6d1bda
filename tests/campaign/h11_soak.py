"""H11: four jobs that run themselves, writers, and at random moments cuts, kills, other rates and connections; then all is healed and compared.

Agents that lived through the second part hold no more descriptors, threads and memory than when they were warm.
"""

import re
import sys

from campaign import outcome, pytests
from unit.test_flatness import held_before_and_after

import flatness

SLOW = ("tests/system/test_soak.py",)


def run(seed, count, clock):
    """count: seconds of it."""
    found = outcome.Outcome()
    found.canaries = sum(kind in flatness.grown(*held_before_and_after(kind)) for kind in flatness.KINDS), len(flatness.KINDS)
    soak = pytests.run([*SLOW, "-m", "slow", "-s"], seed, clock, {"QREP_SOAK_SECONDS": str(count)})
    found.failures += soak.failed + soak.skipped
    told = re.search(r"^soak: (.*)$", soak.output, re.MULTILINE)
    if soak.passed and not soak.failed:
        found.count = count
    if told:
        found.note = told[1][:300]
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=300, seconds=420))
