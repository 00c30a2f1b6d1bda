"""The shaping groups of this node as a tree of buckets: connection -> job -> group -> node, and a thread that watches the clock.

A job without a group hangs below the node itself. What shares a parent shares its rate alike (_native/bucket.h). Only the source's side sends
frames, so only jobs whose source is here are shaped; a job whose target is on this node, too, is shaped like any other.
"""

import logging
import threading
from datetime import UTC, datetime, timedelta

import msgspec

from qrep import config, timezone, units
from qrep._native.bucket import Bucket
from qrep.daemon import nodefile
from qrep.errors import ConfigError, NotFound, Refused, UsageError
from qrep.jobs.shaping import Plan
from qrep.settings import Shape, bad_values, check_rate

NONE = "none"  # what a person writes for no group
log = logging.getLogger("qrep.agent")
WATCH_S = 0.5  # between two looks at the clock, which may be set meanwhile


class Group:
    """One group: its settings, its bucket and the rate that is in force."""

    def __init__(self, settings, node_bucket, moment, zone):
        self.bucket = Bucket(0, parent=node_bucket)
        self.apply(settings, moment, zone)

    def apply(self, settings, moment, zone):
        self.settings, self.plan = settings, Plan(settings)
        self.look(moment, zone)

    def look(self, moment, zone):
        """Let the rate of this moment be in force. True if it is another one, or another half of the day, than before."""
        before, self.looked_at = getattr(self, "in_force", None), moment
        self.in_force = self.plan.at(moment, zone)
        if before is None or before.rate_bytes_per_s != self.in_force.rate_bytes_per_s:
            self.bucket.set_rate(self.in_force.rate_bytes_per_s or 0)
        return before is not None and before.peak != self.in_force.peak

    def is_due(self, moment):
        """Whether the clock has passed a border, or was set."""
        passed = self.in_force.until is not None and moment >= self.in_force.until
        return passed or abs(moment - self.looked_at) > timedelta(minutes=1) or moment < self.looked_at


