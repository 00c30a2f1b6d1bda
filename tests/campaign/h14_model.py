"""H14: Spin proves the commit protocol at full size, catches every mutant, and reaches what is to be reached."""

import sys

from campaign import outcome, pytests

SLOW = ("tests/model",)


def run(seed, count, clock):
    found = outcome.Outcome()
    model = pytests.run([*SLOW, "-m", "slow or not slow"], seed, clock)
    found.count = model.passed
    found.failures += model.failed + model.skipped
    mutants = sum("a_seeded_bug_is_caught" in name for name in model.failed)
    from model.test_model import MUTANTS

    found.canaries = (len(MUTANTS) - mutants, len(MUTANTS))
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=30, seconds=360))
