"""What the agent remembers besides maps, undo, superblocks and pairs: states and last runs of jobs, their times, verifies, roots, events. SQLite, durable.

Losing this file costs history, never data and nobody's permission to write: what was committed is in the superblocks, who may write in grants.py. So a full or
failing disk is told on stderr, and the run or the rollback that something could not be noted of goes on: it would be wrong to call it failed.

SQLite has no checksums, so every row has its BLAKE3, all records together have one in `seal`, and a number beside the file (statedbage.py) says how
far it had got. A database that is not what was written is set aside and made anew of the rows that are, and `damage` says so. Records are few and
kept in memory from the start on: an index that rots later misleads nobody.
"""

import json
import logging
import os
import threading
import time

from qrep.daemon import statedbfile as file
from qrep.daemon.statedbage import Age
from qrep.errors import QrepError

log = logging.getLogger("qrep.agent")
EVENTS_FLOOR = 1000  # kept whatever their age: a clock that jumps must not empty the log
PRUNED_AT_ONCE = 5000
# Before format 2 the pairs were in it, and the records of roles had no digests.
WITH_PAIRS = (
    ", but also who may write here: jobs of peers are deleted and created again where their sources are (--initial compare); volumes that were "
    "promoted are removed and added again"
)
ROTTEN = {
    "time": 0.0, "level": "warning", "code": "event-damaged", "job": None, "volume": None, "text": "what was noted here is not what was written", "data": "{}",
}  # fmt: skip


class StateDbError(QrepError):
    """The state database cannot be read or written."""

    code = "state-db"


