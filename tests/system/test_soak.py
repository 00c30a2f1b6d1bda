"""Everything at once: four jobs that run themselves, writers, and at random moments pulled cables, other rates, other numbers of connections
and agents that are killed. Then all is healed, and every pair is equal; agents that lived on hold what they held before."""

import json
import os
import random
import threading
import time

import flatness
import oracle
import pytest
from agents import MIB, CommandFailed, b3sum, inside, wait_until
from system.cables import ADDRESSES, Cables

pytestmark = [pytest.mark.root, pytest.mark.alone]
PAIRS = 4
SIZE = 32 * MIB
MBIT = 400  # of each cable
PERIOD = "every 2s"
# What must not happen whatever is done to it. A run may fail for want of a peer; then the next time tries again.
FORBIDDEN = (*oracle.FORBIDDEN_EVENTS, "records-damaged", "records-healed", "role-unfinished")
NOT_FOR = ("protocol", "internal")  # of what no run may fail: cuts and kills are no reason for a peer to be misunderstood
RSS_MAX = 400 * MIB
FLAT_WITHIN_S, LIVES_ON_FROM_S = 40, 60
QUIET_RUNS, QUIET_POINTS = 5, 16  # runs from one look at the memory to the next; a leak goes on, so it is looked for this often before it counts:
QUIET_ROUNDS = 3
# 500 runs would be too many to wait for until what an agent remembers of them does not grow any more.
FORGETFUL = "from qrep.daemon import tasks; tasks.KEPT = 20"
LONG_S = int(os.environ.get("QREP_SOAK_SECONDS", "300"))


class Writers:
    """One thread that writes anywhere in the sources, as an application would, until it is ended."""

    def __init__(self, paths, seed):
        self._random = random.Random(seed)
        self._files = [os.open(path, os.O_RDWR) for path in paths]
        self._end = threading.Event()
        self.written = 0
        self._thread = threading.Thread(target=self._write, name="writers")
        self._thread.start()

    def _write(self):
        while not self._end.wait(0.02):
            size = self._random.choice((512, 4096, 4096, 65536, MIB))
            data = bytes(size) if self._random.random() < 0.2 else self._random.randbytes(size)
            self.written += os.pwrite(self._random.choice(self._files), data, self._random.randrange(0, SIZE - size + 1, 512))

    def end(self):
        self._end.set()
        self._thread.join()
        for descriptor in self._files:
            os.fsync(descriptor)
            os.close(descriptor)


