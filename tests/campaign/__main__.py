"""The whole campaign, two harnesses at a time: python -m campaign [--seed N] [--only H2,H4]; its table goes to docs/RELIABILITY.md if all ran.

    cd tests && python -m campaign --only H4 --seed 7      # one of them, with the seed of an earlier one
"""

import argparse
import os
import secrets
import sys
import threading
import time

from campaign import report
from campaign.harnesses import HARNESSES
from campaign.running import end_all, run_one

CORES = 2
FAILURE_SHOWN = 2000  # characters


class Cores:
    """As many harnesses at once as there are cores for them."""

    def __init__(self, count):
        self._free, self._changed = count, threading.Condition()

    def take(self, waiting):
        """The first of the list that fits what is free, taken off it with its cores; waits until there is one."""
        with self._changed:
            self._changed.wait_for(lambda: any(each.cores <= self._free for each in waiting))
            chosen = next(each for each in waiting if each.cores <= self._free)
            self._free -= chosen.cores
        waiting.remove(chosen)
        return chosen

    def give(self, count):
        with self._changed:
            self._free += count
            self._changed.notify_all()


def run_all(harnesses, seed, told):
    """{name: (Outcome or None, what it printed)}, longest first, each with cores to itself. Ctrl-C ends those that run, and the others are not begun."""
    cores, results = Cores(CORES), {harness.name: (None, "it was not begun") for harness in harnesses}

    def run(harness):
        try:
            told(f"{harness.name} begins: {harness.what}, at most {harness.seconds / 60:.0f} min")
            results[harness.name] = run_one(harness, seed)
            told(report.line(harness, *results[harness.name]))
            if not report.passed(harness, results[harness.name][0]):
                told(results[harness.name][1][-FAILURE_SHOWN:])
        finally:
            cores.give(harness.cores)

    threads = []
    try:
        waiting = sorted(harnesses, key=lambda each: -each.seconds)
        while waiting:
            harness = cores.take(waiting)
            threads.append(threading.Thread(target=run, args=(harness,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        told("interrupted")
        end_all()
        for thread in threads:
            thread.join()
    return results


def main():
    parser = argparse.ArgumentParser(prog="python -m campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("QREP_SEED", "0")) or None)
    parser.add_argument("--only", default="", help="names of harnesses, with commas between them")
    parser.add_argument("--without", default="", help="names of harnesses that are left out")
    parser.add_argument("--amend", action="store_true", help="with --only, and the seed of the campaign in the document: their rows take the place of those there, each with its commit")
    arguments = parser.parse_args()
    only = {name for name in arguments.only.split(",") if name}
    without = {name for name in arguments.without.split(",") if name}
    unknown = (only | without) - {harness.name for harness in HARNESSES}
    if unknown:
        parser.error(f"there is no harness {', '.join(sorted(unknown))}; there are {', '.join(harness.name for harness in HARNESSES)}")
    seed = arguments.seed or secrets.randbits(31)
    if arguments.amend:
        if not only:
            parser.error("--amend needs --only")
        if report.is_dirty():
            parser.error(f"--amend needs a commit, and {report.commit()} is none: commit what was changed")
        written = report.seed_written()
        if arguments.seed not in (None, written):
            parser.error(f"the campaign in {report.DOCUMENT.name} had seed {written}: what is amended has to pass with that")
        seed = written or seed
    chosen = [harness for harness in HARNESSES if (not only or harness.name in only) and harness.name not in without]
    began = time.monotonic()

    def told(text):
        print(f"{(time.monotonic() - began) / 60:5.1f} min  {text}", flush=True)

    told(f"seed {seed}")
    results = run_all(chosen, seed, told)
    minutes = (time.monotonic() - began) / 60
    print(report.table(chosen, results))
    bad = [harness.name for harness in chosen if not report.passed(harness, results[harness.name][0])]
    for name in bad:
        print(f"\n---- {name} ----\n{results[name][1]}")
    if not only:
        report.write(HARNESSES, {harness.name: (None, "") for harness in HARNESSES} | results, seed, minutes)  # what was left out has no answer
    elif arguments.amend:
        report.amend(chosen, results, [harness.name for harness in HARNESSES])
    print(f"{len(chosen) - len(bad)} of {len(chosen)} passed, {minutes:.1f} min, seed {seed}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
