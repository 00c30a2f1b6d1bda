"""What an agent keeps besides volumes: who may write, the state database, what a change of role is about, configuration. Each is the old or the new one."""

from qrep import config, settings
from qrep.daemon import standing
from qrep.daemon.grants import Grants
from qrep.daemon.statedb import StateDb
from qrep.store import Directory

PLACE = "records"
UNTOLD = "cannot be told this time"  # of the database's age: nothing is wrong with the database
PAIR = {"peer": "far", "fingerprint": "f", "job": "j", "source": "far:a", "volume": "v", "size": 1 << 20, "sync_points": 1, "keep": ""}
STANDING = standing.StandingFile(
    id="00" * 16, role="replica", job_id="00" * 16, job="j", peer="", other="o", other_id="", why="w", at=0.0, size=1 << 20, leaf=4096, granule=32768,
    sync_points=1,
)  # fmt: skip
VOLUME = settings.Volume(id="00" * 16, device="/dev/old")
OLD, NEW = "old", "new"


class Records:
    """Below a directory. done: the steps that were said to be done."""

    def __init__(self, directory):
        self.path, self.done = directory / PLACE, []

    def make(self):
        self._write("old", 1)

    def change(self):
        """Raises QrepError, OSError."""
        self._write("new", 2)

    def _write(self, word, number):
        self.done.clear()
        with Directory(self.path) as directory:
            directory.sub("db").close()
            grants = Grants(directory)
            grants.add_pair("a" * 32, **PAIR | {"sync_points": number})
            self.done.append("pair")
        database = StateDb(self.path / "db" / "state.db")
        if database.damage and UNTOLD not in database.damage:
            self.done.append("rebuilt")  # it is told, and what was in it may be lost
        try:
            if database.add_event(1.0, "info", "run-started", word, None, None, {}) is not None:
                self.done.append("event")
        finally:
            database.close()
        standing.save(self.path, STANDING.replace(why=word))
        self.done.append("standing")
        config.Config(self.path / "config").save("volumes", "one", VOLUME.__class__(id="00" * 16, device=f"/dev/{word}"))
        self.done.append("config")

    def wrong(self, done):
        """What must not be, None: all is as it may be. done: the steps that were said to be done."""
        found = self._read()
        for step, (old, new) in {"pair": (1, 2), "standing": ("old", "new"), "config": ("/dev/old", "/dev/new")}.items():
            if found[step] != new and (step in done or found[step] != old):
                return f"{step}: {found[step]}{', and it was said that it is written' if step in done else ''}"
        may = [["old", "new"]] if "event" in done else [["old"], ["old", "new"]]
        if found["event"] not in (may + [each[1:] for each in may] if "rebuilt" in done else may):
            return f"events: {found['event']}, done: {done}"
        return None

    def _read(self):
        with Directory(self.path) as directory:
            pair = Grants(directory).pair("a" * 32)["sync_points"]
        database = StateDb(self.path / "db" / "state.db")
        try:
            if database.damage and UNTOLD not in database.damage:
                return {"pair": pair, "event": [database.damage], "standing": "new", "config": "/dev/new"}
            events = [event["text"] for event in database.events(0, 0.0, None, (), (), 10)]
        finally:
            database.close()
        return {"pair": pair, "event": events, "standing": standing.load(self.path).why, "config": config.Config(self.path / "config").load("volumes", "one").device}
