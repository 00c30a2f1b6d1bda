"""H10, the part in Python: the parsers, then sessions against both machines. Their canaries first."""

import logging
import sys

from campaign import outcome
from fuzz import parsers, test_parsers


def run(seed, count, clock):
    """count: executions of parsers."""
    found = outcome.Outcome()
    logging.disable(logging.CRITICAL)  # each damaged file is told
    canaries = [test_parsers.caught(seed, *canary) for canary in test_parsers.CANARIES.values()]
    found.canaries = sum(canaries), len(canaries)
    fuzzer = parsers.Fuzzer(seed)
    for number in range(-(-count // parsers.BLOCK)):
        if clock.over():
            break
        try:
            fuzzer.block(number)
        except parsers.Broken as broken:
            found.failures.append(str(broken)[:1000])
    found.count = sum(fuzzer.counts.values())
    found.note = f"{len(fuzzer.parsers)} parsers, the slowest execution {fuzzer.slowest[0]:.2f} s, of {fuzzer.slowest[1]}"
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=5_000_000, seconds=300))
