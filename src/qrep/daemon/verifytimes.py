"""When jobs are verified by themselves: looked at by the scheduler's thread, after it has looked at the runs of the job.

A verify waits while the job does anything else, and goes on after it. A run that comes due ends a scheduled verify: what
was read stays read where the new generation has the same content (source/found.py). Only if it has not got further three times in a row the
run waits. One that a person asked for holds runs up.
"""

from qrep.errors import NotFound, QrepError

LOOK_S = 10.0  # as scheduler.LOOK_S
SOON_S = 0.5


class VerifyTimes:
    """start: callable(name, cause), begins a verify. db: the state database's timer table. events: EventLog."""

    def __init__(self, *, start, db, events):
        self._start, self.db, self.events = start, db, events
        self._saved = {}

    def give_way(self, runner):
        """A run of this job is due while it is verified."""
        if runner.verifies.may_give_way():
            runner.verifies.giving_way = True
            runner.signal_stop()

    def look_at(self, name, runner, now, first):
        """Begin what is due. first: the agent was down until this look. Returns how many seconds the next look may wait at most."""
        verifies = runner.verifies
        timing = verifies.timing
        due = timing.look(now, *([0] if first else []))
        if due is not None or verifies.again:
            wait_s = self._deal_with(name, runner, due, now)
            if wait_s is not None:
                return wait_s
        record = timing.record()
        if self._saved.get(verifies.timer_id) != record:
            self.db.set_timer(verifies.timer_id, record)
            self._saved[verifies.timer_id] = record
        at = timing.wake_at(now, None)
        return LOOK_S if at is None else max(0.001, at - now)

    def _deal_with(self, name, runner, due, now):
        """None: it is dealt with; else how long to wait until it is looked at again."""
        verifies, activity = runner.verifies, runner.activity
        if runner.committed_at is None or activity == "verify" or (due is not None and due.missed and runner.settings.missed == "skip"):
            verifies.timing.handle(now)  # nothing to compare yet; or that one stands for it; or it was missed
            return None
        if activity is not None:
            verifies.timing.held = activity != "delete"
            return LOOK_S
        again = verifies.again
        try:
            self._start(name, "it goes on" if again else f"scheduled for {due.first:%Y-%m-%d %H:%M:%S %Z}")
        except NotFound:  # it was deleted this moment
            return None
        except QrepError as error:
            if error.code == "busy":
                return SOON_S
            verifies.again = False
            self.events.add("verify-failed", f"it could not be begun: {error.message}", job=name, reason=error.code)
        verifies.timing.handle(now)
        return None
