"""What a harness of the campaign found, and how it says so: one line of JSON, the last that it prints."""

import argparse
import dataclasses
import json
import os
import resource
import secrets
import sys
import time

FAILURES_TOLD = 20


@dataclasses.dataclass
class Outcome:
    """count: how often the harness tried, in its own unit. failures: one line each, with what repeats it. canaries: (caught, seeded)."""

    count: int = 0
    failures: list = dataclasses.field(default_factory=list)
    canaries: tuple = (0, 0)
    note: str = ""
    also: dict = dataclasses.field(default_factory=dict)  # further counts that a bar is set for: name -> number
    seed: int = 0
    seconds: float = 0.0
    processor: float = 0.0  # seconds of it, children that it waited for included

    def line(self):
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def of(line):
        return Outcome(**json.loads(line))


class Clock:
    """Until when a harness goes on, whatever its count: seconds from now on."""

    def __init__(self, seconds):
        self.began, self.seconds = time.monotonic(), seconds

    def left(self):
        return self.seconds - (time.monotonic() - self.began)

    def over(self):
        return self.left() <= 0


def main(run, *, count, seconds):
    """The command line of a harness: python -m campaign.NAME [--count N] [--seconds S] [--seed N]; the exit code is 1 if anything failed.

    run(seed, count, clock) -> Outcome: at least `count` unless the clock is over.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seconds", type=float, default=seconds)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("QREP_SEED", "0")) or secrets.randbits(31))
    arguments = parser.parse_args()
    clock = Clock(arguments.seconds)
    outcome = run(arguments.seed, arguments.count, clock)
    outcome.seed, outcome.seconds = arguments.seed, time.monotonic() - clock.began
    outcome.processor = sum(each.ru_utime + each.ru_stime for each in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    for failure in outcome.failures[:FAILURES_TOLD]:
        print(failure, file=sys.stderr)
    print(outcome.line(), flush=True)
    return 1 if outcome.failures or outcome.canaries[0] < outcome.canaries[1] else 0
