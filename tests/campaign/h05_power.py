"""H5: live power cuts on devices with a volatile cache under the target, its undo, and the state of both ends; writes of the dead; flushes that fail.

Its canaries first. A trial is repeated as its failure says, but for the timing of the kernel.

    cd tests && python -m campaign.h05_power --seed 7 --again 50 --kind xfs    # the cuts from the 50th on, of that seed
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import sys
import tempfile
from pathlib import Path

from campaign import outcome
from fault.nest import Nest
from power import flushes, namespace, zombie
from power.canaries import CANARIES, complaint, plainly
from power.scene import FILESYSTEMS, PowerScene
from power.trial import Cuts, Tally

TESTS = Path(__file__).resolve().parents[1]
CUTS_IN_A_ROW = 50  # then it begins anew, on another filesystem
DEAD_OF = 20  # cuts: one write of the dead
FLUSHES_OF, FLUSHES_LEAST = 10, 3


class Harness:
    def __init__(self, nest, seed):
        self.nest, self.seed = nest, seed
        self.found, self.tally = outcome.Outcome(), Tally()
        self._made, self._places = {}, contextlib.ExitStack()

    def cuts(self, kind, name):
        """Cuts on a scene that is as after its first runs, by a seed of this name. kind: of the undo store's filesystem."""
        if kind not in self._made:
            directory = self._places.enter_context(tempfile.TemporaryDirectory(prefix="qrep-test-", dir="/dev/shm"))
            self._made[kind] = Cuts(self._places.enter_context(PowerScene(self.nest, directory, kind)), f"{self.seed}:{kind}", self.tally)
            self._made[kind].save()
        cuts = self._made[kind]
        cuts.restore()
        cuts.seed = f"{self.seed}:{name}"
        return cuts

    def close(self):
        self._places.close()

    def attempt(self, what, trial, *arguments):
        """Its result; None: it failed, which is noted, and the scene is not fit for another one."""
        try:
            return trial(*arguments)
        except Exception as err:  # whatever it is, it is this trial's
            self.found.failures.append(f"seed {self.seed}, {what}: {type(err).__name__}: {err}"[:700])
            return None

    def canaries(self):
        """Each is noticed, and without what is wrong in it nothing is."""
        caught, plain = [], {}
        for name in CANARIES:
            noticed = complaint(name, self.cuts("ext4", "canary"))
            if plainly(name) not in plain:
                plain[plainly(name)] = complaint(name, self.cuts("ext4", "canary"), seeded=False)
            without = plain[plainly(name)]
            caught.append(bool(noticed) and not without)
            self.found.failures += [f"canary not noticed: {name}"] * (not noticed) + [f"canary {name}, without its defect: {without}"] * bool(without)
        self.found.canaries = sum(caught), len(caught)

    def cuts_in_a_row(self, kind, first, count, clock):
        """Up to `count` cuts, one trial on top of the other, or to the first failure."""
        cuts, number, until, fine = self.cuts(kind, f"cuts from {first}"), 0, self.tally.cuts + count, True
        while fine and self.tally.cuts < until and not clock.over():
            fine = self.attempt(f"--again {first} --kind {kind}, trial {number}", cuts.judged, cuts.trial, number)
            number += 1

    def power_cuts(self, count, clock):
        kinds = itertools.cycle(sorted(FILESYSTEMS))
        while self.tally.cuts < count and not clock.over() and len(self.found.failures) < outcome.FAILURES_TOLD:
            self.cuts_in_a_row(next(kinds), self.tally.cuts, min(CUTS_IN_A_ROW, count - self.tally.cuts), clock)
        self.found.count = self.tally.cuts

    @staticmethod
    def trials(what, trial, cases):
        """(what, function of Cuts) of each case."""
        return [(what.format(case), lambda cuts, case=case: cuts.judged(trial, cuts, case)) for case in cases]

    def in_a_row(self, name, wanted, trials):
        """Until so many of the trials (what, function of Cuts) have come to what they are about; how many have."""
        met, cuts = 0, self.cuts("ext4", name)
        for what, trial in trials:
            result = self.attempt(what, trial, cuts) if met < wanted else None
            if result is None:
                break
            met += result
        return met


@contextlib.contextmanager
def harness(seed):
    namespace.enter()
    os.environ["PYTHONWARNINGS"] = "default::ResourceWarning"  # so that they tell of a file that nobody closed
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])  # of the processes that begin with a defect
    with contextlib.closing(Nest()) as nest, contextlib.closing(Harness(nest, seed)) as made:
        yield made


def run(seed, count, clock):
    """count: of cuts."""
    with harness(seed) as h05:
        found, tally = h05.found, h05.tally
        h05.canaries()
        dead, failed = -(-count // DEAD_OF), max(FLUSHES_LEAST, count // FLUSHES_OF)
        found.also["writes of the dead"] = h05.in_a_row("dead", dead, h05.trials("write {} of the dead", zombie.zombie, range(3 * dead)))
        superseded = -(-dead // 2)
        found.also["sessions superseded"] = h05.in_a_row("superseded", superseded, h05.trials("superseded session {}", zombie.superseded, range(3 * superseded)))
        found.also["failed flushes"] = h05.in_a_row("flushes", failed, h05.trials("failed flush {}", flushes.failed_flush, flushes.of_a_run()))
        h05.power_cuts(count, clock)
    found.also["cuts of a recovery"] = tally.in_recovery
    found.note = ", ".join(f"{name.replace('_', ' ')} {round(value, 2)}" for name, value in dataclasses.asdict(tally).items() if name != "cuts")
    return found


def again(arguments):
    """The cuts of one scene once more."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--again", type=int, required=True)
    parser.add_argument("--kind", choices=sorted(FILESYSTEMS), required=True)
    chosen = parser.parse_args(arguments)
    with harness(chosen.seed) as h05:
        h05.cuts_in_a_row(chosen.kind, chosen.again, CUTS_IN_A_ROW, outcome.Clock(600))
    print(*h05.found.failures or [f"{h05.tally.cuts} cuts, no failure"], sep="\n")
    return len(h05.found.failures)


if __name__ == "__main__":
    sys.exit(again(sys.argv[1:]) if "--again" in sys.argv else outcome.main(run, count=200, seconds=600))
