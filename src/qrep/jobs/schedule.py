"""When a job is due and whether its sync point is too old: decisions without a clock of their own. daemon/scheduler.py acts on them.

`now` is everywhere seconds of the wall clock since the epoch. The clock may be set while nobody looks, and the agent may be down:
whatever passed, a job is due once, and its next time is the next one of its schedule.
"""

import math
from datetime import UTC, datetime

from qrep import times
from qrep.settings import parse_rpo

LATE_S = 60  # a time that nobody looked at for longer was missed: the agent was down, the host slept, or the clock was set forward
BACK_S = 60  # a clock that is set back by more makes times come again; by less, it is being kept right
COUNTED_MAX = 100  # passed times that are counted for people


class Due:
    """first: the earliest time that has passed. count: how many have, at most COUNTED_MAX. missed: the last of them is longer ago than it may."""

    def __init__(self, first, count, missed):
        self.first, self.count, self.missed = first, count, missed


class Timing:
    """The schedule and the rpo of one job. settings: config.Job, which may change under it. zone: callable, the time zone of now.

    kept: what record() gave before the agent ended, or None. handled: every time up to there has been dealt with.
    """

    def __init__(self, settings, zone, kept=None):
        self.settings, self._zone = settings, zone
        kept = kept or {"schedule": None, "handled": None, "since": None, "rpo_passed": False}
        self._text, self.handled = kept["schedule"], kept["handled"]
        self.since = kept["since"]  # when the job became known: what its rpo counts from until it has a sync point
        self.rpo_passed = bool(kept["rpo_passed"])
        self.held = False  # due, and it waits for something else that the job does
        self._parsed = self._ahead = self._coming = None

    def record(self):
        return {"schedule": self._text, "handled": self.handled, "since": self.since, "rpo_passed": self.rpo_passed}

    def _schedule(self):
        text = self.settings.schedule
        if self._parsed is None or self._parsed[0] != text:
            self._parsed = text, times.parse(text)
        return self._parsed[1]

    def next_times(self, now, count=3):
        """The next times as aware datetimes in the time zone; [] without a schedule."""
        schedule, zone, ahead = self._schedule(), self._zone(), self._ahead
        if schedule is None:
            return []
        key = (schedule, zone, count)
        if ahead is None or ahead[0] != key or not ahead[1] <= now < ahead[2][0].timestamp():
            found = schedule.next_times(datetime.fromtimestamp(now, UTC), count, zone)
            if not found:
                return []
            self._ahead = ahead = key, now, found
        return ahead[2]

    def look(self, now, late_s=LATE_S):
        """What is due: a Due, or None. handle(now) says that it was dealt with; until then it stays due. late_s: how late is missed."""
        if self._text != self.settings.schedule or self.handled is None:  # another schedule: nothing that lies before now was missed
            self._text, self.handled, self.held = self.settings.schedule, now, False
        schedule = self._schedule()
        if self.since is None:
            self.since = now
        self.since = min(self.since, now)
        if self.handled - now > BACK_S:
            self.handled = now
        if schedule is None:
            return None
        zone = self._zone()
        if self._first_after(schedule, zone) > now:
            return None
        passed = []
        for moment in schedule.after(datetime.fromtimestamp(self.handled, UTC), zone):
            if moment.timestamp() > now or len(passed) == COUNTED_MAX:
                break
            passed.append(moment)
        latest = next(schedule.after(datetime.fromtimestamp(now - late_s, UTC), zone), None)
        missed = not self.held and (latest is None or latest.timestamp() > now)
        return Due(passed[0], len(passed), missed)

    def _first_after(self, schedule, zone):
        """The first time after `handled`, kept: most looks find that nothing is due."""
        key = schedule, zone, self.handled
        if self._coming is None or self._coming[0] != key:
            first = next(schedule.after(datetime.fromtimestamp(self.handled, UTC), zone), None)
            self._coming = key, math.inf if first is None else first.timestamp()
        return self._coming[1]

    def handle(self, now):
        self.handled, self.held = now, False

    def wake_at(self, now, committed_at):
        """The next moment at which a look may find something, or None."""
        moments = [moment.timestamp() for moment in self.next_times(now)[:1]]
        if self.rpo is not None and not self.rpo_passed:
            moments.append((committed_at or self.since or now) + self.rpo)
        return min(moments, default=None)

    # ---- rpo ----

    @property
    def rpo(self):
        return parse_rpo(self.settings.rpo)

    def over(self, now, committed_at):
        """Seconds since the freeze of the last sync point (committed_at; None: since the job is known) if the rpo is passed, else None."""
        if self.rpo is None or (committed_at or self.since) is None:
            return None
        age = now - (committed_at or self.since)
        return age if age > self.rpo else None

    def look_at_rpo(self, now, committed_at):
        """True: it has just been passed. False: it has just been met again. None: nothing new."""
        over = self.over(now, committed_at) is not None
        if over == self.rpo_passed:
            return None
        self.rpo_passed = over
        return over if self.rpo is not None else None
