"""qrep peer test: how fast the paths to a peer are, with one and with more connections.

What is measured is a run without its devices: the same connections, TLS or plain, the same lanes with their hashing, framing and zero copy, over
granules of made-up bytes; so the figure is what a run can get. Both ends give way to runs that go on.
"""

import contextlib
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from qrep import units
from qrep._native.source_lane import SourceRun
from qrep.daemon.jobpaths import Way, resolved
from qrep.daemon.peertested import FRAME_SIZE, GEOMETRY, TEXTS, Polite, runs_going, shape
from qrep.errors import Interrupted, ProtocolError, QrepError, Refused, Unreachable, UsageError
from qrep.lanes import Lane, Lanes
from qrep.protocol import messages as say
from qrep.settings import AUTO
from qrep.source.report import zero_copy_of

CONNECTIONS_MAX = 16
PINGS = 8
ANSWER_S = 15.0
DRAIN_MIN_S = 2.0
POLL_S = 0.1
# More connections cost more memory and threads: the smallest number that gets so much of what the best one gets is the best.
GOOD_ENOUGH = 0.95
FATAL = ("busy", "trust-mismatch", "not-pinned")  # refusals that another path would meet, too


class TestLanes(Lanes):
    """Lanes over connections that are there."""

    def __init__(self, run, descriptor, connections):
        super().__init__(run, descriptor, "test", TEXTS)
        self.connections = connections
        self._start([Lane(index) for index in range(len(connections))])

    def _connect(self, lane):
        return self.connections[lane.number]

    def finish(self):
        """Each sends what it has begun, says END, and ends when that is answered."""
        for connection in self.connections:
            connection.native.finish()


