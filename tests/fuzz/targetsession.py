"""Sessions of a source that says what it likes, against the shipping TargetMachine over a model of a device that looks at every action.

    session = TargetSession(chance); session.run()     # raises Broken

The model: granules hold numbers. It is a driver as actions.py describes one, and refuses what no action may do: write before somebody is admitted, or
without the before-image; put back or close while lanes run; commit what is not flushed, not announced, or not on top of what was named.
"""

import hashlib

import msgspec

from fuzz.mutate import ODD, one_of, packed, wrong
from fuzz.parsers import Broken
from qrep.errors import DamagedError, ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import OPEN_NONE, OPEN_ROLLBACK, TargetRecord
from qrep.protocol.target_machine import TargetMachine

LEAF, GRANULE, GRANULES = 4096, 16384, 5
SIZE = GRANULES * GRANULE - LEAF
JOB, VOLUME = b"j" * 16, b"v" * 16
FAILING = (do.CreateUndo, do.StartLanes, do.AddLanes, do.CollectManifest, do.SealUndo, do.WritePendingMap, do.RestoreUndo, do.ApplyPoint, do.Scan, do.SendLeaves, do.SendNodes)
EVENTS_MAX = 40
KINDS = ("connection", "frame", "digest", "value", "undo", "undo_space", "write", "memory")


class Died(Exception):
    """The process of the target has ended here."""


def digest_of(applied):
    return hashlib.blake2s(repr(sorted(applied.items())).encode()).digest()


