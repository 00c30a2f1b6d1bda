"""A world for the scheduler: jobs that are only what it sees of them, and a clock of the test's own."""

from datetime import UTC, datetime
from types import SimpleNamespace

from qrep.config import Job
from qrep.daemon.events import EventLog
from qrep.daemon.scheduler import Scheduler
from qrep.daemon.statedb import StateDb
from qrep.errors import Refused
from qrep.daemon.verifytimes import VerifyTimes
from qrep.jobs.schedule import Timing
from qrep.jobs.verified import Verifies

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC).timestamp()
FIELDS = {"source": "db", "target": "db2", "target_volume": "cd" * 16, "size": 1 << 20, "leaf": 4096, "granule": 8192}


class GivenClock:
    def __init__(self, wall):
        self.now, self.uptime = wall, 1000.0

    def wall(self):
        return self.now

    def monotonic(self):
        return self.uptime

    def pass_time(self, seconds):
        self.now += seconds
        self.uptime += seconds

    def set_forward(self, seconds):
        self.now += seconds


class World:
    """Jobs that are only what the scheduler sees of them. looks() goes through time as the thread does."""

    def __init__(self, path, wall=NOON, zone=UTC):
        self.db, self.clock, self.zone = StateDb(path), GivenClock(wall), zone
        self.events = EventLog(self.db, echo=False)
        self.jobs, self.started, self.verified, self.stopped = {}, [], [], []
        self.boot()

    def boot(self):
        """An agent that starts: it finds the jobs and what the database knows."""
        for name, job in self.jobs.items():
            self.jobs[name] = self._runner(job.settings, committed_at=job.committed_at)
        self.scheduler = Scheduler(jobs=lambda: sorted(self.jobs.items()), start=self.start, db=self.db, events=self.events, clock=self.clock, verifies=VerifyTimes(start=self.verify, db=self.db, events=self.events))
        self.wait_s = 0.0

    def _runner(self, settings, committed_at=None):
        timing = Timing(settings, lambda: self.zone, self.db.timer(settings.id))
        verifies = Verifies(settings, lambda: self.zone, self.db)
        return SimpleNamespace(settings=settings, timing=timing, verifies=verifies, signal_stop=lambda: self.stopped.append(self.clock.now - NOON), committed_at=committed_at, activity=None, state="idle", begun=0)

    def job(self, name="db", **settings):
        job_id = f"{len(self.jobs):032x}"
        self.jobs[name] = self._runner(Job(id=job_id, **FIELDS, **settings))
        return self.jobs[name]

    def start(self, name, cause):
        runner = self.jobs[name]
        if runner.activity is not None:
            raise Refused("busy", code="busy")
        runner.begun += 1
        runner.activity = "run" if runner in getattr(self, "slow", ()) else None
        self.started.append((self.clock.now - NOON, name))

    def verify(self, name, cause):
        runner = self.jobs[name]
        if runner.activity is not None:
            raise Refused("busy", code="busy")
        runner.verifies.begin(True)
        runner.activity = "verify" if runner in getattr(self, "slow", ()) else None
        self.verified.append((self.clock.now - NOON, name))

    def looks(self, seconds):
        """Look whenever the thread would, for so long. Returns how often."""
        end, count = self.clock.now + seconds, 0
        while True:
            self.wait_s = self.scheduler.look()
            count += 1
            if self.clock.now + self.wait_s > end:
                self.clock.pass_time(end - self.clock.now)
                return count
            self.clock.pass_time(self.wait_s)

    def codes(self):
        return [event["code"] for event in self._events()]

    def texts(self, code):
        return [event["text"] for event in self._events() if event["code"] == code]

    def _events(self):
        return self.events.read()[0]
