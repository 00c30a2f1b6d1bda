"""Replay one seed with its whole event log: PYTHONPATH=tests python -m sim SEED; or run many: python -m sim FIRST COUNT."""

import sys
import time
import traceback

from sim.scenario import Scenario, play


def main():
    first, count = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    if not count:
        scenario = Scenario(first, trace=True)
        try:
            print(scenario.play())
        finally:
            print("".join(scenario.world.trace), end="")
        return 0
    failed, started = 0, time.monotonic()
    for seed in range(first, first + count):
        try:
            play(seed)
        except Exception as error:
            failed += 1
            if failed <= 10:
                print(seed, "".join(traceback.format_exception_only(error)).strip()[:300], flush=True)
    print(f"{count} seeds, {failed} failed, {time.monotonic() - started:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
