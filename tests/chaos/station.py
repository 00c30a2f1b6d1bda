"""Two sites in network namespaces of their own, two cables, a relay at the far end of each, a job between two devices; and one scenario after another.

    with Station(directory, number) as station:
        result = station.play(scenarios.draw(seed, number))
        result.findings                                         # what must not be, in words; [] when all is well
"""

import contextlib
import dataclasses
import json
import os
import queue
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import oracle
from agents import Agent, CommandFailed, inside
from chaos import content
from chaos.network import Network
from chaos.scenarios import HARMLESS, SAID_BY_TARGET, SIZE
from machine import run

MAIN = Path(__file__).with_name("agentmain.py")
AGENT_PORT, RELAY_PORT = 7414, 7500
ADDRESSES = (("10.96.1.1", "10.96.1.2"), ("10.96.2.1", "10.96.2.2"))
SOON_S, MOMENT_S, LIVE_S, REFUSED_S = 60.0, 40.0, 60.0, 12.0
RSS_GROWTH_MAX, THREADS_MORE = 48 << 20, 4


class Said(Exception):
    """What must not be was seen."""


@dataclasses.dataclass
class Result:
    """of one scenario. fail_over_s, healed_s: how long these took, None: there was none; limit_s: of the first. tampered: changes on the way; flips: those of them that are one bit."""

    scenario: object
    findings: list = dataclasses.field(default_factory=list)
    came: bool = True
    fail_over_s: float = None
    limit_s: float = None
    healed_s: float = None
    tampered: int = 0
    flips: int = 0
    seconds: float = 0.0
    log: str = ""


