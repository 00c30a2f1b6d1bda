"""Schedules: what may be written, what is refused and where, and the times they name in a zone without clock changes."""

from datetime import UTC, datetime
from itertools import product
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrep import times, timezone
from qrep.config import Job
from qrep.errors import ConfigError, UsageError
from qrep.settings import bad_values

SUNDAY = datetime(2026, 11, 22, 9, 0, 30, tzinfo=UTC)


def following(text, count=3, moment=SUNDAY, zone=UTC):
    return [found.strftime("%a %d %b %H:%M:%S") for found in times.parse(text).next_times(moment, count, zone)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0 2 * * mon-fri", ["Mon 23 Nov 02:00:00", "Tue 24 Nov 02:00:00", "Wed 25 Nov 02:00:00"]),
        ("@hourly", ["Sun 22 Nov 10:00:00", "Sun 22 Nov 11:00:00", "Sun 22 Nov 12:00:00"]),
        ("0 0 * * *; 0 9-17 * * mon", ["Mon 23 Nov 00:00:00", "Mon 23 Nov 09:00:00", "Mon 23 Nov 10:00:00"]),
        ("0 0 L * *", ["Mon 30 Nov 00:00:00", "Thu 31 Dec 00:00:00", "Sun 31 Jan 00:00:00"]),
        ("every 15m", ["Sun 22 Nov 09:15:00", "Sun 22 Nov 09:30:00", "Sun 22 Nov 09:45:00"]),
        ("every 2s", ["Sun 22 Nov 09:00:32", "Sun 22 Nov 09:00:34", "Sun 22 Nov 09:00:36"]),
        ("every 2h", ["Sun 22 Nov 10:00:00", "Sun 22 Nov 12:00:00", "Sun 22 Nov 14:00:00"]),
        ("every 1d", ["Mon 23 Nov 00:00:00", "Tue 24 Nov 00:00:00", "Wed 25 Nov 00:00:00"]),
        ("Every 15m; */30 * * * *", ["Sun 22 Nov 09:15:00", "Sun 22 Nov 09:30:00", "Sun 22 Nov 09:45:00"]),
    ],
)
def test_a_schedule_names_its_next_times_each_once(text, found):
    assert following(text) == found


def test_a_time_itself_does_not_come_after_itself():
    assert following("0 9 * * *", 1, datetime(2026, 11, 22, 9, tzinfo=UTC)) == ["Mon 23 Nov 09:00:00"]
    assert following("every 1h", 1, datetime(2026, 11, 22, 9, tzinfo=UTC)) == ["Sun 22 Nov 10:00:00"]


