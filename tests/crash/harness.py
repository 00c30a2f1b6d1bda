"""Trying the states of recorded lives, one crash and two; counts of it."""

import pickle
import random
import tempfile
from collections import Counter
from pathlib import Path


from crash import recorder as log
from crash import scenes
from crash.model import World
from crash.recorder import Recorder
from crash.scenes import Step
from crash.states import Contents, Places, states
from crash.trial import Ground, Trials

RECOVERIES_PER_MOUNT = 40
FEW = 60  # states of a place of which one is drawn
NOBODY_UNDERSTANDS = (AssertionError, ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


class Failure(AssertionError):
    """A state that was not recovered as it must be; says how it is had again."""


class Counts:
    """enumerated: states that a place may be left in. distinct: those of other contents or with other expectations, each of which was recovered.
    places: positions in logs, and exhausted: those of which all states were tried. Of two crashes: doubles, distinct_doubles, recoveries (recorded)."""

    def __init__(self):
        self.enumerated = self.distinct = self.places = self.exhausted = 0
        self.doubles = self.distinct_doubles = self.recoveries = self.taken_back = 0

    @property
    def all(self):
        return self.enumerated + self.doubles


class Bench:
    """What the trials of one scene need: its contents, a directory, and what was tried. program: of recorder.build()."""

    def __init__(self, directory, program, scene, seed):
        self.directory, self.program, self.scene = Path(directory), program, scene
        self.directory.mkdir(parents=True, exist_ok=True)
        self.chance = random.Random(f"{seed}:{scene.name}")
        self.contents = Contents()
        self.trials = Trials(Ground(self.directory / "ground", self.contents), scene)
        self.tried = set()
        self.mounts = 0
        self.keeping = True  # a state that fails stays on disk, to be tried again

    # ---- one crash ----

    def singles(self, counts, limit, stop=lambda: False):
        """Every place of the log, at most `limit` states of each."""
        places = Places(self.contents, limit, self.chance)
        for place in places.walk(World(), self.scene.records, self.scene.steps, self.scene.first):
            found, whole = states(place, limit, self.chance)
            counts.places += 1
            counts.exhausted += whole
            for files in found:
                if stop():
                    return
                counts.enumerated += 1
                counts.distinct += self.attempt(files, place.step, f"record {place.at}")
            counts.taken_back, self.trials.recovered = counts.taken_back + self.trials.recovered, 0

    def attempt(self, files, step, where, trials=None):
        """Whether this state had not been tried yet. Raises Failure."""
        key = frozenset(files.items()), step
        if key in self.tried:
            return False
        self.tried.add(key)
        try:
            (trials or self.trials).run(files, step)
        except NOBODY_UNDERSTANDS as err:
            raise Failure(f"{self.scene.name}, {where}: {type(err).__name__}: {err}; {self.keep(files, step)}") from err
        return True

    def keep(self, files, step):
        """Have a state that failed on disk, for crash.again."""
        if not self.keeping:
            return "not kept"
        with tempfile.NamedTemporaryFile(prefix="qrep-crash-state-", suffix=".pickle", delete=False) as file:
            scene = self.scene._replace(records=[], steps=[])
            pickle.dump((scene, {name: self.contents.all[number] for name, number in files.items()}, step), file)
        return f"python -m crash.again {file.name}"

    # ---- two ----

    def doubles(self, counts, recoveries, limit, stop=lambda: False, only=lambda record: True):
        """Recovery is recorded in so many states of the log and crashed itself at each of its places, at most `limit` states of each. They are of all
        places in turn. only: of which records."""
        total = sum(only(self.scene.records[place.at]) for place, _world in self._all_places())
        wanted = Counter()
        while wanted.total() < recoveries:
            wanted.update(self.chance.sample(range(total), min(total, recoveries - wanted.total())))
        mount, number = None, -1
        try:
            for place, world in self._all_places():
                if not only(self.scene.records[place.at]):
                    continue
                number += 1
                for turn in range(wanted[number]):
                    if stop():
                        return
                    if mount is None or mount.used == RECOVERIES_PER_MOUNT:
                        if mount is not None:
                            mount.close()
                        mount = Mount(self)
                    self._double(counts, mount, place, world, (turn + number) % 2 == 0, limit, stop)
        finally:
            if mount is not None:
                mount.close()

    def _all_places(self):
        """(Place, World) of all places of the log; the World goes on."""
        world = World()
        for place in Places(self.contents, FEW, self.chance).walk(world, self.scene.records, self.scene.steps, self.scene.first):
            yield place, world

    def _double(self, counts, mount, place, world, killed, limit, stop):
        found, _whole = states(place, FEW, self.chance)
        if killed:
            files = {path: self.contents.number(world.files[node].seen()) for node, path in world.paths().items() if path in self._paths(found)}
        else:
            files = self.chance.choice(found)
        where = f"record {place.at}, {'killed' if killed else 'power cut'}"
        records = mount.recover(files, place.step, where)
        counts.recoveries += 1
        before = (world if killed else mount.world).as_killed(mount.world)
        seen = self._committed(files)
        steps, committed = [], frozenset({seen, self._says(before)})
        superblock = next((node for node, path in before.paths().items() if path == "target/superblock"), None)
        for record in records:
            if record.kind == log.SYNC and record.node == superblock:
                committed = frozenset({seen})
            steps.append(Step(committed, place.step.points))
        # open() has returned: from here on what it says is so for ever.
        records.append(log.Record(log.MARK, names=("opened",)))
        steps.append(Step(frozenset({seen}), place.step.points))
        for second in Places(self.contents, limit, self.chance).walk(before, records, steps):
            for files in states(second, limit, self.chance)[0]:
                if stop():
                    return
                counts.doubles += 1
                counts.distinct_doubles += self.attempt(files, second.step, f"{where}, then at {second.at} of its recovery")

    @staticmethod
    def _paths(found):
        return {path for files in found for path in files}

    def _committed(self, files):
        number = files.get("target/superblock")
        block = self.trials.says(self.contents.all[number]) if number is not None else None
        return block.committed_id if block is not None else scenes.NO_ID

    def _says(self, world):
        """What the durable superblock of a World says."""
        for folder in world.folders.values():
            node = folder.durable.get("superblock")
            if node is not None:
                return self._committed({"target/superblock": self.contents.number(world.files[node].durable())})
        return scenes.NO_ID


class Mount:
    """A recording filesystem in which states of one Bench are recovered, one after the other."""

    def __init__(self, bench):
        bench.mounts += 1
        self.bench, self.used = bench, 0
        self.recorder = Recorder(bench.directory / f"mount-{bench.mounts}", bench.program)
        self.trials = Trials(Ground(self.recorder.path, bench.contents), bench.scene)
        self.world, self._read = World(), 0

    def recover(self, files, step, where):
        """The records of the recovery from a state; self.world is what was there before it, all of it durable."""
        self.used += 1
        moments = []
        self.trials.moment = lambda: moments.append(self.recorder.position())
        self.bench.tried.discard((frozenset(files.items()), step))  # it is recovered once more, and recorded
        self.bench.attempt(files, step, where, self.trials)
        begin, end = moments
        for record in self.recorder.records(self._read, begin):
            self.world.apply(record)
        self.world.flush_all()
        self._read = begin
        return self.recorder.records(begin, end)

    def close(self):
        self.recorder.close()
