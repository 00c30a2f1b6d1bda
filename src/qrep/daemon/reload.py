"""Reading the configuration again while the agent runs (`qrep reload`, SIGHUP): all files are checked first, and one error changes nothing.

What can be changed without ending a run is changed at once; what needs a restart of the agent is named, and so is what could not be done now.
"""

import threading

from qrep.configcheck import survey
from qrep.daemon.events import CODES
from qrep.errors import QrepError
from qrep.settings import changed_fields

TOLD_MAX = 20  # problems in an event
# Keys of qrep.toml that count from the start of the agent on; every other key is read where it is used, or taken over below.
RESTART = {"node": ("name", "listen", "port", "user", "time_zone"), "limits": ("connections_half_open", "connections")}


class Change:
    """One thing that is different. do(): take it over; None where only a restart does."""

    def __init__(self, kind, name, what, fields=(), do=None):
        self.kind, self.name, self.what, self.fields, self.do = kind, name, what, list(fields), do

    def as_dict(self):
        return {"kind": self.kind, "name": self.name, "what": self.what, "fields": self.fields}

    def __str__(self):
        name = f"{self.kind} {self.name}" if self.name else self.kind
        return f"{name}: {', '.join(self.fields)}" if self.fields else f"{name} {self.what}"


class Reload:
    """node: the Node. One at a time."""

    def __init__(self, node):
        self.node = node
        self._lock = threading.Lock()

    def run(self, dry_run=False):
        """{"changes", "restart", "failed", "problems"}: what was changed (with dry_run: would be), what needs a restart, what could not be done,
        and the errors in the files, for which nothing was changed."""
        with self._lock:
            found, problems = survey(self.node.config.directory, state_dir=self.node.state.path, event_codes=CODES)
            if problems:
                return self._refused(problems, dry_run)
            plan = [change for part in (self._shapes, self._peers, self._volumes, self._jobs, self._node) for change in part(found)]
            # What is not used any more goes last, and jobs before what they use.
            plan.sort(key=lambda change: (change.what == "removed") * (1 + (change.kind != "job")))
            restart, changes = [change for change in plan if change.do is None], [change for change in plan if change.do is not None]
            failed = [] if dry_run else self._do(changes)
            answer = {
                "changes": [change.as_dict() for change in changes], "restart": [str(change) for change in restart],
                "failed": failed, "problems": [],
            }  # fmt: skip
            if not dry_run:
                self._tell(changes, restart, failed)
            return answer

    def _refused(self, problems, dry_run):
        if not dry_run:
            more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
            self.node.events.add(
                "config-refused", f"nothing was changed: {problems[0].one_line()}{more}", problems=[problem.one_line() for problem in problems[:TOLD_MAX]]
            )
        return {"changes": [], "restart": [], "failed": [], "problems": [problem.as_dict() for problem in problems]}

    def _do(self, changes):
        """Take all of them over. Returns those that could not be, with why; they are taken out of `changes`."""
        failed = []
        for change in list(changes):
            try:
                change.do()
            except QrepError as error:
                failed.append({"change": str(change)} | error.as_dict())
                changes.remove(change)
        return failed

    def _tell(self, changes, restart, failed):
        parts = [", ".join(str(change) for change in changes) or "nothing was changed"]
        parts += [f"needs a restart: {', '.join(str(change) for change in restart)}"] if restart else []
        parts += [f"not done: {', '.join(one['change'] for one in failed)}"] if failed else []
        self.node.events.add(
            "config-reloaded", "; ".join(parts), changes=[str(change) for change in changes], restart=[str(change) for change in restart],
            failed=[f"{one['change']}: {one['message']}" for one in failed],
        )  # fmt: skip

    def _objects(self, kind, known, found, adopt, let_go):
        for name, value in found.items():
            fields = changed_fields(known[name], value) if name in known else []
            if name not in known or fields:
                yield Change(kind, name, "changed" if name in known else "added", fields, lambda name=name, value=value: adopt(name, value))
        for name in known:
            if name not in found:
                yield Change(kind, name, "removed", (), lambda name=name: let_go(name))

    def _shapes(self, found):
        return self._objects("shape", self.node.shapes.settings(), found.objects["shapes"], self.node.shapes.adopt, self.node.shapes.let_go)

    def _peers(self, found):
        def adopt(name, peer):
            before = self.node.peers.all().get(name)
            self.node.peers.adopt(name, peer)
            if before is not None and (before.fingerprint, before.trusted) != (peer.fingerprint, peer.trusted):
                self.node.sessions.expel_refused()
                self.node.listener.drop(name)

        def let_go(name):
            self.node.peers.let_go(name)
            self.node.sessions.expel_refused()
            self.node.listener.drop(name)

        return self._objects("peer", self.node.peers.all(), found.objects["peers"], adopt, let_go)

    def _volumes(self, found):
        volumes = self.node.volumes
        known = {volume.name: volume.settings for volume in volumes.all()}

        def adopt(name, settings):
            volumes.adopt(name, settings, self.node.pairs.policy_of(name))

        def let_go(name):
            self.node.check_unused(name)
            volumes.let_go(name)

        return self._objects("volume", known, found.objects["volumes"], adopt, let_go)

    def _jobs(self, found):
        known = {name: runner.settings for name, runner in self.node.jobs.all()}
        return self._objects("job", known, found.objects["jobs"], self.node.jobs.adopt, self.node.jobs.let_go)

    def _node(self, found):
        """What is different in qrep.toml."""
        for section in found.node.__struct_fields__:
            old, new = getattr(self.node.settings, section), getattr(found.node, section)
            if section == "hooks":
                if old != new:
                    yield Change("hooks", "", "changed", (), lambda new=new: self._take_hooks(new))
                continue
            for field in changed_fields(old, new):
                needs_restart = field in RESTART.get(section, ())
                do = None if needs_restart else lambda old=old, field=field, value=getattr(new, field): self._take(old, field, value)
                yield Change(f"{section}.{field}", "", "changed", (), do)

    def _take(self, section, field, value):
        if field == "rate":
            self.node.shapes.adopt_node_limit(value)
            return
        setattr(section, field, value)
        if field == "jobs_running":
            self.node.slots.set_limit(value)

    def _take_hooks(self, hooks):
        self.node.settings.hooks = self.node.hooks.hooks = hooks
