"""H8: agents in network namespaces, a relay between them that harms what passes, cables that are cut: four pairs at a time. Its canaries first.

A scenario again: cd tests && python -m chaos SEED NUMBER
"""

import collections
import sys
import tempfile

from campaign import outcome
from chaos.canaries import COUNT, NAMES
from chaos.crew import Crew
from chaos.flips import Flips

FLIPS = 1200  # of single lanes; those of whole scenarios come on top


def flip_lanes(found, seed):
    """Flips in what single lanes hear, and that this would tell if a lane did not look. Returns whether it would."""
    with tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm") as directory:
        forged = Flips(directory, seed, forged=True)
        caught = all(forged.trial(number) for number in range(3))
        flips = Flips(directory, seed)
        for number in range(FLIPS):
            wrong = flips.trial(number)
            if wrong:
                found.failures.append(f"seed {seed}, flips of a lane: {wrong}")
            found.also["flips detected"] += not wrong
    return caught


def run(seed, count, clock):
    found = outcome.Outcome(also={"flips detected": 0})
    caught = flip_lanes(found, seed)
    crew = Crew(seed, [*NAMES, *range(count)]).run(clock.over)
    found.failures += crew.failures
    for rest in crew.rests:
        found.failures += [f"seed {seed}, after {rest['played']} scenarios a station holds more: {each}" for each in rest["found"]]
    told, kinds, over = [], collections.Counter(), []
    for task, result in crew.results.items():
        if task in NAMES:
            caught += sum(known for known, _said in result.values())
            told += [f"this canary lives: {name}: {said}" for name, (known, said) in result.items() if not known]
            continue
        found.count += 1
        kinds[result["kind"]] += result["came"]
        over += [result["fail_over_s"]] * (result["fail_over_s"] is not None and result["limit_s"] == 10.0)
        found.also["flips detected"] += result["flips"] * (not result["findings"])
        found.failures += [f"python -m chaos {seed} {task}: {result['scenario']}: {finding}" for finding in result["findings"]]
    for line in told:
        print(line, file=sys.stderr)
    found.canaries = caught, COUNT + 1
    came = found.also["faults that came"] = sum(kinds.values())
    found.note = f"{len(kinds)} kinds of fault, {came} of {found.count} at the moment they were meant for, {len(over)} fail-overs, {max(over, default=0):.1f} s at worst"
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=120, seconds=480))
