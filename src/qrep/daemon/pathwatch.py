"""Watches paths: probes those that no run tells of, at a bounded rate, and has runs return to a better one.

A probe is one question (who are you) on a connection of its own. A route that several jobs share is probed once for all of them.
"""

import logging
import threading
import time

from qrep.daemon import asks, tls
from qrep.daemon.jobpaths import resolved
from qrep.errors import QrepError

log = logging.getLogger("qrep.agent")
TICK_S = 0.5
TROUBLED_S = 2.0  # between two probes of a route, while a path of a job that runs over it is down or not the preferred one
CALM_S = 10.0  # else
PROBES_MAX = 4  # at a time
ANSWER_S = 3.0


class PathWatch:
    """node: the Node."""

    def __init__(self, node):
        self.node = node
        self._lock = threading.Lock()
        self._due, self._probing = {}, set()  # (peer, Way) -> when
        self._ended = threading.Event()

    def start(self):
        threading.Thread(target=self._watch, name="path watch", daemon=True).start()

    def stop(self):
        """Nothing is told any more once this returns."""
        with self._lock:
            self._ended.set()

    def _watch(self):
        while not self._ended.wait(TICK_S):
            try:
                self.look()
            except QrepError as err:  # a peer that was removed meanwhile
                log.info("path watch: %s", err)
            except Exception:  # a bug of ours, or no thread for a probe: without this one no run would ever go back to its path
                log.exception("path watch: internal error")

    def look(self):
        """One round: begin the probes that are due, and move the runs that have a better path now."""
        runners = [runner for _name, runner in self.node.jobs.all() if runner.paths is not None]
        in_use = {(runner.paths.peer, runner.paths.in_use) for runner in runners if runner.paths.in_use is not None}
        intervals = {}
        for runner in runners:
            try:
                ways, troubled = runner.paths.watched()
            except QrepError:  # its peer was removed
                continue
            for way in ways:
                key = (runner.paths.peer, way)
                if key in in_use:  # another job's run is connected over it
                    self._tell(key, None, "")
                    continue
                every = TROUBLED_S if troubled and runner.is_going else CALM_S
                intervals[key] = min(every, intervals.get(key, CALM_S))
            if runner.is_going and runner.paths.better():
                runner.move("a better path is well again", at_once=False)
        self._begin(intervals)

    def _begin(self, intervals):
        now = time.monotonic()
        with self._lock:
            self._due = {key: min(self._due.get(key, now), now + every) for key, every in intervals.items()}
            due = sorted((key for key, when in self._due.items() if when <= now and key not in self._probing), key=self._due.get)
            due = due[: PROBES_MAX - len(self._probing)]
            self._due.update((key, now + intervals[key]) for key in due)
            self._probing.update(due)
        for key in due:
            threading.Thread(target=self._probe, args=(key,), name=f"probe {key[1]}", daemon=True).start()

    def _probe(self, key):
        try:
            source, reason = self.probe(*key)
        finally:
            with self._lock:
                self._probing.discard(key)
        self._tell(key, source, reason)

    def probe(self, peer, way):
        """(the address it comes from or None, why it does not answer or "")."""
        try:
            reach = self.node.peers.reach(peer)
            stream = reach.connect(tls.ASK, resolved(reach, way))
            source = tls.local_address(stream)
            asks.ask(stream, asks.Hail(), ANSWER_S)
        except QrepError as error:
            return None, error.message
        return source, ""

    def _tell(self, key, source, reason):
        peer, way = key
        for _name, runner in self.node.jobs.all():
            if runner.paths is not None and runner.paths.peer == peer:
                with self._lock:
                    if not self._ended.is_set():
                        runner.paths.probed(way, source, reason)
