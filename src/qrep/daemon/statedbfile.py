"""The state database as a file: its tables, the digests in them, what is looked at before it is believed, and making it anew of what can be."""

import contextlib
import json
import os
import sqlite3

from qrep._native import hasher
from qrep.store import flush

FORMAT = 2
# A record is what a key's newest value is, in JSON. The seal is one row: how many changes there were, the newest event, and the records' sums as one.
SCHEMA = {
    "record": "CREATE TABLE record (kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, sum BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID",
    "event": "CREATE TABLE event (id INTEGER PRIMARY KEY, time REAL NOT NULL, level TEXT NOT NULL, code TEXT NOT NULL, job TEXT, volume TEXT, "
    "text TEXT NOT NULL, data TEXT NOT NULL, sum BLOB NOT NULL)",
    "event_time": "CREATE INDEX event_time ON event (time)",
    "seal": "CREATE TABLE seal (one INTEGER PRIMARY KEY, format INTEGER NOT NULL, sequence INTEGER NOT NULL, event INTEGER NOT NULL, "
    "digest BLOB NOT NULL, sum BLOB NOT NULL)",
}
PUT_RECORD = "INSERT OR REPLACE INTO record VALUES (?,?,?,?)"
PUT_EVENT = "INSERT OR REPLACE INTO event VALUES (?,?,?,?,?,?,?,?,?)"
PUT_SEAL = "INSERT OR REPLACE INTO seal VALUES (1,?,?,?,?,?)"
# Of a file that may be written: the disk's or the machine's fault, not the file's.
NOT_THE_FILE = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL,
}  # fmt: skip

# What is said of a file: SQLite's errors quote a damaged schema, and what is no text then cannot be made into one of them.
ERRORS = (sqlite3.Error, UnicodeDecodeError)


class Damaged(Exception):
    """The database is not what was written."""


class OtherFormat(Exception):
    """Another version of qrep wrote it."""


