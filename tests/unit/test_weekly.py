"""Windows of the week: what people write, where the borders are, and what happens when clocks change."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep import weekly
from qrep.errors import UsageError

BERLIN, LORD_HOWE = ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe")  # Lord Howe changes by half an hour
MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(text, zone=UTC):
    return datetime.fromisoformat(text).replace(tzinfo=zone)


@pytest.mark.parametrize(("texts", "inside", "outside"), [
    (["mon-fri 07:00-19:00"], ["2026-11-23 07:00", "2026-11-27 18:59"], ["2026-11-23 06:59", "2026-11-27 19:00", "2026-11-28 12:00"]),
    (["22:00-06:00"], ["2026-11-23 22:00", "2026-11-24 05:59", "2026-11-23 00:00"], ["2026-11-23 06:00", "2026-11-23 21:59"]),
    (["fri 22:00-06:00"], ["2026-11-27 22:00", "2026-11-28 05:59"], ["2026-11-27 05:59", "2026-11-28 22:00"]),
    (["sun 22:00-06:00"], ["2026-11-29 23:00", "2026-11-23 05:59"], ["2026-11-23 06:00", "2026-11-24 01:00"]),
    (["mon,wed,fri"], ["2026-11-23 00:00", "2026-11-25 23:59"], ["2026-11-24 00:00", "2026-11-26 23:59"]),
    (["sat-mon"], ["2026-11-28 00:00", "2026-11-29 12:00", "2026-11-23 23:59"], ["2026-11-24 00:00", "2026-11-27 23:59"]),
    (["mon 07:00-12:00", "mon 13:00-17:00", "SUN"], ["2026-11-23 11:59", "2026-11-23 13:00", "2026-11-29 03:00"], ["2026-11-23 12:30"]),
    (["mon 20:00-24:00", "tue 00:00-04:00"], ["2026-11-23 23:59", "2026-11-24 00:00"], ["2026-11-24 04:00"]),
])  # fmt: skip
def test_a_moment_is_inside_by_its_local_time(texts, inside, outside):
    windows = weekly.parse(texts)
    for zone in (UTC, BERLIN):
        assert all(windows.contain(at(text, zone), zone) for text in inside)
        assert not any(windows.contain(at(text, zone), zone) for text in outside)


@pytest.mark.parametrize(("text", "says"), [
    ("", "no window"), ("mon-fry 07:00-19:00", "'mon-fry' is no day"), ("07:00", "no hours"), ("mon 7-19", "second are hours"), ("mon 25:00-26:00", "no such time"),
    ("mon 07:60-08:00", "no such time"), ("07:00-07:00", "ends as it begins"), ("mon tue", "second are hours"), ("mon 07:00-19:00 x", "no window"),
    ("07:00-24:01", "no such time"), ("-", "is no day"), ("mon,,tue", "is no day"), (7, "no window"), ("x" * 1000, "no window"), ("24:00-06:00", "no such time"),
])  # fmt: skip
def test_what_is_no_window_is_refused_with_a_way_to_write_it(text, says):
    with pytest.raises(UsageError, match=says) as caught:
        weekly.parse([text])
    assert caught.value.hint


def borders(windows, zone, start, count):
    """The next `count` changes, as local times."""
    found = []
    for _ in range(count):
        start = windows.next_change(start, zone)
        found.append(start.astimezone(zone).isoformat())
    return found


def test_borders_follow_each_other_and_those_inside_a_longer_window_are_none():
    windows = weekly.parse(["mon-tue 20:00-04:00", "tue 03:00-05:00", "wed"])
    assert borders(windows, UTC, MONDAY, 5) == [
        "2026-11-23T20:00:00+00:00", "2026-11-24T05:00:00+00:00", "2026-11-24T20:00:00+00:00", "2026-11-26T00:00:00+00:00", "2026-11-30T20:00:00+00:00",
    ]  # fmt: skip


def test_a_window_over_the_end_of_the_week_has_no_border_there():
    assert borders(weekly.parse(["sun 22:00-06:00"]), UTC, MONDAY, 3) == [
        "2026-11-23T06:00:00+00:00", "2026-11-29T22:00:00+00:00", "2026-11-30T06:00:00+00:00",
    ]  # fmt: skip


def test_the_whole_week_and_nothing_never_change():
    for texts in (["mon-sun"], ["mon-thu", "fri-sun"], ["00:00-24:00"], []):
        assert weekly.parse(texts).next_change(MONDAY, UTC) is None


# Berlin: on 2026-03-29 02:00 becomes 03:00; on 2026-10-25 03:00 becomes 02:00 again.


def test_a_border_that_the_clock_jumps_over_comes_with_the_jump():
    begins, ends = weekly.parse(["sun 02:30-12:00"]), weekly.parse(["sun 01:00-02:30"])
    start = at("2026-03-29T00:00:00", BERLIN)
    assert borders(begins, BERLIN, start, 2) == ["2026-03-29T03:00:00+02:00", "2026-03-29T12:00:00+02:00"]
    assert borders(ends, BERLIN, start, 2) == ["2026-03-29T01:00:00+01:00", "2026-03-29T03:00:00+02:00"]


def test_a_window_inside_the_skipped_hour_does_not_come():
    windows = weekly.parse(["sun 02:15-02:45"])
    assert borders(windows, BERLIN, at("2026-03-29T00:00:00", BERLIN), 1) == ["2026-04-05T02:15:00+02:00"]


def test_a_border_inside_the_doubled_hour_comes_twice():
    windows = weekly.parse(["sun 02:30-12:00"])
    assert borders(windows, BERLIN, at("2026-10-25T00:00:00", BERLIN), 4) == [
        "2026-10-25T02:30:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T02:30:00+01:00", "2026-10-25T12:00:00+01:00",
    ]  # fmt: skip


def test_a_window_over_a_change_is_an_hour_shorter_or_longer():
    windows = weekly.parse(["sat 22:00-06:00"])
    for day, hours in (("2026-03-28", 7), ("2026-10-24", 9), ("2026-11-28", 8)):
        begin = windows.next_change(at(f"{day}T12:00:00", BERLIN), BERLIN)
        assert windows.next_change(begin, BERLIN) - begin == timedelta(hours=hours)


def test_half_an_hour_of_change_is_found_to_the_second():
    # Lord Howe, 2026-10-04: 02:00 becomes 02:30
    windows = weekly.parse(["sun 02:10-04:00"])
    assert borders(windows, LORD_HOWE, at("2026-10-03T00:00:00", LORD_HOWE), 2) == ["2026-10-04T02:30:00+11:00", "2026-10-04T04:00:00+11:00"]


DAY_TEXTS = st.lists(st.sampled_from(weekly.DAYS), min_size=1, max_size=3).map(",".join)
MINUTES = st.integers(0, 24 * 4 - 1).map(lambda quarter: f"{quarter // 4:02}:{quarter % 4 * 15:02}")
TEXTS = st.one_of(DAY_TEXTS, st.tuples(DAY_TEXTS, MINUTES, MINUTES).filter(lambda w: w[1] != w[2]).map(lambda w: f"{w[0]} {w[1]}-{w[2]}"))
STARTS = st.one_of(st.integers(0, 52 * 7 * 96), st.integers(86 * 96, 89 * 96), st.integers(296 * 96, 299 * 96))  # quarters of 2026, often at a change


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), STARTS, st.sampled_from([BERLIN, LORD_HOWE, UTC]))
def test_the_next_change_is_the_first_quarter_of_an_hour_that_is_otherwise(texts, start, zone):
    windows = weekly.parse(texts)
    moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=15 * start)
    now = windows.contain(moment, zone)
    quarters = (moment + timedelta(minutes=15 * step) for step in range(1, 9 * 96))
    assert windows.next_change(moment, zone) == next((quarter for quarter in quarters if windows.contain(quarter, zone) != now), None)
