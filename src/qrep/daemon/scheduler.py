"""The thread that starts jobs when they are due, and says when a sync point has become older than its job allows.

A time that comes while a run of the job goes on, or waits for its turn, is not started and not caught up: that run stands for it. One
that comes while the job is verified or estimated waits for the end of that. Times that passed while nobody looked (the agent was down,
the host slept, the clock was set forward) are one run, or none with `missed = "skip"`.
"""

import logging
import threading
import time

from qrep import units
from qrep.errors import NotFound, QrepError
from qrep.jobs.run import GOING
from qrep.jobs.schedule import COUNTED_MAX

log = logging.getLogger("qrep.agent")
LOOK_S = 10.0  # at most between two looks: the wall clock may be set, and nothing tells
SOON_S = 0.5  # a job that could not be started because something else had just begun
END_S = 2.0  # that a look gets at the end, should the state database hang
JUMP_S = 60  # that the wall clock moves against the monotonic one between two looks, and it is told


class Clock:
    """wall, monotonic: seconds. wait(event, seconds): until the event is set, at most so long."""

    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def wait(event, seconds):
        event.wait(seconds)


class Scheduler:
    """jobs: callable, [(name, JobRunner)]. start: callable(name, cause). db: the state database's timer table. events: EventLog. verifies:
    verifytimes.VerifyTimes, looked at together with the runs, or None."""

    def __init__(self, *, jobs, start, db, events, verifies=None, clock=None):
        self._verifies = verifies
        self._jobs, self._start, self.db, self.events = jobs, start, db, events
        self.clock = clock or Clock()
        self._news = threading.Event()
        self._ending = False
        self._thread = None
        self.looked = time.monotonic()  # when the thread went round last: what a watchdog looks at
        self._offset = None  # wall clock minus monotonic clock at the last look
        self._first = True  # the agent was down until this look
        self._stands_for = {}  # job id: the run that has been told to stand for times
        self._saved = {}  # job id: the record that the database holds

    def start(self):
        self._thread = threading.Thread(target=self._watch, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self):
        self._ending = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(END_S)

    def wake(self):
        """Something changed: a job, its settings, the end of a run."""
        self._news.set()

    def _watch(self):
        while not self._ending:
            self.looked = time.monotonic()
            self._news.clear()
            try:
                wait_s = self.look()
            except Exception:  # a bug of ours, or of one job's times: without this thread no job would start ever again
                log.exception("scheduler: internal error")
                wait_s = LOOK_S
            if not self._ending:
                self.clock.wait(self._news, wait_s)

    def look(self):
        """Start what is due, tell what is too old. Returns how many seconds the next look may wait at most."""
        now = self.clock.wall()
        self._notice_jump(now)
        wait_s, known = LOOK_S, set()
        for name, runner in self._jobs():
            if self._ending:
                break
            known.add(runner.settings.id)
            wait_s = min(wait_s, self._look_at(name, runner, now))
            if self._verifies is not None and runner.settings.has_target:
                wait_s = min(wait_s, self._verifies.look_at(name, runner, now, self._first))
        self._first = False
        for gone in [job_id for job_id in self._saved if job_id not in known]:
            self._saved.pop(gone)
            self._stands_for.pop(gone, None)
        return wait_s

    def _notice_jump(self, now):
        offset = now - self.clock.monotonic()
        jump = 0 if self._offset is None else offset - self._offset
        self._offset = offset
        if abs(jump) > JUMP_S:
            how = "forward: it was set, or the host slept" if jump > 0 else "back: scheduled times come again from there"
            self.events.add("clock-jumped", f"the clock went {units.format_duration(abs(jump))} {how}", seconds=round(jump, 3))

    def _look_at(self, name, runner, now):
        if not runner.settings.has_target:  # its disk is on its way, or it was made
            return LOOK_S
        timing = runner.timing
        due = timing.look(now, *([0] if self._first else []))
        settled = due is None or self._deal_with(name, runner, due, now)
        passed = timing.look_at_rpo(now, runner.committed_at)
        if passed is not None:
            self._tell_rpo(name, runner, passed, now)
        self._save(runner)
        if not settled:
            return LOOK_S if timing.held else SOON_S  # the end of what it waits for wakes us
        at = timing.wake_at(now, runner.committed_at)
        return LOOK_S if at is None else max(0.001, at - now)

    def _deal_with(self, name, runner, due, now):
        """True: this time is dealt with. False: it is still due."""
        activity = runner.activity
        if activity == "run" and runner.state not in GOING:  # taken for a run that may yet be refused, or one that has just ended
            return False
        if activity == "run":
            self._coalesce(name, runner, due)
        elif activity is not None:
            if activity == "verify" and self._verifies is not None:
                self._verifies.give_way(runner)
            runner.timing.held = activity != "delete"
            return False
        elif due.missed and runner.settings.missed == "skip":
            self._tell_missed(name, due, "left out")
        else:
            try:
                self._start(name, f"scheduled for {due.first:%Y-%m-%d %H:%M:%S %Z}")
            except NotFound:  # it was deleted this moment
                return True
            except QrepError as error:
                if error.code != "busy":  # busy: something else began this moment
                    self.events.add("run-not-started", f"due at {due.first:%H:%M:%S %Z}, tried again: {error.message}", job=name)
                return False
            if due.missed:
                self._tell_missed(name, due, "made up for by one run now")
        runner.timing.handle(now)
        return True

    def _coalesce(self, name, runner, due):
        """One event per run, however many times pass in it."""
        if self._stands_for.get(runner.settings.id) == runner.begun:
            return
        self._stands_for[runner.settings.id] = runner.begun
        what = "waits for its turn" if runner.state == "queued" else "still goes on"
        self.events.add("run-coalesced", f"due at {due.first:%H:%M:%S %Z}; a run {what} and stands for the times until it ends", job=name)

    def _tell_missed(self, name, due, what):
        count = f"{due.count}{' or more' if due.count == COUNTED_MAX else ''}"
        times = f"{count} times since {due.first:%Y-%m-%d %H:%M:%S %Z} were" if due.count > 1 else f"{due.first:%Y-%m-%d %H:%M:%S %Z} was"
        why = "while the agent was down" if self._first else "while the host slept, or by its clock"
        self.events.add("run-missed", f"{times} missed {why}; {what}", job=name, count=due.count)

    def _tell_rpo(self, name, runner, passed, now):
        rpo = runner.settings.rpo
        if passed:
            age = units.format_duration(runner.timing.over(now, runner.committed_at))
            text = f"the last sync point is {age} old" if runner.committed_at else f"there is no sync point yet after {age}"
            self.events.add("rpo-passed", f"{text}; the rpo is {rpo}", job=name)
        else:
            age = f"the last sync point is {units.format_duration(max(0, now - runner.committed_at))} old; " if runner.committed_at else ""
            self.events.add("rpo-met", f"{age}the rpo is {rpo}", job=name)

    def _save(self, runner):
        record, job_id = runner.timing.record(), runner.settings.id
        if self._saved.get(job_id) != record:
            self.db.set_timer(job_id, record)
            self._saved[job_id] = record