class TargetSession:
    machine_class = TargetMachine

    def __init__(self, chance):
        self.chance = chance
        self.record = TargetRecord(volume_id=VOLUME, size=SIZE, leaf_size=LEAF, granule_size=GRANULE)  # what the superblock says
        self.device, self.images = [0] * GRANULES, {}
        self.undo = {}  # new id -> (base, attempt, {granule: what was there})
        self.dirty = False  # something was written and not flushed
        self.lanes = None  # (attempt, base) while lanes run
        self.applied, self.announced, self.checkpoint = {}, None, 0
        self.handles, self.closed, self.admitted, self.heard = [], set(), set(), []
        self.opened_on = set()  # the bases that a Begin of the open attempt named: more than one where some were refused
        self.numbers = 0
        self.faults = False  # set from run() on
        self.readers = []
        self._point = NO_ID
        self._start()

    # ---- the driver ----

    def _start(self):
        chain, new = [], self.record.committed_id
        while new != NO_ID:
            chain.append(new)
            new = self.undo[new][0] if new in self.undo else NO_ID
        self.machine = self.machine_class(self.record, capacity=SIZE, sector_size=512, chain=chain)
        self.lanes, self.admitted, self.handles, self.readers = None, set(), [], []
        self._do(self.machine.start(bool(self.checkpoint) and self.checkpoint == self.record.open_attempt))
        if self.record.open_kind == OPEN_NONE:
            self._is_committed()

    def _fresh(self):
        self.numbers += 1
        return self.numbers.to_bytes(16, "big")

    def _do(self, actions):
        """As actions.py says: in order, results last, a failure takes the place of the rest."""
        while actions:
            following = []
            for action in actions:
                if self.faults and isinstance(action, FAILING) and self.chance.random() < 0.02:
                    error = DamagedError("seeded") if isinstance(action, do.RestoreUndo) else OSError(28, "seeded")
                    following = self.machine.failed(action, error)
                    break
                name = "_" + type(action).__name__
                if self.faults and self.chance.random() < 0.003:
                    raise Died
                try:
                    result = getattr(self, name)(action) if hasattr(self, name) else None
                except do.LanesFailed as error:
                    following = self.machine.failed(action, error)
                    break
                if result is not None:
                    if action is not actions[-1]:
                        raise Broken(f"{name[1:]} is not the last of its list")
                    following = result
            actions = following
        if self.machine.phase == "idle":
            self._is_committed()

    def _is_committed(self):
        committed = self.machine.record.committed_id
        if committed != NO_ID and tuple(self.device) != self.images[committed]:
            raise Broken(f"the device does not hold what is committed: {self.device}, {self.images[committed]}")

    def _WriteSuperblock(self, action):  # noqa: N802
        before, after = self.record, action.record
        if after.committed_id != before.committed_id:
            if self.lanes or self.dirty:
                raise Broken("a commit of what may not be durable, or while lanes run")
            if after.committed_id != before.open_new_id or before.open_kind == OPEN_NONE:
                raise Broken("a commit of what was not open")
            if before.open_kind != OPEN_ROLLBACK and (self.announced != digest_of(self.applied) or before.committed_id not in self.opened_on):
                raise Broken("a commit of something else than was announced, or on something else than was named")
            if before.open_kind == OPEN_ROLLBACK and tuple(self.device) != self.images[self._point]:
                raise Broken("a rollback to something else")
            self.images[after.committed_id] = tuple(self.device)
        elif after.open_kind == OPEN_NONE != before.open_kind:
            if self.lanes or (before.committed_id != NO_ID and (self.dirty or tuple(self.device) != self.images[before.committed_id])):
                raise Broken("an open generation is cleared before what it overwrote is back")
        if after.max_epoch < before.max_epoch or after.volume_id != VOLUME:
            raise Broken(f"a superblock that says {after}")
        if (after.size, after.leaf_size, after.granule_size) != (before.size, before.leaf_size, before.granule_size):
            fits = after.leaf_size * 2 <= after.granule_size and 0 < after.size <= SIZE and after.size % 512 == 0
            if before.committed_id != NO_ID or before.open_kind != OPEN_NONE or not fits:
                raise Broken(f"another shape: {after}")
        self.record = after

    def _CreateUndo(self, action):  # noqa: N802
        if self.lanes:
            raise Broken("a generation begins while lanes run")
        self.undo[action.new] = action.base, action.attempt, {}

    def _StartLanes(self, action):  # noqa: N802
        record = self.record
        if self.lanes or not self.admitted or record.open_attempt != action.attempt or action.base != record.committed_id:
            raise Broken("lanes start before the generation is open, beside others, or for nobody")
        if action.base != NO_ID and record.open_new_id not in self.undo:
            raise Broken("lanes start without an undo file")
        if not 1 <= action.connections <= say.CONNECTIONS_MAX or action.frame_limit < LEAF:
            raise Broken(f"lanes of {action}")
        self.lanes = action.attempt, action.base
        if action.fresh:
            self.applied = {}
            self.opened_on = self._named.pop(action.attempt, set())

    def _AddLanes(self, action):  # noqa: N802
        if not self.lanes or not 1 <= action.count <= say.CONNECTIONS_MAX:
            raise Broken(f"{action} without lanes")

    def _WaitLanes(self, _action):  # noqa: N802
        if self.chance.random() < 0.1:
            raise do.LanesFailed(one_of(self.chance, KINDS), "seeded")
        self.lanes = None

    def _DrainLanes(self, _action):  # noqa: N802
        self.lanes = None

    def _CollectManifest(self, action):  # noqa: N802
        unwritten = [(0, 4096)] if self.chance.random() < 0.05 else []
        partial = int(self.chance.random() < 0.05)
        return self.machine.manifest_collected(len(self.applied), digest_of(self.applied), partial, unwritten)

    def _FlushDevice(self, _action):  # noqa: N802
        self.dirty = False

    def _SaveCheckpoint(self, action):  # noqa: N802
        self.checkpoint = action.attempt

    def _ForgetCheckpoint(self, _action):  # noqa: N802
        self.checkpoint = 0

    def _RestoreUndo(self, action):  # noqa: N802
        if self.lanes:
            raise Broken("before-images are put back while lanes run")
        base, attempt, before = self.undo[action.new]
        if (base, attempt) != (action.base, action.attempt):
            raise Broken("before-images of another attempt are put back")
        for granule, value in before.items():
            self.device[granule], self.dirty = value, True
        return self.machine.undo_restored()

    def _PruneUndo(self, action):  # noqa: N802
        record = self.record
        if record.open_kind != OPEN_NONE and record.committed_id != NO_ID and self.undo.get(record.open_new_id, (0, 0, {}))[2]:
            raise Broken("undo goes while its generation is open")
        kept, new = {}, action.committed
        while new in self.undo:
            kept[new] = self.undo[new]
            new = kept[new][0]
        self.undo = kept

    def _Retain(self, _action):  # noqa: N802
        chain = self.machine.chain[: 1 + int(self.chance.random() * 4)]
        self.machine.set_chain(chain)
        self.undo = {new: file for new, file in self.undo.items() if new in chain[:-1]}

    def _ApplyPoint(self, action):  # noqa: N802
        if self.lanes or action.point not in self.images:
            raise Broken("a rollback while lanes run, or to nothing")
        self._point = action.point
        for granule, value in enumerate(self.images[action.point]):
            self._overwrite(self.record.open_new_id, granule, value)
        return self.machine.point_applied()

    def _overwrite(self, new, granule, value):
        if self.record.committed_id != NO_ID:
            self.undo[new][2].setdefault(granule, self.device[granule])
        self.device[granule], self.dirty = value, True

    def _granules(self):
        return -(-self.record.size // self.record.granule_size)

    def _leaves(self):
        return -(-self.record.size // self.record.leaf_size)

    def _Scan(self, action):  # noqa: N802
        if not 0 <= action.first < action.first + action.count <= self._granules():
            raise Broken(f"{action} of {self._granules()} granules")
        self._asks(action)

    def _SendLeaves(self, action):  # noqa: N802
        if not all(0 <= granule < self._granules() for granule in action.granules):
            raise Broken(f"{action} of {self._granules()} granules")
        self._asks(action)

    def _SendNodes(self, action):  # noqa: N802
        if not all(0 <= index < -(-self._leaves() >> action.level) for index in action.indexes):
            raise Broken(f"{action} of {self._leaves()} leaves")
        self._asks(action)

    def _StartCheck(self, action):  # noqa: N802
        self._asks(action)
        self.readers.append((action.handle, action.mark, tuple(self.device)))

    _StartRoot = _StartCheck  # noqa: N815

    def _RepairLeaf(self, action):  # noqa: N802
        self._asks(action)
        size = min(self.record.leaf_size, self.record.size - action.leaf * self.record.leaf_size)
        if self.record.open_kind != OPEN_NONE or not 0 <= action.leaf < self._leaves() or len(action.data) != size:
            raise Broken(f"leaf {action.leaf} is healed, of {len(action.data)} bytes")

    def _asks(self, action):
        if action.handle not in self.admitted or self.machine.phase != "idle":
            raise Broken(f"{type(action).__name__} for somebody who was not admitted, or while the device holds something else")

    def _Reply(self, action):  # noqa: N802
        if isinstance(action.message, say.State):
            self.admitted = {action.handle}
        body = say.encode(action.message)[4:]
        if say.decode(body, "target") != action.message:
            raise Broken("it would say what is no message")
        self.heard.append(action.message)

    def _SendBegan(self, action):  # noqa: N802
        if action.handle not in self.admitted or not self.lanes:
            raise Broken("keys are told to somebody who was not admitted")

    _SendResumed = _SendBegan  # noqa: N815

    def _CloseSession(self, action):  # noqa: N802
        self.closed.add(action.handle)
        self.admitted.discard(action.handle)

    # ---- the source ----

    def _right(self):
        """What a source would say now."""
        machine, chance = self.machine, self.chance
        record = machine.record
        if machine.session is None or machine.session in machine._greeting:
            return self._hello()
        choice = chance.random()
        if machine.phase == "prepared":
            return say.Commit(record.open_attempt) if choice < 0.8 else say.Abort(record.open_attempt, "why")
        if machine.phase == "open":
            if not self.lanes:
                return say.Resume(record.open_attempt, 2, 1 << 20, choice < 0.5) if choice < 0.8 else self._begin()
            if choice < 0.1:
                return say.AddConnections(record.open_attempt, 1 + int(chance.random() * 4))
            if choice < 0.8:
                return say.Prepare(record.open_attempt, len(self.applied), digest_of(self.applied), False, 5, "crash", "")
            return say.Hold(record.open_attempt, [say.Extent(4096, 512)]) if choice < 0.9 else say.Abort(0, "why")
        if choice < 0.7:
            return self._begin()
        return one_of(chance, [
            say.ScanTarget(0, GRANULES), say.GetLeaves([0, 4]), say.GetRoot(0), say.Check(record.committed_id, 0, 0, []), say.GetNodes(record.committed_id, 2, [0, 3]),
            say.Repair(record.committed_id, 1, bytes(LEAF)), say.Ping(), say.Check(record.committed_id, 3, 1 << 20, [1, 2]),
        ])  # fmt: skip

    def _hello(self):
        record = self.machine.record
        known = record.committed_id != NO_ID or record.open_kind != OPEN_NONE
        shape = (record.size, record.leaf_size, record.granule_size) if known else (SIZE, LEAF, GRANULE)
        return say.Hello(1, 1, JOB, VOLUME, record.max_epoch + 1, *shape, 512, False, ["zstd"])

    def _begin(self):
        new, attempt = self._fresh(), 1 + int(self.chance.random() * (1 << 64))
        return say.Begin(self.machine.record.committed_id, new, attempt, 1 + int(self.chance.random() * 4), 1 << 20)

    def _wrong(self, message):
        known = [*self.images, self.record.open_new_id, NO_ID, self.record.open_attempt, self.record.max_epoch, *ODD]
        return wrong(self.chance, message, self.said, known, 0.5)

    def run(self):
        """EVENTS_MAX events, then a source that does all as it should: whatever came before, it commits."""
        self.said, self._named, self.faults = [], {}, self.chance.random() < 0.3
        for _ in range(8 + int(self.chance.random() * EVENTS_MAX)):
            try:
                self._event()
            except Died:
                self._restart()
        self._heal()

    def _restart(self):
        self.faults = self.faults and self.chance.random() < 0.7
        while True:
            try:
                return self._start()
            except Died:
                continue

    def _event(self):
        chance, machine = self.chance, self.machine
        choice = chance.random()
        if machine.phase == "faulted" or choice < 0.01:
            return self._restart()
        if not self.handles or choice < 0.06:
            handle = self._fresh()
            self.handles.append(handle)
            self._do(machine.connected(handle))
        if choice < 0.7:
            handle = one_of(chance, self.handles) if chance.random() < 0.2 else machine.session if machine.session is not None else self.handles[-1]
            self._hear(handle, wrong=chance.random() < 0.4)
        elif choice < 0.85:
            if self.lanes and machine.phase == "open":
                new = self.record.open_new_id
                for _ in range(1 + int(chance.random() * 3)):
                    granule, value = int(chance.random() * GRANULES), int(chance.random() * 1e9)
                    self._overwrite(new, granule, value)
                    self.applied[granule] = value
        elif choice < 0.88:
            if self.lanes:
                self._do(machine.lanes_failed(one_of(chance, KINDS), "seeded"))
        elif choice < 0.91:
            handle = one_of(chance, self.handles)
            self.handles.remove(handle)
            self.admitted.discard(handle)
            self.closed.add(handle)
            self._do(machine.disconnected(handle))
        elif choice < 0.93:
            self._do(machine.checkpoint_due())
        elif choice < 0.95:
            self._do(machine.abandon())
        elif choice < 0.97:
            if self.readers:
                handle, mark, was = self.readers.pop()
                told = len(self.heard)
                self._do(machine.checked(handle, mark, say.Checked(0, 1, 4096, [], [], [], 0, True)))
                if any(isinstance(message, say.Checked) for message in self.heard[told:]) and was != tuple(self.device):
                    raise Broken("what was read of another content is told")
        elif machine.phase == "idle" and machine.chain[1:]:
            self._do(machine.rollback(one_of(chance, machine.chain[1:]), self._fresh(), 1 + int(chance.random() * (1 << 60))))

    def _hear(self, handle, wrong):
        message = self._right()
        body = packed(msgspec.to_builtins(message, builtin_types=(bytes,)))
        if wrong:
            body = self._wrong(message)
        self.said.append(body)
        machine, admitted, told = self.machine, handle in self.admitted, len(self.heard)
        try:
            message = say.decode(body, "source")
        except ProtocolError as error:
            if handle in self.handles:
                self._do(machine.expel(handle, error))
            return self._forget_closed()
        if isinstance(message, say.Begin):
            self._named.setdefault(message.attempt, set()).add(message.base)
        elif isinstance(message, (say.Prepare, say.Hold)) and machine.phase == "open" and message.attempt == machine.record.open_attempt and self.lanes and admitted:
            right = isinstance(message, say.Prepare) and message.count == len(self.applied)
            self.announced = message.manifest if right else None
        actions = machine.message(handle, message)
        if not admitted and not isinstance(message, say.Hello) and any(not isinstance(action, (do.Reply, do.CloseSession)) for action in actions if handle != machine.session):
            raise Broken(f"{actions} for somebody who was not admitted")
        if handle in self.closed and any(not isinstance(action, do.CloseSession) for action in actions):
            raise Broken(f"{actions} for somebody whose session is closed")
        self._do(actions)
        if len(self.heard) > told + 8:
            raise Broken("one message has many answers")
        self._forget_closed()

    def _forget_closed(self):
        """The driver of a closed session reads no more; what it had read before may still come once."""
        self.handles = [handle for handle in self.handles if handle not in self.closed or self.chance.random() < 0.1]

    def _heal(self):
        self.faults = False
        if self.machine.phase in ("faulted",) or self.chance.random() < 0.3:
            self._restart()
        if self.machine.phase == "faulted":
            raise Broken("it does not come up")
        handle = self._fresh()
        self.handles = [handle]
        self._do(self.machine.connected(handle))
        self._say(handle, self._hello())
        begin = self._begin()
        self._named[begin.attempt] = {begin.base}
        self._say(handle, begin)
        if self.lanes is None:
            raise Broken(f"a run that is as it should be cannot begin: {self.heard[-1]}")
        for granule in range(GRANULES):
            self._overwrite(self.record.open_new_id, granule, 7000 + granule)
            self.applied[granule] = 7000 + granule
        for _ in range(9):  # the model lets lanes fail now and then
            self.announced = digest_of(self.applied)
            if self.machine.phase == "open" and not self.lanes and self.record.open_attempt == begin.attempt:
                self._say(handle, say.Resume(begin.attempt, 1, 1 << 20, True))
            if self.machine.phase != "open":
                begin = self._begin() if self.machine.phase == "idle" else begin
                if self.machine.phase == "idle":
                    self._named[begin.attempt] = {begin.base}
                    self._say(handle, begin)
                    for granule in range(GRANULES):
                        self._overwrite(self.record.open_new_id, granule, 7000 + granule)
                        self.applied[granule] = 7000 + granule
                    self.announced = digest_of(self.applied)
            self._say(handle, say.Prepare(begin.attempt, len(self.applied), self.announced, False, 5, "", ""))
            if self.machine.phase == "prepared":
                break
        else:
            return  # so many failures in a row
        self._say(handle, say.Commit(begin.attempt))
        if self.record.committed_id != begin.new or tuple(self.device) != tuple(range(7000, 7000 + GRANULES)):
            raise Broken("a run that is as it should be does not commit")

    def _say(self, handle, message):
        self._do(self.machine.message(handle, message))
