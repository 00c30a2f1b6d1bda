"""What is marked slow and no harness runs: long scenarios of agents, and all that needs a stock kernel in a guest."""

import importlib
import sys

from campaign import outcome, pytests
from campaign.harnesses import HARNESSES


def elsewhere():
    """The paths of which harnesses run the slow tests: SLOW of their modules."""
    modules = [importlib.import_module(f"campaign.{harness.module[0]}") for harness in HARNESSES]
    return [path for module in modules for path in getattr(module, "SLOW", ())]



def run(seed, count, clock):
    tests = pytests.run(["tests", "bench", "-m", "slow", *(f"--ignore={path}" for path in elsewhere())], seed, clock)
    return outcome.Outcome(count=tests.passed, failures=tests.failed, note="; ".join(sorted({each.split(": ", 1)[1][:100] for each in tests.skipped})))


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=1, seconds=1500))
