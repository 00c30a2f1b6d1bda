"""The jobs of this node: made, changed, deleted, started, taken up, interrupted."""

import os
import shutil
import threading
import time

import msgspec

from qrep import config
from qrep.daemon import groups, pathedit, verifying
from qrep.daemon.jobpairs import JobPairs, check_room
from qrep.daemon.made import Made
from qrep.daemon.managed import shape
from qrep.daemon.route import Route
from qrep.daemon.starting import Starting
from qrep.errors import ConfigError, NotFound, QrepError, Refused, UsageError
from qrep.jobs.run import JobRunner
from qrep.jobs.schedule import Timing
from qrep.jobs.shown import job_dict, when
from qrep.settings import AUTO, Pair, bad_values, changed_fields
from qrep.source.clean import never_written
from qrep.source.runrecord import RunFile
from qrep.volumes import registry

FIXED = ("id", "source", "target", "target_volume", "size", "leaf", "granule", "mode", "role", "whole")  # what a job is; anything else is how it is done


class Jobs:
    """node: the Node. Thread-safe."""

    def __init__(self, node):
        self.node = node
        self.pairs, self.starting = JobPairs(node), Starting(node)
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

    def put(self, name, job):
        """Write down what a job is after a change of roles, and go on with that. Nothing goes on in the old one."""
        with self._lock:
            self.node.config.save("jobs", name, job)
            self._runners[name] = self._runner(name, job)
        self.node.scheduler.wake()

    def put_target_volume(self, name, volume_id):
        """The other side has told the id of its volume."""
        self.put(name, msgspec.structs.replace(self.get(name).settings, target_volume=volume_id))

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

    # ---- made, changed, deleted ----

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
            job = _convert(
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

    def set_paths(self, name, ways, preferred):
        """ways: [(source, to)], None: as they are. preferred: a number. Seen at once by whoever dials."""
        with self._lock:
            runner = self.get(name)
            fields = {"preferred_path": preferred} | ({} if ways is None else {"paths": pathedit.written(ways, runner.paths.pairs)})
            changed = _convert(msgspec.to_builtins(runner.settings) | fields)
            self.node.config.save("jobs", name, changed)
            runner.settings.paths, runner.settings.preferred_path = changed.paths, changed.preferred_path

    def set_pairs(self, name, number, pairs, removed=None):
        """What the connections of path `number` are from now on; removed: the slot that went. A run that goes on over it follows."""
        with self._lock:
            runner = self.get(name)
            ways = runner.paths.ways() if runner.paths is not None else []
            if any(pair.source or pair.to for pair in pairs) or len(ways) > 1:
                paths = pathedit.written(ways, runner.paths.pairs)
                paths[number - 1]["pairs"] = msgspec.to_builtins(pairs)
                fields = {"paths": paths}
            else:  # all alike, on the only path there is
                kept = [{"from": path.source, "to": path.to} for path in runner.settings.paths]
                fields = {"paths": kept, "connections": len(pairs)}
            changed = _convert(msgspec.to_builtins(runner.settings) | fields)
            self.node.config.save("jobs", name, changed)
            runner.settings.paths, runner.settings.connections = changed.paths, changed.connections
            if runner.paths is None or runner.paths.in_use == ways[number - 1]:
                runner.set_connections(len(pairs), removed)

    @staticmethod
    def _resized(paths, count):
        """settings.Paths whose pairs, where they have any, are `count`: the last ones go, or there are more by the path's own addresses."""
        return [
            {"from": path.source, "to": path.to, "pairs": msgspec.to_builtins((path.pairs + [Pair()] * count)[:count] if path.pairs else [])}
            for path in paths
        ]  # fmt: skip

    def _keep(self, name, job):
        try:
            self.node.config.save("jobs", name, job)
        except (OSError, QrepError):
            self.pairs.delete(job)
            raise
        self._runners[name] = self._runner(name, job)
        self.node.scheduler.wake()
        self.node.events.add("job-created", f"{job.source} -> {job.target}", job=name)

    def change(self, name, settings, dry_run=False):
        """Change settings, at once where they are times or connections, else from the next run on. Returns the job as it is then (shown.job_dict)."""
        with self._lock:
            runner = self.get(name)
            paths = {"paths": self._resized(runner.settings.paths, settings["connections"])} if "connections" in settings else {}
            changed = _convert(msgspec.to_builtins(runner.settings) | settings | paths)
            self.node.shapes.check(changed.shape)
            if changed.group != runner.settings.group:
                groups.check(self.node, name, changed)
            if dry_run:
                return job_dict(runner) | {key: None if value == "" else value for key, value in settings.items()} | when(Timing(changed, self.node.zone))
            if (changed.sync_points, changed.keep) != (runner.settings.sync_points, runner.settings.keep) and changed.has_target:
                self.pairs.set_retention(changed)
            self.node.config.save("jobs", name, changed)
            self._take(runner, changed, settings | paths)
        self.node.events.add("job-changed", ", ".join(f"{key} {'none' if value == '' else value}" for key, value in settings.items()), job=name)
        return job_dict(runner)

    def _take(self, runner, changed, fields):
        """Let `fields` of a job be what they are in `changed`, also for a run that goes on."""
        for field in fields:
            setattr(runner.settings, field, getattr(changed, field))
        self.node.shapes.follow(runner.name, changed.shape)
        if "connections" in fields or "paths" in fields:
            runner.set_connections(runner.paths.wanted() if runner.paths is not None else changed.connections)
        if "hints" in fields and changed.hints == "off":
            self._let_go_when_idle(runner)
        self.node.scheduler.wake()

    def _let_go_when_idle(self, runner):
        """The snapshot that was kept for hints is given back at once; while a run goes on, by the one after it."""
        try:
            runner.begin("settle")
        except Refused:
            return
        try:
            self.let_go_of_kept(runner.name, runner.settings.id)
        finally:
            runner.end()

    def let_go_of_kept(self, name, job_id):
        """Give back what is kept of the last generation. No run of the job goes on."""
        from qrep.source.kept import Kept

        path = os.path.join(self.node.state.path, "sources", job_id)
        if not os.path.isdir(path):
            return
        kept = Kept(path, self._releaser(job_id))
        try:
            record = RunFile.read(path)
            kept.let_go(record.snapshot if record is not None else "")
        except QrepError as error:
            self.node.events.add("snapshot-left", error.message, job=name)
        finally:
            kept.close()

    def _releaser(self, job_id):
        """release(token) of a job: what others hold too stays."""

        def release(token):
            if not self.node.shared_tokens.release(token, job_id):
                registry.release(token)

        return release

    # ---- by a reload: the files were changed by somebody else ----

    def adopt(self, name, settings):
        """Let a job be what its file says now. Raises Refused if that needs the end of what it does, Unreachable if its target must be told."""
        role = self.node.roles.steps.role_of(settings)
        if role not in ("", settings.role):
            raise Refused(
                f"the file of {name} says role {settings.role}, and {settings.source} is {'a replica' if role == 'target' else 'primary'}", code="other-role",
                hint=f'write role = "{role}" into it; only promote and demote change a role',
            )  # fmt: skip
        with self._lock:
            runner = self._runners.get(name)
            if runner is not None and any(getattr(settings, field) != getattr(runner.settings, field) for field in FIXED):
                runner.begin("delete")  # another job of the same name: nothing may go on, and what holds on to the old one finds it taken
                runner = None
            if runner is None:
                self.node.shapes.forget(name)
                self._runners[name] = self._runner(name, settings)
                self.node.scheduler.wake()
                return
            if (settings.sync_points, settings.keep) != (runner.settings.sync_points, runner.settings.keep) and settings.has_target:
                self.pairs.set_retention(settings)
            self._take(runner, settings, changed_fields(runner.settings, settings))

    def become(self, name, settings):
        """Let a job that does nothing be another one of the same name, whose file is written. The caller holds it by begin(), and never ends that."""
        with self._lock:
            self.node.shapes.forget(name)
            self._runners[name] = self._runner(name, settings)
        self.node.scheduler.wake()

    def let_go(self, name):
        """The file of a job is gone: it is not known any more. What it left on disk and its pair stay. Raises Refused while it does something."""
        with self._lock:
            self._runners[name].begin("delete")
            del self._runners[name]
            self.node.shapes.forget(name)
        self.node.scheduler.wake()

    def delete(self, name):
        with self._lock:
            runner = self.get(name)
            runner.begin("delete")  # nothing may start from here on
            job = runner.settings
            try:
                left = self.pairs.delete(job)
                path = os.path.join(self.node.state.path, "sources", job.id)
                if os.path.isdir(path):
                    self._release_snapshot(name, path)
                    shutil.rmtree(path)
                self.node.config.remove("jobs", name)
            except BaseException:
                runner.end()
                raise
            self.node.db.drop_job(job.id)
            del self._runners[name]
            self.node.shapes.forget(name)
        self.node.events.add("job-deleted", f"{job.source} -> {job.target}{left}", job=name)

    def _release_snapshot(self, name, path):
        """A stopped run may hold a snapshot for its resume, and the last committed generation's is kept for hints."""
        from qrep.source.kept import Kept

        release = self._releaser(self.get(name).settings.id)
        kept = Kept(path, release)
        try:
            record = RunFile.read(path)
            token = record.snapshot if record is not None else ""
            for token in ([token] if token else []) + kept.tokens:
                release(token)
        except QrepError as error:
            self.node.events.add("snapshot-left", error.message, job=name, token=token)
        finally:
            kept.close()

    # ---- runs ----

    def start(self, name, cause=""):
        """As start_all, of one job; with a group, of all its members. Returns its task."""
        return self.starting.start([name], cause)[name]

    def verify(self, name, cause="", **options):
        """cause: why, if nobody asked for it. options: independent, repair, dry_run; rate: as a person writes it, else the job's. Returns the task."""
        return verifying.start(self.node, self.get(name), options, cause)

    def settle_shared(self):
        """At start: snapshots that several jobs hold are given back where no job's records name them any more."""
        self.node.shared_tokens.settle(lambda job: named_tokens(os.path.join(self.node.state.path, "sources", job)))

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


def named_tokens(path):
    """The snapshots that the records of a job name. path: its directory as a source."""
    from qrep.source.kept import Kept

    if not os.path.isdir(path):
        return []
    kept = Kept(path, registry.release)
    try:
        record = RunFile.read(path)
        return ([record.snapshot] if record is not None and record.snapshot else []) + kept.tokens
    finally:
        kept.close()


def _convert(fields):
    """A config.Job of fields that a person gave. Raises ConfigError, UsageError."""
    try:
        job = msgspec.convert(fields, config.Job)
    except msgspec.ValidationError as err:
        raise ConfigError(str(err)) from err
    for key, error in bad_values(job):
        raise error if key not in ("timeout", "rpo") or key in error.message else UsageError(f"{key}: {error.message}", hint=error.hint)
    return job
