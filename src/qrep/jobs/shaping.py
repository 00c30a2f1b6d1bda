"""Shaping groups, without a clock or a bucket of their own: which rate is in force at a moment, why, and until when.

Peak hours are windows of the week (weekly.py); without any it is always peak.
"""

from dataclasses import dataclass
from datetime import datetime

from qrep import units, weekly


@dataclass(frozen=True)
class InForce:
    """The rate of a group at some moment. rate_bytes_per_s: None is unlimited. until: UTC, None is for ever. hours: the windows as written."""

    rate_bytes_per_s: int | None
    peak: bool
    until: datetime | None
    hours: tuple[str, ...]

    def words(self, zone, moment):
        """`peak 50 MiB/s mon-fri 07:00-19:00, until 19:00`, as of an aware datetime."""
        rate = units.format_rate(self.rate_bytes_per_s)
        text = f"peak {rate} {', '.join(self.hours)}".rstrip() if self.peak else f"off-peak {rate}"
        if self.until is None:
            return text
        until, today = self.until.astimezone(zone), moment.astimezone(zone).date()
        return f"{text}, until {'' if until.date() == today else weekly.DAYS[until.weekday()] + ' '}{until:%H:%M}"


class Plan:
    """What a shape's settings say. settings: settings.Shape, checked."""

    def __init__(self, settings):
        self.hours = tuple(settings.hours)
        self.peak, self.off_peak = units.parse_rate(settings.peak), units.parse_rate(settings.off_peak)
        self._windows = weekly.parse(settings.hours) if settings.hours else None

    def at(self, moment, zone):
        """The InForce of an aware datetime."""
        if self._windows is None:
            return InForce(self.peak, True, None, self.hours)
        peak = self._windows.contain(moment, zone)
        return InForce(self.peak if peak else self.off_peak, peak, self._windows.next_change(moment, zone), self.hours)
