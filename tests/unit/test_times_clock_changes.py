"""Schedules where clocks change: both changes, in zones that change by an hour, by half an hour, and at midnight."""

from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep import times

# zone: (the day clocks are put forward, the day they are put back), the year 2026
DAYS = {
    "Europe/Berlin": ((3, 29), (10, 25)),  # at 02:00 to 03:00; at 03:00 to 02:00
    "America/New_York": ((3, 8), (11, 1)),  # at 02:00 to 03:00; at 02:00 to 01:00
    "Australia/Lord_Howe": ((10, 4), (4, 5)),  # at 02:00 to 02:30; at 02:00 to 01:30
}


def on(text, zone, month, day, hour=0):
    """The times of one local day from `hour` on, as HH:MM+offset."""
    zone = ZoneInfo(zone)
    begin = datetime(2026, month, day, hour, tzinfo=zone).astimezone(UTC) - timedelta(seconds=1)
    found = []
    for moment in times.parse(text).after(begin, zone):
        if (moment.month, moment.day) != (month, day):
            return found
        found.append(moment.strftime("%H:%M%z"))


def test_a_time_that_does_not_exist_comes_once_at_the_first_moment_after_the_gap():
    assert on("30 2 * * *", "Europe/Berlin", 3, 29) == ["03:00+0200"]
    assert on("0,15,30 2 * * *; 0 3 * * *", "Europe/Berlin", 3, 29) == ["03:00+0200"]
    assert on("15 2 * * *", "America/New_York", 3, 8) == ["03:00-0400"]
    assert on("15 2 * * *", "Australia/Lord_Howe", 10, 4) == ["02:30+1100"]
    assert on("45 2 * * *", "Australia/Lord_Howe", 10, 4) == ["02:45+1100"]
    assert on("0 0 * * *", "Asia/Beirut", 3, 29) == ["01:00+0300"]  # clocks go from 00:00 to 01:00


def test_a_time_that_exists_twice_comes_the_first_time():
    assert on("30 2 * * *", "Europe/Berlin", 10, 25) == ["02:30+0200"]
    assert on("30 1 * * *", "America/New_York", 11, 1) == ["01:30-0400"]
    assert on("45 1 * * *", "Australia/Lord_Howe", 4, 5) == ["01:45+1100"]
    assert on("0 0-4 * * *", "Europe/Berlin", 10, 25) == ["00:00+0200", "01:00+0200", "02:00+0200", "03:00+0100", "04:00+0100"]


def test_within_the_second_pass_a_time_of_the_first_is_not_named_again():
    zone = ZoneInfo("Europe/Berlin")
    second_pass = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=zone)
    assert times.parse("30 2 * * *").next_times(second_pass, 1, zone) == [datetime(2026, 10, 26, 2, 30, tzinfo=zone)]


def test_within_the_first_pass_the_times_of_the_second_are_not_forgotten():
    for zone, first_pass in (("Europe/Berlin", datetime(2026, 10, 25, 2, 50)), ("Australia/Lord_Howe", datetime(2026, 4, 5, 1, 50))):
        zone = ZoneInfo(zone)
        expected = first_pass.replace(minute=40, fold=1, tzinfo=zone)
        assert times.parse("40 * * * *").next_times(first_pass.replace(tzinfo=zone), 1, zone)[0].astimezone(UTC) == expected.astimezone(UTC)


