"""Hooks: commands of the administrator that are run when something happens ([[hooks]] in qrep.toml).

Whoever tells of an event never waits for one: they wait in a bounded queue, a few run at once, each for a limited time, and what does not
fit is counted. No shell is involved. A hook runs as the agent's user, in the root directory, in a session of its own, without any of the
agent's descriptors; the event is JSON on its standard input and QREP_EVENT_* in its environment.
"""

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections import Counter

from qrep import units
from qrep.daemon.hookprocess import HookProcess

log = logging.getLogger("qrep.agent")
QUEUE_MAX = 256
AT_ONCE = 4
KILLED_S = 0.5  # seconds that hooks that were killed at the end get to go
OWN = ("hook-failed", "hooks-dropped")  # never a reason to run a hook, or one that fails would run for ever
LEVELS = ("info", "warning", "error")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def wants(hook, event):
    """Whether a config.Hook is for an event: one of its codes, or a level that is reached."""
    if event["code"] in OWN or event["data"].get("suppressed") in OWN:
        return False
    reached = LEVELS[: LEVELS.index(event["level"]) + 1]
    return any(word == event["code"] or word in reached for word in hook.events)


def environment(event):
    """Of a hook: nothing of the agent's own but where it is, and the event."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("QREP_") or name in ("LANG", "TZ")}
    fields = {f"QREP_EVENT_{name.upper()}": event[name] for name in ("id", "time", "level", "code", "job", "volume", "text")}
    return {"PATH": PATH, **kept, **{name: "" if value is None else str(value) for name, value in fields.items()}}


class Hooks:
    """hooks: [config.Hook], replaced as a whole by a reload. events: EventLog."""

    def __init__(self, hooks, events):
        self.hooks, self._events = hooks, events
        self.counts = Counter()  # by result: ok, failed, timed-out, dropped; since the agent started
        self._dropped = 0
        self._queue = queue.Queue(QUEUE_MAX)
        self._lock = threading.Lock()
        self._workers, self._running = [], set()
        self._ending = False
        events.listeners.append(self.offer)

    def offer(self, event):
        """Queue whatever is to be run because of an event. Never waits."""
        for hook in self.hooks:
            if self._ending or not wants(hook, event):
                continue
            try:
                self._queue.put_nowait((hook, event))
            except queue.Full:
                self._count("dropped", 1)
                continue
            self._more_workers()

    def waiting(self):
        return self._queue.qsize()

    def tell_dropped(self):
        """Called every now and then."""
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            self._events.add("hooks-dropped", f"{dropped} hooks were not run: {QUEUE_MAX} were waiting already", count=dropped)

    def stop(self, timeout):
        """Let what waits be run for `timeout` seconds, then kill what runs."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._queue.unfinished_tasks:
            time.sleep(0.02)
        self._ending = True
        with self._lock:
            for process in self._running:
                process.kill()
        for _worker in self._workers:
            self._offer_end()
        deadline = time.monotonic() + KILLED_S
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _offer_end(self):
        while True:
            try:
                return self._queue.put_nowait(None)
            except queue.Full:
                with contextlib.suppress(queue.Empty):  # one of the workers was faster
                    self._queue.get_nowait()
                    self._count("dropped", 1)

    def _more_workers(self):
        with self._lock:
            if len(self._workers) < min(AT_ONCE, self._queue.qsize() + len(self._running)):
                worker = threading.Thread(target=self._work, name="hooks", daemon=True)
                try:
                    worker.start()
                except RuntimeError as err:  # no thread to be had: it waits for the next one, and whoever tells of an event must not suffer
                    log.warning("hooks: %s", err)
                    return
                self._workers.append(worker)

    def _work(self):
        while True:
            item = self._queue.get()
            if item is None:
                return
            if self._ending:
                self._count("dropped", 1)
            else:
                try:
                    self._run(*item)
                except Exception:  # a bug of ours, in one of them: no worker, no hooks
                    log.exception("hooks: internal error")
            self._queue.task_done()

    def _run(self, hook, event):
        try:
            process = HookProcess(hook.command, json.dumps(event).encode() + b"\n", environment(event))
        except OSError as err:
            self._count("failed")
            self._failed(hook, event, "cannot-start", f"cannot be started: {err.strerror or err}")
            return
        with self._lock:
            self._running.add(process)
            if self._ending:
                process.kill()
        try:
            code = process.wait(units.parse_duration(hook.timeout))
        finally:
            with self._lock:
                self._running.discard(process)
        output = f": {process.output()}" if process.output() else ""
        self._count("ok" if code == 0 else "timed-out" if code is None else "failed")
        if code is None:
            self._failed(hook, event, "timed-out", f"was killed after {hook.timeout}{output}")
        elif code:
            self._failed(hook, event, "failed", (f"ended with {code}" if code > 0 else f"was ended by signal {-code}") + output)

    def _count(self, result, untold=0):
        with self._lock:
            self.counts[result] += 1
            self._dropped += untold

    def _failed(self, hook, event, reason, text):
        self._events.add("hook-failed", f"{hook.command[0]} for {event['code']} {text}", reason=reason, command=hook.command[0], event=event["id"])
