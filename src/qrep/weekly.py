"""Windows of the week, as people write them: when it is, and when that changes next, in a time zone.

    mon-fri 07:00-19:00        from 07:00 until 19:00, Monday to Friday
    22:00-06:00                every day, over midnight; "fri 22:00-06:00" begins on Friday and ends on Saturday
    mon,wed,fri                whole days

A window is a matter of the clock on the wall: a moment is inside if the local time that it has is. So when clocks go forward, a border that is
skipped comes with the jump; when they go back, a border inside the doubled hour comes twice, and the window is entered or left each time.
"""

import re
from datetime import UTC, datetime, timedelta

from qrep.errors import UsageError

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TEXT_MAX = 200  # characters of a window
DAY_MIN = 24 * 60
WEEK_MIN = 7 * DAY_MIN
WAY_OUT = 'write it like "mon-fri 07:00-19:00", "22:00-06:00" or "sat,sun"'
_HOURS = re.compile(r"([0-9]{1,2}):([0-9]{2})-([0-9]{1,2}):([0-9]{2})", re.ASCII)


class Windows:
    """What `parse` made of some texts: `spans` of minutes since Monday 00:00, sorted, apart from each other, within one week."""

    def __init__(self, spans):
        self.spans = _joined(spans)

    def contain(self, moment, zone):
        """Whether an aware datetime is inside."""
        local = moment.astimezone(zone)
        minute = local.weekday() * DAY_MIN + local.hour * 60 + local.minute
        return any(first <= minute < end for first, end in self.spans)

    def next_change(self, moment, zone):
        """The first moment (UTC) after an aware datetime from which on `contain` answers otherwise; None: never."""
        if not self.spans or self.spans == [(0, WEEK_MIN)]:
            return None
        now = self.contain(moment, zone)
        for candidate in sorted(self._candidates(moment, zone)):
            if candidate > moment and self.contain(candidate, zone) != now:
                return candidate
        return None  # not reached: a week has every border, unless a zone leaves out a week

    def _candidates(self, moment, zone):
        """Every border of this week and the next, each time that it comes, and every change of the clock meanwhile."""
        local = moment.astimezone(zone)
        monday = datetime.combine(local.date() - timedelta(days=local.weekday()), datetime.min.time())
        for week in range(3):
            for minute in {border for span in self.spans for border in span}:
                wall = monday + timedelta(weeks=week, minutes=minute)
                for fold in (0, 1):
                    yield wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
        yield from _clock_changes(moment.astimezone(UTC), timedelta(days=15), zone)


def _clock_changes(start, length, zone):
    """The moments, to the second, at which the zone's distance to UTC changes."""
    hour, before = timedelta(hours=1), start.astimezone(zone).utcoffset()
    for step in range(1, int(length / hour) + 1):
        low, high = start + (step - 1) * hour, start + step * hour
        after = high.astimezone(zone).utcoffset()
        if after != before:
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                low, high = (middle, high) if middle.astimezone(zone).utcoffset() == before else (low, middle)
            yield high.replace(microsecond=0)
        before = after


def _joined(spans):
    found = []
    for first, end in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found


def parse(texts):
    """The Windows of a list of texts. Raises UsageError."""
    return Windows([span for text in texts for span in _parse_one(text)])


def _parse_one(text):
    words = text.split() if isinstance(text, str) and len(text) <= TEXT_MAX else []
    if not 1 <= len(words) <= 2:
        raise UsageError(f"{str(text)[:TEXT_MAX]!r} is no window of the week", hint=WAY_OUT)
    hours = words.pop() if ":" in words[-1] else "00:00-24:00"
    if len(words) == 2:
        raise UsageError(f"{text!r} is no window of the week: what comes second are hours", hint=WAY_OUT)
    days = _days(words[0], text) if words else range(7)
    first, end = _hours(hours, text)
    for day in days:
        start = day * DAY_MIN + first
        stop = day * DAY_MIN + end + (DAY_MIN if end < first else 0)
        yield start, min(stop, WEEK_MIN)
        if stop > WEEK_MIN:  # Sunday night
            yield 0, stop - WEEK_MIN


def _days(word, text):
    found = set()
    for part in word.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise UsageError(f"{text!r} is no window of the week: {part!r} is no day", hint=f"days are {', '.join(DAYS)}; {WAY_OUT}")
        day = DAYS.index(first)
        found.add(day)
        while dash and DAYS[day] != last:
            day = (day + 1) % 7
            found.add(day)
    return sorted(found)


def _hours(word, text):
    match = _HOURS.fullmatch(word)
    if not match:
        raise UsageError(f"{text!r} is no window of the week: {word!r} are no hours", hint=WAY_OUT)
    numbers = [int(number) for number in match.groups()]
    first, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
    if numbers[1] > 59 or numbers[3] > 59 or first >= DAY_MIN or end > DAY_MIN:
        raise UsageError(f"{text!r} is no window of the week: there is no such time", hint="times go from 00:00 to 24:00")
    if first == end:
        raise UsageError(f"{text!r} is no window of the week: it ends as it begins", hint="a whole day is written without hours")
    return first, end
