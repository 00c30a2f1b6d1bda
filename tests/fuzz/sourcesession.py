"""Runs of the shipping SourceMachine against a target that says what it likes, with a driver that looks at every action.

    session = SourceSession(chance); session.run()     # raises Broken

COMMIT follows durable digests, digests become the map only on the word of a target that committed this very generation, nothing is begun before it is
noted, lanes get exactly what was asked for, and a run ends as committed, failed, degraded or to be resumed, whatever it hears.
"""

import msgspec

from fuzz.mutate import ODD, one_of, packed, wrong
from fuzz.parsers import Broken
from qrep.errors import ProtocolError, QrepError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import RunRecord
from qrep.protocol.source_machine import CONNECTED, SourceMachine

SHAPE = SIZE, LEAF, GRANULE, SECTOR = 5 * 16384 - 4096, 4096, 16384, 512
GRANULES = 5
JOB, VOLUME, KEY, DIGEST = b"j" * 16, b"v" * 16, b"k" * 32, bytes(32)
FAILING = (do.FoldPending, do.DropPending, do.ForgetSourceMap, do.StoreDigests, do.FindDifferences, do.StoreLeaves, do.Freeze, do.SaveRun, do.ClearRun,
           do.ReleaseSnapshot, do.StartSending, do.AddSending, do.WritePending)  # fmt: skip
KINDS = ("connection", "frame", "read", "shrunk", "memory")
OVER = ("done", "failed", "degraded")


