"""The end of a bandwidth test that is measured: frames of a pinned peer, verified as in a run and then dropped.

What a peer can take of this host by it is bounded: one test of each peer and TESTS_MAX in all, at most 16 connections of two buffers of 1 MiB,
MEASURE_MAX_S seconds for each measurement, threads that give way to runs.
"""

import contextlib
import os
import secrets
import threading
import time

from qrep._native import wire
from qrep._native.target_lane import TargetRun
from qrep.errors import ProtocolError, QrepError, Refused, TimedOut
from qrep.lanes import Lane, Lanes
from qrep.protocol import messages as say
from qrep.protocol import transport

GEOMETRY = wire.Geometry(4 << 30, 4096, 1 << 20)  # of a volume that is nowhere; the source goes round on it
FRAME_SIZE, SLOTS = 1 << 20, 2
TESTS_MAX = 4
QUIET_S = 30.0  # a tester that says nothing for so long between measurements is gone
CONNECT_S = 10.0
ENDING_S = 3.0  # that the end of the last test may take
NICE = 10  # a test gives way to runs
TEXTS = {"connection": "the stream ended or failed", "frame": "a frame was refused", "digest": "what arrived is not what was announced"}


def shape(key, attempt, session):
    """What SourceRun and TargetRun of one measurement have in common."""
    return {
        "attempt": attempt, "session": session, "key": key, "sector_size": 4096, "base_states": bytes(GEOMETRY.granules),
        "base_values": bytes(32 * GEOMETRY.granules), "slots": SLOTS, "rehearsal": True,
    }  # fmt: skip


class Polite:
    """A SourceRun or TargetRun whose lanes give way when runs go on here; alone, they are as fast as those of a run."""

    def __init__(self, run, running):
        self.run, self.stop, self.failure, self.counters, self._running = run, run.stop, run.failure, run.counters, running

    def lane(self, *arguments):
        if self._running:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # of this thread alone
        return self.run.lane(*arguments)


class TestedLanes(Lanes):
    """Lanes that wait for the connections of one measurement."""

    def __init__(self, run, descriptor, rendezvous, count):
        super().__init__(run, descriptor, "tested", TEXTS)
        self._rendezvous = rendezvous
        self.tokens = rendezvous.offer(count)
        self._start([Lane(index) for index in range(count)])

    def _connect(self, lane):
        try:
            return self._rendezvous.wait(self.tokens[lane.number], CONNECT_S)
        except (TimedOut, transport.Disconnected):
            return None

    def end(self):
        """End whatever is still there, and wait for it."""
        self._rendezvous.withdraw(self.tokens)
        self.stop()
        self.join()


class Tested:
    """node: the Node. Serves tls.TEST; each test in the thread of its connection."""

    def __init__(self, node):
        self.node = node
        self._changed = threading.Condition()
        self._testing = set()  # peers

    def serve(self, stream, peer):
        channel = transport.Channel(stream, "tester")
        try:
            with self._place(peer):
                self._serve(channel, peer)
        except (transport.Disconnected, TimedOut):
            pass  # it has what it wanted
        except QrepError as error:
            with contextlib.suppress(transport.Disconnected):
                channel.send(say.Error(code=error.code, message=error.message, hint=error.hint))
            raise
        finally:
            channel.close()

    @contextlib.contextmanager
    def _place(self, peer):
        with self._changed:
            # A tester may be back before its last connection was seen to end here.
            if not self._changed.wait_for(lambda: peer not in self._testing and len(self._testing) < TESTS_MAX, ENDING_S):
                raise Refused(f"{self.node.name} is being tested already", hint="wait until that test has ended", code="busy")
            self._testing.add(peer)
        try:
            yield
        finally:
            with self._changed:
                self._testing.remove(peer)
                self._changed.notify_all()

    def _serve(self, channel, peer):
        while not self.node.stopping.is_set():
            message = channel.receive(QUIET_S)
            if isinstance(message, say.Ping):
                channel.send(say.Pong())
            elif isinstance(message, say.Measure):
                self._measure(channel, peer, message)
            else:
                raise ProtocolError("nothing is being measured")

    def _measure(self, channel, peer, wanted):
        self.node.sessions.check_trust(peer, wanted.plain)
        key, attempt, session = secrets.token_bytes(32), secrets.randbits(63) | 1, 1
        running = runs_going(self.node)
        run = Polite(TargetRun(GEOMETRY, frame_limit=FRAME_SIZE, **shape(key, attempt, session)), running)
        descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)  # lanes want a device; nothing is written to it
        try:
            lanes = TestedLanes(run, descriptor, self.node.rendezvous.of(transport.Owner(peer, wanted.plain)), wanted.connections)
            try:
                ready = say.Ready(attempt=attempt, session=session, key=key, tokens=lanes.tokens, running=len(running))
                channel.send(ready)
                # The tester sends for so long, then what it has begun arrives, for as long again at most.
                self._until_halt(channel, time.monotonic() + CONNECT_S + 2 * wanted.seconds + QUIET_S)
            finally:
                lanes.end()
            channel.send(say.Measured(received=run.counters()["received"]))
        finally:
            os.close(descriptor)

    def _until_halt(self, channel, deadline):
        while time.monotonic() < deadline and not self.node.stopping.is_set():
            try:
                message = channel.receive(0.5)
            except TimedOut:
                continue
            if isinstance(message, say.Halt):
                return
            if not isinstance(message, say.Ping):
                raise ProtocolError("one measurement at a time")
            channel.send(say.Pong())
        raise Refused("the measurement took longer than it may", code="timed-out")


def runs_going(node):
    """Names of the jobs that move data here now, as source or as target."""
    going = {name for name, runner in node.jobs.all() if runner.activity == "run"}
    for pair in node.grants.pairs():
        with contextlib.suppress(QrepError):
            target = node.volumes.get(pair["volume"]).target
            if target is not None and target.status()["session"] is not None:
                going.add(pair["job"])
    return sorted(going)
