"""The other side of a pair, for whoever changes roles: a volume of a peer, who is asked, or another volume of this node."""

import time
from datetime import datetime

import msgspec

from qrep import units
from qrep.daemon import asks
from qrep.errors import ProtocolError, QrepError, Refused, TimedOut, Unreachable, from_dict
from qrep.jobs.roles import Standing
from qrep.settings import check_name

POLL_S = 0.3
SILENT_S = 60.0  # without an answer; a question that is under way then has 30 s more
WORK_S = 24 * 3600.0  # for what it was asked: it may read or send a whole device; it goes on there, and the command can be given again


class Told(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a side says of itself: the answer to asks.Standing. Ids: 32 hex digits or "". task: what it does at our asking, {state, error, result}."""

    role: str
    id: str
    same_as: str
    common: str
    allows: bool
    busy: bool
    returns: bool
    volume: str
    volume_id: str
    sync_point: str | None
    changed: int | None
    task: dict | None

    def standing(self, node):
        return Standing(node, self.role, self.id, self.same_as, self.common, self.allows, self.busy, self.returns)


def _checked(value, question):
    """Told, held to its form. Raises ProtocolError."""
    try:
        told = msgspec.convert(value, Told)
        check_name("volumes", told.volume)
    except (msgspec.ValidationError, QrepError) as err:
        raise ProtocolError(f"the answer to {question} is not one: {err}") from err
    for text in (told.id, told.same_as, told.common, told.volume_id):
        if text and (len(text) != 32 or not set(text) <= set("0123456789abcdef") or not text.strip("0")):
            raise ProtocolError(f"an id in the answer to {question} is none")
    if not told.volume_id:
        raise ProtocolError(f"the answer to {question} names no volume")
    if told.changed is not None and not 0 <= told.changed < 1 << 63:
        raise ProtocolError(f"the answer to {question} counts {told.changed} bytes")
    try:
        told.sync_point is None or datetime.fromisoformat(told.sync_point)
    except ValueError:
        raise ProtocolError(f"the sync point in the answer to {question} has no time") from None
    if told.task is not None and told.task.get("state") not in ("running", "failed", "done"):
        raise ProtocolError(f"the answer to {question} tells of a task in no state")
    if told.role not in ("primary", "replica"):
        raise ProtocolError(f"the answer to {question} names the role {told.role[:40]!r}")
    return told


def _failure(error):
    try:
        return from_dict(msgspec.structs.asdict(msgspec.convert(error, asks.Failure)))
    except msgspec.ValidationError as err:
        return ProtocolError(f"the other side failed, and does not say how: {err}")


class PeerSide:
    """The volume of a peer."""

    def __init__(self, node, part):
        self.node, self.part, self.name = node, part, part.peer

    def ask(self):
        """Told, or None where the peer does not answer. Raises what it refused with."""
        try:
            return self._asked(asks.Standing(job_id=self.part.job_id), "standing")
        except Unreachable:
            return None

    def _asked(self, question, what):
        return _checked(self.node.peers.reach(self.part.peer).ask(question), what)

    def give_up(self, task, last_run, turn=None):
        """Have it give up, and wait for that, WORK_S at most. turn: roles.Turn, which may be ended meanwhile. Raises what it met."""
        self._asked(asks.GiveUp(job_id=self.part.job_id, last_run=last_run), "give-up")
        return self._follow(task, f"{self.name} gives up its role", turn)

    def count(self, task):
        self._asked(asks.CountChanges(job_id=self.part.job_id), "count-changes")
        return self._follow(task, f"{self.name} counts")

    def _follow(self, task, doing, turn=None):
        """Told of when it has done what it was asked. It is not believed for ever that it is at it, and not waited for where it is silent."""
        task.progress = lambda: {"phase": doing, "percent": None}
        wait = turn.wait if turn is not None else time.sleep
        began = heard = time.monotonic()
        while True:
            told = self.ask()
            wait(0)
            now = time.monotonic()
            heard = now if told is not None else heard
            if now - heard > SILENT_S:
                silent = units.format_duration(now - heard)
                raise TimedOut(f"{self.name} has not answered for {silent} while {doing}", hint="see qrep status there; give the command again")
            if told is not None and told.task is None:
                raise QrepError(f"{self.name}: its agent ended in the middle of it", code="interrupted-there", hint="give the command again")
            state = told.task.get("state") if told is not None else "running"
            if state == "failed":
                raise _failure(told.task.get("error"))
            if state != "running":
                return told
            if now - began > WORK_S:
                raise TimedOut(f"{doing}: that is not done after {units.format_duration(now - began)}", hint="see qrep status there; give the command again")
            wait(POLL_S)

    def take_back(self, new, same_as):
        """We have given up at `new`, which holds what its `same_as` holds: it is to take over. Raises what it refused with."""
        self._asked(asks.TakeBack(job_id=self.part.job_id, id=new, same_as=same_as), "take-back")

    def pin(self, point):
        self._asked(asks.PinPoint(job_id=self.part.job_id, point=point), "pin-point")

    def send_back(self, task, point):
        """Have it send a sync point of its volume to ours, and wait for that. Returns Told of afterwards."""
        self._asked(asks.SendBack(job_id=self.part.job_id, point=point), "send-back")
        return self._follow(task, f"{self.name} sends {point} back")

    def run_now(self):
        """Its next run brings us what it holds; it may be under way when this returns."""
        self._asked(asks.RunNow(job_id=self.part.job_id), "run-now")


class LocalSide:
    """Another volume of this node: its operator is ours. roles: Roles; part: rolesteps.Part of that volume."""

    def __init__(self, roles, part):
        self.roles, self.part, self.name = roles, part, part.volume.name

    def ask(self):
        try:
            self.part.volume.inspect()
        except QrepError:
            return None  # its device is gone: as good as a peer that does not answer
        told = self.roles.tell(self.part, allows=True)
        told.busy = False  # by whoever asks: one lock is for both sides
        return told

    def give_up(self, task, last_run, turn=None):
        self.roles.give_up_here(task, self.part, last_run=last_run, why="asked for by the other side", returns=True)
        return self.ask()

    def count(self, task):
        changed = self.roles.count_here(task, self.part)
        told = self.ask()
        told.changed = changed
        return told

    def take_back(self, new, same_as):
        self.roles.steps.take_over(self.part, why="taken back", same_as=new, other_id=self.part.other_id)

    def pin(self, point):
        self.roles.restoring.pin(self.part, point)

    def send_back(self, task, point):
        told = self.roles.tell(self.roles.parts(self.part.job)[0], allows=True)
        self.roles.restoring.send_back(task, self.part, told, point)
        return self.ask()

    def run_now(self):
        raise Refused(f"{self.name} is on this host: start the job", code="local-job")
