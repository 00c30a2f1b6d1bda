"""The state database when its disk or its file is bad: what may be lost is told, and nothing is believed that was not written."""

import logging
import os
import sqlite3

import pytest

from qrep.daemon.events import EventLog
from qrep.daemon.statedb import StateDb, StateDbError


@pytest.fixture
def full(tmp_path):
    """A database that takes no further page, as on a full disk."""
    db = StateDb(tmp_path / "state.db")
    db._db.execute("PRAGMA journal_mode=DELETE")
    pages = db._db.execute("PRAGMA page_count").fetchone()[0]
    db._db.execute(f"PRAGMA max_page_count={pages}")
    yield db
    db.close()


@pytest.fixture
def path(tmp_path):
    """A database that was closed in order, with a state, a root and events in it."""
    db = StateDb(tmp_path / "state.db")
    db.set_job("j", "failed", {"code": "x", "text": "y"})
    db.add_root("v", "g", "the root")
    for number in range(5):
        db.add_event(float(number), "info", "run-started", f"event {number}", "db", None, {})
    db.close()
    return tmp_path / "state.db"


def changed(path, *statements):
    """What the rows are changed to by somebody else."""
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


def test_on_a_full_disk_events_and_histories_are_told_on_stderr_and_nothing_is_raised(full, capsys, caplog):
    log = EventLog(full)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            log.add("run-failed", "x", job="db", reason="x" * 100_000)
            full.add_run("ab" * 16, 0.0, {"text": "x" * 100_000})
    assert "not noted" in caplog.text and "disk is full" in caplog.text and "make room" in caplog.text
    assert capsys.readouterr().err.count("run-failed") == 3
    assert log.read() == ([], 0) and full.last_run("ab" * 16) is None


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 4080, b""])
def test_a_file_that_is_no_database_is_kept_aside_and_made_anew_and_that_is_said(path, content):
    path.write_bytes(content)
    db = StateDb(path)
    assert str(path) in db.damage and "made anew of 0 records" in db.damage
    assert not content or (path.parent / "state.db.damaged").read_bytes() == content, "left as it is"
    assert db.job("j")["state"] == "idle" and db.events(0, 0, None, (), (), 10) == []
    assert db.add_event(0.0, "info", "run-started", "", None, None, {}) == 6, "ids are not given twice"
    db.close()
    db = StateDb(path)
    assert db.damage == ""
    db.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE record SET value = replace(value, 'failed', 'idle') WHERE kind = 'job'", "1 of its records are not what was written"),
        ("UPDATE record SET key = 'k' WHERE kind = 'job'", "1 of its records are not what was written"),
        ("DELETE FROM record WHERE kind = 'job'", "not those of its last change"),
        ("UPDATE seal SET sequence = sequence + 1", "its seal is not what was written"),
        ("DELETE FROM seal", "its seal is not what was written"),
        ("PRAGMA user_version=7", "its header is not what was written"),
        ("DROP INDEX event_time", "its tables are not what was made"),
    ],
)
def test_what_was_not_written_is_not_believed_and_what_was_is_kept(path, statement, says):
    changed(path, statement)
    db = StateDb(path)
    assert says in db.damage
    assert db.job("j")["state"] in ("idle", "failed") and db.root("g") == "the root" and len(db.events(0, 0, None, (), (), 10)) == 5
    assert db.job("k")["state"] == "idle"
    db.close()