class SourceSession:
    machine_class = SourceMachine

    def __init__(self, chance):
        self.chance = chance
        self.faults = chance.random() < 0.3
        self.numbers = 0
        self.committed = self._fresh() if chance.random() < 0.7 else NO_ID  # what the target says that it holds
        self.counter = 5
        self.open = None  # (new, attempt) at the target
        self.map_tag = self.committed if chance.random() < 0.6 else self._fresh() if chance.random() < 0.5 else NO_ID
        self.pending = self._fresh() if chance.random() < 0.2 else None
        self.saved = None
        if chance.random() < 0.3:
            self.saved = RunRecord(3, self.committed, self._fresh(), 7, "snap", False, 1, chance.random() < 0.3)
            self.open = (self.saved.new, 7) if chance.random() < 0.7 else None
            if chance.random() < 0.2:
                self.pending = self.saved.new
        self.in_group = chance.random() < 0.1
        self.machine = self.machine_class(
            job_id=JOB, volume_id=VOLUME, shape=SHAPE, map_tag=self.map_tag, pending_new=self.pending, record=self.saved, epoch=0, draw=self._draw,
            initial=one_of(chance, ("auto", "compare", "full")), connections=1 + int(chance.random() * 4), hold=chance.random() < 0.7, in_group=self.in_group,
            once=chance.random() < 0.1,
        )  # fmt: skip
        self.lanes, self.asked_tokens, self.known_tokens = None, 0, 0
        self.answers, self.said, self.told_commit, self.heard_commit = [], [], set(), set()
        self.ended = None
        self.epoch = 0

    def _fresh(self):
        self.numbers += 1
        return self.numbers.to_bytes(16, "big")

    def _draw(self, size):
        self.numbers += 1
        return self.numbers.to_bytes(size, "little")

    # ---- the driver ----

    def _do(self, actions):
        while actions:
            following = []
            for action in actions:
                if self.ended:
                    raise Broken(f"{action} after the end")
                if self.faults and isinstance(action, FAILING) and self.chance.random() < 0.03:
                    following = self.machine.failed(action, OSError(28, "seeded") if self.chance.random() < 0.5 else QrepError("seeded"))
                    break
                name = "_" + type(action).__name__
                result = getattr(self, name)(action) if hasattr(self, name) else None
                if result is not None:
                    if action is not actions[-1]:
                        raise Broken(f"{name[1:]} is not the last of its list")
                    following = result
            actions = following

    def _Send(self, action):  # noqa: N802
        message = action.message
        body = say.encode(message)[4:]
        if say.decode(body, "source") != message:
            raise Broken("it says what is no message")
        if isinstance(message, say.Commit):
            if self.pending != self.machine.record.new or self.in_group:
                raise Broken("COMMIT before its digests are durable, or by a member of a group")
            self.told_commit.add(self.machine.record.new)
        if isinstance(message, (say.Begin, say.Resume)) and (self.saved is None or self.saved.attempt != message.attempt or self.lanes):
            raise Broken("an attempt that is not noted, or beside lanes")
        if isinstance(message, (say.Prepare, say.Hold)) and self.lanes:
            raise Broken("PREPARE while lanes run")
        self.known_tokens = message.connections if isinstance(message, (say.Begin, say.Resume)) else self.known_tokens
        self.asked_tokens = message.count if isinstance(message, say.AddConnections) else self.asked_tokens
        self._answer(message)

    def _Agree(self, action):  # noqa: N802
        if self.pending != action.new:
            raise Broken("agreed before its digests are durable")
        self.told_commit.add(action.new)
        self.answers.append(say.Committed(action.new, self.counter + 1))

    def _SaveRun(self, action):  # noqa: N802
        self.saved = action.record

    def _ClearRun(self, _action):  # noqa: N802
        self.saved = None

    def _WritePending(self, action):  # noqa: N802
        self.pending = action.new

    def _FoldPending(self, _action):  # noqa: N802
        if self.pending not in self.heard_commit:
            raise Broken("digests of a generation that nobody committed become the map")
        self.map_tag, self.pending = self.pending, None

    def _DropPending(self, _action):  # noqa: N802
        self.pending = None

    def _ForgetSourceMap(self, _action):  # noqa: N802
        self.map_tag, self.pending = NO_ID, None

    def _Freeze(self, action):  # noqa: N802
        token = action.token if action.token and self.chance.random() < 0.7 else one_of(self.chance, ("", "snap2"))
        return self.machine.frozen(token, not token, 5, "crash")

    def _StoreDigests(self, action):  # noqa: N802
        if not 0 <= action.first < action.first + len(action.states) <= GRANULES or len(action.values) != 32 * len(action.states):
            raise Broken(f"digests of {action.first}, {len(action.states)} of {GRANULES}")

    def _StoreLeaves(self, action):  # noqa: N802
        if not 0 <= action.granule < GRANULES or len(action.page) != (3 if action.granule == 4 else 4) * 32:
            raise Broken(f"a page of granule {action.granule} with {len(action.page)} bytes")

    def _FindDifferences(self, _action):  # noqa: N802
        self.lanes = "search"

    def _StartSending(self, action):  # noqa: N802
        if self.lanes or self.saved is None or action.attempt != self.saved.attempt or action.session != self.machine._epoch:
            raise Broken("lanes beside others, or of another attempt")
        if len(action.tokens) != self.known_tokens or len(set(action.tokens)) != self.known_tokens or len(action.key) != 32:
            raise Broken(f"{len(action.tokens)} tokens for {self.known_tokens} lanes")
        seen = [chunk.first + index for chunk in action.applied for index in range(len(chunk.marked))]
        if len(seen) != len(set(seen)) or any(not 0 <= granule < GRANULES for granule in seen):
            raise Broken("what is applied of granules that are not there, or twice")
        self.lanes = "send"

    def _AddSending(self, action):  # noqa: N802
        if self.lanes != "send" or len(action.tokens) != self.asked_tokens:
            raise Broken(f"{len(action.tokens)} tokens for {self.asked_tokens} more lanes")

    def _StopSending(self, _action):  # noqa: N802
        self.lanes = None

    def _Finish(self, action):  # noqa: N802
        if action.generation not in self.heard_commit or self.lanes:
            raise Broken("a run ends as committed that was not")
        self.ended = "done"

    def _Fail(self, action):  # noqa: N802
        if self.lanes:
            raise Broken("a run ends while lanes run")
        if self.machine.phase in ("failed", "degraded"):
            self.ended = self.machine.phase
        elif not action.keep_open or self.machine.phase != "closed":
            raise Broken(f"an end in phase {self.machine.phase}")
        self.answers = []

    # ---- the target ----

    def _answer(self, message):
        """What a target would answer."""
        chance, out = self.chance, self.answers
        match message:
            case say.Hello():
                self.epoch = message.epoch
                if chance.random() < 0.05:
                    return out.append(say.Stale(message.epoch + 3))
                new, attempt = self.open or (NO_ID, 0)
                resumable = bool(self.open) and chance.random() < 0.8
                return out.append(say.State(1, self.committed, self.counter, SIZE, LEAF, GRANULE, 1, [], new, attempt, resumable, SECTOR, message.epoch, []))
            case say.Begin():
                self.open = message.new, message.attempt
                return out.append(say.Began(message.attempt, self.epoch, KEY, [self._fresh() for _ in range(message.connections)]))
            case say.Resume():
                chunk = chance.random() < 0.5
                out.append(say.Resumed(message.attempt, self.epoch, KEY, [self._fresh() for _ in range(message.connections)], int(chunk)))
                return chunk and out.append(say.Applied(0, bytes([0, 1, 2, 2, 0]), bytes(5), DIGEST * 5))
            case say.AddConnections():
                return out.append(say.Added(message.attempt, [self._fresh() for _ in range(message.count)]))
            case say.Prepare():
                return out.append(say.Prepared(message.attempt) if chance.random() < 0.95 else say.Held(message.attempt, [say.Extent(0, 4096)]))
            case say.Hold():
                return out.append(say.Held(message.attempt, []))
            case say.Commit():
                self.committed, self.counter, self.open = self.open[0] if self.open else NO_ID, self.counter + 1, None
                return out.append(say.Committed(self.committed, self.counter))
            case say.Abort():
                self.open = None
                return out.append(say.Aborted(message.attempt, message.reason))
            case say.ScanTarget():
                return out.append(say.Digests(message.first, bytes([one_of(chance, (1, 2, 2))]) * message.count, DIGEST * message.count))
            case say.GetLeaves():
                return out.extend(say.Leaves(granule, DIGEST * (3 if granule == 4 else 4)) for granule in message.granules)

    def _wrong(self, message):
        record = self.machine.record
        known = [self.committed, NO_ID, self.epoch, *ODD, *((record.new, record.attempt, record.base) if record else ())]
        return wrong(self.chance, message, self.said, known, 0.55)

    def run(self):
        """Until the run has ended, or EVENTS_MAX events have come; then the connection is lost for good."""
        for _ in range(60):
            if self.ended:
                break
            self._event()
        if not self.ended and self.machine.phase != "new":
            self._do(self.machine.stop())
        if not self.ended and self.machine.phase != "new":
            raise Broken(f"it does not end: {self.machine.phase}")

    def _event(self):
        chance, machine = self.chance, self.machine
        choice = chance.random()
        if machine.phase in ("new", "closed"):
            if machine.phase == "closed" and choice < 0.1:
                return self._do(machine.stop())
            self.answers = []
            return self._do(machine.connected())
        if choice < 0.03:
            return self._do(machine.disconnected())
        if choice < 0.04:
            return self._do(machine.snapshot_lost(QrepError("full")))
        if choice < 0.05 and machine.phase != "giving-up":
            return self._do(machine.withdraw(QrepError("another"), chance.random() < 0.5))
        if choice < 0.06:
            return self._do(machine.stop())
        if self.lanes and choice < 0.4:
            return self._lanes_say()
        return self._hear()

    def _lanes_say(self):
        chance, machine, lanes = self.chance, self.machine, self.lanes
        if chance.random() < 0.1:
            self.lanes = None if lanes == "search" else lanes
            return self._do(machine.lanes_failed(one_of(chance, KINDS), "seeded"))
        if lanes == "search":
            self.lanes = None
            return self._do(machine.differences_found(sorted({int(chance.random() * GRANULES) for _ in range(int(chance.random() * 4))})))
        may = machine.may_add_connections()
        if may and chance.random() < 0.3:
            return self._do(machine.add_connections(1 + int(chance.random() * may)))
        self.lanes = None
        return self._do(machine.lanes_finished(3, DIGEST, [(4096, 512)] if chance.random() < 0.1 else []))

    def _hear(self):
        chance, machine = self.chance, self.machine
        right = self.answers.pop(0) if self.answers and chance.random() < 0.9 else one_of(chance, (say.Beat("x", 1, 2, 3), say.Pong(), say.Nak(7, "base", "x"), say.Error("x", "y", "z")))
        wrong = chance.random() < 0.25
        body = self._wrong(right) if wrong else packed(msgspec.to_builtins(right, builtin_types=(bytes,)))
        self.said.append(body)
        try:
            message = say.decode(body, "target")
        except ProtocolError as error:
            if machine.phase in CONNECTED:
                self._do(machine.protocol_violation(error))
            return
        # What the target says that it has committed is what a source has to believe.
        if isinstance(message, say.State):
            self.heard_commit.add(message.committed)
        elif isinstance(message, say.Committed) and message.new in self.told_commit and machine.phase == "committing":
            self.heard_commit.add(message.new)
        self._do(machine.message(message))
