"""H11: four jobs that run themselves, writers, and at random moments cuts, kills, other rates and connections; then all is healed and compared.

Agents that lived through the last two fifths hold no more descriptors and threads than when they were warm, and no more memory but for GROWTH of
tests/flatness.py. Then, with nothing disturbed, they run one job 80 times: a leak of 6 KiB of each run is seen, one below 4 KiB may not be. A growth of
1 MiB in an hour, which a soak of hours would find, cannot be told in minutes.
"""

import json
import re
import sys

from campaign import outcome, pytests
from unit.test_flatness import held_before_and_after, series_of

import flatness

SLOW = ("tests/system/test_soak.py",)


def canaries():
    """[whether it was noticed] of processes that grow: one of them by some KiB for every run."""
    return [kind in flatness.grown(*held_before_and_after(kind)) for kind in flatness.KINDS] + [bool(flatness.leaks(series_of("leak")))]


def run(seed, count, clock):
    """count: seconds of it."""
    found, noticed = outcome.Outcome(), canaries()
    soak = pytests.run([*SLOW, "-m", "slow", "-s"], seed, clock, {"QREP_SOAK_SECONDS": str(count)})
    found.failures += soak.failed + soak.skipped
    told, judged = (re.search(rf"^{name}: (.*)$", soak.output, re.MULTILINE) for name in ("soak", "soak canaries"))
    if told:
        found.note, found.count = told[1][:400], int(told[1].split()[0])
    noticed += json.loads(judged[1]).values() if judged else [False]
    found.canaries = sum(noticed), len(noticed)
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=300, seconds=420))