class Shapes:
    """node: the Node. Thread-safe. Where the lock of the jobs is needed, too, it is taken first. now: a clock for tests."""

    def __init__(self, node, now=lambda: datetime.now(UTC)):
        self.node, self._now = node, now
        self.zone = timezone.of_node(node.settings.node.time_zone)[1]
        self._lock = threading.RLock()
        self._ending = threading.Event()
        self._root = Bucket(units.parse_rate(node.settings.limits.rate) or 0)
        self._groups, self._jobs = {}, {}
        for name, settings in node.config.load_all("shapes").items():
            self._groups[name] = Group(settings, self._root, now(), self.zone)

    # ---- the clock ----

    def start(self):
        self._thread = threading.Thread(target=self._watch, name="shapes", daemon=True)
        self._thread.start()

    def stop(self):
        self._ending.set()

    def _watch(self):
        while not self._ending.wait(WATCH_S):
            try:
                self.look()
            except Exception:  # a bug of ours, or of one group: the windows of the others switch
                log.exception("shapes: internal error")

    def look(self):
        """Put in force what the clock says."""
        moment, switched = self._now(), []
        with self._lock:
            for name, group in self._groups.items():
                if group.is_due(moment) and group.look(moment, self.zone):
                    switched.append((name, group.in_force))
        for name, now in switched:
            text = f"{name}: {now.words(self.zone, moment)}"
            until = now.until.isoformat() if now.until else None
            self.node.events.add("shape-switched", text, shape=name, rate_bytes_per_s=now.rate_bytes_per_s, peak=now.peak, until=until)

    # ---- for jobs ----

    def bucket(self, job):
        """What the connections of a job are given: they share the job's bucket alike. Raises NotFound when its group is gone."""
        try:
            shape = self.node.jobs.get(job).settings.shape
        except NotFound:  # of a target that sends a sync point back
            shape = ""
        with self._lock:
            if job not in self._jobs:
                self._jobs[job] = Bucket(0, parent=self._above(shape))
            return self._jobs[job]

    def check(self, shape):
        """Raise NotFound unless there is such a group; "" is none."""
        with self._lock:
            self._above(shape)

    def follow(self, job, shape):
        """A job goes to another group, also while a run of it goes on."""
        with self._lock:
            if job in self._jobs:
                self._jobs[job].move(self._above(shape))

    def forget(self, job):
        with self._lock:
            self._jobs.pop(job, None)

    def limit(self, job, shape):
        """The rate that a job may have now and why, as `status` shows it; None: nothing limits it."""
        shared = [name for name in self.users(shape) if name != job] if shape else []
        with self._lock:
            node, group = self._root.rate or None, self._groups.get(shape)
            moment = self._now()
        now = group.in_force if group else None
        if now is None and node is None:
            return None
        group_rate = now.rate_bytes_per_s if now else None
        why = f"shape {shape}: {now.words(self.zone, moment)}" if now else ""
        rate = min((rate for rate in (node, group_rate) if rate is not None), default=None)
        if node is not None and rate == node:
            why = f"node: {units.format_rate(node)} for all jobs" + (f"; {why}" if why else "")
        return {"rate_bytes_per_s": rate, "why": why, "shape": shape or None, "shared_with": shared}

    def _above(self, shape):
        if not shape:
            return self._root
        if shape not in self._groups:
            self.node.config.load("shapes", shape)  # raises the NotFound that names what was probably meant
            raise NotFound(f"shape {shape} was added while the agent runs", hint="qrep reload reads it; or use qrep shape set", code="no-such-shape")
        return self._groups[shape].bucket

    def users(self, shape):
        """The jobs of a group."""
        return [name for name, runner in self.node.jobs.all() if runner.settings.shape == shape]

    # ---- for people ----

    def all(self):
        with self._lock:
            names = sorted(self._groups)
        return [self.get(name) for name in names]

    def get(self, name):
        users = self.users(name)
        with self._lock:
            self._above(name or NONE)
            group = self._groups[name]
            return self._dict(name, group.settings, group.plan, group.in_force, users)

    def _dict(self, name, settings, plan, now, users):
        return {
            "name": name, "peak": settings.peak, "peak_bytes_per_s": plan.peak, "hours": settings.hours, "off_peak": settings.off_peak,
            "off_peak_bytes_per_s": plan.off_peak, "rate_bytes_per_s": now.rate_bytes_per_s, "is_peak": now.peak,
            "until": now.until.isoformat(timespec="seconds") if now.until else None, "why": now.words(self.zone, self._now()),
            "jobs": users,
        }  # fmt: skip

    def set(self, name, fields, dry_run=False):
        """Make a group or change one; what is not among the fields stays. At once, also for runs that go on."""
        config.check_name("shapes", name)
        if name == NONE:
            raise UsageError(f"a shape cannot be called {NONE}", hint=f"--shape {NONE} takes a job out of its group")
        users = self.users(name)
        with self._lock:
            group = self._groups.get(name)
            if group and not fields:
                raise UsageError(f"shape {name}: nothing to change", hint="give --peak, --hours or --off-peak")
            settings = _convert((msgspec.to_builtins(group.settings) if group else {}) | fields)
            plan, moment = Plan(settings), self._now()
            now = plan.at(moment, self.zone)
            if dry_run:
                return self._dict(name, settings, plan, now, users)
            self.node.config.save("shapes", name, settings)
            if group is None:
                self._groups[name] = Group(settings, self._root, moment, self.zone)
            else:
                group.apply(settings, moment, self.zone)
        self.node.events.add("shape-changed", f"{name}: {now.words(self.zone, moment)}", shape=name, rate_bytes_per_s=now.rate_bytes_per_s)
        return self.get(name)

    def delete(self, name, dry_run=False):
        """Refused while jobs are in it."""
        self.check(name or NONE)
        with self.node.jobs.unchanged(), self._lock:
            users = self.users(name)
            if users:
                raise Refused(
                    f"shape {name} is used by {'job' if len(users) == 1 else 'jobs'} {', '.join(users)}",
                    hint=f"qrep job set {users[0]} --shape {NONE}, or another shape",
                    code="shape-in-use",
                )
            if dry_run:
                return
            self.node.config.remove("shapes", name)
            self._groups.pop(name, None)
        self.node.events.add("shape-deleted", name, shape=name)

    # ---- by a reload: the files were changed by somebody else ----

    def adopt(self, name, settings):
        """Let a group be what its file says now, at once."""
        with self._lock:
            moment = self._now()
            if name in self._groups:
                self._groups[name].apply(settings, moment, self.zone)
            else:
                self._groups[name] = Group(settings, self._root, moment, self.zone)

    def let_go(self, name):
        """The file of a group is gone; no job is in it."""
        with self._lock:
            del self._groups[name]

    def adopt_node_limit(self, text):
        with self._lock:
            self.node.settings.limits.rate = text
            self._root.set_rate(units.parse_rate(text) or 0)

    def settings(self):
        """{name: config.Shape}"""
        with self._lock:
            return {name: group.settings for name, group in self._groups.items()}

    def node_limit(self):
        return {"rate_bytes_per_s": self._root.rate or None}

    def set_node_limit(self, text, dry_run=False):
        """The rate of all jobs together; kept in qrep.toml, where everything else stays as it was written."""
        check_rate(text)
        rate = units.parse_rate(text)
        with self._lock:
            nodefile.set_value(self.node.config, "limits", "rate", text, dry_run=dry_run)
            if dry_run:
                return {"rate_bytes_per_s": rate}
            self.node.settings.limits.rate = text
            self._root.set_rate(rate or 0)
        self.node.events.add("limit-changed", f"{units.format_rate(rate)} for all jobs of this node", rate_bytes_per_s=rate)
        return self.node_limit()


def _convert(fields):
    try:
        settings = msgspec.convert(fields, Shape)
    except msgspec.ValidationError as err:
        if "peak" not in fields:
            raise UsageError("a new shape needs a peak rate", hint="qrep shape set GROUP --peak RATE") from err
        raise ConfigError(str(err)) from err
    for _key, error in bad_values(settings):
        raise error
    return settings