class Soak:
    def __init__(self, agents, cables, sources, targets, seed):
        self.random, self.cables, self.sources, self.targets = random.Random(seed), cables, sources, targets
        self.done = {}  # what was done to them: how often
        self.disturbed_s = 0.0
        self.a, self.b = (
            agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space), before=FORGETFUL)
            for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
        )
        self.a.qrep("peer", "add", "site-b", ",".join(there for _here, there in ADDRESSES), "-y")
        self.b.qrep("peer", "add", "site-a", ",".join(here for here, _there in ADDRESSES), "-y")
        self.a.qrep("shape", "set", "soak", "--peak", "20M")
        for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
            name = f"pair{number}"
            self.a.qrep("volume", "add", name, source, "--granule", "1M")
            self.b.qrep("volume", "add", name, target, "--accept", "site-a")
            shape = ["--shape", "soak"] if number % 2 else []
            self.a.qrep("job", "create", name, "--source", name, "--target", f"site-b:{name}", "--schedule", PERIOD, *shape)

    # ---- what is done to them; each leaves everything as it was ----

    def cut_one(self):
        number = self.random.choice((1, 2))
        how, back = self.random.choice(((self.cables.pull, self.cables.plug), (self.cables.swallow, self.cables.pass_on)))
        how(number)
        time.sleep(self.random.uniform(0.5, 8))
        back(number)

    def cut_both(self):
        for number in (1, 2):
            self.cables.pull(number)
        time.sleep(self.random.uniform(0.5, 6))
        for number in (1, 2):
            self.cables.plug(number)

    def kill(self, agent):
        agent.kill()
        time.sleep(self.random.uniform(0, 2))
        agent.start()

    def kill_source(self):
        self.kill(self.a)

    def kill_target(self):
        self.kill(self.b)

    def change_rate(self):
        self.a.qrep("shape", "set", "soak", "--peak", self.random.choice(("1M", "5M", "20M", "unlimited")))

    def change_connections(self):
        self.a.qrep("job", "set", f"pair{self.random.randrange(PAIRS)}", "--connections", self.random.randint(1, 4))

    def use_path(self):
        self.a.qrep("path", "use", f"pair{self.random.randrange(PAIRS)}/{self.random.choice((1, 2))}")

    KILLS = (kill_source, kill_target)
    OTHERS = (cut_one, cut_both, change_rate, change_connections, use_path)

    def go_on_for(self, seconds):
        """Kills with all else; where there is time for it then processes that live on, which hold no more at the end than when they were warm."""
        if seconds < LIVES_ON_FROM_S:
            return self.disturb(seconds, self.KILLS + self.OTHERS)
        self.disturb(0.4 * seconds, self.KILLS + self.OTHERS)
        self.disturb(0.2 * seconds, self.OTHERS)
        warm = self.at_rest()
        self.disturb(0.4 * seconds, self.OTHERS)
        self.is_flat_since(warm)

    def disturb(self, seconds, faults):
        """Every fault once, in random order, and then at random until the time is over."""
        began, todo = time.monotonic(), list(faults)
        self.random.shuffle(todo)
        while todo or time.monotonic() < began + seconds:
            fault = todo.pop() if todo else self.random.choice(faults)
            try:
                fault(self)
            except CommandFailed as failure:  # such as a path that is down just now; what a person is told, and no more
                assert failure.code in (3, 4, 5), failure
            self.done[fault.__name__] = self.done.get(fault.__name__, 0) + 1
            for agent in (self.a, self.b):
                assert agent.process.poll() is None, f"{agent.name} ended by itself with {agent.process.returncode}"
            time.sleep(self.random.uniform(0.2, 2))
        self.disturbed_s += time.monotonic() - began

    def committed(self):
        return [self.a.job(f"pair{number}")["counter"] or 0 for number in range(PAIRS)]

    def schedule(self, when):
        for number in range(PAIRS):
            self.a.qrep("job", "set", f"pair{number}", "--schedule", when)

    def at_rest(self):
        """What the two agents hold while no job runs: [flatness.Held]."""
        self.a.qrep("shape", "set", "soak", "--peak", "unlimited")
        self.schedule("none")
        for number in range(PAIRS):
            name = f"pair{number}"
            wait_until(lambda name=name: self.a.job(name)["state"] in ("idle", "failed", "degraded", "stopped") and not self.a.job(name)["progress"], seconds=90)
        held = [flatness.sample(agent.process.pid) for agent in (self.a, self.b)]
        self.schedule(PERIOD)
        return held

    def is_flat_since(self, warm):
        """What still goes on for a moment after the last run, such as a connection that is being closed, has the time to end."""
        deadline = time.monotonic() + FLAT_WITHIN_S
        while True:
            grown = [flatness.grown(before, after) for before, after in zip(warm, self.at_rest(), strict=True)]
            if not any(grown):
                return
            assert time.monotonic() < deadline, f"held more at the end than when they were warm: site-a {grown[0]}; site-b {grown[1]}"
            time.sleep(2)

    def settle(self):
        """Nothing disturbs them any more: every job commits what its source holds now."""
        self.at_rest()
        self.schedule("none")
        for number in range(PAIRS):
            wait_until(lambda number=number: not self.a.job(f"pair{number}")["progress"], seconds=90)
            self.a.qrep("start", f"pair{number}", "--wait")

    def keeps_nothing_of_a_run(self):
        """Nothing of each run stays in the memory of either agent, while nothing disturbs them. Returns the series: [(runs, bytes)] of each."""
        for left in reversed(range(QUIET_ROUNDS)):
            found = self._quiet_runs()
            leaks = [flatness.leaks(series) for series in found]
            if not any(leaks):
                return found
        raise AssertionError(f"site-a: {leaks[0]}; site-b: {leaks[1]}")

    def _quiet_runs(self):
        found = [], []
        for point in range(QUIET_POINTS):
            for _run in range(QUIET_RUNS):
                with open(self.sources[0], "r+b") as file:
                    file.seek(self.random.randrange(SIZE // MIB) * MIB)
                    file.write(self.random.randbytes(4096))
                self.a.qrep("start", "pair0", "--wait")
            for series, agent in zip(found, (self.a, self.b), strict=True):
                series.append((point * QUIET_RUNS, _least_memory(agent)))
        return found

    # ---- what must hold ----

    def check(self):
        """Raises AssertionError."""
        self.check_content()
        self.check_events()
        self.check_logs()
        for agent in (self.a, self.b):
            assert oracle.resident(agent.process.pid) < RSS_MAX

    def check_content(self):
        for number, (source, target) in enumerate(zip(self.sources, self.targets, strict=True)):
            job = self.a.job(f"pair{number}")
            assert job["root"] == b3sum(target) == b3sum(source), f"pair{number} differs"

    def check_events(self):
        for agent in (self.a, self.b):
            told = [event for event in agent.events() if event["code"] in FORBIDDEN or (event["code"] == "run-failed" and event["data"]["reason"] in NOT_FOR)]
            assert not told, told

    def check_logs(self):
        for agent in (self.a, self.b):
            oracle.nothing_forbidden(agent.log)

    def canaries(self, quiet):
        """{what is wrong: whether it was noticed}, after check(), whose events and logs are spoiled then. quiet: of keeps_nothing_of_a_run(), or ()."""
        leaks = [bool(flatness.leaks(flatness.leaking(series))) for series in quiet]
        noticed = {f"{flatness.LEAK >> 10} KiB of every run stay with {name}": leak for name, leak in zip(("site-a", "site-b"), leaks)}
        place = self.random.randrange(SIZE)
        _flip(self.targets[0], place)
        noticed["one bit of a target is another one"] = _raises(self.check_content)
        code, _answer, _errors = self.a.call("verify", "pair0")
        assert code == 6, f"verify ended with {code}"
        _flip(self.targets[0], place)
        self.check_content()
        noticed["an event that must not be"] = _raises(self.check_events)
        with open(self.b.log_path, "a") as log:
            log.write("Traceback (most recent call last):\n")
        noticed["a traceback in a log"] = _raises(self.check_logs)
        return noticed


def _least_memory(agent):
    """Of an agent at rest: threads of what has just ended take some for a moment."""
    found = []
    for _look in range(5):
        found.append(flatness.sample(agent.process.pid).memory)
        time.sleep(0.05)
    return min(found)


def _flip(device, place):
    with open(device, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, place)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), place)
        os.fsync(file.fileno())


