"""H2: the simulator plays seeds, in one process; every failed one is named with the line that replays it. Its canaries first, with groups, hints and checks.

How often each kind of fault comes is drawn by the seed; each ends with everything healed, and a run must commit then.
"""

import sys

from campaign import outcome, pytests
from crash.told import Told
from sim.scenario import Scenario, play

REPLAYED_ONE_IN = 500
SLOW = ("tests/sim",)
CANARIES = [*SLOW, "-m", "not slow", "-k", "a_defect_is_caught or is_caught"]


def log_of(seed):
    scenario = Scenario(seed, trace=True)
    scenario.play()
    return scenario.world.trace


def run(seed, count, clock):
    """Seeds from seed * 1,000,000 on; one in REPLAYED_ONE_IN is played twice more, and its two event logs must be the same."""
    found, first = outcome.Outcome(), seed * 1_000_000
    canaries = pytests.run(CANARIES, seed, clock)
    found.canaries = canaries.passed, canaries.passed + len(canaries.failed + canaries.skipped)
    others = pytests.run([*SLOW, "-m", "slow"], seed, clock)
    found.failures += others.failed + others.skipped
    replayed = 0
    with Told() as told:
        for each in range(first, first + count):
            if clock.over():
                break
            try:
                play(each)
                if each % REPLAYED_ONE_IN == 0:
                    replayed += 1
                    if log_of(each) != log_of(each):
                        found.failures.append(f"seed {each}: two runs of it are not the same")
                told.judge()
            except Exception as err:  # whatever it is, it is this seed's
                told.forget()
                found.failures.append(f"python -m sim {each}: {type(err).__name__}: {err}"[:400])
            found.count += 1
    found.note = f"{replayed} replayed to the same log; {others.passed} further suites of groups, hints and checks"
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=50_000, seconds=1000))
