"""What a target volume does, and when: the receiving end of the commit protocol, without sockets, clock or devices.

One machine lives as long as the claim on the device (R1: the driver takes the claim before start() and drops it after everything).
Every method takes one event and returns actions (actions.py has the contract of drivers). The commit point is the WriteSuperblock in
_commit(), and nothing else is one (R4); for the members of a group it is the record before it (target_group.py). A peer's message that may not come now closes that peer's session and changes nothing.
"""

from qrep import states
from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID, PRIMARY
from qrep.protocol.records import OPEN_NONE, OPEN_ROLLBACK, OPEN_RUN
from qrep.protocol.target_checks import TargetChecks
from qrep.protocol.target_group import TargetGroup
from qrep.protocol.target_requests import TargetRequests
from qrep.protocol.target_roles import TargetRoles

RESUMABLE_FAILURES = ("connection", "frame", "digest")  # of lanes: the attempt stays open, the source may resume it


class TargetMachine(TargetRequests, TargetChecks, TargetGroup, TargetRoles):
    """One target volume.

    record: TargetRecord or None when both superblock slots are bad. capacity: bytes of the device. sector_size: bytes.
    chain: ids of the generations within reach, newest first, the committed one first, as the headers of the undo files have them.
    Public: phase (a key of states.TARGET), record (what the superblock says or is being told), session (the current handle or None), chain;
    features: what the frames of this session may use.
    """

    def __init__(self, record, *, capacity, sector_size, chain=()):
        self.record = record
        self.set_chain(chain)
        self.phase = "down"
        self.session = None
        self.features = ()
        self._capacity, self._sector_size = capacity, sector_size
        self._greeting = set()  # handles that have not said an acceptable Hello
        self._lanes = False  # lanes were started and not waited for or drained
        self._numbers = self._ended = 0  # connections of this session that were ever offered; that are over
        self._checkpoints = False  # the open attempt may keep a checkpoint
        self._applied = False  # what the open attempt applied is known (memory or checkpoint): it can be resumed
        self._point = None  # (fuzzy, frozen_at_ns, consistency, label) told by Prepare
        self._prepare = None  # the Prepare being worked on
        self._departures = 0  # how often the device has ceased to hold exactly the committed generation
        self._then = None  # what to do after a roll back: a function that returns actions (default: nothing)

    # ---- the driver's own events ----

    def start(self, has_checkpoint, decided=None):
        """Recover. The claim is held (R1), so writes of a dead predecessor have landed. has_checkpoint: one of record.open_attempt exists.
        decided: records.Decided of a group commit that names this volume, or None."""
        self._check("start")
        if self.record is None:
            return self._fault("both slots of the superblock are damaged")
        done = [do.ConfirmSuperblock()]  # nothing is done on the word of a superblock that a power cut could take back
        if self.record.role == PRIMARY:
            self._go("primary")
            return [*done, *([do.SettleGroup(decided.new)] if decided is not None else [])]
        if decided is not None:
            forward, whole = self._roll_forward(decided)
            done += forward
            if whole:
                return done
        if self.record.open_kind == OPEN_NONE:
            self._go("idle")
            return [*done, *self._tidy()]
        if self.record.committed_id != NO_ID:  # back to the committed generation, without the source
            self._go("recovering")
            return [*done, self._restore()]
        if has_checkpoint and self.record.open_kind == OPEN_RUN:
            self._go("open")
            self._applied = self._checkpoints = True
            return done
        self._go("idle")
        return [*done, *self._drop_initial()]

    def disconnected(self, handle):
        """A control session is gone. The open attempt stays, for a Resume; abandon() ends its grace."""
        self._greeting.discard(handle)
        if handle != self.session:
            return []
        self._check("disconnected")
        self.session = None
        return self._stop_lanes(checkpoint=True)

    def abandon(self, why="nobody came back for it"):
        """Give up the open generation, because nobody came back for it or a person said so."""
        self._check("abandon")
        if self.phase not in ("open", "prepared"):
            return []
        return self._roll_back(lambda: [do.Abandoned(why)])

    def lanes_failed(self, kind, text):
        """A lane ended with a failure; the others were told to stop. kind: lower-case name of enum qrep_failure_kind."""
        self._check("lanes_failed")
        if self.phase != "open" or not self._lanes:
            return []  # of lanes that were drained meanwhile
        attempt, handle = self.record.open_attempt, self.session
        if kind in RESUMABLE_FAILURES:
            code = "connection" if kind == "connection" else "frame"
            return [*self._stop_lanes(checkpoint=True), *self._reply(handle, say.Nak(attempt, code, text))]
        # "value": after a granule was applied it was not what the source says, so one of the two maps is wrong. Believe neither.
        forget = [do.ForgetMap()] if kind == "value" else []
        return self._roll_back(lambda: [*forget, *self._reply(handle, say.Aborted(attempt, f"{kind}: {text}"[:2000]))])

    def connections_ended(self, count):
        """Of this session, in all, `count` connections have answered their END or were never brought. To be told before a message is."""
        self._check("connections_ended")
        if self._lanes:
            assert self._ended <= count <= self._numbers
            self._ended = count
        return []

    def checkpoint_due(self):
        """Time to remember what an initial attempt has applied."""
        self._check("checkpoint_due")
        return self._checkpoint() if self.phase == "open" and self._lanes else []

    def rollback(self, point, new, attempt):
        """Put sync point `point` back as a generation of its own. new, attempt: fresh random ids. Raises ProtocolError if it cannot be."""
        if self.phase != "idle":
            raise ProtocolError("a rollback needs a volume without an open generation")
        chain = self.chain
        if point not in chain or point == self.record.committed_id:
            raise ProtocolError("that sync point is not retained")
        if new in self.used_ids() or not attempt:
            raise ProtocolError("a rollback needs fresh ids")
        self._go("rolling")
        base = self.record.committed_id
        way = chain[: chain.index(point)]
        self._point = point
        self.record = self.record.opened(OPEN_ROLLBACK, new, attempt)
        return [do.CreateUndo(base, new, attempt), do.WriteSuperblock(self.record), do.ApplyPoint(point, way, attempt)]

    # ---- results of actions ----

    def manifest_collected(self, count, manifest, partial, unwritten=()):
        """R7: compare what was applied with what the source says it sent. partial: granules applied in part. unwritten: (offset, size) of what
        the device did not take (INV-Z: named, and nothing is committed)."""
        self._check("manifest_collected")
        asked, self._prepare = self._prepare, None
        if unwritten or isinstance(asked, say.Hold):
            self._go("open")
            unreadable = tuple(asked.unreadable) if isinstance(asked, say.Hold) else ()
            unwritten = tuple(say.Extent(offset, size) for offset, size in unwritten)
            held = do.HoldOpen(asked.attempt, unreadable, unwritten)
            # No lane runs, so what an initial attempt holds can be noted whatever images it was read of; a resume over another one forgets it.
            self._checkpoints = self.record.committed_id == NO_ID
            return [*self._checkpoint(), held, *self._reply(self.session, say.Held(asked.attempt, list(unwritten)))]
        if partial or count != asked.count or manifest != asked.manifest:
            self._go("open")
            text = f"{count} granules were applied and {partial} in part, {asked.count} were announced, or their digests differ"
            return self._reply(self.session, say.Nak(asked.attempt, "manifest", text))
        self._go("prepared")
        self._point = (asked.fuzzy, asked.frozen_at_ns, asked.consistency, asked.label)
        new, counter = self.record.open_new_id, self.record.committed_counter + 1
        return [
            do.SealUndo(new),
            do.FlushDevice(),
            do.WritePendingMap(new, self.record.committed_id, counter),
            *self._reply(self.session, say.Prepared(asked.attempt)),
        ]

    def undo_restored(self):
        """Every before-image is back in place. R10: flushed before `open` is cleared, and cleared before the undo file goes."""
        self._check("undo_restored")
        self._go("idle")
        self.record = self.record.closed()
        then, self._then = self._then or list, None
        return [do.FlushDevice(), do.WriteSuperblock(self.record), *self._tidy(), *then()]

    def point_applied(self):
        self._check("point_applied")
        self._go("idle")
        self._advance()
        point, self._point = self._point, None
        # What a session was told, and has read since, is of another generation: it begins anew.
        handle, self.session = self.session, None
        close = [] if handle is None else [do.CloseSession(handle, "the volume was rolled back meanwhile")]
        # R4: the content is flushed before the one sector that makes it the committed generation.
        return [do.SealUndo(self.record.committed_id), do.FlushDevice(), do.WriteSuperblock(self.record), *self._tidy(), *close, do.RolledBack(self.record.committed_id, point), do.Retain()]

    def failed(self, action, error):
        """`action` raised `error`, the rest of its list was dropped. What is returned takes its place."""
        self._check("failed")
        handle, attempt = self.session, self.record.open_attempt if self.record else 0
        match action:
            case do.CreateUndo():  # nothing was opened yet
                rolling = self.phase == "rolling"
                self.record = self.record.closed()
                self._applied = self._lanes = False
                self._go("idle")
                told = [_rollback_failed(error)] if rolling else self._reply(handle, say.Aborted(action.attempt, f"undo: {error}"[:2000]))
                return [do.PruneUndo(self.record.committed_id), *told]
            case do.WaitLanes():
                self._prepare, self._lanes = None, True
                self._go("open")
                kind = error.kind if isinstance(error, do.LanesFailed) else "memory"
                return self.lanes_failed(kind, str(error)[:2000])
            case do.Scan() | do.SendLeaves() | do.SendNodes() | do.StartCheck() | do.StartRoot():
                return self._expel(action.handle, "device-read", str(error))
            case do.AddLanes():  # those that run are not touched, but what the source was promised is not there: it resumes
                return [*self._stop_lanes(checkpoint=True), *self._reply(handle, say.Nak(attempt, "connection", str(error)[:2000]))]
            case do.StartLanes() | do.CollectManifest() | do.SealUndo() | do.WritePendingMap() | do.ForgetCheckpoint() if self.phase != "idle":
                return self._roll_back(lambda: self._reply(handle, say.Aborted(attempt, f"{type(action).__name__}: {error}"[:2000])))
            case do.MapDevice():
                return self._mapping_failed(error)
            case do.ApplyPoint():
                return self._roll_back(lambda: [_rollback_failed(error)])
        # The superblock, the undo file or the map could not be handled: what is on disk is known only after it is read anew.
        return self._fault(f"{type(action).__name__}: {error}")

    def broken(self, reason):
        """A bug of ours ended something halfway, wherever that was: lanes may run, the record may be ahead of the superblock. What is on disk is
        known only after it is read anew."""
        self._lanes = True
        return self._fault(reason)

    # ---- steps ----

    def _check(self, event):
        assert event in states.TARGET[self.phase], f"{event} while {self.phase}"

    def set_chain(self, chain):
        """What is within reach now: found at the start, or after sync points were given up. May be told at any time, also while actions are done."""
        committed = self.record.committed_id if self.record else NO_ID
        assert not chain or chain[0] == committed, "a chain that does not begin with what is committed"
        self.chain = tuple(chain) or ((committed,) if committed != NO_ID else ())

    def used_ids(self):
        """Ids that no new generation may bear."""
        record = self.record
        return {NO_ID, record.committed_id, record.open_new_id, *record.history, *self.chain}

    def _advance(self):
        """What is open becomes what is committed; the one before is within reach by its undo file, if there is one."""
        earlier = self.chain if self.record.committed_id != NO_ID else ()
        self.record = self.record.committed()
        self.chain = (self.record.committed_id, *earlier)

    def _go(self, phase):
        allowed = {phase for targets in states.TARGET[self.phase].values() for phase in targets}
        assert phase in allowed, f"{self.phase} does not lead to {phase}"
        self._departures += self.phase == "idle" and phase != "idle"
        self.phase = phase

    def _tidy(self):
        return [do.SettleMap(self.record.committed_id), do.PruneUndo(self.record.committed_id)]

    def _restore(self):
        return do.RestoreUndo(self.record.committed_id, self.record.open_new_id, self.record.open_attempt)

    def _stop_lanes(self, *, checkpoint):
        """R12: what the lanes submitted has completed before anything else happens. checkpoint: then keep what was applied."""
        if not self._lanes:
            return []
        self._lanes = False
        done = [do.DrainLanes()]
        return [*done, *self._checkpoint()] if checkpoint else done

    def _checkpoint(self):
        """Copy, flush, then save: the flush covers what the copy claims."""
        return [do.TakeCheckpoint(), do.FlushDevice(), do.SaveCheckpoint(self.record.open_attempt)] if self._checkpoints else []

    def _roll_back(self, then):
        """Back to the committed generation. then: function that returns what to do once there."""
        done = self._stop_lanes(checkpoint=False)
        self._applied = self._checkpoints = False
        self._prepare = self._point = None
        if self.record.committed_id == NO_ID:
            self._go("idle")
            return [*done, *self._drop_initial(), *then()]
        self._go("recovering")
        self._then = then
        return [*done, self._restore()]

    def _drop_initial(self):
        """Nothing was committed, so nothing is put back: what the device holds is nobody's generation, and nobody claims to know it."""
        self.record = self.record.closed()
        return [do.WriteSuperblock(self.record), do.ForgetCheckpoint(), do.ForgetMap(), do.PruneUndo(NO_ID)]

    def _fault(self, reason):
        done = self._stop_lanes(checkpoint=False)
        self._go("faulted")
        if self.session is not None:
            done += self._expel(self.session, "faulted", reason, "see `qrep status` on the target")
        return [*done, do.Faulted(reason)]


def _rollback_failed(error):
    return do.RollbackFailed(str(error), getattr(error, "hint", ""))
