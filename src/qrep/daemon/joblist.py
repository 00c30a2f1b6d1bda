"""The jobs of this node: made, deleted, started, taken up, interrupted; jobchanges.py has how they are changed."""

import os
import shutil
import threading
import time

from qrep import config
from qrep.daemon import groups, pathedit, verifying
from qrep.daemon.jobchanges import JobChanges, converted
from qrep.daemon.jobpairs import JobPairs, check_room
from qrep.daemon.jobsnapshots import JobSnapshots, named_tokens
from qrep.daemon.made import Made
from qrep.daemon.managed import shape
from qrep.daemon.route import Route
from qrep.daemon.starting import Starting
from qrep.errors import NotFound, QrepError, Refused
from qrep.jobs.run import JobRunner
from qrep.jobs.schedule import Timing
from qrep.jobs.shown import when
from qrep.settings import AUTO
from qrep.source.clean import never_written


class Jobs(JobChanges):
    """node: the Node. Thread-safe."""

    def __init__(self, node):
        self.node = node
        self.pairs, self.snapshots, self.starting = JobPairs(node), JobSnapshots(node), Starting(node)
        self._lock = threading.RLock()
        self._runners = {}

    def load(self):
        self._runners = {
            name: self._runner(name, settings) for name, settings in self.node.config.load_all("jobs").items()
        }

    def all(self):
        """[(name, JobRunner)] by name."""
        return sorted(self._runners.items())  # without the lock, which is held while a peer is asked

    def active(self):
        """Those whose source is here now: a job that has given up its role keeps its file, and does not run."""
        return [(name, runner) for name, runner in self.all() if runner.settings.role == "source"]

    def all_by_name(self):
        return dict(self._runners)

    def by_id(self, job_id):
        """(name, JobRunner), or (None, None)."""
        return next(((name, runner) for name, runner in self.all() if runner.settings.id == job_id), (None, None))

    def unchanged(self):
        """A context in which no job is made, changed or deleted."""
        return self._lock

    def sources(self):
        """The volumes that jobs read."""
        return {runner.settings.source for _name, runner in self.active()}

    def of_volume(self, volume):
        used = [(name, runner.settings) for name, runner in self.all()]
        return [name for name, job in used if volume in (job.source, job.target if job.has_target else None)]

    def of_peer(self, peer):
        return [name for name, runner in self.all() if runner.settings.target.startswith(f"{peer}:") and runner.settings.has_target]

    def group_of(self, name):
        """The consistency group of a job, "" if it has none or is not known."""
        runner = self._runners.get(name)
        return runner.settings.group if runner is not None else ""

    def get(self, name):
        runner = self._runners.get(name)
        if runner is not None:
            return runner
        self.node.config.load("jobs", name)
        raise NotFound(
            f"job {name} was added while the agent runs",
            hint="qrep reload reads it; or use qrep job create",
            code="no-such-job",
        )

    def _runner(self, name, settings):
        route = Route(self.node, name, settings)
        return JobRunner(
            name, settings, request=route.request, dial=route.dial, connect=route.connect, db=self.node.db, events=self.node.events,
            slots=self.node.slots, paths=route.paths, limit=lambda: self.node.shapes.limit(name, settings.shape), zone=self.node.zone,
            ended=self.node.scheduler.wake, transport=route.transport, once=Made(self, name, settings) if settings.mode == "copy" else None,
        )  # fmt: skip

    # ---- made, deleted ----

    def create(self, *, name, source, target, overwrite=False, dry_run=False, **settings):
        """Check both sides, make the pair at the target, write the job down. Returns what the CLI tells."""
        config.check_name("jobs", name)
        peer = target.rpartition(":")[0]
        with self._lock:
            if name in self._runners:
                raise Refused(f"there is a job called {name} already", hint=f"qrep job show {name}", code="name-taken")
            check_room(self.node.settings.limits, [runner.settings for _name, runner in self.all()], source, target)
            volume = self.node.volumes.get(source)
            if volume.is_replica():
                raise Refused(
                    f"{source} is itself a replica", hint="cascading is not possible; choose another source volume", code="cascading"
                )
            info = volume.inspect()
            leaf, granule = shape(volume.settings)
            settings |= self._path(peer, settings.pop("from", None), settings.pop("to", None))
            job = converted(
                {
                    "id": os.urandom(16).hex(), "source": source, "target": target, "target_volume": "0" * 32, "size": info.size,
                    "leaf": leaf, "granule": granule,
                } | settings
            )  # fmt: skip
            self.node.shapes.check(job.shape)
            groups.check(self.node, name, job)
            pair = self.pairs.create(name, job, info, overwrite=overwrite, check_only=dry_run)
            if not dry_run:
                job.target_volume = pair["volume_id"]
                self._keep(name, job)
        return {
            "name": name, "mode": job.mode, "source": source, "target": target, "size": info.size, "full": job.initial != "compare",
            "via": self.pairs.via(job), "notes": pair["notes"], "id": job.id, "clean": job.initial == "auto" and never_written(volume.settings, info),
        } | when(Timing(job, self.node.zone))  # fmt: skip

    @staticmethod
    def _path(peer, source, to):
        """The settings of the first path of a job, where a person gave it."""
        if source is None and to is None:
            return {}
        if not peer:
            raise Refused("a job whose target is on this host has no path", hint="leave --from and --to away", code="local-job")
        source, to = source or AUTO, to or AUTO
        pathedit.check_way(source, to)
        return {"paths": [{"from": source, "to": to}]}

    def _keep(self, name, job):
        try:
            self.node.config.save("jobs", name, job)
        except (OSError, QrepError):
            self.pairs.delete(job)
            raise
        self._runners[name] = self._runner(name, job)
        self.node.scheduler.wake()
        self.node.events.add("job-created", f"{job.source} -> {job.target}", job=name)

    def delete(self, name):
        with self._lock:
            runner = self.get(name)
            runner.begin("delete")  # nothing may start from here on
            job = runner.settings
            try:
                left = self.pairs.delete(job)
                path = self.snapshots.directory(job.id)
                if os.path.isdir(path):
                    self.snapshots.release_all(name, job.id)
                    shutil.rmtree(path)
                self.node.config.remove("jobs", name)
            except BaseException:
                runner.end()
                raise
            self.node.db.drop_job(job.id)
            del self._runners[name]
            self.node.shapes.forget(name)
        self.node.events.add("job-deleted", f"{job.source} -> {job.target}{left}", job=name)

    # ---- runs ----

    def start(self, name, cause=""):
        """As start_all, of one job; with a group, of all its members. Returns its task."""
        return self.starting.start([name], cause)[name]

    def verify(self, name, cause="", **options):
        """cause: why, if nobody asked for it. options: independent, repair, dry_run; rate: as a person writes it, else the job's. Returns the task."""
        return verifying.start(self.node, self.get(name), options, cause)

    def settle_shared(self):
        """At start: snapshots that several jobs hold are given back where no job's records name them any more."""
        self.node.shared_tokens.settle(lambda job: named_tokens(self.snapshots.directory(job)))

    def take_up(self):
        """At start: runs that were going when the agent ended go on, and with them what belongs to their groups."""
        names = [name for name, runner in self.all() if runner.may_take_up()]
        for name in names:
            self.node.events.add("run-taken-up", "it was going when the agent ended", job=name)
        self.starting.take_up(names)

    def interrupt(self, timeout):
        """At the end: all runs end together, and are taken up at the next start."""
        going = [runner for _name, runner in self.all() if runner.signal_stop(leaving=True)]
        deadline = time.monotonic() + timeout
        for runner in going:
            runner.wait(max(0.0, deadline - time.monotonic()))
