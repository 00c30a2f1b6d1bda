"""One job at its source: its state, its runs, what a person is told about them. How peers are reached is given to it."""

import threading
import time
from datetime import UTC, datetime

from qrep import states, units
from qrep.errors import DeviceReadError, Interrupted, QrepError, Refused


def iso(timestamp_ns):
    """Wall-clock nanoseconds as an ISO time, None for none."""
    return datetime.fromtimestamp(timestamp_ns / 1e9, UTC).isoformat(timespec="seconds") if timestamp_ns else None


class JobRunner:
    """A job. At most one run, estimate or verify at a time.

    settings: config.Job. request: a callable that makes the RunRequest of now (inspects the source, chooses the backend).
    dial, connect: how its target is reached (source/flow.py). db: the state database's job and run tables. events: EventLog.
    """

    def __init__(self, name, settings, *, request, dial, connect, db, events, slots):
        self.name, self.settings = name, settings
        self._request, self._dial, self._connect = request, dial, connect
        self._db, self._events, self._slots = db, events, slots
        self._lock = threading.Lock()
        self._active = None  # the Run, while there is one
        self._finished = threading.Event()
        self._finished.set()
        kept = db.job(settings.id)
        self.problem = kept["problem"]
        self.state = "stopped" if kept["stopped"] else "failed" if self.problem else "idle"
        self.activity = None  # "run", "estimate", "verify" while one goes on

    def _go(self, event, state):
        assert state in states.JOB[self.state].get(event, ()), f"job {self.state}: {event} -> {state}"
        self.state = state

    def _keep(self):
        self._db.set_job(self.settings.id, stopped=self.state == "stopped", problem=self.problem)

    def begin(self, activity):
        """Take the job for one activity. Raises Refused when it is busy."""
        with self._lock:
            if self.activity is not None:
                word = {"run": "running", "verify": "being verified", "estimate": "being estimated"}[self.activity]
                raise Refused(
                    f"{self.name} is {word} already",
                    hint=f"qrep status {self.name}; qrep stop {self.name}",
                    code="busy",
                )
            self.activity = activity
            self._finished.clear()

    def end(self):
        with self._lock:
            self.activity = self._active = None
        self._finished.set()

    def run(self, task):
        """Reach a new generation. The caller has called begin("run"). Returns the report as a dict, raises its QrepError."""
        from qrep.source.flow import Run

        started = time.time()
        try:
            self._go("start", "connecting")
            self.problem = None
            self._keep()
            with self._slots:
                self._active = run = Run(self._request(), self._dial, self._connect, observer=self)
                task.progress = self.progress
                self._events.add("run-started", f"{self.settings.source} -> {self.settings.target}", job=self.name)
                self.state = "running"
                report = run.run()
            self._go("commit", "idle")
            result = report.as_dict() | {"size": self.settings.size}
            self._db.add_run(self.settings.id, started, "committed", result)
            self._events.add(
                "run-fuzzy" if report.fuzzy else "run-committed",
                f"generation {report.counter}: sent {units.format_size(report.sent)} in {units.format_time_to_go(report.seconds)}"
                + (", the source was live: this sync point is fuzzy" if report.fuzzy else ""),
                job=self.name,
                counter=report.counter,
                root=report.root,
            )
            return result
        except Interrupted as error:
            self.state = "stopped"
            self._events.add("run-stopped", "what has been applied is kept", job=self.name)
            raise error
        except QrepError as error:
            self._failed(error, started)
            raise
        except OSError as error:
            wrapped = QrepError(f"{self.name}: {error}")
            self._failed(wrapped, started)
            raise wrapped from error
        finally:
            self._keep()
            self.end()

    def _failed(self, error, started):
        self.state = "failed"
        action = error.hint or f"qrep events {self.name} shows what led to it; qrep start {self.name} tries again"
        self.problem = {"code": error.code, "text": error.message, "action": action}
        self._db.add_run(self.settings.id, started, "failed", self.problem)
        if isinstance(error, DeviceReadError):
            extents = [{"offset": offset, "size": size, "errno": errno} for offset, size, errno in error.extents]
            self._events.add("source-unreadable", error.message, job=self.name, extents=extents)
        self._events.add("run-failed", error.message, job=self.name, reason=error.code)

    def event(self, code, text, **data):
        """What the run wants told while it goes on."""
        self._events.add(code, text, job=self.name, **data)

    def estimate(self, task):
        """How much a run would send now. The caller has called begin("estimate")."""
        from qrep.source.estimate import estimate

        try:
            last = self._db.last_run(self.settings.id)
            found = estimate(self._request())
            rate = last["report"].get("rate_bytes_per_s") if last else None
            return {
                "would_send": found.would_send,
                "size": self.settings.size,
                "full": found.full,
                "changed_since": iso(last["report"].get("frozen_at_ns")) if last else None,
                "seconds": found.would_send / rate if rate else None,
            }
        finally:
            self.end()

    def verify(self, task, independent):
        """Compare both sides at the last sync point. The caller has called begin("verify")."""
        from qrep.source.verify import Verify

        try:
            self._active = check = Verify(self._request(), self._dial, independent=independent)
            task.progress = self.progress
            report = check.run()
            result = report.as_dict() | {"independent": independent}
            last = self._db.last_run(self.settings.id)
            result["last_sync_point"] = iso(last["report"].get("frozen_at_ns")) if last else None
            if report.differences:
                self._events.add("verify-differs", f"{len(report.differences)} places differ", job=self.name)
            else:
                self._events.add("verify-equal", f"generation {report.counter}", job=self.name, root=report.root)
            return result
        except QrepError as error:
            self._events.add("verify-failed", error.message, job=self.name)
            raise
        finally:
            self.end()

    def stop(self, timeout=30.0):
        """Stop whatever goes on and wait for its end. Returns what there is to say."""
        active = self._active
        if self.activity is None:
            return "nothing was running"
        if active is not None:
            active.stop()
        if not self._finished.wait(timeout):
            return "stopping; some I/O is still under way"
        return "stopped; what has been applied is kept"

    def progress(self):
        active = self._active
        return active.progress() if active is not None else None

    def as_dict(self):
        """What `qrep status` shows, as the local API gives it."""
        settings, last = self.settings, self._db.last_run(self.settings.id)
        report = last["report"] if last else {}
        progress = self.progress()
        frozen_at_ns = report.get("frozen_at_ns")
        state = self.state
        if self.activity == "verify":
            state = "verifying"
        elif state == "running" and progress:
            state = progress.get("phase") or state
        return {
            "name": self.name,
            "id": settings.id,
            "mode": settings.mode,
            "state": state,
            "role": "source",
            "source": settings.source,
            "target": settings.target,
            "local": ":" not in settings.target,
            "initial": settings.initial,
            "connections": settings.connections,
            "sync_points": settings.sync_points,
            "timeout": settings.timeout,
            "size": settings.size,
            "last_sync_point": iso(frozen_at_ns),
            "lag_seconds": max(0, int(time.time() - frozen_at_ns / 1e9)) if frozen_at_ns else None,
            "fuzzy": bool(report.get("fuzzy")),
            "counter": report.get("counter"),
            "generation": report.get("generation"),
            "root": report.get("root"),
            "path": {"active": 1, "total": 1, "connections": settings.connections, "ok": self.state != "waiting"},
            "rate_bytes_per_s": progress.get("rate_bytes_per_s") if progress else None,
            "limit": None,
            "progress": progress,
            "problem": self._shown_problem(),
            "next": None,
            "last_run": report or None,
        }

    def _shown_problem(self):
        if self.problem:
            return self.problem
        if self.state == "stopped" and self.activity is None:
            return {
                "code": "stopped",
                "text": "stopped; what has been applied is kept",
                "action": f"qrep start {self.name} goes on from there",
            }
        return None
