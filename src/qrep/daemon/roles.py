"""promote, demote, failback, split, resync: what they do at this node, and what this node answers when the other side asks (docs/ROLES.md).

Decisions are in jobs/roles.py, the durable steps in rolesteps.py, the other side in rolesides.py. A peer's question never makes this node give up a
role unless its own operator said so: `may_switch` of the peer, or `returns` of a volume that was demoted.
"""

import contextlib
import dataclasses
import threading
import time
from datetime import datetime

import msgspec

from qrep.daemon import asks
from qrep.daemon import standing as standings
from qrep.daemon.made import check_has_roles
from qrep.daemon.restore import Restore
from qrep.daemon.rolesides import LocalSide, PeerSide, Told
from qrep.daemon.rolesteps import NOBODY, Part, RoleSteps
from qrep.digestmap import NO_ID, DigestMap
from qrep.errors import Interrupted, NotFound, ProtocolError, Refused
from qrep.jobs import roles as decide
from qrep.jobs.shown import iso
from qrep.target.rolechange import durable_role


class Turn:
    """One change of roles. gives_way: it may be ended still; whoever waits in it looks at check()."""

    def __init__(self, job, gives_way):
        self.job, self.gives_way = job, gives_way
        self._ended, self._why = threading.Event(), ""

    def end(self, why):
        self._why = why
        self._ended.set()

    def check(self):
        """Raises Interrupted if it was ended."""
        if self._ended.is_set():
            raise Interrupted(
                f"{self.job}: this planned promote was ended: {self._why}", code="ended",
                hint=f"qrep status {self.job}; the source may still do what it was asked: to give up its role",
            )  # fmt: skip

    def wait(self, seconds):
        """Raises Interrupted as soon as it is ended."""
        self._ended.wait(seconds)
        self.check()


