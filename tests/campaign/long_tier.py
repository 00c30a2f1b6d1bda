"""What is marked slow and no harness runs: long scenarios of agents, and what only a stock kernel in a guest has.

Without LVM in the guest, which takes a quarter of an hour by itself: sudo ./test.sh --full tests/guest
"""

import importlib
import sys

from campaign import outcome, pytests
from campaign.harnesses import HARNESSES

BY_ITSELF = ("tests/guest/test_lvm.py",)
PROCESSES = 3  # they wait most of the time


def elsewhere():
    """The paths of which harnesses run the slow tests: SLOW of their modules."""
    modules = [importlib.import_module(f"campaign.{harness.module[0]}") for harness in HARNESSES]
    return [path for module in modules for path in getattr(module, "SLOW", ())]


def run(seed, count, clock):
    found, skipped = outcome.Outcome(), []
    paths = ["tests", "bench", *(f"--ignore={path}" for path in (*elsewhere(), *BY_ITSELF))]
    for arguments in (["-m", "slow and not alone", "-n", str(PROCESSES), "--dist", "loadfile"], ["-m", "slow and alone"]):
        tests = pytests.run([*paths, *arguments], seed, clock)
        found.count += tests.passed
        found.failures += tests.failed
        skipped += tests.skipped
    found.note = pytests.why_skipped(skipped)
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=1, seconds=1500))