def is_damage(err):
    """Whether one of ERRORS is about what is in the file."""
    return getattr(err, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in NOT_THE_FILE


def words(err):
    """What one of ERRORS says."""
    return "its tables are not what was made" if isinstance(err, UnicodeDecodeError) else str(err)


def _sum(*values):
    """32 bytes, or None if a value is of a kind that is never written."""
    try:
        return hasher.hash(json.dumps(values).encode())
    except (TypeError, ValueError):
        return None


def sum_of_record(kind, key, value):
    return _sum("record", kind, key, value)


def sum_of_event(*values):
    """values: as the columns of the table, without the sum."""
    return _sum("event", *values)


def _sum_of_seal(form, sequence, event, digest):
    return _sum("seal", form, sequence, event, digest.hex() if isinstance(digest, bytes) else digest)


class Plan:
    """A change: the statements that make it, and what is found after it."""

    def __init__(self, statements, sequence, event, digest, records):
        self.statements, self.sequence, self.event, self.digest, self.records = statements, sequence, event, digest, records


class Found:
    """What a database holds, but for its events. records: {(kind, key): (JSON, its sum)}. digest: their sums, all XORed."""

    def __init__(self, sequence=0, event=0):
        self.sequence, self.event, self.digest, self.records = sequence, event, 0, {}

    def value(self, kind, key):
        found = self.records.get((kind, key))
        return found and json.loads(found[0])

    def values(self, kind):
        """{key: value}."""
        return {key: json.loads(text) for (of, key), (text, _sum) in self.records.items() if of == kind}

    def add(self, kind, key, text, digest):
        self.records[kind, key] = text, digest
        self.digest ^= int.from_bytes(digest)

    def plan(self, changes, event=None):
        """changes: {(kind, key): value, None to drop it}. event: the columns of one more, without its id and its sum."""
        statements, records, digest, newest = [], {}, self.digest, self.event
        for (kind, key), value in changes.items():
            before = self.records.get((kind, key))
            digest ^= int.from_bytes(before[1]) if before else 0
            if value is None:
                statements.append(("DELETE FROM record WHERE kind=? AND key=?", (kind, key)))
                records[kind, key] = None
            else:
                text = json.dumps(value)
                records[kind, key] = text, sum_of_record(kind, key, text)
                statements.append((PUT_RECORD, (kind, key, *records[kind, key])))
                digest ^= int.from_bytes(records[kind, key][1])
        if event is not None:
            newest += 1
            row = (newest, float(event[0]), *event[1:])
            statements.append((PUT_EVENT, (*row, sum_of_event(*row))))
        statements.append(_seal(self.sequence + 1, newest, digest))
        return Plan(statements, self.sequence + 1, newest, digest, records)

    def apply(self, plan):
        """It is durable."""
        self.sequence, self.event, self.digest = plan.sequence, plan.event, plan.digest
        for where, record in plan.records.items():
            if record is None:
                self.records.pop(where, None)
            else:
                self.records[where] = record


def _seal(sequence, event, digest):
    digest = digest.to_bytes(32)
    return PUT_SEAL, (FORMAT, sequence, event, digest, _sum_of_seal(FORMAT, sequence, event, digest))


def _connect(path):
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    db.row_factory = sqlite3.Row
    db.text_factory = lambda data: data.decode(errors="replace")  # which its sum then does not fit
    return db


def opened(path, age):
    """(connection, Found). Raises Damaged, OtherFormat, or what sqlite3 says of the disk."""
    db = _connect(path)
    try:
        return db, _checked(db, age)
    except BaseException as err:
        with contextlib.suppress(sqlite3.Error):
            db.close()
        if isinstance(err, ERRORS) and is_damage(err):
            raise Damaged(words(err)) from err
        raise


def _checked(db, age):
    db.execute("PRAGMA cell_size_check=ON")
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    tables = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_autoindex%'").fetchall())  # of any type, where they rotted
    if not tables and version == 0:
        if age.sequence:
            raise Damaged("it is gone, or empty")
        _create(db, Found())
        return Found()
    seal = _read_seal(db) if "seal" in tables else None
    if version != FORMAT:
        if version and (seal is None or seal["format"] == version):  # a seal of that format says so, too: a newer qrep wrote it
            raise OtherFormat(version)
        raise Damaged("its header is not what was written")
    if tables != SCHEMA:
        raise Damaged("its tables are not what was made")
    problems = [row[0] for row in db.execute("PRAGMA integrity_check(1)")]
    if problems != ["ok"]:
        raise Damaged(" ".join(problems[0].split()))
    if seal is None:
        raise Damaged("its seal is not what was written")
    db.execute("BEGIN IMMEDIATE")  # refused if the header says that nobody may write
    db.execute("COMMIT")
    return _checked_rows(db, seal, age)


def _checked_rows(db, seal, age):
    found = Found(seal["sequence"], seal["event"])
    rotten = 0
    for row in db.execute("SELECT * FROM record"):
        if row["sum"] is not None and row["sum"] == sum_of_record(row["kind"], row["key"], row["value"]):
            found.add(*row)
        else:
            rotten += 1
    if rotten:
        raise Damaged(f"{rotten} of its records are not what was written")
    if found.digest != int.from_bytes(seal["digest"]):
        raise Damaged("its records are not those of its last change: some are older, or are gone")
    if seal["sequence"] < age.sequence:
        raise Damaged(f"it is an older one, or lost its last changes: it had got to change {age.sequence}, and holds {seal['sequence']}")
    newest = db.execute("SELECT max(id) FROM event").fetchone()[0] or 0
    if newest > found.event:
        raise Damaged("it has events that are newer than itself")
    return found


def _read_seal(db):
    """The one row, if it is what was written."""
    try:
        rows = db.execute("SELECT format, sequence, event, digest, sum FROM seal").fetchall()
    except ERRORS as err:
        if not is_damage(err):
            raise
        return None
    if len(rows) != 1 or rows[0]["sum"] is None or rows[0]["sum"] != _sum_of_seal(*rows[0][:4]):
        return None
    return rows[0]


def _create(db, found):
    """All in one transaction: a crash leaves nothing or a whole one."""
    db.execute("BEGIN")
    for sql in SCHEMA.values():
        db.execute(sql)
    db.execute(*_seal(found.sequence, found.event, found.digest))
    for (kind, key), (text, digest) in found.records.items():
        db.execute(PUT_RECORD, (kind, key, text, digest))
    db.execute(f"PRAGMA user_version={FORMAT}")
    db.execute("COMMIT")


# ---- what is done about damage ----


def rebuild(path, age):
    """Make the database anew of the rows in it that are what was written; what was there is kept beside it. Returns what was kept, in words.

    A crash before the new one has its name leaves the old one, or the old one without its WAL, and this is done again.
    """
    found, events = _salvaged(path)
    found.sequence, found.event = max(found.sequence, age.sequence), max(found.event, age.event, *events, 0)
    new, aside = f"{path}.new", f"{path}.damaged"
    for suffix in ("", "-wal", "-shm"):
        _remove(new + suffix)
    with contextlib.closing(_connect(new)) as db:
        db.execute("PRAGMA synchronous=FULL")
        _create(db, found)
        db.execute("BEGIN")
        db.executemany(PUT_EVENT, ((number, *row) for number, row in sorted(events.items())))
        db.execute("COMMIT")
    for suffix in ("", "-wal", "-shm"):
        _remove(aside + suffix)
    os.link(path, aside)
    for suffix in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.replace(path + suffix, aside + suffix)
    os.replace(new, path)
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush(descriptor, path)
    finally:
        os.close(descriptor)
    return f"made anew of {len(found.records)} records and {len(events)} events that are what was written, some perhaps older; the old one is {aside}"


def _remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _salvaged(path):
    """(Found, {id: columns of an event with its sum}): every row that can be read and is what was written."""
    found, events = Found(), {}

    def rows(sql):
        try:
            yield from db.execute(sql)
        except ERRORS as err:
            if not is_damage(err):
                raise

    with contextlib.closing(_connect(path)) as db:
        list(rows("PRAGMA writable_schema=ON"))  # a table that is not described any more leaves the others readable
        for seal in rows("SELECT format, sequence, event, digest, sum FROM seal"):
            if seal["sum"] is not None and seal["sum"] == _sum_of_seal(*seal[:4]):
                found.sequence, found.event = seal["sequence"], seal["event"]
        for row in rows("SELECT kind, key, value, sum FROM record"):
            if row["sum"] is not None and row["sum"] == sum_of_record(*row[:3]) and (row["kind"], row["key"]) not in found.records:
                found.add(*row)
        for order in ("ASC", "DESC"):  # from both ends, up to what cannot be read
            for row in map(tuple, rows(f"SELECT * FROM event ORDER BY id {order}")):  # by place: a column's name may be what rotted
                if len(row) == 9 and row[8] is not None and row[8] == sum_of_event(*row[:8]):
                    events[row[0]] = row[1:]
    return found, events
