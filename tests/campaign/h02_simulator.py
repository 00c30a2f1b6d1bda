"""H2: the simulator plays seeds, in one process; every failed one is named with the line that replays it."""

import sys

from campaign import outcome
from sim.scenario import Scenario, play

REPLAYED_ONE_IN = 500


def log_of(seed):
    scenario = Scenario(seed, trace=True)
    scenario.play()
    return scenario.world.trace


def run(seed, count, clock):
    """Seeds from seed * 1,000,000 on; one in REPLAYED_ONE_IN is played twice more, and its two event logs must be the same."""
    found, first = outcome.Outcome(), seed * 1_000_000
    replayed = 0
    for each in range(first, first + count):
        if clock.over():
            break
        try:
            play(each)
            if each % REPLAYED_ONE_IN == 0:
                replayed += 1
                if log_of(each) != log_of(each):
                    found.failures.append(f"seed {each}: two runs of it are not the same")
        except Exception as err:  # whatever it is, it is this seed's
            found.failures.append(f"python -m sim {each}: {type(err).__name__}: {err}"[:400])
        found.count += 1
    found.note = f"{replayed} replayed to the same log"
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=50_000, seconds=1000))
