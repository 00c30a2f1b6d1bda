"""What the agent remembers, rotting: one place of the pairs' files, of the state database or of a standing is corrupted, and all are opened as an agent
opens them.

    rot = StateRot(directory, seed)
    rot.trial(number)              # raises Lie, or whatever qrep should not have raised

A pair is what was written last, or nobody may write. A record is what was written last, or damage is told; an event is what was noted, or told as damaged.
A standing, which counts only with the superblock that it was written for, is one that was written, or refused.
"""

import json
import os
import random
from pathlib import Path

import oracle
import overheard
from fault.rot import PAGE, Lie, Tree

from qrep import store
from qrep.daemon import standing
from qrep.daemon.grants import NAMES, Grants, GrantsError
from qrep.daemon.statedb import StateDb, StateDbError
from qrep.errors import DamagedError

FILES = (*NAMES, "state.db", "state.db-wal", "state.db-age", standing.NAME)
KINDS = ("flip", "flip", "flip", "zero", "swap", "older page", "older file", "older database", "cut", "gone")
STAGES, JOBS, EVENTS_PER_STAGE = 4, 6, 12
WRITTEN_AFTER_ONE_IN = 8


class StateRot:
    """trees: {scene: [Tree after each stage]}. ever: {(kind, key): [every value, as JSON, None: dropped]}. Counts: refused, rebuilt, healed, untouched."""

    def __init__(self, directory, seed):
        self.directory, self.seed = Path(directory), seed
        self.directory.chmod(0o700)
        self.trees, self.ever, self.events = {"closed": [], "killed": []}, {}, {}
        self.standings = []
        self.refused = self.rebuilt = self.healed = self.untouched = 0
        self._make()

    def _make(self):
        chance = random.Random(self.seed)
        for stage in range(STAGES):
            with store.Directory(self.directory) as directory:
                grants, db = Grants(directory), StateDb(self.directory / "state.db")
                self._change(chance, stage, grants, db)
                self.trees["killed"].append(Tree(self.directory))  # its last changes are in the WAL
                db.close()
            self.trees["closed"].append(Tree(self.directory))
        self.pairs, self.once = grants.pairs(), grants.all_once()
        self.records = {where: values[-1] for where, values in self.ever.items()}

    def _note(self, kind, key, value):
        self.ever.setdefault((kind, key), [None]).append(None if value is None else json.dumps(value))

    def _change(self, chance, stage, grants, db):
        self.standings.append(
            standing.StandingFile(
                id=chance.randbytes(16).hex(), role=chance.choice(["primary", "replica"]), job_id="0" * 32, job="job0", peer=f"host{stage}", other="s",
                other_id="1" * 32, why="", at=chance.random(), size=chance.randrange(1 << 40), leaf=4096, granule=8 << 20, sync_points=stage, done=True,
            )
        )  # fmt: skip
        standing.save(self.directory, self.standings[-1])
        for number in range(JOBS):
            job, volume = f"{number:032x}", f"volume{number}"
            if stage == 0 or chance.random() < 0.3:
                grants.add_pair(
                    job, peer=f"host{chance.randrange(9)}", fingerprint=f"SHA256:{chance.randbytes(32).hex()}", job=f"job{number}", source="s",
                    volume=volume, size=chance.randrange(1 << 40), sync_points=chance.randrange(256), keep="",
                )  # fmt: skip
            if chance.random() < 0.2:
                grants.drop_pair(job)
            if chance.random() < 0.1:
                grants.add_once(job, peer="", fingerprint="", volume_id=chance.randbytes(16).hex())
            state, problem = chance.choice(["idle", "running", "failed"]), chance.choice([None, {"code": "x", "text": "y" * chance.randrange(300)}])
            db.set_job(job, state, problem, stage)
            self._note("job", job, {"state": state, "problem": problem, "taken_up": stage})
            timer = {"schedule": "every 5m", "handled": chance.random() * 1e9, "since": 1.0, "rpo_passed": False}
            db.set_timer(job, timer)
            self._note("timer", job, timer)
            found = {"equal": chance.random() < 0.5, "generation": chance.randbytes(16).hex()}
            db.set_verified(job, found, False)
            self._note("verified", job, {"last": found, "unfinished": False})
            generation, root = chance.randbytes(16).hex(), chance.randbytes(32).hex()
            db.add_root(volume, generation, root)
            self._note("root", generation, {"volume": volume, "root": root})
        for _ in range(EVENTS_PER_STAGE):
            event = (chance.random() * 1e9, "info", "run-started", "x" * chance.randrange(200), f"job{chance.randrange(JOBS)}", None, {"a": chance.random()})
            self.events[db.add_event(*event)] = event

    # ---- one trial ----

    def trial(self, number, names=FILES, kinds=KINDS):
        """Corrupt one place of one of these files, or put older ones back, and look. Returns what was done, in words."""
        chance = random.Random(f"{self.seed}:{number}")
        scene = chance.choice(sorted(self.trees))
        tree = self.trees[scene][-1]
        tree.restore()
        touched, what = self._corrupt(chance, scene, tree, names, kinds)
        done = f"{scene}: {what}"
        try:
            with overheard.everything() as told:
                self._look(chance, done, touched)
            oracle.nothing_forbidden(told.getvalue())
        except Lie:
            raise
        except Exception as err:
            raise Lie(f"{done}: {type(err).__name__}: {err}, which nobody understands") from err
        return done

    def _corrupt(self, chance, scene, tree, names, kinds):
        """(names of the files that are touched, what was done to them)."""
        kind = chance.choice(kinds)
        name = chance.choice([name for name in names if tree.files.get(name, (0, []))[0]])
        size, older = tree.files[name][0], chance.choice(self.trees[scene][:-1])
        path, offset = self.directory / name, chance.randrange(size)
        page = offset // PAGE * PAGE
        if kind == "flip":
            bit = chance.randrange(8)
            self._put(name, offset, bytes([tree.read(name, offset, 1)[0] ^ 1 << bit]))
            return {name}, f"bit {bit} of byte {offset} of {name}"
        if kind == "zero":
            sector = offset // 512 * 512
            self._put(name, sector, bytes(min(512, size - sector)))
            return {name}, f"sector at {sector} of {name} is zero"
        if kind == "cut":
            os.truncate(path, offset)
            return {name}, f"{name} is cut off at {offset}"
        if kind == "gone":
            path.unlink()
            return {name}, f"{name} is gone"
        if kind == "swap":
            other = chance.choice([name for name in FILES if tree.files.get(name, (0, []))[0]])
            there = chance.randrange(tree.files[other][0]) // PAGE * PAGE
            one, two = (tree.read(each, at, min(PAGE, tree.files[each][0] - at)) for each, at in ((name, page), (other, there)))
            self._put(name, page, two[: len(one)])
            self._put(other, there, one[: len(two)])
            return {name, other}, f"page {page} of {name} and page {there} of {other} are exchanged"
        if kind == "older page":
            before = older.read(name, page, min(PAGE, size - page))
            if before is not None:
                self._put(name, page, before)
            return {name}, f"an older page at {page} of {name}"
        names = {"state.db", "state.db-wal"} if kind == "older database" else {name}
        for each in names:
            (self.directory / each).unlink(missing_ok=True)
            if each in older.files:
                (self.directory / each).write_bytes(older.read(each, 0, older.files[each][0]))
        return names, f"older {' and '.join(sorted(names))}"

    def _put(self, name, offset, data):
        with open(self.directory / name, "r+b") as file:
            os.pwrite(file.fileno(), data, offset)

    # ---- the oracle ----

    def _look(self, chance, done, touched):
        with store.Directory(self.directory) as directory:
            self._look_at_pairs(done, directory, touched)
            self._look_at_standing(done)
        self._look_at_database(chance, done)

    def _look_at_pairs(self, done, directory, touched):
        try:
            grants = Grants(directory)
        except GrantsError as err:
            if not touched >= set(NAMES):
                raise Lie(f"{done}: one copy was whole, and it refuses: {err.message}") from err
            self.refused += 1
            return
        if grants.pairs() != self.pairs or grants.all_once() != self.once:
            raise Lie(f"{done}: somebody else may write, or another one")
        self.healed += bool(grants.healed)

    def _look_at_standing(self, done):
        try:
            found = standing.load(self.directory)
        except DamagedError:
            self.refused += 1
            return
        if found not in self.standings and (found is not None or (self.directory / standing.NAME).exists()):
            raise Lie(f"{done}: a standing that nobody wrote: {found}")

    def _look_at_database(self, chance, done):
        try:
            db = StateDb(self.directory / "state.db")
        except StateDbError as err:
            raise Lie(f"{done}: it refuses: {err.message}") from err
        try:
            found = {where: json.dumps(db._record(*where)) if db._record(*where) is not None else None for where in self.ever}
            for where, value in found.items():
                if value != self.records[where] and not (db.damage and value in self.ever[where]):
                    raise Lie(f"{done}: {where} is {value}, {self.records[where]} was written last, and damage is told as {db.damage!r}")
            if not db.damage and set(db._found.records) != set(self.records):
                raise Lie(f"{done}: it has records that nobody wrote")
            self._look_at_events(done, db)
            if chance.random() < 1 / WRITTEN_AFTER_ONE_IN:
                self._write_after(done, db)
            self.rebuilt += bool(db.damage)
            self.untouched += not db.damage
        finally:
            db.close()

    def _look_at_events(self, done, db):
        rows = db.events(0, -1.0, None, (), (), len(self.events) + 1)
        for row in rows:
            moment, level, code, text, job, volume, data = self.events.get(row["id"], (None,) * 7)
            if row["code"] != "event-damaged" and row != {
                "id": row["id"], "time": moment, "level": level, "code": code, "job": job, "volume": volume, "text": text, "data": json.dumps(data)
            }:  # fmt: skip
                raise Lie(f"{done}: event {row} was never noted")
        if not db.damage and [row["id"] for row in rows] != sorted(self.events):
            raise Lie(f"{done}: events are missing, and nothing is told")
        if db.newest_event() < max(self.events) and not db.damage:
            raise Lie(f"{done}: ids of events would be given twice")

    def _write_after(self, done, db):
        """What is noted now is there after the next start, which finds nothing to tell."""
        db.set_job("new", "idle", {"text": "new"})
        number = db.add_event(1.0, "info", "run-started", "new", None, None, {})
        again = StateDb(self.directory / "state.db")
        try:
            if again.damage or again.job("new")["problem"] != {"text": "new"} or again.newest_event() != number:
                raise Lie(f"{done}: what is written after it is not there, or damage is told again: {again.damage}")
        finally:
            again.close()