def test_what_a_schema_that_is_no_text_any_more_does_not_describe_is_lost_alone(path):
    whole = path.read_bytes()
    page = int.from_bytes(whole[16:18])
    text = [place for place in range(whole.index(b"CREATE"), page) if whole[place]]
    for place in text[::23]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        db = StateDb(path)
        records = db.root("g") == "the root" and db.job("j")["state"] == "failed"
        assert db.damage and (records or len(db.events(0, 0, None, (), (), 10)) == 5), place
        db.close()


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        (b"\x17\x15\x15", b"\x17\x14\x15"),  # the type of a table's name: no text any more
        (b"data TEXT NOT NULL, sum BLOB", b"data TEXT NOT NULL, sul BLOB"),
        (b"value TEXT NOT NULL, sum BLOB", b"value TEXT NOT NULL, sul BLOB"),
    ],
)
def test_one_bit_of_the_schema_that_sqlite_can_live_with_is_damage_too(path, was, is_now):
    whole = path.read_bytes()
    assert whole.count(was) == 1 and sum((a ^ b).bit_count() for a, b in zip(was, is_now, strict=True)) == 1
    path.write_bytes(whole.replace(was, is_now))
    db = StateDb(path)
    assert "its tables are not what was made" in db.damage
    assert len(db.events(0, 0, None, (), (), 10)) == 5
    db.close()


def test_a_database_of_another_version_is_refused_with_a_way_out_and_left_as_it_is(tmp_path):
    changed(tmp_path / "state.db", "CREATE TABLE pair (job_id TEXT PRIMARY KEY)", "PRAGMA user_version=1")
    with pytest.raises(StateDbError, match="has format 1; this qrep reads 2") as raised:
        StateDb(tmp_path / "state.db")
    assert "the version of qrep that wrote it" in raised.value.hint and "also who may write here" in raised.value.hint
    db = sqlite3.connect(tmp_path / "state.db")
    assert db.execute("SELECT * FROM pair").fetchall() == []
    db.close()


def test_an_older_database_put_back_is_noticed_and_says_how_far_it_had_got(path):
    before = path.read_bytes()
    db = StateDb(path)
    db.set_job("j", "idle", None)
    db.close()
    path.write_bytes(before)
    db = StateDb(path)
    assert "an older one, or lost its last changes: it had got to change 8, and holds 7" in db.damage
    db.close()


def test_the_last_changes_are_missed_if_the_wal_that_holds_them_rots(tmp_path):
    db = StateDb(tmp_path / "state.db")
    db.set_job("j", "running", None)
    wal = tmp_path / "state.db-wal"
    content = bytearray(wal.read_bytes())
    state = {name: (tmp_path / name).read_bytes() for name in ("state.db", "state.db-age")}
    db.close()  # as if the agent had been killed before
    content[-1] ^= 1
    wal.write_bytes(content)
    for name, data in state.items():
        (tmp_path / name).write_bytes(data)
    db = StateDb(tmp_path / "state.db")
    assert "lost its last changes" in db.damage
    db.close()


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 56, b"QREPAGE1"])
def test_a_number_beside_it_that_rotted_or_is_gone_is_said_and_nothing_else_is_lost(path, content):
    age = path.parent / "state.db-age"
    os.unlink(age)
    if content is not None:
        age.write_bytes(content)
    db = StateDb(path)
    assert "whether the database is the newest one cannot be told" in db.damage and db.job("j")["state"] == "failed"
    db.close()
    db = StateDb(path)
    assert db.damage == ""
    db.close()


def test_an_event_that_rotted_is_told_as_one_that_did(path):
    changed(path, "UPDATE event SET text = 'all is well' WHERE id = 3")
    db = StateDb(path)
    events, _position = EventLog(db, echo=False).read()
    assert [event["code"] for event in events] == ["run-started", "run-started", "event-damaged", "run-started", "run-started"]
    assert "all is well" not in str(events)
    db.close()


def test_only_the_roots_of_generations_within_reach_are_kept(tmp_path):
    db = StateDb(tmp_path / "state.db")
    for generation in ("a", "b", "c"):
        db.add_root("v", generation, f"root {generation}")
    db.add_root("w", "d", "root d")
    db.keep_roots("v", ["b", "c"])
    assert [db.root(generation) for generation in "abcd"] == [None, "root b", "root c", "root d"]
    db.keep_roots("v", [])
    assert db.root("b") is None and db.root("d") == "root d"
    db.close()