def test_an_entry_for_every_hour_follows_elapsed_time_through_both_changes():
    for zone, days in DAYS.items():
        for month, day in days:
            for text, minutes in (("*/10 * * * *", 10), ("*/30 * * * *", 30)):
                begin = datetime(2026, month, day, tzinfo=ZoneInfo(zone))
                found = times.parse(text).next_times(begin, 30, ZoneInfo(zone))
                steps = {(later.astimezone(UTC) - earlier.astimezone(UTC)) for earlier, later in zip(found, found[1:], strict=False)}
                assert steps == {timedelta(minutes=minutes)}, (zone, month, day, text)
    assert on("0 * * * *", "Europe/Berlin", 10, 25)[:5] == ["00:00+0200", "01:00+0200", "02:00+0200", "02:00+0100", "03:00+0100"]
    assert on("30 * * * *", "Europe/Berlin", 3, 29)[:3] == ["00:30+0100", "01:30+0100", "03:30+0200"]
    # Half an hour back at 02:00: the clock shows 01:30 to 02:00 twice, and every full hour once.
    assert on("0 * * * *", "Australia/Lord_Howe", 4, 5)[:3] == ["00:00+1100", "01:00+1100", "02:00+1030"]
    assert on("45 * * * *", "Australia/Lord_Howe", 4, 5)[:4] == ["00:45+1100", "01:45+1100", "01:45+1030", "02:45+1030"]


@pytest.mark.parametrize("zone", DAYS)
def test_every_counts_elapsed_time_through_both_changes(zone):
    for month, day in DAYS[zone]:
        begin = datetime(2026, month, day, tzinfo=ZoneInfo(zone)) - timedelta(hours=1)
        for text, step in (("every 15m", timedelta(minutes=15)), ("every 2h", timedelta(hours=2)), ("every 90s", timedelta(seconds=90))):
            found = [moment.astimezone(UTC) for moment in times.parse(text).next_times(begin, 400, ZoneInfo(zone))]
            assert all(later - earlier == step for earlier, later in zip(found, found[1:], strict=False))


@pytest.mark.parametrize(("zone", "hours"), [("Europe/Berlin", (23, 25)), ("America/New_York", (23, 25)), ("Australia/Lord_Howe", (23.5, 24.5))])
def test_every_day_is_a_day_of_the_calendar(zone, hours):
    for (month, day), length in zip(DAYS[zone], hours, strict=True):
        begin = datetime(2026, month, day, tzinfo=ZoneInfo(zone)).astimezone(UTC)
        found = times.parse("every 1d").next_times(begin - timedelta(seconds=1), 2, ZoneInfo(zone))
        assert [moment.strftime("%H:%M") for moment in found] == ["00:00", "00:00"]
        assert found[1].astimezone(UTC) - found[0].astimezone(UTC) == timedelta(hours=length)


@given(
    zone=st.sampled_from([*DAYS, "Asia/Beirut", "America/Havana", "Antarctica/Troll", "Africa/Casablanca", "UTC"]),
    text=st.sampled_from(["30 2 * * *", "15,45 1-3 * * *", "*/20 0,23 * * *", "0 0 * * *", "5 0-22 * * *"]),
    day=st.integers(0, 364),
)
def test_an_entry_that_names_hours_comes_once_for_every_day_and_time_it_names(zone, text, day):
    """Counted over ten days that may hold a change: no time is lost, and none comes twice; a skipped one may fall together with another."""
    zone = ZoneInfo(zone)
    first = datetime(2026, 1, 1) + timedelta(days=day)
    walls = list(islice(CronSim(text, first - timedelta(seconds=1)), 60))
    begin = first.replace(tzinfo=zone).astimezone(UTC) - timedelta(seconds=1)
    found = times.parse(text).next_times(begin, 60, zone)
    instants = [moment.astimezone(UTC) for moment in found]
    assert instants == sorted(set(instants)) and instants[0] > begin
    shown = {moment.replace(tzinfo=None, fold=0) for moment in found}
    for wall in walls[:40]:
        exists = wall.replace(tzinfo=zone).astimezone(UTC).astimezone(zone).replace(tzinfo=None) == wall
        assert (wall in shown) == exists or not exists, wall


CHANGES = {**DAYS, "Asia/Beirut": ((3, 29), (10, 24)), "Antarctica/Troll": ((3, 29), (10, 25)), "America/Havana": ((3, 8), (11, 1))}


