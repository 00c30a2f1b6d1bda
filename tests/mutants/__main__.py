"""Try mutants: python -m mutants [--only NAME,...] [-v]; one line each, and a line of JSON at the end. The exit code is 1 if one survived."""

import argparse
import json
import sys

from mutants.runner import KILLED, runner
from mutants.table import MUTANTS, NO_OPS


def main():
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--only", default="", help="names, with commas between them")
    parser.add_argument("-v", "--verbose", action="store_true", help="show what the tests of a survivor printed")
    arguments = parser.parse_args()
    every = {mutant.name: mutant for mutant in (*MUTANTS, *NO_OPS)}
    names = [name for name in arguments.only.split(",") if name] or list(every)
    results, wrong = {}, 0
    with runner() as trials:
        for name in names:
            result = trials.try_one(every[name])
            results[name] = result.outcome
            bad = (result.outcome == KILLED) == (every[name] in NO_OPS)
            wrong += bad
            told = f"{name}: {result.outcome}, {result.seconds:.1f} s, {result.cpu:.1f} s of CPU, {result.ran} tests {result.by} {result.why}"
            print(" ".join(told.split())[:300], flush=True)
            if bad and arguments.verbose:
                print(result.output, flush=True)
    print(json.dumps(results))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
