"""How long sync points have been kept, and when they were made, so that a wrong time of day at one commit takes none of them away.

A volume has a time of its own: what CLOCK_BOOTTIME counted while its host was seen to be up. It never goes faster than time does, whatever the wall
clock is set to; while the host is switched off it stands still. Of each commit are noted
* kept_ns: the volume's own time. A floor goes by differences of it, which are never more than what went by;
* time_ns: a time of day for the periods of a grid. It never falls, and two commits are never closer together in it than in the volume's own time;
* sure: whether the wall clock had gone on since the commit before as time did. If it had not, time_ns goes on by the volume's own time, and the wall
  clock is believed again when the next commit finds it where this one would have left it.
"""

import time
from typing import NamedTuple

SLACK_NS = 60 * 10**9  # that the wall clock may differ between two commits, besides SLACK_SHARE of the time between them: it is being corrected
SLACK_SHARE = 1000
NOTE_NS = 600 * 10**9  # of the volume's own time, which a host that goes off loses at most


def boot_id():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def now():
    """(which start of the host, ns since then). Raises OSError."""
    return boot_id(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Age(NamedTuple):
    kept_ns: int
    time_ns: int
    sure: bool


class Commit(NamedTuple):
    """The newest commit that was noted. wall_ns: what the wall clock said."""

    boot: str
    kept_ns: int
    time_ns: int
    wall_ns: int


class Ages:
    """Of one volume; one thread at a time. known: what as_dict() returned, or None. Raises ValueError if it is something else."""

    def __init__(self, known=None):
        self._boot, self._boot_ns, self._kept_ns = "", 0, 0
        self._last, self._ages = None, {}
        if known is not None:
            self._load(known)
        self._noted_ns, self._new = self._kept_ns, False

    def _load(self, known):
        try:
            self._boot, self._boot_ns, self._kept_ns = known["boot"], known["boot_ns"], known["kept_ns"]
            self._last = Commit(*known["last"]) if known["last"] else None
            self._ages = {name: Age(*age) for name, age in known["points"].items()}
        except (TypeError, KeyError, AttributeError) as err:
            raise ValueError(f"ages: {err!r}") from err
        numbers = [self._boot_ns, self._kept_ns, *(self._last or ())[1:], *(number for age in self._ages.values() for number in age[:2])]
        if not all(type(number) is int for number in numbers) or not all(type(age.sure) is bool for age in self._ages.values()):
            raise ValueError("ages: a number is none")

    def as_dict(self):
        return {"boot": self._boot, "boot_ns": self._boot_ns, "kept_ns": self._kept_ns, "last": self._last, "points": self._ages}

    def noted(self):
        """as_dict() is durable."""
        self._noted_ns, self._new = self._kept_ns, False

    def due(self):
        """Whether there is something to be made durable; any thread may ask. Raises OSError."""
        if not self._ages:
            return False
        boot, boot_ns = now()
        return self._new or boot != self._boot or self._kept_ns + boot_ns - self._boot_ns - self._noted_ns >= NOTE_NS

    def commit(self, name):
        """The generation of this name is committed now. Raises OSError."""
        self.go_on()
        wall_ns, last, sure, time_ns = time.time_ns(), self._last, True, 0
        if last is not None:
            went_ns, said_ns = self._kept_ns - last.kept_ns, wall_ns - last.wall_ns
            slack_ns = SLACK_NS + went_ns // SLACK_SHARE
            was_off = last.boot != self._boot  # for nobody knows how long
            sure = went_ns - slack_ns <= said_ns and (was_off or said_ns <= went_ns + slack_ns)
            time_ns = last.time_ns + went_ns
        if sure:
            time_ns = max(time_ns, wall_ns)
        self._ages[name] = Age(self._kept_ns, time_ns, sure)
        self._last, self._new = Commit(self._boot, self._kept_ns, time_ns, wall_ns), True

    def of(self, names):
        """The Age of each. One of which nothing is known is as old as the first look at it. Raises OSError."""
        lost = [name for name in names if name not in self._ages]
        if lost:
            self.go_on()
            time_ns = time.time_ns() if self._last is None else self._last.time_ns + self._kept_ns - self._last.kept_ns
            self._ages |= {name: Age(self._kept_ns, time_ns, False) for name in lost}
            self._new = True
        return [self._ages[name] for name in names]

    def keep(self, names):
        self._ages = {name: age for name, age in self._ages.items() if name in names}

    def go_on(self):
        """Count what went by. Raises OSError."""
        boot, boot_ns = now()
        if boot == self._boot:
            self._kept_ns += max(0, boot_ns - self._boot_ns)
        self._boot, self._boot_ns = boot, boot_ns
