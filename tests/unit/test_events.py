"""The event log: what is told, what is counted instead, what is read again, and how much is kept."""

import time

import pytest

from qrep.daemon import repeats
from qrep.daemon.events import CODES, LEVELS, LIMIT, EventLog
from qrep.daemon.repeats import PERIOD_S, TOLD_MAX, Repeats
from qrep.daemon.statedb import EVENTS_FLOOR, StateDb
from qrep.settings import EventsSection


@pytest.fixture
def db(tmp_path):
    db = StateDb(tmp_path / "state.db")
    yield db
    db.close()


@pytest.fixture
def log(db):
    return EventLog(db, echo=False)


def texts(log, **wanted):
    return [event["text"] for event in log.read(**wanted)[0]]


def test_every_level_is_one_of_three():
    assert {level for level, _text in CODES.values()} == set(LEVELS)


def test_events_are_found_by_job_by_level_or_worse_and_by_code(log):
    log.add("run-started", "one", job="db")
    log.add("run-interrupted", "two", job="db")
    log.add("run-failed", "three", job="web")
    assert texts(log) == ["one", "two", "three"]
    assert texts(log, job="db") == ["one", "two"]
    assert texts(log, level="warning") == ["two", "three"] and texts(log, level="error") == ["three"]
    assert texts(log, codes=["run-started", "run-failed"]) == ["one", "three"]
    assert texts(log, codes=["run-started"], job="web") == []
    assert texts(log, since=time.time() + 60) == []


def test_a_reader_goes_on_where_it_was_also_past_events_that_it_does_not_want(log, monkeypatch):
    monkeypatch.setattr("qrep.daemon.events.LIMIT", 4)
    for number in range(10):
        log.add("run-started", f"{number}", job="db" if number % 2 else "web")
    found, position, readings = [], 0, 0
    while True:
        events, position = log.read(position, job="db")
        if not events:
            break
        readings, found = readings + 1, found + [event["text"] for event in events]
    assert (found, readings) == (["1", "3", "5", "7", "9"], 2)
    assert log.read(0, job="mail") == ([], 10) and not log.wait(10, 0), "nothing to wake up for"


def test_a_log_that_was_lost_and_begun_anew_is_read_from_its_beginning(log):
    log.add("run-started", "the new log", job="db")
    assert texts(log, after=4711) == ["the new log"]


def test_a_reader_that_has_an_event_before_it_is_told_does_not_begin_anew(db, log):
    log.add("agent-started", "first")
    known = log.read()[1]
    row = db.add_event(1.0, "info", "agent-started", "in the database, and still being told", None, None, {})
    assert [event["id"] for event in log.read(known)[0]] == [row]
    assert log.read(row) == ([], row)


def test_ids_go_on_after_a_restart_even_if_nothing_was_kept(tmp_path):
    db = StateDb(tmp_path / "state.db")
    log = EventLog(db, echo=False)
    log.add("run-started", "old", job="db")
    db._do("DELETE FROM event")
    db.close()
    db = StateDb(tmp_path / "state.db")
    log = EventLog(db, echo=False)
    assert log.last == 1
    log.add("run-started", "new", job="db")
    assert [event["id"] for event in log.read(1)[0]] == [2]
    db.close()


def test_what_flaps_is_told_some_times_and_then_counted(log, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("qrep.daemon.events.time.monotonic", lambda: now[0])
    for _ in range(1000):
        log.add("run-interrupted", "link down", job="db")
        log.tell_suppressed()
    log.add("run-interrupted", "another job", job="web")
    assert len(texts(log, job="db")) == TOLD_MAX and texts(log, job="web") == ["another job"]
    now[0] += PERIOD_S
    log.tell_suppressed()
    last = log.read(codes=["events-suppressed"])[0]
    assert [event["text"] for event in last] == [f"run-interrupted: {1000 - TOLD_MAX} more were not told one by one"]
    assert last[0]["data"] == {"suppressed": "run-interrupted", "count": 1000 - TOLD_MAX} and last[0]["job"] == "db"
    assert log.counts["warning"] == 1001, "metrics know of all of them"
    log.add("run-interrupted", "a new period", job="db")
    assert texts(log)[-1] == "a new period"


def test_at_the_end_what_was_counted_is_told_though_its_period_goes_on(log):
    for _ in range(TOLD_MAX + 5):
        log.add("run-interrupted", "link down", job="db")
    log.tell_suppressed(everything=True)
    assert texts(log)[-1].startswith("run-interrupted: 5 more")


def test_however_many_subjects_there_are_memory_is_bounded_and_no_count_is_lost_before_a_quiet_one(monkeypatch):
    monkeypatch.setattr(repeats, "SUBJECTS_MAX", 8)
    found = Repeats(told_max=1)
    for _ in range(3):
        found.admit("loud", 0.0)
    for number in range(100):
        assert found.admit(number, 0.0)
    assert len(found._windows) == 8
    assert found.due(PERIOD_S) == [("loud", 2)] and found.due(PERIOD_S) == []


def test_a_period_that_ended_with_a_count_goes_on_until_the_count_was_told():
    found = Repeats(told_max=1)
    assert [found.admit("a", 0.0), found.admit("a", 1.0), found.admit("a", PERIOD_S + 1)] == [True, False, False]
    assert found.due(PERIOD_S + 1) == [("a", 2)] and found.admit("a", PERIOD_S + 2)


def test_only_so_many_events_are_kept(db, log):
    for number in range(EVENTS_FLOOR + 50):
        db.add_event(time.time(), "info", "run-started", f"{number}", None, None, {})
    log = EventLog(db, echo=False)
    log.prune(EventsSection(keep=EVENTS_FLOOR))
    assert (len(db.events(0, 0, None, (), (), LIMIT * 2)), log.read()[0][0]["text"]) == (EVENTS_FLOOR, "50")


def test_old_events_go_but_a_clock_that_jumps_does_not_empty_the_log(db):
    for number in range(EVENTS_FLOOR + 50):
        db.add_event(0.0, "info", "run-started", f"{number}", None, None, {})
    EventLog(db, echo=False).prune(EventsSection(keep_for="1d"))
    assert len(db.events(0, 0, None, (), (), LIMIT * 2)) == EVENTS_FLOOR


def test_who_listens_gets_what_is_told_and_not_what_is_counted(log):
    heard = []
    log.listeners.append(heard.append)
    for _ in range(TOLD_MAX * 2):
        log.add("run-failed", "x", job="db", reason="system")
    assert len(heard) == TOLD_MAX
    assert heard[0] | {"time": ""} == {
        "id": 1, "time": "", "level": "error", "code": "run-failed", "job": "db", "volume": None, "text": "x", "data": {"reason": "system"},
    }  # fmt: skip


def test_a_text_of_any_length_from_anywhere_is_one_short_line(log):
    log.add("peer-refused", "a\nb\x1b[2J" + "x" * 100_000)
    (text,) = texts(log)
    assert text.startswith("a\\nb\\x1b[2J") and len(text) < 3000


@pytest.mark.parametrize(("journal", "line"), [("9:1", "<3>qrep error: run-failed: db: x\n"), (None, "qrep error: run-failed: db: x\n")])
def test_the_journal_is_told_the_level_of_a_line(db, capsys, monkeypatch, journal, line):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", journal)
    EventLog(db).add("run-failed", "x", job="db")
    assert capsys.readouterr().err == line
