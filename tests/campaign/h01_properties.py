"""H1: the unit and property tests with other seeds than CI's: everything once, and then the properties over and over, each round with a seed of its own."""

import re
import sys

from campaign import outcome, pytests

UNITS = ["tests/unit", "tests/native"]
PROPERTIES = [*UNITS, "tests/sim/test_stateful.py"]
TOLD = re.compile(r"(\d+) passing, (\d+) failing")
FALSE_PROPERTY = """
import hypothesis


@hypothesis.given(hypothesis.strategies.integers())
def test_no_number_is_large(number):
    assert number < 10_000
"""


def properties(arguments, seed, clock):
    """(how many examples held, the pytests.Account) of one round."""
    round_ = pytests.run([*arguments, "-m", "hypothesis and not slow", "--hypothesis-show-statistics"], seed, clock)
    return sum(int(held) for held, _failed in TOLD.findall(round_.output)), round_


def canary(seed, clock):
    """A property that does not hold is found out by the same round."""
    with pytests.scratch_test(FALSE_PROPERTY) as path:
        return any("test_no_number_is_large" in each for each in properties([path], seed, clock)[1].noticed)


def run(seed, count, clock):
    found = outcome.Outcome(canaries=(int(canary(seed, clock)), 1))
    units = pytests.run([*UNITS, "-m", "not slow"], seed, clock)
    found.also["tests"], found.failures = units.passed, list(units.failed)
    rounds = 0
    while found.count < count and not clock.over() and not found.failures:
        held, round_ = properties(PROPERTIES, seed + rounds, clock)
        found.count, rounds = found.count + held, rounds + 1
        found.failures += [f"QREP_SEED={seed + rounds - 1}: {each}" for each in round_.failed + round_.skipped]
    found.note = "; ".join(filter(None, (f"{rounds} rounds of the properties", pytests.why_skipped(units.skipped))))
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=30_000, seconds=360))
