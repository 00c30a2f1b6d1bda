"""Consistency groups at their source: what the decisions of jobs/groups.py mean for runs that go on, each in its thread."""

import os
import threading
from dataclasses import replace

from qrep.daemon import asks
from qrep.errors import STOPPED, Interrupted, QrepError, Refused
from qrep.jobs import groups
from qrep.jobs.sharedturn import SharedTurn
from qrep.protocol import actions as do
from qrep.volumes import together
from qrep.volumes.base import SnapshotError

WAIT_S = 0.1  # between two looks whether a member that waits for the others was stopped


class GroupAttempt:
    """One attempt of all members. node: the Node. name: of the group. runners: {job name: JobRunner}, each begun."""

    def __init__(self, node, name, runners):
        self.node, self.name = node, name
        self._lock, self._news = threading.RLock(), threading.Condition()
        self._run = groups.GroupRun(runners)
        self.turn = SharedTurn(node.slots)
        self.members = {job: Member(self, job, runner) for job, runner in runners.items()}
        self._told = False

    def tell(self, event, *arguments):
        """An event of jobs/groups.py."""
        with self._lock:
            actions = getattr(self._run, event)(*arguments)
        for action in actions:
            match action:
                case groups.FreezeAll():
                    self._freeze()
                case groups.Ask():
                    threading.Thread(target=self._ask, args=(action.members,), name=f"commit of group {self.name}", daemon=True).start()
                case groups.Withdraw():
                    self._say_withdrawn(action.error)
                    self.members[action.member].withdraw(action.error, action.abort)
                case groups.Reconnect():
                    self.members[action.member].reconnect(action.why)

    def _say_withdrawn(self, error):
        with self._lock:
            told, self._told, uncertain = self._told, True, self._run.uncertain
        what = "the next start finds out whether all members were committed" if uncertain else "nothing is committed of any member"
        if not told:
            for job in self.members:
                self.node.events.add("group-withdrawn", f"group {self.name}: {what}: {error.message}", job=job)

    def _freeze(self):
        """Every member is there. What they hold serves again only if it is of one moment."""
        members = list(self.members.values())
        try:
            frozen = self._again(members)
            if frozen is None:
                wanted = [together.Wanted(member.run.request.device, member.run.request.backend, member.run.request.snapshot) for member in members]
                frozen = together.freeze_all(wanted)
                self.node.events.add("group-frozen", f"group {self.name}: {', '.join(self.members)} at one moment", job=members[0].job)
            error = None
        except QrepError as err:
            error = err
        except OSError as err:
            error = SnapshotError(f"group {self.name}: {err}")
        with self._news:
            for index, member in enumerate(members):
                member.frozen, member.error = (frozen[index], None) if error is None else (None, error)
            self._news.notify_all()

    @staticmethod
    def _again(members):
        """The snapshots that an interrupted attempt left, or None."""
        moments = {member.brought[1] for member in members}
        if len(moments) > 1 or not all(member.brought[0] for member in members):
            return None
        found = [member.run.request.find(member.brought[0]) for member in members]
        return [replace(one, time_ns=member.brought[1]) for one, member in zip(found, members, strict=True)] if all(found) else None

    def _ask(self, members):
        runners = {job: self.members[job].runner for job in members}
        question = asks.CommitGroup(
            id=os.urandom(16).hex(), group=self.name,
            members=[
                asks.GroupMember(job_id=runner.settings.id, volume_id=runner.settings.target_volume, epoch=epoch, attempt=attempt, new=new.hex())
                for runner, (epoch, attempt, new) in ((runners[job], members[job]) for job in members)
            ],
        )  # fmt: skip
        peer = next(iter(runners.values())).settings.target.rpartition(":")[0]
        try:
            if peer:
                self.node.peers.reach(peer).ask(question)
            else:
                self.node.group_target.commit(question, None)
        except QrepError as error:
            self.tell("answered", error)
        else:
            self.node.events.add("group-committed", f"group {self.name}: {', '.join(members)}, all at once", job=next(iter(members)))
            self.tell("answered", None)


