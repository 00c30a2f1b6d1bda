"""H10, the part in Python: the parsers, then sessions of a peer that says what it likes with both machines. Their canaries first."""

import contextlib
import io
import logging
import sys

from campaign import outcome
from fuzz import parsers, test_parsers, test_sessions

SESSIONS_PER_EXECUTION = 0.04  # 200,000 sessions to 5,000,000 executions
TARGET_SHARE = 0.5  # of the sessions


def run(seed, count, clock):
    """count: executions of parsers."""
    found = outcome.Outcome()
    logging.disable(logging.CRITICAL)  # each damaged file is told
    with contextlib.redirect_stdout(io.StringIO()):
        canaries = [test_parsers.caught(seed, *canary) for canary in test_parsers.CANARIES.values()]
        canaries += [test_sessions.caught(seed, *canary) for canary in test_sessions.CANARIES.values()]
    found.canaries = sum(canaries), len(canaries)

    def attempt(trial, *arguments):
        try:
            trial(*arguments)
        except parsers.Broken as broken:
            found.failures.append(str(broken)[:1000])

    fuzzer = parsers.Fuzzer(seed)
    for number in range(-(-count // parsers.BLOCK)):
        if clock.left() < clock.seconds * 0.4:
            break
        attempt(fuzzer.block, number)
    found.count = sum(fuzzer.counts.values())
    sessions = 0
    for number in range(int(count * SESSIONS_PER_EXECUTION)):
        if clock.over():
            break
        attempt(test_sessions.one, "target" if number % 100 < TARGET_SHARE * 100 else "source", seed, number)
        sessions += 1
    found.also["sessions"] = sessions
    found.note = f"{len(fuzzer.parsers)} parsers, the slowest execution {fuzzer.slowest[0]:.2f} s, of {fuzzer.slowest[1]}"
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=5_000_000, seconds=340))
