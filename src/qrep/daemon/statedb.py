"""What the agent remembers besides maps, undo and superblocks: pairs, epochs, the history of runs, events. SQLite, durable.

Losing this file costs history and pair records, never data: what was committed is in the superblocks. So a full or failing disk
fails what must be remembered (pairs), while events, histories and states of jobs that cannot be noted are told on stderr, and the
run or the rollback they are about goes on: it would be wrong to call it failed.
"""

import json
import logging
import os
import sqlite3
import threading
import time

from qrep.errors import QrepError

log = logging.getLogger("qrep.agent")
SCHEMA_VERSION = 1
EVENTS_FLOOR = 1000  # kept whatever their age: a clock that jumps must not empty the log
PRUNED_AT_ONCE = 5000
RUNS_KEPT = 100  # per job
SCHEMA = """
CREATE TABLE pair (job_id TEXT PRIMARY KEY, peer TEXT NOT NULL, fingerprint TEXT NOT NULL, job TEXT NOT NULL, source TEXT NOT NULL,
    volume TEXT NOT NULL, size INTEGER NOT NULL, sync_points INTEGER NOT NULL, created REAL NOT NULL);
CREATE TABLE job (job_id TEXT PRIMARY KEY, state TEXT NOT NULL, problem TEXT, taken_up INTEGER NOT NULL);
CREATE TABLE root (generation TEXT PRIMARY KEY, volume_id TEXT NOT NULL, root TEXT NOT NULL);
CREATE TABLE run (id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, started REAL NOT NULL, ended REAL NOT NULL, outcome TEXT NOT NULL, report TEXT NOT NULL);
CREATE INDEX run_of_job ON run (job_id, id);
CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, level TEXT NOT NULL, code TEXT NOT NULL,
    job TEXT, volume TEXT, text TEXT NOT NULL, data TEXT NOT NULL);
CREATE INDEX event_time ON event (time);
"""
# Tables that were added since, so that databases without them can be gone on with.
SCHEMA_ADDED = """
CREATE TABLE IF NOT EXISTS verified (job_id TEXT PRIMARY KEY, last TEXT, unfinished INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS timer (job_id TEXT PRIMARY KEY, schedule TEXT, handled REAL, since REAL, rpo_passed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS once (job_id TEXT PRIMARY KEY, peer TEXT NOT NULL, fingerprint TEXT NOT NULL, volume_id TEXT NOT NULL, generation TEXT NOT NULL, counter INTEGER NOT NULL);
"""
COLUMNS_ADDED = (("pair", "keep", "TEXT NOT NULL DEFAULT ''"),)


class StateDbError(QrepError):
    """The state database cannot be read or written."""

    code = "state-db"


