"""The state database when its disk or its file is bad: what must be remembered fails with a way out, what may be lost is told."""

import logging

import pytest

from qrep.daemon.events import EventLog
from qrep.daemon.statedb import StateDb, StateDbError

PAIR = {"peer": "a", "fingerprint": "SHA256:00", "job": "db", "source": "db", "volume": "db", "size": 4096, "sync_points": 7}


@pytest.fixture
def full(tmp_path):
    """A database that takes no further page, as on a full disk."""
    db = StateDb(tmp_path / "state.db")
    db._db.execute("PRAGMA journal_mode=DELETE")
    pages = db._db.execute("PRAGMA page_count").fetchone()[0]
    db._db.execute(f"PRAGMA max_page_count={pages}")
    yield db
    db.close()


def test_on_a_full_disk_events_and_histories_are_told_on_stderr_and_nothing_is_raised(full, capsys, caplog):
    log = EventLog(full)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            log.add("run-failed", "x", job="db", reason="x" * 100_000)
            full.add_run("ab" * 16, 0.0, "committed", {"text": "x" * 100_000})
    assert "not noted" in caplog.text and "disk is full" in caplog.text and "make room" in caplog.text
    assert capsys.readouterr().err.count("run-failed") == 3
    assert log.read() == ([], 0)


def test_on_a_full_disk_a_pair_that_cannot_be_remembered_is_an_error_with_a_way_out(full):
    with pytest.raises(StateDbError, match="disk is full") as raised:
        full.add_pair("ab" * 16, **PAIR | {"source": "x" * 100_000})
    assert "make room" in raised.value.hint and raised.value.exit_code == 1
    assert full.pairs() == []


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_no_database_is_named_with_a_way_out(tmp_path, content):
    path = tmp_path / "state.db"
    path.write_bytes(content)
    with pytest.raises(StateDbError) as raised:
        StateDb(path)
    assert str(path) in raised.value.message and "move" in raised.value.hint
    assert path.read_bytes() == content, "left as it is"


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
