"""The times that a schedule names: cron entries and `every 15m`, in a time zone, daylight saving included.

    0 2 * * mon-fri                    at 02:00 from Monday to Friday: minute, hour, day of the month, month, day of the week
    0 0 * * *; 0 9-17 * * mon-fri      a list: at every time that an entry names, once
    every 15m                          every quarter of an hour

Cron's own rule for days holds: where both the day of the month and the day of the week are given, either will do; where one of them
begins with `*`, both must hold.

When clocks change, an entry that names its hours comes once for every time of the day that it names: a time that is skipped comes at
the first moment after the gap, a time that exists twice comes the first time. An entry for every hour of the day (`*`) follows elapsed
time instead: both passes of a doubled hour, nothing for a skipped one.

`every` counts elapsed time from 1970-01-01 00:00 UTC, so that it is the same after a restart and clock changes do not touch it.
Whole days (`every 1d`, `every 7d`) are days of the calendar: they come at midnight of the time zone, counted from 1970-01-01.

cronsim finds the times of the clock on the wall. Which moments those are is decided here: cronsim's own reckoning at clock changes
leaves times out where clocks change by half an hour, and goes back in time within a doubled hour (tests/unit/test_times_clock_changes.py).
"""

import heapq
import itertools
from datetime import UTC, date, datetime, timedelta

from qrep import units
from qrep.errors import UsageError

TEXT_MAX = 2048  # characters of a schedule
ENTRIES_MAX = 32
EVERY_MAX_S = 366 * 86400
DAY_S = 86400
WAY_OUT = 'write it like "0 2 * * mon-fri", "0 0 * * *; 0 9-17 * * *" or "every 15m"'
FIELDS = (
    ("minute", "0-59"), ("hour", "0-23"), ("day of the month", "1-31, L for the last"), ("month", "1-12 or jan-dec"),
    ("day of the week", "0-7 or sun-sat"),
)  # fmt: skip
NICKNAMES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
EPOCH_DAY = date(1970, 1, 1).toordinal()


class Schedule:
    """What `parse` made of a text. entries: Cron and Every."""

    def __init__(self, text, entries):
        self.text, self.entries = text, entries

    def after(self, moment, zone):
        """All times after `moment` (aware), one after the other, as aware datetimes in `zone`, each once. May end: cron looks 50 years ahead."""
        merged = heapq.merge(*(entry.after(moment.astimezone(UTC), zone) for entry in self.entries))
        return (found.astimezone(zone) for found, _group in itertools.groupby(merged))

    def next_times(self, moment, count, zone):
        return list(itertools.islice(self.after(moment, zone), count))


class Every:
    """Every so many seconds of elapsed time, or every so many days of the calendar."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.days = seconds // DAY_S if seconds % DAY_S == 0 else 0

    def after(self, moment, zone):
        if self.days:
            yield from self._midnights(moment, zone)
        else:
            second = (int(moment.timestamp()) // self.seconds + 1) * self.seconds
            for step in itertools.count():
                yield datetime.fromtimestamp(second + step * self.seconds, UTC)

    def _midnights(self, moment, zone):
        day = moment.astimezone(zone).date().toordinal() - EPOCH_DAY
        for number in itertools.count(day - day % self.days, self.days):
            midnight = datetime.combine(date.fromordinal(EPOCH_DAY + number), datetime.min.time())
            for found in _moments(midnight, zone, both=False, skipped=True):
                if found > moment:
                    yield found


class Cron:
    """One cron entry of five fields, which cronsim has accepted."""

    def __init__(self, expression):
        self.expression = expression
        self.hourly = len(self._walk(datetime(2001, 1, 1)).hours) == 24

    def _walk(self, wall):
        from cronsim import CronSim

        return CronSim(self.expression, wall)

    def after(self, moment, zone):
        """Moments in UTC, in order. The second pass of a doubled hour comes after times that are later on the wall: they wait in a heap."""
        waiting, last = [], moment
        for wall in self._walk(_wall_before(moment, zone)):
            found = _moments(wall, zone, both=self.hourly, skipped=not self.hourly)
            while waiting and found and waiting[0] <= found[0]:
                last = heapq.heappop(waiting)
                yield last
            for one in found:
                if one > last:
                    heapq.heappush(waiting, one)
        while waiting:
            yield heapq.heappop(waiting)


def _wall_before(moment, zone):
    """A time of the clock on the wall that is not later than any that comes after `moment`: within a day clocks may be put back."""
    offsets = [(moment + timedelta(hours=hours)).astimezone(zone).utcoffset() for hours in (0, 24)]
    return moment.replace(tzinfo=None) + min(offsets)


def _moments(wall, zone, both, skipped):
    """The moments in UTC at which the clock on the wall shows `wall`: two where clocks are put back over it (the first only, unless
    `both`), none where they are put forward over it (the end of the gap, if `skipped` times are wanted)."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if first == second:
        return [first]
    if first < second:
        return [first, second] if both else [first]
    return [_change_between(second, first, zone)] if skipped else []


