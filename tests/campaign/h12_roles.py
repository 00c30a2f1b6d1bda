"""H12: volumes change hands between two agents, whose commands are killed, cut, given at the same moment, or whose leader is stopped and comes back.

A scenario again: cd tests && python -m chaos.roles SEED NUMBER.REPEAT
"""

import sys

from campaign import outcome
from chaos.crew import Crew
from chaos.rolecanaries import NAMES

REPEATS = 3


def run(seed, count, clock):
    """count: of scenarios, REPEATS of each with numbers of its own."""
    found = outcome.Outcome()
    crew = Crew(seed, [*NAMES, *(f"role:{number}.{repeat}" for repeat in range(REPEATS) for number in range(count // REPEATS))]).run(clock.over)
    found.failures += crew.failures
    for rest in crew.rests:
        found.failures += [f"seed {seed}, after {rest['played']} scenarios a station holds more: {each}" for each in rest["found"]]
    caught = commands = refused = kills = 0
    for task, result in crew.results.items():
        if task in NAMES:
            for name, (known, said) in result.items():
                caught += known
                if not known:
                    print(f"this canary lives: {name}: {said}", file=sys.stderr)
            continue
        found.count += 1
        commands, refused, kills = commands + result["commands"], refused + result["refused"], kills + result["kills"]
        found.failures += [f"python -m chaos.roles {seed} {task.removeprefix('role:')}: {result['scenario']}: {finding}" for finding in result["findings"]]
    found.canaries = caught, len(NAMES)
    found.note = f"{commands} commands, {refused} of them refused, {kills} agents killed"
    return found


if __name__ == "__main__":
    sys.exit(outcome.main(run, count=120, seconds=240))