class Roles:
    """node: the Node. Thread-safe: one change of roles of a pair at a time."""

    def __init__(self, node):
        self.node, self.steps = node, RoleSteps(node)
        self.restoring = Restore(self)
        self._lock = threading.Lock()
        self._changing = {}  # job id -> Turn of the change of its roles that goes on here
        self._asked = {}  # job id -> the Task that the other side asked for last

    # ---- what this node has of a pair ----

    def parts(self, name):
        """(our Part, the other side) of a job: of a local pair, ours is the source's. Raises NotFound, Refused where the name is not enough."""
        runner = self.node.jobs.all_by_name().get(name)
        if runner is not None:
            return self._of_runner(name, runner)
        pairs = [pair for pair in self.node.grants.pairs() if pair["job"] == name and pair["peer"]]
        if not pairs:
            self.node.jobs.get(name)  # raises the NotFound that names what was probably meant
        pairs = [pair for pair in pairs if self.node.pairs.lives(pair)] or pairs  # one whose key is not trusted any more does for want of another
        if len(pairs) > 1:
            volumes = ", ".join(f"{pair['peer']} -> {pair['volume']}" for pair in pairs)
            raise Refused(f"{len(pairs)} hosts have a job {name} that writes here: {volumes}", hint="rename one of them where its source is", code="ambiguous")
        return self._of_pair(pairs[0])

    def _of_runner(self, name, runner):
        job = runner.settings
        check_has_roles(name, job)
        peer, _, other = job.target.rpartition(":")
        known = job.target_volume if job.target_volume != NOBODY else ""
        part = Part(job.id, name, peer, self.node.volumes.get(job.source), other, known, job.size, job.leaf, job.granule, job.sync_points, job.keep, runner)
        if peer:
            return part, PeerSide(self.node, part)
        volume = self.node.volumes.get(other)
        there = dataclasses.replace(part, volume=volume, other=job.source, other_id=part.volume.settings.id)
        return part, LocalSide(self, there)

    def _of_pair(self, pair):
        volume = self.node.volumes.get(pair["volume"])
        record = volume.replica().machine.record
        part = Part(
            pair["job_id"], pair["job"], pair["peer"], volume, pair["source"].rpartition(":")[2], "", record.size, record.leaf_size,
            record.granule_size, pair["sync_points"], pair["keep"],
        )  # fmt: skip
        return part, PeerSide(self.node, part)

    def _of_peer(self, job_id, peer):
        """The Part that a peer may ask about. Raises NotFound for any other job: it learns nothing else of what is here."""
        name, runner = self.node.jobs.by_id(job_id)
        if runner is not None and runner.settings.target.rpartition(":")[0] == peer:
            return self._of_runner(name, runner)[0]
        pair = self.node.grants.pair(job_id)
        if pair is None or pair["peer"] != peer or pair["fingerprint"] != self.node.peers.fingerprint(peer):
            raise NotFound("no such pair here", code="no-such-pair")
        return self._of_pair(pair)[0]

    def turned(self, part, other):
        """A local pair from its other side."""
        return other.part, LocalSide(self, part)

    def tell(self, part, *, allows):
        """rolesides.Told of a Part of this node."""
        role, committed = durable_role(part.volume.directory)
        file = standings.load(part.volume.directory)
        current = file is not None and file.done and file.job_id == part.job_id and file.id == committed.hex()
        demoted = file is not None and file.done and file.job_id == part.job_id and file.role == decide.REPLICA
        task = self._asked.get(part.job_id)
        return Told(
            role=decide.REPLICA if role == "replica" else decide.PRIMARY, id=committed.hex() if committed != NO_ID else "",
            same_as=file.same_as if current else "", common=file.common if current else "", allows=allows, busy=part.job_id in self._changing,
            returns=demoted and file.returns, volume=part.volume.name, volume_id=part.volume.settings.id, sync_point=self.sync_point(part),
            changed=self._changed(part, file if current else None), task=_shown(task) if task is not None else None,
        )  # fmt: skip

    def _changed(self, part, file):
        if file is not None and file.role == decide.REPLICA:
            return file.changed
        task = self._asked.get(part.job_id)
        return task.result if task is not None and task.kind == "count" and task.state == "done" else None

    @staticmethod
    def sync_point(part):
        target = part.volume.target
        at = target.status()["last_sync_point_ns"] if target is not None and not target.is_primary else None
        return iso(at)

    def standing(self, part):
        return self.tell(part, allows=True).standing(self.node.name if part.peer else part.volume.name)

    @contextlib.contextmanager
    def alone(self, part, *, gives_way=False, force=False):
        """One change of roles of a pair at a time. While it goes on the other side is told `busy`, so that the two never take over both. Yields its Turn.

        gives_way: it only waits for the other side, until decided(). force: one that still gives way is ended, and not waited for."""
        with self._lock:
            going = self._changing.get(part.job_id)
            if going is not None and not (force and going.gives_way):
                lost = f"; if its source is lost: qrep job promote {part.job} --force" if going.gives_way else ""
                raise Refused(f"{part.job}: its roles are being changed already", hint=f"qrep status {part.job}{lost}", code="busy")
            if going is not None:
                going.end("promote --force was given, which takes over at the last sync point")
            turn = self._changing[part.job_id] = Turn(part.job, gives_way)
        try:
            yield turn
        finally:
            with self._lock:
                if self._changing.get(part.job_id) is turn:
                    del self._changing[part.job_id]

    def decided(self, turn):
        """It does not give way any more. Raises Interrupted if it was ended."""
        with self._lock:
            turn.check()
            turn.gives_way = False

    def job_is_ours(self, part):
        """A context within which nothing goes on in the job."""
        return _job_is_ours(part.runner)

    def settle(self):
        """Now and then: finish what could not be finished."""
        self.steps.settle(self._settling)

    @contextlib.contextmanager
    def _settling(self, file):
        _name, runner = self.node.jobs.by_id(file.job_id)
        with self.alone(file), _job_is_ours(runner):
            yield

    def know(self, part, told):
        """Note the other volume's id, where only its name was known: a run is refused by a volume of another id."""
        if part.other_id != told.volume_id:
            part.other_id = told.volume_id
            self.node.jobs.put_target_volume(part.job, told.volume_id)
            part.runner = self.node.jobs.get(part.job)

    # ---- giving up ----

    def give_up_here(self, task, part, *, last_run, why, common="", returns=False):
        """Claim the device, bring the other side to it (last_run), and become a replica. Returns the StandingFile."""
        self.check_other_jobs(part)
        with self.steps.held(part) as target:
            if last_run:
                part.runner.begin("run")
                part.runner.run(task, "the last one before its role is given up")
            task.progress = lambda: _reading(target, part.size)
            with self.job_is_ours(part):
                return self.steps.give_up(part, target, why=why, last_run=last_run, common=common, returns=returns)

    def check_other_jobs(self, part):
        """Raises Refused where the volume here is the source of another job: it cannot become a replica."""
        others = [name for name, runner in self.node.jobs.active() if runner.settings.source == part.volume.name and runner.settings.id != part.job_id and not runner.settings.finished]
        if others:
            raise Refused(
                f"{part.volume.name} is the source of job {others[0]}, too", hint=f"cascading is not possible; qrep job delete {others[0]} first", code="cascading"
            )

    def count_here(self, task, part, common=""):
        """Bytes written here since the generation that both sides had, leaf for leaf; None: not known."""
        from qrep.source import estimate

        if part.runner is None:
            return None
        with self._counting(part):
            request = part.runner.request()
            if part.runner.settings.source != part.volume.name:  # the other side of a local pair
                request = dataclasses.replace(request, device=part.volume.inspect(), volume_id=bytes.fromhex(part.other_id))
            own = DigestMap(f"{part.volume.directory}/map", part.geometry, bytes.fromhex(part.volume.settings.id))
            of_job = DigestMap(request.map_directory, part.geometry, request.volume_id)
            tags = (own.tag.hex(), of_job.tag.hex())
            own.close()
            of_job.close()
            if tags[1] == NO_ID.hex() or (common and tags[0] == common and tags[1] != common):
                request = dataclasses.replace(request, map_directory=f"{part.volume.directory}/map", volume_id=bytes.fromhex(part.volume.settings.id))
            task.progress = lambda: {"phase": "counting what changed here", "percent": None}
            found = estimate.estimate(request)
            return None if found.full else found.would_send

    @contextlib.contextmanager
    def _counting(self, part):
        part.runner.begin("estimate")
        try:
            yield
        finally:
            part.runner.end()

    # ---- what the other side asks ----

    def answer(self, question, peer):
        """Raises QrepError, which is what the peer is told."""
        part = self._of_peer(question.job_id, peer)
        allows = self.node.peers.may_switch(peer)
        if isinstance(question, asks.GiveUp):
            if not allows:
                raise Refused(
                    f"{self.node.name} gives up its role in {part.job} only when its own operator says so", code="not-allowed",
                    hint=f"on {self.node.name}: qrep job demote {part.job}; or, for good: qrep peer set {peer} --may-switch",
                )  # fmt: skip
            self._for_peer("give-up", part, lambda task: self._give_up_for(task, part, question.last_run) and None)
        elif isinstance(question, asks.CountChanges):
            if self.tell(part, allows=allows).role == decide.PRIMARY:
                self._for_peer("count", part, lambda task: self.count_here(task, part))
        elif isinstance(question, asks.TakeBack):
            with self.alone(part), self.job_is_ours(part):
                decide.take_back(part.job, self.standing(part), question.id, question.same_as, allowed=allows, kept_points=_under_floor(part.volume))
                self.restoring.unpin(part.job_id)
                self.steps.take_over(part, why=f"{peer} gave it back", same_as=question.id, other_id=part.other_id)
        elif isinstance(question, (asks.PinPoint, asks.SendBack)) and peer not in part.volume.settings.accept:
            raise Refused(
                f"{self.node.name}:{part.volume.name} is not for this host any more", code="not-accepted",
                hint=f"on {self.node.name}: qrep volume set {part.volume.name} --accept {peer}",
            )  # fmt: skip
        elif isinstance(question, asks.PinPoint):
            self.restoring.pin(part, question.point)
        elif isinstance(question, asks.SendBack):
            self._for_peer("send-back", part, lambda task: self._send_back_for(task, part, question.point))
        elif isinstance(question, asks.RunNow):
            self._run_for(part, peer)
        elif not isinstance(question, asks.Standing):
            raise ProtocolError(f"unknown question {question!r}")
        return msgspec.to_builtins(self.tell(part, allows=allows))

    def _for_peer(self, kind, part, action):
        """Long work that a peer asked for: one at a time, told of by tell()."""
        with self._lock:
            running = self._asked.get(part.job_id)
            if running is not None and running.state == "running":
                if running.kind != kind:
                    raise Refused(f"{part.job}: {self.node.name} is busy with it ({running.kind})", code="busy", hint="wait for that, then try again")
                return
            self._asked[part.job_id] = self.node.tasks.start(kind, part.job, action)

    def _give_up_for(self, task, part, last_run):
        with self.alone(part):
            told = PeerSide(self.node, part).ask() if last_run and not part.other_id else None
            if told is not None:
                self.know(part, told)
            return self.give_up_here(task, part, last_run=last_run, why=f"{part.peer} asked for it", returns=True)

    def _send_back_for(self, task, part, point):
        with self.alone(part):
            self.restoring.send_back(task, part, PeerSide(self.node, part).ask(), point)

    def _run_for(self, part, peer):
        if part.runner is None or part.runner.settings.role != "source":
            raise Refused(f"{part.job}: {self.node.name} is not its source", code="not-source", hint=f"qrep job promote {part.job} makes it so")
        told = PeerSide(self.node, part).ask()
        if told is not None and told.volume_id != part.other_id:
            self.node.jobs.put_target_volume(part.job, told.volume_id)
        self.node.jobs.start(part.job, f"{peer} has become the replica")

    def check_session(self, job_id, peer):
        """Refuse a run of the other side of a pair of which this side is primary, before its volume hears a word; keep it as our job's problem."""
        name, runner = self.node.jobs.by_id(job_id)
        if runner is None or runner.settings.role != "source" or runner.settings.target.rpartition(":")[0] != peer:
            return
        if durable_role(self.node.volumes.get(runner.settings.source).directory)[0] == "replica":  # its file is from before a change of roles: the superblock decides
            return
        error = decide.split_brain(name, self.node.name, peer)
        runner.note_problem(error)
        self.node.events.add("split-brain", error.message, job=name)
        raise error

    # ---- for people ----

    def asked_other(self, other):
        """(Told or None, its Standing or None). A peer that refuses to say is as one that does not know us."""
        told = other.ask()
        return told, told.standing(other.name) if told is not None else None


@contextlib.contextmanager
def _job_is_ours(runner):
    if runner is None:
        yield
        return
    runner.begin("role")
    try:
        yield
    finally:
        runner.end()


def _under_floor(volume):
    """How many earlier sync points a volume has, if its operator set a floor."""
    if volume.target is None or not (volume.settings.keep_points or volume.settings.keep_for):
        return 0
    return sum(not point.current for point in volume.target.sync_points())


def _shown(task):
    return {"state": task.state, "error": asks.bounded(task.error) if task.error else None}


def _reading(target, size):
    run = target.scanning
    read = run.counters()["read"] if run is not None else 0
    return {"phase": "reading what it holds", "percent": round(100 * min(1.0, read / size), 1)}


def lag(sync_point):
    """How long ago a sync point (ISO time) was, in seconds; None: not known."""
    return max(0, int(time.time() - datetime.fromisoformat(sync_point).timestamp())) if sync_point else None