@given(
    zone_day=st.sampled_from([(zone, day) for zone, days in CHANGES.items() for day in days]),
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=4),
    hours=st.none() | st.sets(st.sampled_from([0, 1, 2, 3, 4, 12, 23]), min_size=1, max_size=4),
    weekdays=st.none() | st.sets(st.integers(0, 6), min_size=1, max_size=4),
    begin_min=st.integers(0, 48 * 60) | st.integers(48 * 60, 52 * 60),
)
@settings(max_examples=40)
def test_minute_by_minute_the_rule_that_is_documented_names_the_same_times(zone_day, minutes, hours, weekdays, begin_min):
    """An oracle without cronsim: every minute of five days around a change is looked at."""
    (name, (month, day)), zone = zone_day, ZoneInfo(zone_day[0])

    def listed(values):
        return "*" if values is None else ",".join(map(str, sorted(values)))

    def wanted(wall):
        return wall.minute in minutes and (hours is None or wall.hour in hours) and (weekdays is None or wall.isoweekday() % 7 in weekdays)

    start = datetime(2026, month, day, tzinfo=zone).astimezone(UTC) - timedelta(days=2)
    moments = [start + timedelta(minutes=number) for number in range(5 * 1440)]
    walls = [moment.astimezone(zone).replace(tzinfo=None) for moment in moments]
    expected, seen = set(), set()
    for number, (moment, wall) in enumerate(zip(moments, walls, strict=True)):
        if hours is None:  # elapsed time: whatever the clock on the wall shows, as often as it shows it
            expected |= {moment} if wanted(wall) else set()
            continue
        step = int((wall - walls[number - 1]).total_seconds()) // 60 if number else 1
        passed = [wall - timedelta(minutes=back) for back in range(max(step, 1))]  # more than one: the clock was put forward over them
        expected |= {moment} if any(wanted(each) for each in passed if each not in seen) else set()
        seen.update(passed)
    begin = start + timedelta(minutes=begin_min)
    found = []
    for moment in times.parse(f"{listed(minutes)} {listed(hours)} * * {listed(weekdays)}").after(begin, zone):
        if moment.astimezone(UTC) > moments[-1]:
            break
        found.append(moment.astimezone(UTC))
    assert found == sorted(moment for moment in expected if moment > begin), name


@given(zone=st.sampled_from(["Europe/Berlin", "America/New_York"]), day=st.integers(0, 364), text=st.sampled_from(["30 2 * * *", "0 0,2,4 * * 1", "*/15 * * * *", "7 * * * *"]))
def test_where_clocks_change_by_whole_hours_cronsim_says_the_same(zone, day, text):
    """An oracle of our own mapping, begun at midnight: there cronsim's reckoning has no defect that is known."""
    zone = ZoneInfo(zone)
    begin = datetime(2026, 1, 1, tzinfo=zone) + timedelta(days=day)
    theirs = [moment.astimezone(UTC) for moment in islice(CronSim(text, begin), 40)]
    assert [moment.astimezone(UTC) for moment in times.parse(text).next_times(begin, 40, zone)] == theirs


@pytest.mark.skipif(version("cronsim") != "2.8", reason="says what cronsim 2.8 does")
def test_why_cronsim_is_not_asked_about_clock_changes():
    lord_howe, berlin = ZoneInfo("Australia/Lord_Howe"), ZoneInfo("Europe/Berlin")
    left_out = [moment.strftime("%H:%M") for moment in islice(CronSim("*/10 3 * * *", datetime(2026, 10, 4, tzinfo=lord_howe)), 3)]
    assert left_out == ["03:30", "03:40", "03:50"]
    assert on("*/10 3 * * *", "Australia/Lord_Howe", 10, 4)[:3] == ["03:00+1100", "03:10+1100", "03:20+1100"]
    second_pass = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=berlin)
    assert next(CronSim("30 2 * * *", second_pass)).astimezone(UTC) < second_pass.astimezone(UTC)