class ChaosAgent(Agent):
    """An agent of agentmain.py. said: (name of a message, when it was sent)."""

    def __init__(self, directory, name, *, canary="", **options):
        super().__init__(directory, name, **options)
        self.canary, self.said, self._reached = canary, [], queue.SimpleQueue()
        self._line = None
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(self.directory / "chaos.sock"))
        self._listening.listen(4)

    def spawn(self, **env):
        env = {"QREP_CHAOS": str(self.directory / "chaos.sock"), "QREP_CANARY": self.canary, **env}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen([*self.prefix, sys.executable, str(MAIN), "daemon"], env={**self.environment, **env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        threading.Thread(target=self._listen, name=f"line of {self.name}", daemon=True).start()
        return self

    def _listen(self):
        self._listening.settimeout(30)
        line, _ = self._listening.accept()
        self._line = line
        with contextlib.suppress(OSError):
            while data := line.recv(4096):
                said = json.loads(data)
                if "sent" in said:
                    self.said.append((said["sent"], said["at"]))
                else:
                    self._reached.put(said)
        line.close()

    def _ask(self, **what):
        self._line.send(json.dumps(what).encode())

    def _told(self, what, **asked):
        """Ask it something and wait until it has heard; not if it is dead."""
        self._ask(**asked)
        deadline = time.monotonic() + SOON_S
        while self.process.poll() is None:
            with contextlib.suppress(queue.Empty):
                if self._reached.get(timeout=0.2) == {"holding": what}:
                    return
            assert time.monotonic() < deadline, f"{self.name} does not listen: {asked}"

    def hold(self, name):
        """The next message of that name waits before it is sent."""
        self._told(name, hold=name)

    def crash_at(self, point):
        """It dies at the next passage of that crash point; "": at none."""
        self._told(point, crash=point)

    def bear(self, canary):
        """It has this defect (agentmain.TAKEN_BACK) from now on; "": none."""
        self._told(canary, canary=canary)

    def reached(self, seconds):
        """Whether it came to that message in that time."""
        with contextlib.suppress(queue.Empty):
            return "reached" in self._reached.get(timeout=seconds)
        return False

    def go_on(self):
        self._ask(go=True)
        while not self._reached.empty():
            self._reached.get()

    def pids(self):
        """Its processes: the engine first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def state_of_volume(self):
        """The directory of the records of its only volume as a target."""
        (found,) = (self.state / "targets").iterdir()
        return found

    def close(self):
        self.end()
        self._listening.close()


def wait(condition, seconds, what, every=0.05):
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Said(f"not within {seconds:.0f} s: {what}")
        time.sleep(every)


class Lag:
    """How much of the time this machine had no processor for who wanted one: of a thread that only sleeps."""

    def __init__(self):
        self.total, self._over = 0.0, False
        self._thread = threading.Thread(target=self._watch, name="lag", daemon=True)
        self._thread.start()

    def _watch(self):
        while not self._over:
            before = time.monotonic()
            time.sleep(0.05)
            self.total += max(0.0, time.monotonic() - before - 0.06)

    def end(self):
        self._over = True
        self._thread.join()


class Station:
    """directory: on tmpfs, its own. number: of this station in its process. canary: a seeded defect of the agents (agentmain.py). network: of relays."""

    peer_port = AGENT_PORT  # by which the two know each other
    size = SIZE

    def __init__(self, directory, number=0, *, canary="", network=Network):
        self.directory, self.canary, self._network = Path(directory), canary, network
        self.directory.mkdir(exist_ok=True)
        self.spaces = [f"qrep-chaos-{os.getpid()}-{number}-{side}" for side in "ab"]
        self.devices, self._undo = [], contextlib.ExitStack()
        self.images = oracle.Images()
        self._before = None  # what the agents held
        self._trusted, self._seen = False, {}  # _seen: agent -> number of the last event of the scenarios before
        self.played, self.patience = 0, 1.0  # patience: of all times that are waited; a canary has less

    def __enter__(self):
        with contextlib.ExitStack() as undo:
            self._lay(undo)
            self._attach(undo)
            self._start(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exception):
        self._undo.close()

    # ---- what there is ----

    def _lay(self, undo):
        for space in self.spaces:
            run("ip", "netns", "add", space)
            undo.callback(run, "ip", "netns", "delete", space)
            run("ip", "-n", space, "link", "set", "lo", "up")
        a, b = self.spaces
        for number, addresses in enumerate(ADDRESSES, 1):
            run("ip", "link", "add", f"cable{number}", "netns", a, "type", "veth", "peer", "name", f"cable{number}", "netns", b)
            for space, address in zip(self.spaces, addresses, strict=True):
                run("ip", "-n", space, "address", "add", f"{address}/24", "dev", f"cable{number}")
                run("ip", "-n", space, "link", "set", f"cable{number}", "up")
        paths = [((there, RELAY_PORT), (there, AGENT_PORT)) for _here, there in ADDRESSES]
        self.network = undo.enter_context(self._network(b, paths))
        self.lag = Lag()
        undo.callback(self.lag.end)

    def _attach(self, undo):
        for name in ("source", "target", "copy"):
            path = self.directory / f"{name}.img"
            with open(path, "wb") as file:
                file.truncate(self.size)
            if name == "copy":
                continue
            self.devices.append(run("losetup", "--find", "--show", "--direct-io=on", path))
            undo.callback(run, "losetup", "--detach", self.devices[-1])
        self.source, self.target = self.devices

    def _start(self, undo):
        self.a, self.b = (
            ChaosAgent(self.directory / name, name, canary=self.canary, host="0.0.0.0", port=AGENT_PORT, prefix=inside(space), node={"path_hold": "2s"})
            for name, space in zip(("site-a", "site-b"), self.spaces, strict=True)
        )
        for agent in (self.a, self.b):
            undo.callback(agent.close)
            agent.spawn()
        for agent in (self.a, self.b):
            wait(lambda agent=agent: "qrep: serving" in agent.log or agent.process.poll() is not None, SOON_S, "an agent serves")
            if agent.process.poll() is not None:
                raise RuntimeError(agent.log)
        self.a.qrep("peer", "add", "site-b", f"{ADDRESSES[0][1]}:{self.peer_port}", "-y")
        self.b.qrep("peer", "add", "site-a", f"{ADDRESSES[0][0]}:{self.peer_port}", "-y")

    # ---- one scenario ----

    fresh = staticmethod(content.fresh)

    def play(self, scenario):
        result, began = Result(scenario), time.monotonic()
        rng = random.Random(f"{scenario.seed}-{scenario.number}-content")
        self.network.random = random.Random(f"{scenario.seed}-{scenario.number}-network")
        self.played += 1
        try:
            self._prepare(scenario, rng)
            self._disturb(scenario, result)
            self.after_commit()
            self._check(scenario)
        except (Said, oracle.Wrong, oracle.Forbidden) as err:
            result.findings.append(f"{type(err).__name__}: {err}")
        finally:
            self._heal(scenario)
            self._judge_changes(result)
            if result.findings:
                result.log = "\n".join(f"---- {agent.name} ----\n{agent.log[-6000:]}" for agent in (self.a, self.b))
        try:
            self._clear()
        except (Said, CommandFailed) as err:
            result.findings.append(str(err))
        result.seconds = time.monotonic() - began
        return result

    def _write(self, path, data):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.pwrite(descriptor, data, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _prepare(self, scenario, rng):
        self.network.rate = 0
        self._write(self.source, first := self.fresh(rng, SIZE))
        self._write(self.target, rng.randbytes(SIZE))
        self.images = oracle.Images()
        self.images.keep("first", first)
        if scenario.plain != self._trusted:
            for agent, other in ((self.a, "site-b"), (self.b, "site-a")):
                agent.qrep("peer", "set", other, "--trusted" if scenario.plain else "--no-trusted")
            self._trusted = scenario.plain
        self.a.qrep("volume", "add", "db", self.source, "--granule", "1M", "--snapshots", "none")
        self.b.qrep("volume", "add", "db", self.target, "--accept", "site-a")
        port = AGENT_PORT if scenario.is_cable else RELAY_PORT
        ways = [f"{there}:{port}" for _here, there in ADDRESSES[: scenario.paths]]
        self.a.qrep(
            "job", "create", "db", "--source", "db", "--target", "site-b:db", "--to", ways[0], "--connections", scenario.connections,
            "--compress", "on" if scenario.compress else "off", "--timeout", "120s" if scenario.patient else "3s",
            "-y",  # random bytes may look like some filesystem
        )  # fmt: skip
        for way in ways[1:]:
            self.a.qrep("path", "add", "db", "--to", way)
        self.wanted, self.base_counter = "first", 0
        if not scenario.first:
            report = self.a.run()
            self.base_counter = report["counter"]
            self.images.are_on(self.target, "first")
            self.images.keep("second", content.changed(rng, first))
            self._write(self.source, self.images.content["second"])
            self.wanted = "second"
        self.network.forget()
        self.network.rate = scenario.rate
        for agent in (self.a, self.b):
            agent.said.clear()

    def _disturb(self, scenario, result):
        """Begin the run, and the fault when its moment has come; heal it; wait for the commit that must come."""
        moment = threading.Event()
        self._began_at = None

        def begin():
            self._began_at = time.monotonic()
            fault = scenario.fault()
            if fault is not None:
                self.network.begin(fault)
            else:
                self._cable(scenario, True)
            moment.set()

        agent = self.b if scenario.moment in SAID_BY_TARGET else self.a
        if scenario.moment == "data" and not scenario.is_cable:
            self.network.after(scenario.moment_bytes, begin)
        elif scenario.moment != "data":
            agent.hold(scenario.moment)
        lag, before = self.lag.total, self._sent() if scenario.is_cable else 0
        self.a.qrep("start", "db")
        if not scenario.patient:
            self.a.qrep("job", "set", "db", "--schedule", "every 2s")
        if scenario.moment == "data" and scenario.is_cable:
            deadline = time.monotonic() + MOMENT_S
            while self._sent() - before < scenario.moment_bytes and not self._committed() and time.monotonic() < deadline:
                time.sleep(0.005)
            begin()
        elif scenario.moment == "data":
            deadline = time.monotonic() + MOMENT_S
            while not moment.wait(0.05) and not self._committed() and time.monotonic() < deadline:
                pass
        elif agent.reached(MOMENT_S):
            begin()
            agent.go_on()
        result.came = moment.is_set()
        if result.came:
            self._wait_for_the_other_path(scenario, result, lag)
        self._heal(scenario)
        healed = time.monotonic()
        transfer = SIZE / min(scenario.rate, scenario.amount if scenario.kind in ("slow", "bucket") else scenario.rate)
        wait(self._committed, self.patience * LIVE_S + 2 * transfer, f"a commit after all was healed; {self._told()}")
        result.healed_s = time.monotonic() - healed
        if not scenario.patient:
            # The commit may have come before all was healed, and a short run after it have given up: the next one does not.
            wait(lambda: self.a.job()["state"] in ("idle", "degraded"), SOON_S, "a short run that ends well")
            self.a.qrep("job", "set", "db", "--schedule", "none")
        wait(lambda: self.a.job()["progress"] is None, SOON_S, "the run is over")

    def _told(self):
        job = self.a.job()
        return f"{job['state']}, {job['problem'] and job['problem']['text']}"

    def _committed(self):
        """Whether the target holds what the source holds, as it says itself."""
        self.network.alive()
        job = self.a.job()
        return (job["counter"] or 0) > self.base_counter and job["root"] == self.images.digests[self.wanted].hex()

    def _sent(self):
        return sum(int(run("ip", "netns", "exec", self.spaces[0], "cat", f"/sys/class/net/cable{number}/statistics/tx_bytes")) for number in (1, 2))

    def _wait_for_the_other_path(self, scenario, result, lag):
        limit, began = scenario.must_fail_over, self._began_at
        result.limit_s = limit
        if limit is None or (not scenario.is_cable and scenario.moment == "data" and self._committed()):
            deadline = began + scenario.seconds
            while time.monotonic() < deadline:
                time.sleep(0.05)
            return
        def taken():
            if self._committed():
                return True
            return self._on_other_path(scenario, began)

        try:
            wait(taken, self.patience * (limit + 5), "the other path was taken")
        except Said as err:
            result.findings.append(f"{err}; {self._told()}")
            return
        result.fail_over_s = time.monotonic() - began
        late = self.lag.total - lag
        if result.fail_over_s > limit + late:
            result.findings.append(f"fail-over took {result.fail_over_s:.1f} s ({late:.1f} s without a processor)")

    def _on_other_path(self, scenario, began):
        if scenario.is_cable:
            return any(name == "Hello" and at > began for name, at in self.a.said) and self.a.job()["path"]["active"] == 2
        return self.network.last.get(2, 0) > began

    def _heal(self, scenario):
        self.network.heal()
        if scenario.is_cable and self._cable_is_bad:
            self._cable(scenario, False)
        self.network.rate = 0
        for agent in (self.a, self.b):
            agent.go_on()

    _cable_is_bad = False

    def _cable(self, scenario, bad):
        a, b = self.spaces
        self._cable_is_bad = bad
        for path in scenario.fault_paths:
            here, there = ADDRESSES[path - 1]
            if scenario.kind == "link-down":
                run("ip", "-n", (a, b)[scenario.number % 2], "link", "set", f"cable{path}", "down" if bad else "up")
            elif scenario.kind == "blackhole":
                for space, address in ((a, there), (b, here)):
                    run("ip", "-n", space, "route", "add" if bad else "delete", "blackhole", f"{address}/32")
            elif bad:
                run("tc", "-n", a, "qdisc", "add", "dev", f"cable{path}", "root", "tbf", "rate", f"{8 * int(scenario.amount)}bit", "burst", "64k", "latency", "50ms")
            else:
                run("tc", "-n", a, "qdisc", "delete", "dev", f"cable{path}", "root")

    # ---- what must hold ----

    def after_commit(self):
        """A place for a canary."""

    def flip_leaf(self):
        """One wrong leaf on the target."""
        descriptor = os.open(self.target, os.O_RDWR)
        try:
            byte = os.pread(descriptor, 1, self.size // 2)
            os.pwrite(descriptor, bytes((byte[0] ^ 1,)), self.size // 2)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _check(self, scenario):
        self.verify()
        if scenario.kind in HARMLESS and scenario.patient and any(event["code"] == "run-interrupted" for event in self._events()):
            raise Said("a run was interrupted by what only slows it down")

    def verify(self):
        """The target holds the committed generation, whole; so do the records say; the sync point before is within reach, as it was; nothing forbidden was told."""
        root = self.images.are_on(self.target, self.wanted)
        job = self.a.job()
        if job["root"] != root or job["state"] not in ("idle", "degraded"):
            raise Said(f"the job says {job['root']}, {job['state']}, {job['problem'] and job['problem']['text']}")
        block = oracle.superblock(self.b.state_of_volume())
        if block.open_id != oracle.NO_ID or block.counter != job["counter"]:
            raise Said(f"the superblock says {block.counter}, open {block.open_id.hex()}; the job says {job['counter']}")
        oracle.map_is_true(self.b.state_of_volume() / "map", block.committed_id, self.images.content[self.wanted])
        (own,) = (self.a.state / "sources").iterdir()
        if not oracle.map_is_true(own / "map", block.committed_id, self.images.content[self.wanted]):
            raise Said("the source's map is not that of what was committed")
        if self.wanted == "second":
            copy = self.directory / "copy.img"
            self.b.qrep("snapshot", "copy", f"db@{self.base_counter}", copy, "-y")
            self.images.are_on(copy, "first")
        for agent in (self.a, self.b):
            if agent.process.poll() is not None:
                raise Said(f"{agent.name} ended with {agent.process.returncode}")
            oracle.nothing_forbidden(agent.log, self._events(agent))

    def _events(self, agent=None):
        """Of this scenario."""
        agent = agent or self.a
        code, out, err = agent.run_command("--json", "events")
        if code:
            raise Said(f"{agent.name} does not tell its events: exit {code}, {out.strip() or err.strip()}, process {agent.process.poll()}")
        found = [json.loads(line) for line in out.splitlines() if line.strip()]
        return [event for event in found if event["id"] > self._seen.get(agent.name, -1)]

    def _judge_changes(self, result):
        """Whoever receives what was changed on the way ends the connection, and its session is never told to be complete."""
        network = self.network
        prepared = [at for name, at in self.a.said if name == "Prepare"]
        for each in network.tampered:
            same_session = next((at for at in network.sessions if at > each.at), float("inf"))
            if each.kind == "data" and not each.is_unused() and any(each.at < at < same_session for at in prepared):
                result.findings.append(f"not noticed: {each}")
            elif each.edit == "replay" or each.kind == "control" or each.is_unused():
                until = (each.ended_at or time.monotonic()) - each.at
                if until > self.patience * REFUSED_S + (10 if each.kind == "control" else 0):
                    result.findings.append(f"not refused in {until:.0f} s: {each}")
            if each.edit == "flip":
                result.flips += 1
        result.tampered = len(network.tampered)

    # ---- after it ----

    def _clear(self):
        for agent in (self.a, self.b):
            events = agent.events()
            self._seen[agent.name] = max((event["id"] for event in events), default=-1)
        self.a.qrep("job", "set", "db", "--schedule", "none")
        if self.a.job()["progress"] is not None:
            self.a.qrep("stop", "db")
        wait(lambda: self.a.job()["progress"] is None, SOON_S, "the run is over")
        self.a.qrep("job", "delete", "db", "-y")
        self.a.qrep("volume", "remove", "db", "-y")
        self.b.qrep("volume", "remove", "db", "-y")

    def holdings(self):
        """What both agents hold once they have nothing to do: (descriptors of each process, threads, bytes)."""
        pids = [pid for agent in (self.a, self.b) for pid in agent.pids()]
        return [(oracle.held(pid), oracle.threads(pid), oracle.resident(pid)) for pid in pids]

    def rest(self, seconds=20):
        """[] if they hold no more than they did when this was called first, in that time; else what they hold more. Called first after some scenarios:
        what is made once is there then. Threads that serve questions come and go, a few at a time."""
        if self._before is None:
            time.sleep(1.0)
            self._before = self.holdings()
            return []
        deadline = time.monotonic() + seconds
        while True:
            found = []
            for (held, threads, resident), (held_now, threads_now, resident_now) in zip(self._before, self.holdings(), strict=True):
                more = oracle.leaked(held, held_now)
                if more:
                    found.append(f"descriptors: {more}")
                if threads_now > threads + THREADS_MORE:
                    found.append(f"threads: {threads} to {threads_now}")
                if resident_now > resident + RSS_GROWTH_MAX:
                    found.append(f"memory: {resident >> 20} to {resident_now >> 20} MiB")
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.5)
