"""The commands that change roles, as tasks: each takes the pair for itself, asks the other side what it is, decides, and does its steps in order.

A command that is interrupted can be given again: it finds what is durable and goes on from there.
"""

from qrep.daemon.roles import lag
from qrep.errors import QrepError, TimedOut, Unreachable
from qrep.jobs import roles as decide


class RoleCommands:
    """roles: Roles. Every method blocks; task: tasks.Task, for its progress. Each returns what the API answers, a dict."""

    def __init__(self, roles):
        self.roles, self.node, self.steps = roles, roles.node, roles.steps

    # ---- promote, split ----

    def plan_promote(self, name, *, force=False, split=False):
        """What promote would do, and what it would cost; changes nothing. Raises what promote would be refused with."""
        part, other = self._target_part(name)
        told, theirs = self._asked_source(part, other, force)
        what = self._decide_promote(part, theirs, other, force or split)
        return self._promoted(part, other, told, what) | {"would": what}

    def promote(self, task, name, *, force=False, split=False):
        """force: one that was planned and still waits for the source is ended by it, and does nothing any more."""
        part, other = self._target_part(name)
        waits = bool(part.peer) and not (force or split)
        with self.roles.alone(part, gives_way=waits, force=force) as turn:
            if waits:
                task.cancel = lambda: turn.end("it was cancelled")
            told, theirs = self._asked_source(part, other, force)
            turn.check()
            what = self._decide_promote(part, theirs, other, force or split)
            if what == "ask":
                told = self._given_up(task, part, other, turn)
                theirs = told.standing(other.name)
                decide.gave_up(part.job, self.roles.standing(part), theirs, other=other.name)
                what = "planned"
            self.roles.decided(turn)
            task.cancel = None
            answer = self._promoted(part, other, told, what)
            self.roles.restoring.unpin(part.job_id)  # of a restore that did not come to its end: none goes on, since the pair is ours now
            same_as = theirs.id if what == "planned" else ""
            why = "split" if split else {"planned": "planned switch", "forced": "forced"}[what]
            with self.roles.job_is_ours(part):
                self.steps.take_over(part, why=why, same_as=same_as, other_id=told.volume_id if told is not None else part.other_id)
            return answer

    def _given_up(self, task, part, other, turn):
        try:
            return other.give_up(task, True, turn)
        except (TimedOut, Unreachable) as error:
            error.hint = f"give the command again when {other.name} has done it; only if it is lost: qrep job promote {part.job} --force"
            raise

    def _asked_source(self, part, other, force):
        """As Roles.asked_other(). force: a source that knows nothing of us any more, or has another key, is as lost as one that does not answer."""
        try:
            return self.roles.asked_other(other)
        except QrepError as error:
            if force:
                return None, None
            error.hint = error.hint or f"only if it is lost: qrep job promote {part.job} --force"
            raise

    def _target_part(self, name):
        """Ours is the replica: of a local pair, the target's."""
        part, other = self.roles.parts(name)
        if not part.peer and self.roles.standing(part).role == decide.PRIMARY:
            return self.roles.turned(part, other)
        return part, other

    def _decide_promote(self, part, theirs, other, force):
        return decide.promote(part.job, self.roles.standing(part), theirs, force=force, other=other.name)

    def _promoted(self, part, other, told, what):
        """What there is to say; the figures are of before."""
        points = part.volume.replica().sync_points()
        at = self.roles.sync_point(part)
        return {
            "job": part.job, "node": self.node.name if part.peer else part.volume.name, "other": other.name, "what": what, "volume": part.volume.name,
            "device": part.volume.settings.device, "sync_point": at, "missing_seconds": lag(at) if what == "forced" else 0,
            "points_lost": [str(point.counter) for point in points[1:]], "other_answers": told is not None,
            "other_is_primary": told is not None and told.role == decide.PRIMARY and what == "forced",
        }  # fmt: skip

    # ---- demote ----

    def plan_demote(self, task, name):
        part, other = self.roles.parts(name)
        told, theirs = self.roles.asked_other(other)
        what = decide.demote(part.job, self.roles.standing(part), theirs, other=other.name)
        self.roles.check_other_jobs(part)
        changed = self.roles.count_here(task, part, told.common)
        return self._demoted(part, other, what, changed) | {"would": what}

    def demote(self, task, name):
        part, other = self.roles.parts(name)
        with self.roles.alone(part):
            told, theirs = self.roles.asked_other(other)
            what = decide.demote(part.job, self.roles.standing(part), theirs, other=other.name)
            self.roles.know(part, told)
            overtaken = what == "overtaken"
            file = self.roles.give_up_here(
                task, part, last_run=not overtaken, why="overtaken" if overtaken else "planned switch", common=told.common, returns=True
            )
            return self._demoted(part, other, what, file.changed)

    def _demoted(self, part, other, what, changed):
        return {
            "job": part.job, "node": self.node.name if part.peer else part.volume.name, "other": other.name, "what": what, "volume": part.volume.name,
            "changed": changed if what == "overtaken" else 0,
        }  # fmt: skip

    # ---- failback ----

    def plan_failback(self, task, name):
        """Exact counts of both sides since the generation that both had; each reads its own device only."""
        part, other = self.roles.parts(name)
        told, theirs = self.roles.asked_other(other)
        ours = self.roles.standing(part)
        if ours.role == decide.REPLICA or told is None:
            decide.failback(part.job, ours, theirs, other=other.name)
        if told.role == decide.PRIMARY:
            told = other.count(task)
        here = self.roles.count_here(task, part, ours.common)
        return self._failed_back(part, other, here, self._only_there(part, told)) | {"split_brain": told.role == decide.PRIMARY}

    def failback(self, task, name, *, swap=True):
        """Bring what changed here to the old source, then swap the roles. What only the old source had stays a sync point there until the swap."""
        part, other = self.roles.parts(name)
        with self.roles.alone(part):
            told, theirs = self.roles.asked_other(other)
            what = decide.failback(part.job, self.roles.standing(part), theirs, other=other.name)
            if what == "ask":
                told = other.give_up(task, False)
                if told.role != decide.REPLICA:
                    raise decide.split_brain(part.job, self.node.name, other.name)
            self.roles.know(part, told)
            if not swap:
                report = self._run(task, part)
                return self._failed_back(part, other, None, told.changed) | {"report": report, "swapped": False}
            file = self.roles.give_up_here(task, part, last_run=True, why="failback", returns=True)
            answer = self._failed_back(part, other, None, told.changed) | {"swapped": True, "report": self._last_report(part)}
            try:
                other.take_back(file.id, file.same_as)
            except QrepError as error:
                error.hint = f"both sides hold the same and wait: on {other.name}, qrep job promote {name}"
                raise
            return answer

    @staticmethod
    def _only_there(part, told):
        """Bytes that only the other side has; nothing where it is a replica of what the last run committed. None: not known."""
        if told.changed is None and told.role == decide.REPLICA and told.id:
            last = part.runner.last_committed() if part.runner is not None else None
            return 0 if last is not None and last.get("generation") == told.id else None
        return told.changed

    def _run(self, task, part):
        part.runner.begin("run")
        return part.runner.run(task, "the other side gave up its role")

    def _last_report(self, part):
        last = self.node.db.last_run(part.job_id)
        return last["report"] if last else None

    def _failed_back(self, part, other, here, there):
        return {
            "job": part.job, "node": self.node.name if part.peer else part.volume.name, "other": other.name, "volume": part.volume.name,
            "other_volume": part.other, "size": part.size, "changed_here": here, "changed_there": there,
        }  # fmt: skip

    # ---- resync ----

    def resync(self, task, name, side, *, dry_run=False):
        """`side` wins: the other one becomes its replica, and what it holds is a sync point of it when the run has ended."""
        part, other = self.roles.parts(name)
        with self.roles.alone(part):
            told, theirs = self.roles.asked_other(other)
            ours = self.roles.standing(part)
            loser = decide.losing_side(part.job, side, ours, theirs, names=self._names(part, other, decide.is_target(ours, theirs)))
            answer = {"job": name, "loser": "here" if loser == "here" else other.name, "volume": part.volume.name, "other": other.name, "dry_run": dry_run}
            if dry_run:
                changed = self.roles.count_here(task, part, told.common) if loser == "here" and ours.role == decide.PRIMARY else self._only_there(part, told)
                return answer | {"changed": changed}
            if loser == "there":
                if told.role == decide.PRIMARY:
                    told = other.give_up(task, False)
                self.roles.know(part, told)
                return answer | {"changed": told.changed, "report": self._run(task, part)}
            changed = None
            if ours.role == decide.PRIMARY:
                part.other_id = part.other_id or told.volume_id
                changed = self.roles.give_up_here(task, part, last_run=False, why=f"{other.name} was named authoritative", common=told.common, returns=True).changed
        other.run_now()
        return answer | {"changed": changed, "report": None}

    def _names(self, part, other, is_target):
        """What people may call the two sides. After both have been either, source and target name neither."""
        here, there = {part.volume.name}, {part.other}
        if part.peer:
            here, there = {self.node.name, f"{self.node.name}:{part.volume.name}"}, {other.name, f"{other.name}:{part.other}"}
        if is_target is None:
            return {"here": here, "there": there}
        return {"here": here | {"target" if is_target else "source"}, "there": there | {"source" if is_target else "target"}}
