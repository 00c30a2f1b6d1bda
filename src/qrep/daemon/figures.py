"""What is counted of jobs since the agent started: how runs and verifies ended, and how long runs took. Heard from the event log."""

import threading
from collections import Counter

from qrep.daemon.metrictable import BUCKETS_S

RUN_RESULTS = {"run-committed": "committed", "run-degraded": "degraded", "run-failed": "failed", "run-stopped": "stopped"}
VERIFY_RESULTS = {"verify-equal": "equal", "verify-differs": "differs", "verify-failed": "failed"}

RELOAD_RESULTS = {"config-reloaded": "applied", "config-refused": "refused"}


class Durations:
    """A histogram as Prometheus wants it: every bucket holds what the smaller ones hold, too."""

    def __init__(self):
        self.counts, self.sum, self.last = [0] * (len(BUCKETS_S) + 1), 0.0, None

    def add(self, seconds):
        for number, limit in enumerate((*BUCKETS_S, float("inf"))):
            self.counts[number] += seconds <= limit
        self.sum, self.last = self.sum + seconds, seconds


class Figures:
    """events: EventLog; it calls heard() for every event, told or only counted."""

    def __init__(self, events):
        self._lock = threading.Lock()
        self.runs, self.verifies, self.interruptions = Counter(), Counter(), Counter()  # (job, result), job
        self.durations = {}  # job -> Durations
        self.reloads = Counter()  # by result
        events.observers.append(self.heard)

    def heard(self, code, job, data):
        with self._lock:
            if code in RELOAD_RESULTS:
                self.reloads[RELOAD_RESULTS[code]] += 1
            if job is not None:
                self._heard_of(job, code, data)

    def _heard_of(self, job, code, data):
        if code in RUN_RESULTS:
            self.runs[job, RUN_RESULTS[code]] += 1
        elif code in VERIFY_RESULTS:
            self.verifies[job, VERIFY_RESULTS[code]] += 1
        elif code == "run-interrupted":
            self.interruptions[job] += 1
        elif code == "job-deleted":
            self._forget(job)
        if code == "run-committed" and "seconds" in data:
            self.durations.setdefault(job, Durations()).add(data["seconds"])

    def _forget(self, job):
        for counter in (self.runs, self.verifies):
            for key in [key for key in counter if key[0] == job]:
                del counter[key]
        self.interruptions.pop(job, None)
        self.durations.pop(job, None)
