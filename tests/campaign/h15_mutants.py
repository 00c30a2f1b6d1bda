"""H15: seeded defects in the implementation, each on a private copy of the tree; the tests of the fast tier that are named for it must notice."""

import sys
from collections import Counter

from campaign import outcome
from mutants.mutant import CLASSES
from mutants.runner import KILLED, SURVIVED, runner
from mutants.table import MUTANTS, NO_OPS


def run(seed, count, clock):
    """First all the tests without any defect, and with changes that change nothing: they must pass. A mutant that was not noticed is a hole in them."""
    found, killed, noticed = outcome.Outcome(), Counter(), 0
    with runner() as trials:
        control = trials.run(sorted({test for mutant in MUTANTS for test in mutant.tests}), limit=clock.left(), write_bytecode=True)
        if control.outcome != SURVIVED:
            found.failures.append(f"without any defect: {control.outcome}, {control.by}: {control.why}\n{control.output}")
        for mutant in NO_OPS:
            result = trials.try_one(mutant)
            if result.outcome != SURVIVED:
                found.failures.append(f"{mutant.name}: {result.outcome}, {result.by}: {result.why}")
        for mutant in MUTANTS:
            if clock.over():
                break
            result = trials.try_one(mutant)
            found.count += 1
            killed[mutant.kind] += result.outcome == KILLED
            if result.outcome != KILLED:
                found.failures.append(f'{result.outcome}: "{mutant.name}" in {mutant.file}: {mutant.what}; cd tests && python -m mutants -v --only "{mutant.name}"')
            noticed += result.outcome == KILLED
    found.canaries = noticed, len(MUTANTS)
    seeded = Counter(mutant.kind for mutant in MUTANTS)
    found.note = ", ".join(f"{kind} {killed[kind]} of {seeded[kind]}" for kind in CLASSES)
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=len(MUTANTS), seconds=360))