class Member:
    """What a run of the group asks of the group: RunRequest.together. job: name."""

    in_group = True

    def __init__(self, attempt, job, runner):
        self._attempt, self.job, self.runner = attempt, job, runner
        self.run = self.frozen = self.error = self.brought = self._withdrawn = None

    def turn(self):
        return self._attempt.turn.member()

    def joined(self, run):
        """The Run that goes on for this member."""
        self.run = run
        if self._withdrawn is not None:  # the group ended before
            self.withdraw(self._withdrawn, False)

    # ---- asked by the Run, in its thread ----

    def freeze(self, token, frozen_at_ns, stopping):
        """The Frozen of this member. token, frozen_at_ns: what an interrupted attempt left, "" for none. stopping(): whether the run is to end."""
        if self.frozen is None:
            self.brought = (token, frozen_at_ns)
            self._attempt.tell("arrived", self.job)
            with self._attempt._news:
                while self.frozen is None and self.error is None and self._withdrawn is None:
                    if stopping():
                        raise Interrupted(STOPPED)
                    self._attempt._news.wait(WAIT_S)
            if self.frozen is None:
                raise self.error or self._withdrawn
            return self.frozen
        if self.frozen.fuzzy:
            return self.frozen
        found = self.run.request.find(token)
        if found is None:
            raise SnapshotError(f"the snapshot of group {self._attempt.name} is gone", hint=f"qrep start {self.job} freezes all of it anew", code="group-snapshot-gone")
        return replace(found, time_ns=self.frozen.time_ns)

    def agree(self, action):
        self._attempt.tell("agreed", self.job, (action.epoch, action.attempt, action.new))

    def left(self):
        self._attempt.tell("left", self.job)

    def share(self, native, token, geometry, stopping):
        """Members have different sources: nothing is read twice."""

    # ---- said to the Run ----

    def withdraw(self, error, abort):
        with self._attempt._news:
            self._withdrawn = error
            self._attempt._news.notify_all()
        if self.run is not None and isinstance(error, Interrupted):
            self.run.stop()  # also while it has no connection
        elif self.run is not None:
            self.run.tell_machine(lambda machine: machine.withdraw(error, abort))

    def reconnect(self, why):
        self.run.tell_machine(lambda machine: machine.disconnected(why) if machine.phase == "committing" else [])

    def ended(self, error):
        """The job's run is over. error: what it raised, or None."""
        if error is not None and not isinstance(error, QrepError):
            error = QrepError(f"{self.job}: {error!r}")
        ending = self.run._ending if self.run is not None else None
        self._attempt.tell("ended", self.job, error, not isinstance(ending, do.Fail) or ending.keep_open)


def members_of(node, name):
    """{job name: JobRunner} of the jobs of a group."""
    return {job: runner for job, runner in node.jobs.all() if runner.settings.group == name}


def check_targets(group, runners):
    """Refuse to start a group whose files were edited so that its targets are on several hosts: one record cannot commit them."""
    hosts = {runner.settings.target.rpartition(":")[0] for runner in runners.values()}
    if len(hosts) > 1:
        raise Refused(f"the targets of group {group} are on several hosts", code="group-targets", hint="qrep check tells which; qrep job set JOB --group NAME")


def check(node, job, settings):
    """Refuse a job whose group cannot be committed together. job: its name. settings: config.Job."""
    if not settings.group:
        return
    if settings.mode != "async":
        raise Refused(f"a job of mode {settings.mode} cannot be in a group", code="group-mode", hint="leave --group out")
    for other, runner in members_of(node, settings.group).items():
        if other == job:
            continue
        theirs = runner.settings
        if theirs.target.rpartition(":")[0] != settings.target.rpartition(":")[0]:
            raise Refused(
                f"group {settings.group}: the target of {other} is {theirs.target}, that of {job} {settings.target}", code="group-targets",
                hint="one record commits all members, so all targets must be on one host; take another group",
            )  # fmt: skip
        if theirs.source == settings.source:
            raise Refused(f"group {settings.group}: {other} and {job} have the same source", code="group-sources", hint="one of them is enough, or take another group")
    check_freezable(node, job, settings)


def check_freezable(node, job, settings):
    """A group is one moment: each source must be frozen, unless a person said `none` of it."""
    from qrep.volumes import registry

    volume = node.volumes.get(settings.source)
    if volume.settings.snapshots != "none" and registry.of_volume(volume.settings, volume.inspect()).backend.name == "none":
        raise Refused(
            f"group {settings.group}: {settings.source}, the source of {job}, cannot be frozen", code="group-unfrozen",
            hint=f"put it on LVM, or as an image on XFS or btrfs; or say that nobody writes it meanwhile: qrep volume set {settings.source} --snapshots none",
        )  # fmt: skip
