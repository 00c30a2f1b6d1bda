"""Runs that start together: a consistency group comes whole, and jobs of one source that start at the same moment share what they read."""

import time

from qrep.daemon.groups import GroupAttempt, check_targets, members_of
from qrep.daemon.made import check_may_run
from qrep.errors import QrepError, Refused, UsageError
from qrep.jobs.sharedturn import SharedTurn
from qrep.source.shared import SharedSource

TOGETHER_MAX = 256  # jobs of one request


class Starting:
    """node: the Node."""

    def __init__(self, node):
        self.node = node

    def start(self, names, cause="", label=""):
        """Start these jobs now, all of them or, where one cannot begin, none. Returns {name: Task} of what was started: members of their groups
        come with them. cause: why, if nobody asked for it. label: a name for the sync points that they make. Raises what keeps one of them from beginning."""
        if not names or len(names) > TOGETHER_MAX or not all(isinstance(name, str) for name in names):
            raise UsageError("jobs: a list of names of jobs is needed")
        if self.node.stopping.is_set():
            raise Refused("the agent is ending", hint="start it again when the agent runs", code="ending")
        runners = {}
        for name in names:
            runner = self.node.jobs.get(name)
            runners |= members_of(self.node, runner.settings.group) if runner.settings.group else {name: runner}
        for runner in runners.values():
            check_may_run(runner)
        begun = []
        try:
            for runner in runners.values():
                runner.begin("run")
                runner.label = label
                begun.append(runner)
            links = self._links(runners)
        except BaseException:
            for runner in begun:
                runner.release()
            raise
        tasks, failure = {}, None
        for name, runner in runners.items():
            link = links.get(name)
            queued = False
            try:
                if failure is not None:
                    raise failure
                runner.enqueue()
                queued = True
                tasks[name] = self.node.tasks.start("run", name, lambda task, runner=runner, link=link: runner.run(task, cause, link))
            except BaseException as error:
                failure = error
                (runner.take_back if queued else runner.release)()
                if link is not None:
                    link.ended(error)
        if failure is not None:
            raise failure
        return tasks

    def start_due(self, name, cause):
        """Start a job whose time has come, and with it the rest of its group, and what is due of the same source at the same moment."""
        runner, now, names = self.node.jobs.get(name), time.time(), [name]
        for other, theirs in self.node.jobs.active():
            if other == name or theirs.activity is not None:
                continue
            due = theirs.timing.look(now)
            of_group = bool(runner.settings.group) and theirs.settings.group == runner.settings.group
            if of_group or (due is not None and not due.missed and theirs.settings.source == runner.settings.source):
                names.append(other)
        tasks = self.start(names, cause)
        for other in tasks:
            if other != name:
                self.node.jobs.get(other).timing.handle(now)
        return tasks[name]

    def take_up(self, names):
        """At the agent's start: what was going when it ended. One that cannot begin keeps no other from it."""
        started = set()
        for name in names:
            if name not in started:
                try:
                    started |= self.start([name]).keys()
                except QrepError as error:
                    self.node.events.add("run-not-started", error.message, job=name)

    def _links(self, runners):
        """{name: what its run shares with others}; a job that is not in it runs alone."""
        links, groups, sources = {}, {}, {}
        for name, runner in runners.items():
            if runner.settings.group:
                groups.setdefault(runner.settings.group, {})[name] = runner
            else:
                sources.setdefault(runner.settings.source, {})[name] = runner.settings.id
        for group, members in groups.items():
            check_targets(group, members)
            links |= GroupAttempt(self.node, group, members).members
        for source, jobs in sources.items():
            if len(jobs) > 1:
                volume_id = self.node.volumes.get(source).settings.id
                links |= SharedSource(self.node.shared_tokens, volume_id, jobs, SharedTurn(self.node.slots)).members
        return links