class StateDb:
    """One connection, one lock; every method is short and safe from any thread. Raises StateDbError if the disk or the file is bad."""

    def __init__(self, path):
        self.path = str(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self):
        try:
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            if version in (0, SCHEMA_VERSION):
                self._db.executescript(SCHEMA_ADDED)
                for table, column, kind in COLUMNS_ADDED:
                    if column not in {row["name"] for row in self._db.execute(f"PRAGMA table_info({table})")}:
                        self._db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        except sqlite3.Error as err:
            raise self._error(err) from err
        if version not in (0, SCHEMA_VERSION):
            raise StateDbError(
                f"{self.path} has format {version}; this qrep reads {SCHEMA_VERSION}", hint="use the version of qrep that wrote it"
            )

    def _error(self, err):
        if isinstance(err, sqlite3.OperationalError):
            hint = f"make room on the filesystem of {os.path.dirname(self.path)}, or see what is wrong with it (dmesg), then try again"
        else:
            hint = (
                f"move {self.path}* away and start the agent: history and leave for peers' jobs to write here are lost, no data; "
                "those jobs are deleted and created again where their sources are"
            )
        return StateDbError(f"{self.path}: {err}", hint=hint)

    def close(self):
        with self._lock:
            self._db.close()

    def _all(self, sql, *values):
        with self._lock:
            try:
                return [dict(row) for row in self._db.execute(sql, values)]
            except sqlite3.Error as err:
                raise self._error(err) from err

    def _do(self, sql, *values):
        with self._lock:
            try:
                return self._db.execute(sql, values).lastrowid
            except sqlite3.Error as err:
                raise self._error(err) from err

    def _note(self, sql, *values):
        """As _do, for what may be lost: a failure is told on stderr, and None returned."""
        try:
            return self._do(sql, *values)
        except StateDbError as err:
            log.warning("not noted: %s; %s", err.message, err.hint)
            return None

    # pairs: who may write to which volume here

    def add_pair(self, job_id, *, peer, fingerprint, job, source, volume, size, sync_points, keep=""):
        self._do(
            "INSERT OR REPLACE INTO pair (job_id, peer, fingerprint, job, source, volume, size, sync_points, created, keep) VALUES (?,?,?,?,?,?,?,?,?,?)",
            job_id,
            peer,
            fingerprint,
            job,
            source,
            volume,
            size,
            sync_points,
            time.time(),
            keep,
        )

    def pair(self, job_id):
        rows = self._all("SELECT * FROM pair WHERE job_id=?", job_id)
        return rows[0] if rows else None

    def pairs(self, volume=None):
        return self._all("SELECT * FROM pair WHERE ? IS NULL OR volume=? ORDER BY job", volume, volume)

    def set_pair_retention(self, job_id, sync_points, keep):
        self._do("UPDATE pair SET sync_points=?, keep=? WHERE job_id=?", sync_points, keep, job_id)

    def drop_pair(self, job_id):
        self._do("DELETE FROM pair WHERE job_id=?", job_id)

    # pairs that are written to once: generation is "" until the target was given back, and the pair is gone from then on

    def add_once(self, job_id, *, peer, fingerprint, volume_id):
        self._do("INSERT OR REPLACE INTO once VALUES (?,?,?,?,'',0)", job_id, peer, fingerprint, volume_id)

    def once(self, job_id):
        rows = self._all("SELECT * FROM once WHERE job_id=?", job_id)
        return rows[0] if rows else None

    def all_once(self):
        return self._all("SELECT * FROM once ORDER BY job_id")

    def finish_once(self, job_id, generation, counter):
        """In one transaction: what was made is noted, and the pair is gone."""
        with self._lock:
            try:
                with self._db:
                    self._db.execute("BEGIN")
                    self._db.execute("UPDATE once SET generation=?, counter=? WHERE job_id=?", (generation, counter, job_id))
                    self._db.execute("DELETE FROM pair WHERE job_id=?", (job_id,))
            except sqlite3.Error as err:
                raise self._error(err) from err

    def drop_once(self, job_id):
        self._do("DELETE FROM once WHERE job_id=?", job_id)

    # jobs: what must survive a restart and is no setting

    def job(self, job_id):
        """{state, problem, taken_up} as set_job left them; an idle job without a problem if it never did."""
        rows = self._all("SELECT state, problem, taken_up FROM job WHERE job_id=?", job_id)
        if not rows:
            return {"state": "idle", "problem": None, "taken_up": 0}
        return rows[0] | {"problem": json.loads(rows[0]["problem"]) if rows[0]["problem"] else None}

    def set_job(self, job_id, state, problem, taken_up=0):
        """taken_up: how often a run was started again by an agent that found it unfinished."""
        self._note("INSERT OR REPLACE INTO job VALUES (?,?,?,?)", job_id, state, json.dumps(problem) if problem else None, taken_up)

    def drop_job(self, job_id):
        self._do("DELETE FROM job WHERE job_id=?", job_id)
        self._do("DELETE FROM run WHERE job_id=?", job_id)
        self._do("DELETE FROM timer WHERE job_id IN (?, ?)", job_id, f"{job_id}:verify")
        self._do("DELETE FROM verified WHERE job_id=?", job_id)

    def timer(self, job_id):
        """What set_timer noted (jobs/schedule.py: Timing.record), or None."""
        rows = self._all("SELECT schedule, handled, since, rpo_passed FROM timer WHERE job_id=?", job_id)
        return rows[0] if rows else None

    def set_timer(self, job_id, record):
        """Which times have been dealt with, for the next start."""
        self._note(
            "INSERT OR REPLACE INTO timer VALUES (?,?,?,?,?)", job_id, record["schedule"], record["handled"], record["since"], record["rpo_passed"]
        )

    def verified(self, job_id):
        """{last, unfinished}: what the last verify found, or None; whether one was interrupted that is to go on."""
        rows = self._all("SELECT last, unfinished FROM verified WHERE job_id=?", job_id)
        if not rows:
            return {"last": None, "unfinished": False}
        return {"last": json.loads(rows[0]["last"]) if rows[0]["last"] else None, "unfinished": bool(rows[0]["unfinished"])}

    def set_verified(self, job_id, last, unfinished):
        self._note("INSERT OR REPLACE INTO verified VALUES (?,?,?)", job_id, json.dumps(last) if last else None, unfinished)

    def add_run(self, job_id, started, outcome, report):
        self._note(
            "INSERT INTO run (job_id, started, ended, outcome, report) VALUES (?,?,?,?,?)",
            job_id,
            started,
            time.time(),
            outcome,
            json.dumps(report),
        )
        self._note(
            "DELETE FROM run WHERE job_id=? AND id NOT IN (SELECT id FROM run WHERE job_id=? ORDER BY id DESC LIMIT ?)",
            job_id,
            job_id,
            RUNS_KEPT,
        )

    def last_run(self, job_id, outcome="committed"):
        rows = self._all("SELECT * FROM run WHERE job_id=? AND outcome=? ORDER BY id DESC LIMIT 1", job_id, outcome)
        return rows[0] | {"report": json.loads(rows[0]["report"])} if rows else None

    # roots of generations that target volumes here hold or held: what a rollback can say without reading the device

    def add_root(self, volume_id, generation, root):
        self._note("INSERT OR REPLACE INTO root VALUES (?,?,?)", generation, volume_id, root)

    def root(self, generation):
        rows = self._all("SELECT root FROM root WHERE generation=?", generation)
        return rows[0]["root"] if rows else None

    def keep_roots(self, volume_id, generations):
        """Forget the roots of all other generations of a volume."""
        kept = ",".join("?" * len(generations))
        self._note(f"DELETE FROM root WHERE volume_id=? AND generation NOT IN ({kept})", volume_id, *generations)

    # events

    def add_event(self, moment, level, code, text, job, volume, data):
        """Its id, or None where it could not be noted."""
        return self._note(
            "INSERT INTO event (time, level, code, job, volume, text, data) VALUES (?,?,?,?,?,?,?)",
            moment,
            level,
            code,
            job,
            volume,
            text,
            json.dumps(data),
        )

    def newest_event(self):
        """The highest id that was ever given, 0 for none."""
        rows = self._all("SELECT seq FROM sqlite_sequence WHERE name='event'")
        return rows[0]["seq"] if rows else 0

    def prune_events(self, keep, before):
        """Keep the newest `keep` events, and of those what is later than `before` (seconds). A part at a time, so that nobody waits long."""
        newest = self.newest_event()
        sql = """DELETE FROM event WHERE id IN (
            SELECT id FROM event WHERE id <= ? UNION SELECT id FROM event WHERE time < ? AND id <= ? ORDER BY id LIMIT ?)"""
        self._note(sql, newest - keep, before, newest - min(keep, EVENTS_FLOOR), PRUNED_AT_ONCE)

    def events(self, after, since, job, levels, codes, limit):
        """levels, codes: only these; empty: all."""
        wanted = [("level", levels), ("code", codes), ("job", [job] if job is not None else [])]
        wanted = [(column, list(values)) for column, values in wanted if values]
        more = "".join(f" AND {column} IN ({','.join('?' * len(values))})" for column, values in wanted)
        values = [value for _column, given in wanted for value in given]
        return self._all(f"SELECT * FROM event WHERE id > ? AND time >= ?{more} ORDER BY id LIMIT ?", after, since, *values, limit)
