"""What becomes of a job that is there: its settings are changed, by people or by another part of the agent, or its file was."""

import msgspec

from qrep import config
from qrep.daemon import groups, pathedit
from qrep.errors import ConfigError, Refused, UsageError
from qrep.jobs.schedule import Timing
from qrep.jobs.shown import job_dict, when
from qrep.settings import Pair, bad_values, changed_fields

FIXED = ("id", "source", "target", "target_volume", "size", "leaf", "granule", "mode", "role", "whole")  # what a job is; anything else is how it is done


class JobChanges:
    """The part of joblist.Jobs that changes what is in the list. Of Jobs it uses node, pairs, snapshots, get(), and under _lock _runners and _runner()."""

    # ---- by people ----

    def change(self, name, settings, dry_run=False):
        """Change settings, at once where they are times or connections, else from the next run on. Returns the job as it is then (shown.job_dict)."""
        with self._lock:
            runner = self.get(name)
            paths = {"paths": self._resized(runner.settings.paths, settings["connections"])} if "connections" in settings else {}
            changed = converted(msgspec.to_builtins(runner.settings) | settings | paths)
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
            self.snapshots.let_go_when_idle(runner)
        self.node.scheduler.wake()

    def set_paths(self, name, ways, preferred):
        """ways: [(source, to)], None: as they are. preferred: a number. Seen at once by whoever dials."""
        with self._lock:
            runner = self.get(name)
            fields = {"preferred_path": preferred} | ({} if ways is None else {"paths": pathedit.written(ways, runner.paths.pairs)})
            changed = converted(msgspec.to_builtins(runner.settings) | fields)
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
            changed = converted(msgspec.to_builtins(runner.settings) | fields)
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

    # ---- by another part of the agent ----

    def put(self, name, job):
        """Write down what a job is after a change of roles, and go on with that. Nothing goes on in the old one."""
        with self._lock:
            self.node.config.save("jobs", name, job)
            self._runners[name] = self._runner(name, job)
        self.node.scheduler.wake()

    def put_target_volume(self, name, volume_id):
        """The other side has told the id of its volume."""
        self.put(name, msgspec.structs.replace(self.get(name).settings, target_volume=volume_id))

    def become(self, name, settings):
        """Let a job that does nothing be another one of the same name, whose file is written. The caller holds it by begin(), and never ends that."""
        with self._lock:
            self.node.shapes.forget(name)
            self._runners[name] = self._runner(name, settings)
        self.node.scheduler.wake()

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

    def let_go(self, name):
        """The file of a job is gone: it is not known any more. What it left on disk and its pair stay. Raises Refused while it does something."""
        with self._lock:
            self._runners[name].begin("delete")
            del self._runners[name]
            self.node.shapes.forget(name)
        self.node.scheduler.wake()


def converted(fields):
    """A config.Job of fields that a person gave. Raises ConfigError, UsageError."""
    try:
        job = msgspec.convert(fields, config.Job)
    except msgspec.ValidationError as err:
        raise ConfigError(str(err)) from err
    for key, error in bad_values(job):
        raise error if key not in ("timeout", "rpo") or key in error.message else UsageError(f"{key}: {error.message}", hint=error.hint)
    return job
