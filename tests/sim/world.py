"""Virtual time, tasks and processes. A task is a generator that yields how long it waits (seconds) or a Signal it waits for."""

import hashlib
import heapq
import random
from collections import deque

from qrep.errors import ProtocolError

OWN_FAULTS = (ProtocolError.code, "internal")


class Violation(AssertionError):
    """An invariant does not hold."""


class OwnFault(AssertionError):
    """A machine, or who drives it, has failed itself; whatever else it is, no canary is caught by that."""


class Killed(BaseException):
    """Raised inside a task whose process ends itself (a failed flush, R2)."""


def own_fault(error):
    """What a machine would swallow and no fault of this world leads to: nothing that is said on a control session is damaged, lost out of order or told
    twice, and whoever calls a failure internal means itself. Raises OwnFault."""
    if getattr(error, "code", "") in OWN_FAULTS:
        raise OwnFault(repr(error)) from error


class World:
    """One run of the simulator. log: what happened, in order; two runs of one seed have the same."""

    def __init__(self, seed, *, trace=False):
        self.random = random.Random(seed)
        self.now = 0.0
        self.heap = []
        self.count = 0
        self.events = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.trace = [] if trace else None
        self.calm = False  # healed: no more faults

    def log(self, text):
        line = f"{self.now:.6f} {text}\n"
        self.digest.update(line.encode())
        if self.trace is not None:
            self.trace.append(line)

    def at(self, delay, function, *arguments):
        self.count += 1
        heapq.heappush(self.heap, (self.now + delay, self.count, function, arguments))

    def chance(self, probability):
        """True with this probability; never once the world is healed."""
        return not self.calm and self.random.random() < probability

    def delay(self, scale):
        """A time to wait: mostly short, sometimes long."""
        return self.random.expovariate(1.0) * scale

    def run(self, until, condition=None):
        """Go on until this time, or until condition() holds. True if it did."""
        heap = self.heap
        while heap and heap[0][0] <= until:
            self.now, _, function, arguments = heapq.heappop(heap)
            self.events += 1
            function(*arguments)
            if condition is not None and condition():
                return True
        self.now = max(self.now, until)
        return condition is not None and condition()


class Signal:
    """Wakes the tasks that wait for it, once."""

    def __init__(self):
        self.waiting = []
        self.fired = False

    def fire(self):
        self.fired = True
        waiting, self.waiting = self.waiting, []
        for resume in waiting:
            resume()


class Process:
    """Something that can be killed: everything it holds in memory and all its tasks are gone then.

    Work for a machine arrives as functions in the inbox and is done one at a time (the contract of protocol/actions.py).
    """

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.life = 0
        self.alive = False

    def start(self):
        self.life += 1
        self.alive = True
        self.inbox = deque()
        self.arrived = Signal()
        self.world.log(f"{self.name} starts")
        self.spawn(self.main())

    def kill(self, why):
        if self.alive:
            self.alive = False
            self.world.log(f"{self.name} dies: {why}")
            self.died()

    def died(self):
        """For subclasses: connections close, a restart is planned."""

    def main(self):
        raise NotImplementedError  # a subclass is a process only with one

    def spawn(self, task):
        self.world.at(0, self._step, task, self.life)

    def _step(self, task, life):
        if life != self.life or not self.alive:
            return
        try:
            wait = next(task)
        except StopIteration:
            return
        except Killed as end:
            self.kill(str(end))
            return
        if isinstance(wait, Signal):
            if wait.fired:
                self.world.at(0, self._step, task, life)
            else:
                wait.waiting.append(lambda: self.world.at(0, self._step, task, life))
        else:
            self.world.at(wait, self._step, task, life)

    def post(self, function, *arguments):
        """An event for the machine. What is posted to a dead process is lost."""
        if self.alive:
            self.inbox.append((function, arguments))
            self.arrived.fire()

    def serve(self):
        """Take one event after the other to the machine and do what it asks for."""
        while True:
            while self.inbox:
                function, arguments = self.inbox.popleft()
                actions = function(*arguments)
                if actions:
                    yield from self.drive(actions)
            self.arrived = Signal()
            yield self.arrived

    def drive(self, actions):
        """Do actions in order; a failure replaces the rest, a result goes on with what the machine says then."""
        actions = deque(actions)
        while actions:
            action = actions.popleft()
            self.world.log(f"{self.name} {describe(action)}")
            try:
                result = yield from self.perform(action)
            except (OSError, *self.failures) as error:
                self.world.log(f"{self.name} {type(action).__name__} failed: {error!r}")
                own_fault(error)
                actions = deque(self.machine.failed(action, error))
                continue
            if result:
                actions.extend(result)
            yield self.world.delay(0.002)  # a place to be killed at

    def perform(self, action):
        handler = self.performers[type(action)]
        return (yield from handler(self, action))

    failures = ()


def describe(action):
    """An action in one short line."""
    words = []
    for name, value in zip(action._fields, action, strict=True):
        if isinstance(value, bytes):
            words.append(f"{name}={value.hex()[:8]}")
        elif isinstance(value, (int, str, bool)):
            words.append(f"{name}={value}")
        elif name in ("message", "record"):
            words.append(type(value).__name__)
    return f"{type(action).__name__} {' '.join(words)}"
