"""restore: the source gets a sync point of its target back (docs/ROLES.md). At the target: pin the point, put it back as a generation of its own, and
send it; the volume there stays a replica all the while, and is not released.
"""

import contextlib
import os
import threading

from qrep import mapcopy
from qrep.config import Job
from qrep.daemon import snapshots
from qrep.daemon import standing as standings
from qrep.daemon.route import Route
from qrep.digestmap import DigestMap
from qrep.errors import DamagedError, QrepError, Refused, Unreachable
from qrep.jobs import roles as decide


class Restore:
    """roles: Roles. Both ends of it: restore() where the source is, pin() and send_back() where the target is."""

    def __init__(self, roles):
        self.roles, self.node, self.steps = roles, roles.node, roles.steps
        self._lock = threading.Lock()
        self._pinned = {}  # job id -> ExitStack that holds a sync point

    # ---- at the source ----

    def plan(self, name, point):
        part, other = self.roles.parts(name)
        self._check(part, other)
        return self._answer(part, other, point)

    def restore(self, task, name, point, *, discard=False):
        """discard: what the volume holds now is not brought to the target first. Raises QrepError; where it ends in the middle, the command goes on
        from there when it is given again."""
        part, other = self.roles.parts(name)
        with self.roles.alone(part):
            told = self._check(part, other)
            self.roles.know(part, told)
            if self.roles.standing(part).role == decide.PRIMARY:
                other.pin(point)  # the last run makes a sync point more: this one must not be given up for it
                try:
                    self.roles.give_up_here(task, part, last_run=not discard, why="restore", common=told.common, returns=True)
                except BaseException:  # it is the source as before, and nothing will be asked for
                    with contextlib.suppress(QrepError):  # where it cannot be told, its next change of role lets go
                        other.pin("")
                    raise
            try:
                told = other.send_back(task, point)
            except QrepError as error:
                if error.code != DamagedError.code:
                    error.hint = f"qrep job restore {name}@{point} goes on; what {part.volume.name} held is its sync point: qrep snapshot {part.volume.name}"
                raise
            part = self.roles.parts(name)[0]
            with self.roles.job_is_ours(part):
                self.steps.take_over(part, why="restored", same_as=told.id, other_id=told.volume_id)
            return self._answer(part, other, point)

    def _check(self, part, other):
        """Told of the target. Raises what keeps a sync point of it from being restored."""
        file = standings.load(part.volume.directory)
        if self.roles.standing(part).role == decide.REPLICA and (file is None or file.why != "restore"):
            raise Refused(
                f"{part.job}: {part.volume.name} is a replica; only a source is restored", code="not-source", hint=f"here: qrep snapshot rollback {part.volume.name}@POINT"
            )
        self.roles.check_other_jobs(part)
        told, theirs = self.roles.asked_other(other)
        if told is None:
            raise Unreachable(f"{part.job}: {other.name} does not answer", hint="check the link and the agent there")
        if told.role == decide.PRIMARY:
            raise decide.split_brain(part.job, self.node.name, other.name)
        return told

    def _answer(self, part, other, point):
        return {"job": part.job, "point": point, "volume": part.volume.name, "device": part.volume.settings.device, "other": other.name}

    # ---- at the target ----

    def pin(self, part, point):
        """Keep a sync point until it was sent, or another one is asked for; "": none any more. Raises NotFound."""
        if not point:
            self.unpin(part.job_id)
            return
        target, found, _points = snapshots.find(self.node, part.volume.name, point)
        stack = contextlib.ExitStack()
        stack.enter_context(target.pin(found.id))
        with self._lock:
            before, self._pinned[part.job_id] = self._pinned.get(part.job_id), stack
        if before is not None:
            before.close()

    def unpin(self, job_id):
        with self._lock:
            stack = self._pinned.pop(job_id, None)
        if stack is not None:
            stack.close()

    def send_back(self, task, part, told, point):
        """told: Told of the source, which has given up. The volume here holds the point, and so does the source, when this returns."""
        if told is None or told.role != decide.REPLICA:
            raise Refused(f"{part.job}: its source has not given up its role, or does not answer", code="source-answers", hint=f"there: qrep job restore {part.job}@{point}")
        target, found, _points = snapshots.find(self.node, part.volume.name, point)
        try:
            self._map_of_source(part, target, told)
            expected = self.node.db.root(found.id.hex())
            if not found.current or target.has_open_generation():
                snapshots.roll_back(self.node, task, part.volume.name, point)
            with target.lent(f"it is being restored to {told.volume}"):
                self._run(task, part, target, told, expected)
        finally:
            self.unpin(part.job_id)

    def _map_of_source(self, part, target, told):
        """Where the source gave up with what is committed here, our map is that of the source, too. Before the rollback changes it."""
        own = target.digest_map
        if own.tag.hex() != told.same_as or target.machine.record.committed_id != own.tag:
            return
        theirs = DigestMap(self.steps.map_directory(part.job_id), part.geometry, bytes.fromhex(told.volume_id))
        try:
            mapcopy.become(theirs, bytes.fromhex(told.id), own)
        finally:
            theirs.close()

    def _run(self, task, part, target, told, expected):
        """expected: the root of the sync point in hex, None: not known. A device that rotted has others, and that is not put back as the source."""
        from qrep.source.flow import Run

        job = Job(
            id=part.job_id, source=part.volume.name, target=f"{part.peer}:{told.volume}" if part.peer else told.volume, target_volume=told.volume_id,
            size=part.size, leaf=part.leaf, granule=part.granule, whole=target.device.size == part.size, sync_points=part.sync_points,
        )  # fmt: skip
        os.makedirs(os.path.dirname(self.steps.map_directory(part.job_id)), mode=0o700, exist_ok=True)
        route = Route(self.node, part.job, job, lends=True)
        run = Run(route.request(), route.dial, route.connect)
        task.progress, task.cancel = run.progress, run.stop
        report = run.run()
        if expected is not None and report.root != expected:
            raise DamagedError(
                f"what {self.node.name if part.peer else part.volume.name} sent has the root {report.root}, the sync point had {expected}: it is damaged",
                hint=f"{told.volume} is a replica now; what it held is its sync point: qrep snapshot {told.volume}, qrep snapshot rollback {told.volume}@POINT, "
                f"qrep job promote {part.job} --force; then qrep verify {part.job}",
            )  # fmt: skip
        self.node.events.add("snapshot-restored", f"to {job.target}, {report.sent} bytes sent", volume=part.volume.name, job=part.job, root=report.root)