@given(seconds=st.integers(1, 400 * 86400), begin=st.integers(0, 4 << 30), zone=st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe"]))
def test_every_is_the_same_wherever_one_begins_to_look(seconds, begin, zone):
    every, zone = times.Every(seconds), ZoneInfo(zone)
    moment = datetime.fromtimestamp(begin, UTC)
    first, second = (found for found, _ in zip(every.after(moment, zone), range(2), strict=False))
    assert moment < first < second
    between = first + (second - first) / 2
    assert next(every.after(between, zone)) == second
    if seconds % 86400:
        assert first.timestamp() % seconds == 0
    else:
        assert first.astimezone(zone).time() == datetime.min.time()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 25 * * *", "schedule '0 25 * * *': field 2, the hour: '25' makes no sense"),
        ("0 0 * * *; 0 1 * * fri-mon", "schedule entry 2 ('0 1 * * fri-mon'): field 5, the day of the week: 'fri-mon' makes no sense"),
        ("0 2 * *", "schedule '0 2 * *': 4 fields where cron has five"),
        ("*/0 * * * *", "field 1, the minute: '*/0' makes no sense"),
        ("*/70 * * * *", "field 1, the minute: '*/70' makes no sense"),
        ("0 1,*/24 * * *", "field 2, the hour: '1,*/24' makes no sense"),
        ("0 0 * 13 *", "field 4, the month: '13' makes no sense"),
        ("0 0 32 * *", "field 3, the day of the month: '32' makes no sense"),
        ("0 0 0 2 * *", "6 fields where cron has five"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 2,4 *", "never comes"),
        ("* * * * *; ", "schedule entry 2 ('') is empty"),
        ("@reboot", "schedule '@reboot': unknown"),
        ("every", "one duration follows every"),
        ("every 15", "the unit is missing"),
        ("every 500ms", "is not whole seconds from 1s to 366d"),
        ("every 0s", "is not whole seconds from 1s to 366d"),
        ("every 367d", "is not whole seconds from 1s to 366d"),
        (";".join(["* * * * *"] * 33), "33 entries; at most 32"),
        ("9" * 3000, "one line of at most"),
        ("0 0 * * *\n", None),
        ("0 0 * * *;\n0 1 * * *", "one line of at most"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_with_its_place(text, message):
    if message is None:
        assert times.parse(text.strip()).text == "0 0 * * *"
        text, message = "x" + text, "one line of at most"
    with pytest.raises(UsageError) as caught:
        times.parse(text)
    assert message in caught.value.message and caught.value.hint and "\n" not in caught.value.message
    assert len(caught.value.message) < 200


def test_no_text_is_no_schedule():
    assert times.parse("") is None and times.parse("  ") is None


@given(st.text(alphabet="0123456789*/,-;@#L everydhmsmontuajn\n", max_size=40))
def test_any_text_is_a_schedule_with_times_or_refused_in_one_line(text):
    try:
        schedule = times.parse(text)
    except UsageError as error:
        assert "\n" not in error.message
        return
    if schedule is not None:
        found = schedule.next_times(SUNDAY, 5, ZoneInfo("Europe/Berlin"))
        assert found and found == sorted(set(found)) and found[0] > SUNDAY


# ---- the grid of the array papers: months x days of the week x hours, and a time at 00:00 beside hourly ones ----


def cron_of_grid(months, weekdays, hours, midnight=False):
    """The cron list of a grid, as qrep-job(1) writes it down. months: 1-12, weekdays: 0 (Sunday) to 6, hours: 0-23; midnight: also at
    00:00 of every day of these months."""
    days = f"{','.join(map(str, months))} {','.join(map(str, weekdays))}"
    text = f"0 {','.join(map(str, hours))} * {days}"
    return f"{text}; 0 0 * {','.join(map(str, months))} *" if midnight else text


@pytest.mark.parametrize(
    ("months", "weekdays", "hours", "midnight"),
    [((1, 6, 12), (1, 3, 5), (8, 12, 16), False), (range(1, 13), range(1, 6), range(9, 18), True), ((2,), (0, 6), range(24), True)],
)
def test_the_grid_of_months_days_and_hours_is_a_cron_list(months, weekdays, hours, midnight):
    zone, begin = ZoneInfo("Asia/Taipei"), datetime(2025, 12, 31, 23, 59, tzinfo=ZoneInfo("Asia/Taipei"))
    expected = []
    for day in range(1, 366):
        date = datetime.fromordinal(datetime(2025, 12, 31).toordinal() + day)
        in_grid = date.month in months and date.isoweekday() % 7 in weekdays
        at = set(hours) if in_grid else set()
        if midnight and date.month in months:
            at.add(0)
        expected += [date.replace(hour=hour, tzinfo=zone) for hour in sorted(at)]
    found = times.parse(cron_of_grid(months, weekdays, hours, midnight)).next_times(begin, len(expected), zone)
    assert found == expected


def test_an_entry_at_midnight_and_hourly_entries_coexist_and_midnight_comes_once():
    assert following("0 0 * * *; 0 * * * *", 3, datetime(2026, 11, 22, 22, 30, tzinfo=UTC)) == [
        "Sun 22 Nov 23:00:00", "Mon 23 Nov 00:00:00", "Mon 23 Nov 01:00:00",
    ]  # fmt: skip


# ---- the zone ----


def test_the_zone_is_the_configured_one_else_that_of_tz_else_of_the_system_else_utc(tmp_path):
    link, copy = tmp_path / "localtime", tmp_path / "copy"
    zones = tmp_path / "usr" / "zoneinfo" / "Europe"
    zones.mkdir(parents=True)
    from importlib import resources

    berlin = resources.files("tzdata").joinpath("zoneinfo", "Europe", "Berlin").read_bytes()
    (zones / "Berlin").write_bytes(berlin)
    link.symlink_to(zones / "Berlin")
    copy.write_bytes(berlin)
    assert timezone.of_node("America/New_York", {"TZ": "UTC"}, link)[0] == "America/New_York"
    assert timezone.of_node("", {"TZ": ":Asia/Tokyo"}, link)[0] == "Asia/Tokyo"
    assert timezone.of_node("", {}, link) == ("Europe/Berlin", ZoneInfo("Europe/Berlin"))
    name, zone = timezone.of_node("", {}, copy)
    assert name == "local" and datetime(2026, 7, 1, tzinfo=zone).utcoffset().seconds == 7200
    assert timezone.of_node("", {}, tmp_path / "none")[0] == "UTC"
    with pytest.raises(ConfigError, match="TZ: 'CET-1CEST' is no time zone"):
        timezone.of_node("", {"TZ": "CET-1CEST"}, link)
    copy.write_bytes(b"no zone file")
    with pytest.raises(ConfigError, match="cannot be read as a time zone"):
        timezone.of_node("", {}, copy)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Europe/Berln", "did you mean Europe/Berlin?"), ("new york", "did you mean America/New_York?"), ("../../etc/passwd", "IANA"), ("x" * 5000, "IANA"), ("Europe", "did you mean")],
    ids=lambda value: value[:20],
)
def test_a_zone_that_does_not_exist_is_refused_with_the_one_that_was_meant(name, hint):
    with pytest.raises(UsageError) as caught:
        timezone.load(name)
    assert hint in caught.value.hint and len(caught.value.message) < 120


def test_the_configuration_is_checked_for_schedule_rpo_and_what_to_do_with_missed_times():
    fields = {"id": "ab" * 16, "source": "db", "target": "db2", "target_volume": "cd" * 16, "size": 1 << 20, "leaf": 4096, "granule": 8192}
    wrong = dict(bad_values(Job(**fields, schedule="0 25 * * *", rpo="15")))
    assert set(wrong) == {"schedule", "rpo"} and "the hour" in wrong["schedule"].message
    for schedule, rpo in product(("", "every 15m", "0 2 * * *"), ("", "4h")):
        assert not dict(bad_values(Job(**fields, schedule=schedule, rpo=rpo)))
    assert "that fresh" in dict(bad_values(Job(**fields, rpo="500ms")))["rpo"].message