class PeerTest:
    """One test. node: the Node; name: of a peer; seconds: of each measurement; counts: numbers of connections. Raises UsageError, NotFound."""

    def __init__(self, node, name, seconds, counts):
        if not 1 <= seconds <= say.MEASURE_MAX_S:
            raise UsageError(f"{seconds} seconds", hint=f"1 to {say.MEASURE_MAX_S}")
        if not counts or not all(isinstance(count, int) and 1 <= count <= CONNECTIONS_MAX for count in counts):
            raise UsageError("numbers of connections that cannot be", hint=f"write them like 1,2,4,8; at most {CONNECTIONS_MAX}")
        self.node, self.name, self.seconds, self.counts = node, name, seconds, sorted(set(counts))
        self.reach = node.peers.reach(name)
        self.ways = self._ways()
        self._cancelled = threading.Event()
        self._seen = set()  # jobs that ran meanwhile
        self._their_runs = 0
        self._now = None  # (words, run, started) of the present measurement
        self._done = 0  # measurements

    def _ways(self):
        """Each address of the peer, then what paths of jobs to it add to that."""
        ways = [Way(AUTO, text) for text in self.reach.peer.addresses]
        for runner in self._jobs():
            ways += [Way(path.source, to) for path in runner.settings.paths for to in ([path.to] if path.to != AUTO else self.reach.peer.addresses)]
        return list(dict.fromkeys(ways))

    def _jobs(self):
        """Those that replicate to it."""
        return [runner for _name, runner in self.node.jobs.all() if runner.settings.target.startswith(f"{self.name}:")]

    def cancel(self):
        self._cancelled.set()

    @property
    def cancelled(self):
        return self._cancelled.is_set() or self.node.stopping.is_set()

    def progress(self):
        """The PROGRESS of the local API."""
        now, total = self._now, len(self.ways) * len(self.counts)
        value = {"phase": "connecting", "percent": 100 * self._done / total, "rate_bytes_per_s": None, "seconds_left": None}
        if now is None:
            return value
        words, run, started = now
        elapsed = max(1e-3, time.monotonic() - started)
        part = min(1.0, elapsed / self.seconds)
        return value | {
            "phase": words, "percent": 100 * (self._done + part) / total, "rate_bytes_per_s": run.counters()["sent"] / elapsed,
            "seconds_left": (total - self._done - part) * self.seconds,
        }  # fmt: skip

    def run(self, task):
        """The result that docs/API.md describes. Raises Unreachable when no path answers, Refused, Interrupted when it was cancelled."""
        task.cancel, task.progress = self.cancel, self.progress
        self._note_runs()
        paths = [self._path(way) for way in self.ways]
        answering = [path for path in paths if path["error"] is None]
        if not answering:
            reasons = "; ".join(f"{shown(path)}: {path['error']['message']}" for path in paths)
            raise Unreachable(
                f"no path to {self.name} answers: {reasons}",
                hint=f"check the link and that qrep daemon runs on {self.name}", code="peer-unreachable",
            )  # fmt: skip
        best = max((path | path["best"] for path in answering), key=lambda path: path["rate_bytes_per_s"])
        best = {key: best[key] for key in ("from", "address", "connections", "rate_bytes_per_s")}
        text = f"{units.format_rate(best['rate_bytes_per_s'], 2)} with {best['connections']} connection{'s' if best['connections'] != 1 else ''} over {shown(best)}"
        self.node.events.add("peer-tested", text, peer=self.name, **best)
        return {
            "peer": self.name, "seconds": self.seconds, "transport": "plain" if self.reach.peer.trusted else "tls", "paths": paths, "best": best,
            "copies": self._copies(best["rate_bytes_per_s"]), "jobs_running": sorted(self._seen), "jobs_running_there": self._their_runs,
        }  # fmt: skip

    # ---- one path ----

    def _path(self, way):
        path = {"from": None if way.source == AUTO else way.source, "address": way.to, "error": None, "rtt_ms": None, "zero_copy": None, "ktls": None, "measurements": [], "best": None}
        to = resolved(self.reach, way)
        try:
            channel = self.reach.test_channel(to)
            try:
                rtts = [self._ping(channel) for _ in range(PINGS)]
                for count in self.counts:
                    measurement, rtt_s = self._measure(channel, to, shown(path), count)
                    path["measurements"].append(measurement)
                    rtts += [rtt_s] if rtt_s else []
                    self._done += 1
            finally:
                channel.close()
        except (Interrupted, UsageError):
            raise
        except QrepError as error:
            if error.code in FATAL:
                raise
            if self.cancelled:
                raise Interrupted("the test was ended") from error
            host, port = to[1]  # the line that it stands in names it
            path["error"] = error.as_dict() | {"message": error.message.removeprefix(f"{host}:{port}: ")}
            self._done = (self._done // len(self.counts) + 1) * len(self.counts)
            return path
        path["rtt_ms"] = round(1000 * min(rtts), 3)
        path["zero_copy"], path["ktls"] = (path["measurements"][0][key] for key in ("zero_copy", "ktls"))
        path["best"] = best_of(path["measurements"])
        return path

    def _ping(self, channel):
        started = time.monotonic()
        self._ask(channel, say.Ping(), say.Pong)
        return time.monotonic() - started

    @staticmethod
    def _ask(channel, message, wanted):
        channel.send(message)
        answer = channel.receive(ANSWER_S)
        if isinstance(answer, say.Error):
            raise Refused(answer.message, hint=answer.hint, code=answer.code)
        if not isinstance(answer, wanted):
            raise ProtocolError("the peer answered something else than it was asked")
        return answer

    def _measure(self, channel, to, text, count):
        """(measurement, round-trip time in seconds or None)"""
        plain = self.reach.peer.trusted
        ready = self._ask(channel, say.Measure(connections=count, seconds=self.seconds, plain=plain), say.Ready)
        if len(ready.tokens) != count:
            raise ProtocolError(f"{len(ready.tokens)} tokens for {count} connections")
        self._their_runs = max(self._their_runs, ready.running)
        with contextlib.ExitStack() as stack:
            connections = self._connect(stack, to, ready.tokens)
            run = Polite(SourceRun(GEOMETRY, frame_size=FRAME_SIZE, **shape(ready.key, ready.attempt, ready.session)), runs_going(self.node))
            descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            started = time.monotonic()
            lanes = TestLanes(run, descriptor, connections)
            try:
                self._now = (f"{text} x{count}", run, started)
                complete = self._let_run(lanes, started)
            finally:
                self._now = None
                elapsed = time.monotonic() - started
                lanes.stop()
                lanes.join()
        if self.cancelled:
            raise Interrupted("the test was ended")
        if complete and lanes.failure() is not None:
            raise Unreachable(f"{text}: {lanes.failure()[1]}")
        received = self._ask(channel, say.Halt(), say.Measured).received
        counters = run.counters()
        # Where the last of it did not arrive in time, what did is what counts.
        size = counters["sent"] if complete else received
        measurement = {
            "connections": count, "rate_bytes_per_s": size / elapsed, "bytes": size, "seconds": round(elapsed, 3),
            "zero_copy": zero_copy_of(counters), "ktls": all(connection.kernel_tls for connection in connections),
        }  # fmt: skip
        rtts = [connection.rtt_us / 1e6 for connection in connections if connection.rtt_us]
        return measurement, min(rtts, default=None)

    def _connect(self, stack, to, tokens):
        with ThreadPoolExecutor(len(tokens)) as pool:
            tries = [pool.submit(self.reach.data_connection, token, None, to) for token in tokens]
        for each in tries:
            if each.exception() is None:
                stack.callback(each.result().close)
        return [each.result() for each in tries]

    def _let_run(self, lanes, started):
        """Until the time is over, then until what was begun has arrived, for as long again at most. Whether all has ended."""
        while time.monotonic() < started + self.seconds and not self.cancelled:
            self._note_runs()
            if lanes.join(POLL_S):
                return True
        lanes.finish()
        until = time.monotonic() + max(DRAIN_MIN_S, self.seconds)
        while time.monotonic() < until and not self.cancelled:
            if lanes.join(POLL_S):
                return True
        return False

    def _note_runs(self):
        self._seen.update(runs_going(self.node))

    # ---- what follows from it ----

    def _copies(self, rate):
        """How long a full copy of each volume takes: of the sources of jobs to this peer, or of every volume if there are none."""
        jobs = self._jobs()
        if jobs:
            wanted = [(runner.settings.source, runner.settings.size, runner.limit()) for runner in jobs]
        else:
            wanted = [(volume.name, volume.settings.identity.get("size"), self.node.shapes.limit("", "")) for volume in self.node.volumes.all()]
        return [copy_time(name, size, rate, limit) for name, size, limit in wanted if size]


def shown(path):
    """`10.0.1.2`, or `10.0.1.1 -> 10.0.1.2` where a job's path says from where."""
    return f"{path['from']} -> {path['address']}" if path["from"] else path["address"]


def best_of(measurements):
    """The measurement with the fewest connections that gets GOOD_ENOUGH of the highest rate."""
    top = max(each["rate_bytes_per_s"] for each in measurements)
    return next(
        {key: each[key] for key in ("connections", "rate_bytes_per_s")} for each in measurements if each["rate_bytes_per_s"] >= GOOD_ENOUGH * top
    )


def copy_time(name, size, rate, limit):
    """limit: as JobRunner.limit() tells it. Seconds are rounded up."""
    limited = limit["rate_bytes_per_s"] if limit else None
    return {
        "volume": name, "size": size, "seconds": math.ceil(size / rate) if rate else None,
        "limit": limit, "seconds_limited": math.ceil(size / limited) if limited is not None and limited < rate else None,
    }  # fmt: skip
