"""One power cut after the other: a run, the power goes in the middle, and what comes back is judged; all by seed, but for the kernel's timing."""

import dataclasses
import json
import random
import time

import oracle
from fault.scene import MIB, READY_S, changed, mixed
from power import moment
from power.scene import Lost

HOSTS = (("source", "target"), ("source", "target"), ("target",), ("target",), ("source",))
AGAIN = 0.25  # how often a recovery is cut, too


@dataclasses.dataclass
class Tally:
    """Of many trials."""

    cuts: int = 0
    in_recovery: int = 0
    met: int = 0  # came where they were meant to, before the end of the run
    committed: int = 0  # the cut run was
    changed: int = 0  # sectors of the target, each of which had its way back
    worst_ready_s: float = 0.0


class Cuts:
    """Trials on one PowerScene, after a first run and one that was measured: how long it took, and what it asked of the devices. seed: of the trials."""

    def __init__(self, scene, seed, tally=None):
        self.scene, self.seed, self.tally = scene, seed, tally or Tally()
        chance = random.Random(f"{seed}:first")
        self.image = mixed(4 * MIB, chance) + bytes(2 * MIB)
        scene.write(self.image)
        scene.complete(self.image)
        self.change(chance)
        before, began = self._requests(), time.monotonic()
        scene.complete(self.image)
        self.length = time.monotonic() - began
        self.requests = {name: type(now)(*(a - b for a, b in zip(now, before[name]))) for name, now in self._requests().items()}
        scene.told.check()

    def save(self):
        self.scene.save()
        self._saved = self.image

    def restore(self):
        """Everything is as it was when it was saved."""
        self.scene.restore()
        self.image = self._saved

    def _requests(self):
        return {name: device.counts() for name, device in self.scene.devices.items()}

    def trial(self, number):
        """Run, cut, maybe cut again while it recovers, recover, compare everything, and run to the end. Returns True; raises AssertionError."""
        chance, scene = random.Random(f"{self.seed}:{number}"), self.scene
        # Else what the last run left is all there is to do.
        before = self.change(chance) if chance.random() < 0.7 else scene.committed()
        scene.images[before[0] + 1] = self.image
        acknowledged = self._cut_run(chance)
        while chance.random() < AGAIN:
            self._cut_recovery(chance)
        self.recovered(before, before[0] + 1 if acknowledged else before[0])
        scene.points_are_true()
        middle = scene.committed()
        scene.watch()
        scene.complete(self.image)  # INV-L
        self.tally.changed += scene.judge()
        self._chain(middle, scene.committed())
        return True

    def judged(self, trial, *arguments):
        """What a trial comes to, by what its processes told, too. Raises AssertionError with what was cut where."""
        self.story = []
        try:
            result = trial(*arguments)
            self.scene.told.check()
            return result
        except Exception as err:
            story = "".join(f"{part}; " for part in self.story)
            raise type(err)(f"{story}{err}") if isinstance(err, AssertionError) else RuntimeError(f"{story}{err!r}") from err

    def change(self, chance):
        """The source holds something new from now on, in some places. Returns what is committed."""
        return self.hold(changed(self.image, chance))

    def hold(self, image):
        """The source holds this from now on. Returns what is committed."""
        self.image = image
        self.scene.write(image)
        before = self.scene.committed()
        self.scene.images[before[0] + 1] = image
        return before

    def _cut_run(self, chance):
        """Whether the source was told that its run is committed."""
        scene, hosts = self.scene, chance.choice(HOSTS)
        when = moment.of_run(chance, scene, hosts, self.requests, self.length)
        self._tell(f"run, {'+'.join(hosts)} cut", when)
        scene.watch()
        when.arm()
        target = scene.start("target", crash=when.crash_of("target"))
        ready, processes = when.ready(scene, target), [target]
        if ready is not None:
            processes.append(scene.start("source", ready["port"], crash=when.crash_of("source")))
        self.tally.met += when.wait(processes)
        said = self._cut(hosts, chance)
        return self._wind_up(hosts, *processes, said=said)

    def _cut(self, hosts, chance):
        keeps, said = self.scene.lose_power(hosts, chance)
        self.story[-1] += f" keeping {keeps} %"
        self.tally.cuts += 1
        return said

    def _wind_up(self, hosts, target, source=None, *, said):
        """The host that still has power sees the end of its peer. Whether the source said that its run is committed."""
        scene, text = self.scene, said.get("source", "")
        if "source" not in hosts and source is not None:
            text = source.communicate()[0]
        if "target" not in hosts:
            scene.finish(target)
            self.tally.changed += scene.judge()
        scene.stop_all()
        return text.strip().endswith("}") and "counter" in json.loads(text)

    def _cut_recovery(self, chance):
        scene, when = self.scene, moment.of_recovery(chance, self.scene, self.length)
        self._tell("recovery cut", when)
        scene.watch()
        when.arm()
        target = scene.start("target", crash=when.crash_of("target"))
        if when.seconds is not None:
            when.wait([target])
        elif when.ready(scene, target) is None:
            self.tally.met += when.wait([target])
        self._cut(("target",), chance)
        self.tally.in_recovery += 1

    def recovered(self, before, least):
        """A target comes up by itself with exactly its committed generation, INV-R; no map lies, INV-I; no commit that was told is gone, INV-E."""
        scene = self.scene
        scene.watch()
        target = scene.start("target")
        ready = scene.ready(target)
        if ready is None or ready["damaged"] is not None:
            raise oracle.Wrong(f"the target is not in service: {ready} {target.errors()}")
        assert ready["seconds"] < 10 * READY_S, f"ready after {ready['seconds']} s"
        counter = ready["committed_counter"]
        if counter < least:
            raise Lost(f"generation {least} was committed, and the source was told so; the target has {counter}")
        assert counter in (before[0], before[0] + 1)
        scene.holds(scene.images[counter])
        scene.stop_all()
        self.tally.changed += scene.judge()
        scene.maps_are_true()
        self._chain(before, scene.committed())
        self.tally.committed += counter > before[0]
        self.tally.worst_ready_s = max(self.tally.worst_ready_s, ready["seconds"])

    @staticmethod
    def _chain(before, after):
        """INV-M: the same generation, or one on top of it."""
        if before[1] not in (after[1], after[2][0] if after[2] else oracle.NO_ID):
            raise oracle.Wrong(f"generation {after[0]} is not on top of {before[0]}: {before[1].hex()}, {after[1].hex()}")

    def _tell(self, what, when):
        self.story.append(f"{what} {when}")