def _raises(judge):
    try:
        judge()
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("seconds", [pytest.param(20, id="20s"), pytest.param(LONG_S, id="long", marks=pytest.mark.slow)])
def test_pairs_are_equal_after_cuts_kills_and_changes_at_random(agents, undo_after, loop_device, filesystem, seed, seconds):
    cables = Cables(undo_after, MBIT)
    xfs, sources = filesystem("xfs", size=1 << 30), []  # room for the sources, for the snapshot of a run and the one kept of the run before
    for number in range(PAIRS):
        sources.append(xfs / f"source{number}.img")
        with open(sources[-1], "wb") as file:
            file.truncate(SIZE)
            file.write(random.Random(seed + number).randbytes(SIZE // 2))
    targets = [loop_device(SIZE) for _ in range(PAIRS)]
    soak = Soak(agents, cables, sources, targets, seed)
    writers = Writers(sources, seed)
    try:
        soak.go_on_for(seconds)
    finally:
        writers.end()
    before = soak.committed()
    soak.settle()
    quiet = soak.keeps_nothing_of_a_run() if seconds >= LIVES_ON_FROM_S else ()
    soak.check()
    faults = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sorted(soak.done.items()))
    kept = ", ".join(f"{flatness.slope(series) / 1024:.1f}" for series in quiet)
    told = f"{writers.written >> 20} MiB written; generations {', '.join(map(str, before))} before all was healed"
    print(f"soak: {int(soak.disturbed_s)} s, seed {seed}: {faults}; {told}; KiB kept of a quiet run: {kept or 'not looked'}")
    assert all(before) if seconds > 60 else any(before), before
    canaries = soak.canaries(quiet)
    print(f"soak canaries: {json.dumps(canaries)}")
    assert all(canaries.values()), canaries
