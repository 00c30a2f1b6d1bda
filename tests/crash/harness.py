"""Trying the states of recorded lives, one crash and two; counts of it."""

import pickle
import random
import tempfile
from collections import Counter
from pathlib import Path

from crash import recorder as log
from crash.model import World
from crash.recorder import Recorder
from crash.scenes import Step
from crash.states import Contents, Places, others, states
from crash.trial import ROLL_BACK, RUN, Ground, Lie, Trials, fits

RECOVERIES_PER_MOUNT = 40
RUNS, ROLLBACKS = 1 / 800, 1 / 200  # the share of states after which one is made
FEW = 60  # states of a place of which one is drawn


class Failure(AssertionError):
    """A state that was not recovered as it must be; says how it is had again. promise: which one is broken (trial.Lie); None: nothing was judged, what
    recovered or what judged has failed itself."""

    def __init__(self, promise, text):
        super().__init__(text)
        self.promise = promise


class Counts:
    """enumerated: states that a place may be left in. distinct: those of other bytes than all before, each of which was recovered; the others are compared
    with what the same bytes were recovered to. places: positions in logs, and exhausted: those of which all states were enumerated. Of two crashes:
    doubles, distinct_doubles, recoveries (recorded). taken_back: open generations; finished, rolled_back: runs and rollbacks that followed."""

    def __init__(self):
        self.enumerated = self.distinct = self.places = self.exhausted = 0
        self.doubles = self.distinct_doubles = self.recoveries = 0
        self.taken_back = self.finished = self.rolled_back = 0

    def take(self, trials):
        """What trials.Trials has counted since it was asked last."""
        self.taken_back, self.finished, self.rolled_back = self.taken_back + trials.recovered, self.finished + trials.finished, self.rolled_back + trials.rolled_back
        trials.recovered = trials.finished = trials.rolled_back = 0

    @property
    def recovered(self):
        """Distinct states, of one crash and of two."""
        return self.distinct + self.distinct_doubles

    @property
    def all(self):
        """Enumerated states, of one crash and of two."""
        return self.enumerated + self.doubles


class Bench:
    """What the trials of one scene need: its contents, a directory, and what was tried. program: of recorder.build(). told: told.Told of this process.
    runs: the share of states of one crash on which a run follows."""

    def __init__(self, directory, program, scene, seed, told, runs=RUNS):
        self.directory, self.program, self.scene, self.runs = Path(directory), program, scene, runs
        self.directory.mkdir(parents=True, exist_ok=True)
        self.chance = random.Random(f"{seed}:{scene.name}")
        self.contents = Contents()
        self.trials = Trials(Ground(self.directory / "ground", self.contents), scene, told)
        self.tried = {}  # {files: (generation, sync points) that they were recovered to}
        self.generations = [new for new, image in scene.images.items() if image is not None]
        self.mounts = 0
        self.keeping = True  # a state that fails stays on disk, to be tried again

    # ---- one crash ----

    def singles(self, counts, limit, stop=lambda: False):
        """Every place of the log, at most `limit` states of each."""
        world = World()
        for place in Places(self.contents, limit, self.chance).walk(world, self.scene.records, self.scene.steps, self.scene.first):
            found, whole = states(place, limit, self.chance)
            counts.places += 1
            counts.exhausted += whole
            for files in found:
                if stop():
                    return
                counts.enumerated += 1
                counts.distinct += self.attempt(files, place.step, f"record {place.at}", world=world)
            counts.take(self.trials)

    def attempt(self, files, step, where, trials=None, world=None):
        """Whether this state had not been tried yet. world: of which the source's files are drawn where a run follows. Raises Failure."""
        key, after = frozenset(files.items()), None
        try:
            if key in self.tried:
                fits(self.tried[key], step)
                return False
            drawn = self.chance.random()
            if world is not None and drawn < self.runs:
                after = RUN, self.chance.choice(self.generations)
                files = {**files, **others(world, self.contents, self.chance)}
            elif drawn > 1 - ROLLBACKS:
                after = ROLL_BACK, self.chance.choice(self.generations)
            self.tried[key] = (trials or self.trials).run(files, step, after)
        except Exception as err:  # whatever it is, this state is not what it must be, or nobody can say so
            self.trials.told.forget()
            raise self.failure(err, where, files, step, after) from err
        return True

    def failure(self, err, where, files, step, after=None):
        promise = err.promise if isinstance(err, Lie) else None
        return Failure(promise, f"{self.scene.name}, {where}: {promise or type(err).__name__}: {err}; {self.keep(files, step, after)}")

    def keep(self, files, step, after):
        """Have a state that failed on disk, for crash.again."""
        if not self.keeping:
            return "not kept"
        with tempfile.NamedTemporaryFile(prefix="qrep-crash-state-", suffix=".pickle", delete=False) as file:
            scene = self.scene._replace(records=[], steps=[])
            pickle.dump((scene, {name: self.contents.all[number] for name, number in files.items()}, step, after), file)
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
        durable = {path: self.contents.number(one) for path, one in before.durable().items()}
        try:
            seen, under = self.trials.committed(files), self.trials.committed(durable)
        except Lie as err:
            raise self.failure(err, where, durable, place.step) from err
        steps, committed = [], frozenset({seen, under})
        superblock = next((node for node, path in before.paths().items() if path == "target/superblock"), None)
        for record in records:
            if record.kind == log.SYNC and record.node == superblock and not self.scene.grouped:
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


class Mount:
    """A recording filesystem in which states of one Bench are recovered, one after the other."""

    def __init__(self, bench):
        bench.mounts += 1
        self.bench, self.used = bench, 0
        self.recorder = Recorder(bench.directory / f"mount-{bench.mounts}", bench.program)
        self.trials = Trials(Ground(self.recorder.path, bench.contents), bench.scene, bench.trials.told, bench.trials.truth)
        self.world, self._read = World(), 0

    def recover(self, files, step, where):
        """The records of the recovery from a state; self.world is what was there before it, all of it durable."""
        self.used += 1
        moments = []
        self.trials.moment = lambda: moments.append(self.recorder.position())
        self.bench.tried.pop(frozenset(files.items()), None)  # it is recovered once more, and recorded
        self.bench.attempt(files, step, where, self.trials)
        begin, end = moments
        for record in self.recorder.records(self._read, begin):
            self.world.apply(record)
        self.world.flush_all()
        self._read = begin
        return self.recorder.records(begin, end)

    def close(self):
        self.recorder.close()
