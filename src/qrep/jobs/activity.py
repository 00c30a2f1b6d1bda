"""What a job does now: one thing at a time, begun, followed, asked to stop, ended; and how many bytes that was."""

import threading
from collections import Counter

from qrep.errors import Interrupted, Refused

MOVED = {"run": ("read", "hashed", "zero", "changed", "sent", "copies", "packed", "packed_sent", "written"), "estimate": ("read", "hashed", "zero")}  # what is counted of each
WORDS = {
    "run": "running", "verify": "being verified", "estimate": "being estimated", "delete": "being deleted", "convert": "being converted",
    "rebuild": "being rebuilt", "role": "changing its role", "settle": "being changed",
}  # fmt: skip


class Activity:
    """Of one job. settings: config.Job. paths: JobPaths or None. ended: called when what went on has ended."""

    def __init__(self, name, settings, paths, ended):
        self.name, self.settings, self.paths, self._ended = name, settings, paths, ended
        self._lock = threading.Lock()
        self._moved = Counter()  # by what has ended
        self.active = None  # what goes on: has progress() and stop()
        self._finished = threading.Event()
        self._finished.set()
        self._stopping = self._leaving = False
        self.activity = None  # a key of WORDS while one goes on
        self.begun = 0  # activities so far

    def begin(self, activity):
        """Take the job for one activity. Raises Refused when it is busy."""
        if self.settings.role == "target" and activity in MOVED | {"verify": ()}:
            side = self.settings.target.rpartition(":")[0] or self.settings.target
            raise Refused(f"{self.name} has its source on {side} now", hint=f"start it there; or: qrep job promote {self.name}", code="not-source")
        with self._lock:
            if self.activity is not None:
                raise Refused(
                    f"{self.name} is {WORDS[self.activity]} already",
                    hint=f"qrep status {self.name}; qrep stop {self.name}",
                    code="busy",
                )
            self.activity = activity
            self.begun += 1
            self._stopping = self._leaving = False
            self._finished.clear()

    def end(self):
        self.release()
        self._ended()

    def release(self):
        """What was begun came to nothing: the job is free again, and nobody is told, as there is nothing new."""
        with self._lock:
            self._moved.update(self._moving())
            self.activity = self.active = None
        if self.paths is not None:
            self.paths.ended()
        self._finished.set()

    def follow(self, active):
        """Let `active` be what stop() ends and progress() tells of. Raises Interrupted when stop() came first."""
        with self._lock:
            self.active = active
            stopping = self._stopping
        if stopping:
            raise Interrupted(f"{self.name} was stopped")

    def signal_stop(self, leaving=False):
        """Ask what goes on to end. leaving: the agent ends, and takes a run up again at its next start. False: nothing goes on."""
        with self._lock:
            if self.activity is None:
                return False
            self._stopping, self._leaving = True, leaving
            active = self.active
        if active is not None:
            active.stop()
        return True

    def stop(self, timeout=30.0):
        """Stop whatever goes on and wait for its end. Returns what there is to say."""
        kept = "stopped; what has been applied is kept" if self.activity == "run" else "stopped"
        if not self.signal_stop():
            return "nothing was running"
        return kept if self.wait(timeout) else "stopping; some I/O is still under way"

    def wait(self, timeout):
        return self._finished.wait(timeout)

    @property
    def leaving(self):
        """The agent ends."""
        return self._leaving

    @property
    def stopping(self):
        return self._stopping

    # ---- how far it is ----

    def progress(self):
        active = self.active
        return active.progress() if active is not None else None

    def moved_now(self):
        """Counter of the bytes that everything this job did has read, hashed, sent, ..., what goes on included."""
        with self._lock:
            return self._moved + Counter(self._moving())

    def _moving(self):
        """Bytes of what goes on, by MOVED."""
        progress = self.progress() or {}
        return {name: progress.get(name, 0) for name in MOVED.get(self.activity, ())}