class StateDb:
    """One connection, one lock; every method is short and safe from any thread. Raises StateDbError if the disk or the file is bad.

    damage: what was wrong with the file that was found, and what became of it; "": nothing.
    """

    def __init__(self, path):
        self.path = str(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        self._lock = threading.Lock()
        self.damage = ""
        self._age = Age(f"{self.path}-age")
        try:
            self._db, self._found = self._open()
        except file.ERRORS as err:
            self._age.close()
            raise self._error(err) from err
        except file.OtherFormat as err:
            self._age.close()
            raise StateDbError(
                f"{self.path} has format {err}; this qrep reads {file.FORMAT}",
                hint=f"use the version of qrep that wrote it; or move {self.path}* away and start the agent: history and states of jobs are lost, no data"
                + (WITH_PAIRS if int(str(err)) < file.FORMAT else ""),
            ) from err
        if self._age.wrong or (self._found.sequence and not self._age.sequence):
            wrong = self._age.wrong or f"{self._age.path} is gone"
            self.damage += f"{'; ' if self.damage else ''}{wrong}: whether the database is the newest one cannot be told this time"
        self._age.note(self._found.sequence, self._found.event)

    def _open(self):
        """(connection, statedbfile.Found), of a new file if the one that is there is damaged."""
        try:
            return file.opened(self.path, self._age)
        except file.Damaged as err:
            kept = file.rebuild(self.path, self._age)
            self.damage = f"{self.path}: {err}; {kept}"
            return file.opened(self.path, self._age)

    def _error(self, err):
        if file.is_damage(err):
            hint = f"start the agent again: it keeps what of {self.path} can be read, and makes the rest anew; history is lost, no data"
        else:
            hint = f"make room on the filesystem of {os.path.dirname(self.path)}, or see what is wrong with it (dmesg), then try again"
        return StateDbError(f"{self.path}: {file.words(err)}", hint=hint)

    def close(self):
        with self._lock:
            self._db.close()
            self._age.close()

    def _all(self, sql, *values):
        with self._lock:
            try:
                return [dict(row) for row in self._db.execute(sql, values)]
            except file.ERRORS as err:
                raise self._error(err) from err

    def _do(self, sql, *values):
        with self._lock:
            try:
                return self._db.execute(sql, values).rowcount
            except file.ERRORS as err:
                raise self._error(err) from err

    def _change(self, records, event=None):
        """One transaction: {(kind, key): value, None to drop it}, and one more event (its columns without id and sum), with the seal. Returns the id of
        the newest event; None if it could not be noted: a warning is told then, and all is as it was."""
        with self._lock:
            try:
                plan = self._found.plan(records, event)
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    for sql, values in plan.statements:
                        self._db.execute(sql, values)
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except file.ERRORS as err:
                error = self._error(err)
            else:
                self._found.apply(plan)
                self._age.note(plan.sequence, plan.event)
                return plan.event
        log.warning("not noted: %s; %s", error.message, error.hint)
        return None

    def _record(self, kind, key):
        """A value that _change noted, or None."""
        return self._found.value(kind, key)

    # jobs: what must survive a restart and is no setting

    def job(self, job_id):
        """{state, problem, taken_up} as set_job left them; an idle job without a problem if it never did."""
        return self._record("job", job_id) or {"state": "idle", "problem": None, "taken_up": 0}

    def set_job(self, job_id, state, problem, taken_up=0):
        """taken_up: how often a run was started again by an agent that found it unfinished."""
        self._change({("job", job_id): {"state": state, "problem": problem or None, "taken_up": taken_up}})

    def drop_job(self, job_id):
        gone = [("job", job_id), ("run", job_id), ("timer", job_id), ("timer", f"{job_id}:verify"), ("verified", job_id)]
        self._change(dict.fromkeys(each for each in gone if self._record(*each) is not None))

    def timer(self, job_id):
        """What set_timer noted (jobs/schedule.py: Timing.record), or None."""
        return self._record("timer", job_id)

    def set_timer(self, job_id, record):
        """Which times have been dealt with, for the next start."""
        self._change({("timer", job_id): record})

    def verified(self, job_id):
        """{last, unfinished}: what the last verify found, or None; whether one was interrupted that is to go on."""
        return self._record("verified", job_id) or {"last": None, "unfinished": False}

    def set_verified(self, job_id, last, unfinished):
        self._change({("verified", job_id): {"last": last or None, "unfinished": bool(unfinished)}})

    def add_run(self, job_id, started, report):
        """The last run that was committed. What became of the others is in the events."""
        self._change({("run", job_id): {"started": started, "ended": time.time(), "report": report}})

    def last_run(self, job_id):
        """{started, ended, report} of the last run that was committed, or None."""
        return self._record("run", job_id)

    # roots of generations that target volumes here hold or held: what a rollback can say without reading the device

    def add_root(self, volume_id, generation, root):
        """Whether it was not known."""
        known = self._record("root", generation) == {"volume": volume_id, "root": root}
        if not known:
            self._change({("root", generation): {"volume": volume_id, "root": root}})
        return not known

    def root(self, generation):
        found = self._record("root", generation)
        return found and found["root"]

    def keep_roots(self, volume_id, generations):
        """Forget the roots of all other generations of a volume."""
        with self._lock:
            known = self._found.values("root")
        gone = [generation for generation, value in known.items() if value["volume"] == volume_id and generation not in generations]
        if gone:
            self._change({("root", generation): None for generation in gone})

    # events

    def add_event(self, moment, level, code, text, job, volume, data):
        """Its id, or None where it could not be noted."""
        return self._change({}, (moment, level, code, job, volume, text, json.dumps(data)))

    def newest_event(self):
        """The highest id that was ever given, 0 for none."""
        return self._found.event

    def prune_events(self, keep, before):
        """Keep the newest `keep` events, and of those what is later than `before` (seconds). A part at a time, so that nobody waits long."""
        newest = self.newest_event()
        sql = """DELETE FROM event WHERE id IN (
            SELECT id FROM event WHERE id <= ? UNION SELECT id FROM event WHERE time < ? AND id <= ? ORDER BY id LIMIT ?)"""
        try:
            self._do(sql, newest - keep, before, newest - min(keep, EVENTS_FLOOR), PRUNED_AT_ONCE)
        except StateDbError as err:
            log.warning("events are not pruned: %s; %s", err.message, err.hint)

    def events(self, after, since, job, levels, codes, limit):
        """levels, codes: only these; empty: all. One that has rotted is told as `event-damaged`: something was there."""
        wanted = [("level", levels), ("code", codes), ("job", [job] if job is not None else [])]
        wanted = [(column, list(values)) for column, values in wanted if values]
        more = "".join(f" AND {column} IN ({','.join('?' * len(values))})" for column, values in wanted)
        values = [value for _column, given in wanted for value in given]
        rows = self._all(f"SELECT * FROM event WHERE id > ? AND time >= ?{more} ORDER BY id LIMIT ?", after, since, *values, limit)
        return [row if row.pop("sum") == file.sum_of_event(*row.values()) else ROTTEN | {"id": row["id"]} for row in rows]