def _change_between(low, high, zone):
    """The first moment, to the second, at which clocks show what they show at `high` rather than at `low`."""
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=1) // 2)
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


# ---- from text ----


def parse(text):
    """A Schedule, or None for "" (no schedule). Raises UsageError with the entry and the field that is wrong."""
    if not text.strip():
        return None
    if len(text) > TEXT_MAX or not text.isprintable():
        raise UsageError(f"a schedule is one line of at most {TEXT_MAX} characters", hint=WAY_OUT)
    parts = [part.strip() for part in text.split(";")]
    if len(parts) > ENTRIES_MAX:
        raise UsageError(f"a schedule of {len(parts)} entries; at most {ENTRIES_MAX}", hint="one entry may name several hours: 0 1,5,9-17 * * *")
    return Schedule(text.strip(), [_entry(part, number, len(parts)) for number, part in enumerate(parts, 1)])


def _entry(text, number, count):
    where = f"schedule entry {number} ({_short(text)!r})" if count > 1 else f"schedule {_short(text)!r}"
    words = text.split()
    if not words:
        raise UsageError(f"{where} is empty", hint=WAY_OUT)
    if words[0].lower() == "every":
        return _every(where, words[1:])
    if words[0].startswith("@"):
        if text.lower() not in NICKNAMES:
            raise UsageError(f"{where}: unknown", hint=f"known: {', '.join(NICKNAMES)}; or {WAY_OUT}")
        return Cron(NICKNAMES[text.lower()])
    return _cron(where, words)


def _short(text):
    return text if len(text) <= 60 else f"{text[:57]}..."


def _every(where, words):
    if len(words) != 1:
        raise UsageError(f"{where}: one duration follows every", hint="write it like every 15m, every 2h or every 1d")
    try:
        seconds = units.parse_duration(words[0])
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hint="write it like every 15m, every 2h or every 1d") from error
    if seconds != int(seconds) or not 1 <= seconds <= EVERY_MAX_S:
        raise UsageError(f"{where}: {words[0]} is not whole seconds from 1s to {EVERY_MAX_S // DAY_S}d", hint="write it like every 15m")
    return Every(int(seconds))


def _check_steps(word, may_be):
    """cronsim takes */70 in the minute for every full hour, which nobody means who writes it."""
    from cronsim import CronSimError

    low, high = (int(end) for end in may_be.split()[0].rstrip(",").split("-"))
    for part in word.split(","):
        step = part.partition("/")[2]
        if step and int(step) > high - low:
            raise CronSimError("a step beyond the range")


def _cron(where, words):
    from cronsim import CronSimError

    if len(words) != 5:
        raise UsageError(f"{where}: {len(words)} field{'s' * (len(words) != 1)} where cron has five", hint=WAY_OUT)
    for index, word in enumerate(words):
        alone = ["*"] * 5
        alone[index] = word
        name, may_be = FIELDS[index]
        try:
            Cron(" ".join(alone))
            _check_steps(word, may_be)
        except CronSimError as error:
            raise UsageError(
                f"{where}: field {index + 1}, the {name}: {_short(word)!r} makes no sense", hint=f"the {name} is {may_be}; *, lists (1,5), ranges (1-5) and steps (*/5)"
            ) from error
    try:
        entry = Cron(" ".join(words))
        comes = next(entry.after(datetime.now(UTC), UTC), None)
    except CronSimError:
        comes = None
    if comes is None:
        raise UsageError(f"{where} never comes: no such day in any of its months", hint=WAY_OUT)
    return entry
