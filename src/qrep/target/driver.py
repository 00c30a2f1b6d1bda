"""Does what the TargetMachine wants done (protocol/actions.py), with real files, lanes and sockets: one method per action."""

import logging
import os
import secrets

from qrep import digesttree, mapvalues, masks
from qrep._native import disk, wire
from qrep._native.target_lane import TargetRun
from qrep.crashpoint import crashpoint
from qrep.digestmap import DIGEST_SIZE, NO_ID, DigestMap
from qrep.errors import DamagedError, QrepError
from qrep.extents import describe
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected
from qrep.store import flush
from qrep.target import rollback, scan
from qrep.target.lanes import TargetLanes
from qrep.target.member import Member
from qrep.target.rolechange import RoleChanges
from qrep.target.undostore import SEGMENT
from qrep.target.verify import CheckDriver
from qrep.target.view import Marks

log = logging.getLogger("qrep.target")
KEY_SIZE = 32
_MARKED = _KNOWN = masks.table(lambda byte: byte)
_NOT_WHOLE = masks.table(lambda mark: mark != 2)


class Attempt:
    """What the open attempt has applied, over all its sessions. base_id NO_ID: an initial one, without undo.

    states, values: of the device as it is; marked: 0 nothing, 1 parts, 2 whole, per granule. moved: Counter that gets the counters of every
    session that has ended.
    """

    def __init__(self, base_id, states, values, moved, undo_fd=-1):
        self.base_id, self.undo_fd, self.moved = base_id, undo_fd, moved
        self.states, self.values = bytearray(states), values  # these values are never changed: a session begins with a copy
        self.marked = bytearray(len(states))
        self.undo_next, self.undo_sequence, self.undo_flushed = SEGMENT, 0, 0
        self.unwritten = []  # (offset, size, errno) of what the device did not take in the last session
        self.held = None  # the HoldOpen of a run that ended and left blocks out, until the next session
        self.run = self.lanes = None  # of the present session
        self.marks = Marks() if undo_fd >= 0 else None  # for views of sync points

    def gather(self):
        """Take over what the session's lanes applied; they have ended."""
        run, self.run, self.lanes = self.run, None, None
        if run is None:
            return
        self.moved.update(run.counters())
        self.states, self.values = run.fresh_states, run.fresh_values
        self.marked = merged_marks(self.marked, run.marked)
        self.undo_next, self.undo_sequence = run.undo_next, run.undo_sequence
        self.undo_flushed += run.undo_flushed
        self.unwritten = run.bad_extents()

    def present(self):
        """(marked, states, values) as of now, also while lanes run. Marks are copied first: what they claim is in the others."""
        if self.run is None:
            return self.marked, self.states, self.values
        marked = merged_marks(self.marked, bytes(self.run.marked))
        states = bytearray(self.run.fresh_states)
        return marked, states, mapvalues.copied(states, self.run.fresh_values)

    def close(self):
        if self.undo_fd >= 0:
            os.close(self.undo_fd)
            self.undo_fd = -1
            self.marks.close()


def merged_marks(before, now):
    """What this session touched counts as this session left it."""
    marked = bytearray(before)
    for first, end in masks.runs(now.translate(_MARKED)):
        marked[first:end] = now[first:end]
    return marked


class TargetDriver(RoleChanges, CheckDriver):
    """Mixin of TargetVolume: `execute` and the actions. Everything here runs under the volume's lock."""

    def execute(self, actions):
        """The driver's contract of actions.py: in order; a failure drops the rest of the list and asks the machine."""
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            self.busy = type(action).__name__
            try:
                waiting = (self._handlers[type(action)](self, action) or []) + waiting
            except (OSError, QrepError, do.LanesFailed, MemoryError) as err:
                log.warning("%s: %s failed: %s", self.name, type(action).__name__, err)
                waiting = list(self.machine.failed(action, err))
            except Exception as err:  # a bug of ours
                if self.machine.phase == "faulted":
                    raise
                log.exception("%s: %s", self.name, type(action).__name__)
                waiting = list(self.machine.broken(f"internal error: {type(action).__name__}: {err!r}"))
            finally:
                self.busy = ""
        for handle in self._gone():
            self.execute(self.machine.disconnected(handle))

    def _gone(self):
        gone, self._lost = self._lost, []
        return gone

    # ---- superblock, shape, map ----

    def _write_superblock(self, action):
        record = action.record
        self.superblock.write(disk.Superblock(**{name: getattr(record, name) for name in record.__struct_fields__}))

    def _confirm_superblock(self, action):
        self.superblock.confirm()

    def _reshape(self, action):
        self.digest_map.close()
        self.geometry = wire.Geometry(action.size, action.leaf_size, action.granule_size)
        self.undo.geometry = self.geometry
        self.digest_map = self._open_map()
        self.digest_map.forget()

    def _open_map(self):
        return DigestMap(os.path.join(self.directory.path, "map"), self.geometry, self.volume_id)

    def _forget_map(self, action):
        self._end_attempt()
        self.digest_map.forget()

    def _settle_map(self, action):
        """As the source settles: by equality of random ids, and UNKNOWN otherwise."""
        self._end_attempt()
        current = self.digest_map
        if current.pending is not None and current.pending.tag == action.committed and action.committed != NO_ID:
            try:
                current.fold(action.committed)
            except OSError as err:
                log.warning("%s: the digest map could not be folded and is forgotten: %s", self.name, err)
                current.forget()
        elif current.tag == action.committed:
            if current.pending is not None:
                current.drop_pending()
        else:
            current.forget()

    def _write_pending_map(self, action):
        attempt = self._attempt
        self.digest_map.write(
            self.digest_map.following(action.new, action.base, action.counter, attempt.states, attempt.values, marked=attempt.marked)
        )

    # ---- undo ----

    def _create_undo(self, action):
        self._end_attempt()
        descriptor = self.undo.create(action.base, action.new, action.attempt)
        self._attempt = Attempt(action.base, self.digest_map.states, self.digest_map.values, self.moved, descriptor)

    def _seal_undo(self, action):
        attempt = self._attempt
        if attempt.undo_fd >= 0:
            self.undo.seal(action.new, attempt.undo_flushed)

    def _restore_undo(self, action):
        self._end_attempt()
        is_file = self.device.kind == "file"
        try:
            done = self.undo.restore(
                action.base, action.new, action.attempt, self.device_fd, is_file=is_file, sector_size=self.device.io_alignment,
                progress=lambda *facts: setattr(self, "restoring", facts)
            )
            log.info("%s: %d bytes were put back", self.name, done)
            return self.machine.undo_restored()
        finally:
            self.restoring = None

    def _prune_undo(self, action):
        try:
            chain = self.undo.prune(action.committed, self.machine.record.history)
            self.epoch.change()
            if len(chain.ids) > 1:
                self.undo.trim(chain.ids[1], chain.ids[0])
        except (OSError, DamagedError) as err:
            log.warning("%s: an undo file that is not needed any more stays: %s", self.name, err)

    def _retain(self, action):
        self.retain()
        self.on_commit(self)

    def _record_point(self, action):
        try:
            self.points.record(*action)
        except OSError as err:
            log.warning("%s: the sync point's time could not be noted: %s", self.name, err)

    def _apply_point(self, action):
        attempt, record, chain = self._attempt, self.machine.record, self.machine.chain
        undo_log = rollback.UndoLog(
            attempt.undo_fd, self.device_fd, attempt.base_id, action.attempt, self.geometry.size, self._undo_limit(attempt), attempt.marks
        )
        self.epoch.change()  # before the first write that this undo file covers
        touched = rollback.apply_point(
            self.undo, chain, action.way, undo_log, self.device_fd, is_file=self.device.kind == "file", progress=self._rollback_progress
        )
        attempt.undo_flushed = undo_log.count
        if self.digest_map.tag == attempt.base_id:  # what was not touched is known as before
            for granule in touched:
                attempt.states[granule] = disk.STATE_UNKNOWN
            values = mapvalues.settled(attempt.states, attempt.values)
            self.digest_map.write_pending(record.open_new_id, attempt.base_id, record.committed_counter + 1, attempt.states, values)
        return self.machine.point_applied()

    def _rolled_back(self, action):
        facts = self.points.facts(action.point, 0)
        point = do.RecordPoint(action.new, self.machine.record.committed_counter, facts["fuzzy"], facts["frozen_at_ns"], facts["consistency"])
        self._record_point(point)
        self._rollback_result = action

    def _rollback_failed(self, action):
        self._rollback_result = action

    def _undo_limit(self, attempt):
        """Bytes this attempt's undo file may take: what the others leave of the limit."""
        return max(0, self.undo.limit - (self.undo.used() - os.fstat(attempt.undo_fd).st_blocks * 512))

    # ---- lanes ----

    def _start_lanes(self, action):
        if action.fresh and action.base == NO_ID:
            self._end_attempt()
            self.digest_map.forget()
            self._attempt = Attempt(NO_ID, self.digest_map.states, self.digest_map.values, self.moved)
        attempt = self._attempt
        attempt.held = None
        self._key = secrets.token_bytes(KEY_SIZE)
        attempt.run = TargetRun(
            self.geometry, attempt=action.attempt, session=action.session, key=self._key, sector_size=self.device.io_alignment,
            base_states=bytes(attempt.states), base_values=attempt.values, fresh_values=mapvalues.copied(attempt.states, attempt.values),
            leaves_fd=self.digest_map.leaves_fd,
            undo_fd=attempt.undo_fd, undo_limit=self._undo_limit(attempt) if attempt.undo_fd >= 0 else 0, undo_next=attempt.undo_next,
            undo_sequence=attempt.undo_sequence, base_id=attempt.base_id, punch=True, is_file=self.device.kind == "file",
            frame_limit=action.frame_limit, features=self.machine.features, undo_reach=attempt.marks.memory if attempt.marks is not None else None,
        )  # fmt: skip
        self.epoch.change()  # before the first write that this undo file covers
        attempt.lanes = TargetLanes(attempt.run, self.device_fd, self.rendezvous, self._lanes_ended_badly)
        self._tokens = attempt.lanes.add(0, action.connections)
        self._restart_checkpoint_clock()
        crashpoint("target-lanes-started")

    def _lanes_ended_badly(self, lanes, kind, text):
        """From a thread of the lanes: tell the machine, unless another session has come since."""
        with self.lock:
            if self._attempt is not None and self._attempt.lanes is lanes:
                self.execute(self.machine.lanes_failed(kind, text))

    def _add_lanes(self, action):
        self._tokens = self._attempt.lanes.add(action.first, action.count)
        crashpoint("target-lanes-added")

    def _send_added(self, action):
        self._reply(do.Reply(action.handle, say.Added(attempt=action.attempt, tokens=self._tokens)))

    def _send_began(self, action):
        message = say.Began(attempt=action.attempt, session=action.session, key=self._key, tokens=self._tokens)
        self._reply(do.Reply(action.handle, message))

    def _send_resumed(self, action):
        marked, states, values = self._applied_before
        size = say.GRANULES_PER_CHUNK
        starts = [start for start in range(0, len(marked), size) if marked.count(0, start, start + size) < min(size, len(marked) - start)]
        self._reply(
            do.Reply(
                action.handle,
                say.Resumed(
                    attempt=action.attempt, session=action.session, key=self._key, tokens=self._tokens, applied_chunks=len(starts)
                ),
            )
        )
        for start in starts:
            part = slice(start, start + size)
            shared = bytes(states[part]).translate(digesttree.SHARED_STATE)
            chunk = bytes(values[start * DIGEST_SIZE : (start + size) * DIGEST_SIZE])
            self._reply(do.Reply(action.handle, say.Applied(first=start, marked=bytes(marked[part]), states=shared, values=chunk)))

    @property
    def _applied_before(self):
        """Of the open attempt, without the session that was just started."""
        return self._attempt.marked, self._attempt.states, self._attempt.values

    def _wait_lanes(self, action):
        lanes = self._attempt.lanes
        try:
            lanes.wait()
        finally:
            if self._attempt.lanes is lanes:
                self._attempt.gather()

    def _drain_lanes(self, action):
        attempt = self._attempt
        if attempt is not None and attempt.lanes is not None:
            attempt.lanes.drain()
            attempt.gather()
        crashpoint("target-drained")

    def _collect_manifest(self, action):
        marked, states, values = self._attempt.present()
        count, manifest = wire.manifest(marked, states, values)
        unwritten = [(offset, size) for offset, size, _ in self._attempt.unwritten]
        return self.machine.manifest_collected(count, manifest, marked.count(1), unwritten)

    def _hold_open(self, action):
        self._attempt.held = action
        kept = "the rest is applied; the open generation is kept for the next run and is no sync point"
        for code, places, what in (
            ("source-unreadable", action.unreadable, "of the source cannot be read"),
            ("target-unwritable", action.unwritten, "cannot be written here"),
        ):
            if places:
                listed = [(place.offset, place.size) for place in places]
                self.tell(code, f"{describe(listed)} {what}; {kept}", extents=[{"offset": offset, "size": size} for offset, size in listed])

    def _abandoned(self, action):
        holds = "it holds its last sync point" if self.machine.record.committed_id != NO_ID else "nothing was committed yet"
        self.tell("generation-abandoned", f"the open generation was given up: {action.why}; {holds}")

    def _flush_device(self, action):
        crashpoint("target-flush-before")
        flush(self.device_fd, self.device.path)
        crashpoint("target-flush-done")

    def _end_attempt(self):
        """The attempt is committed, or gone: its descriptors are closed."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.close()

    # ---- checkpoint of an initial attempt ----

    def _take_checkpoint(self, action):
        marked, states, values = self._attempt.present()
        states = bytearray(states)
        for first, end in masks.runs(marked.translate(_NOT_WHOLE)):
            states[first:end] = bytes(end - first)
        self._checkpoint = states, mapvalues.settled(states, values)

    def _save_checkpoint(self, action):
        record, (states, values) = self.machine.record, self._checkpoint
        self._checkpoint = None
        self._restart_checkpoint_clock()
        try:
            self.digest_map.write_checkpoint(record.open_new_id, record.committed_counter + 1, states, values)
        except OSError as err:
            log.warning("%s: what has been applied could not be noted: %s", self.name, err)

    def _forget_checkpoint(self, action):
        self.digest_map.drop_checkpoint()

    def _take_up(self, content):
        """An initial attempt as its checkpoint has it, after a restart."""
        attempt = Attempt(NO_ID, content.states, content.values, self.moved)
        for first, end in masks.runs(content.states.translate(_KNOWN)):
            attempt.marked[first:end] = b"\x02" * (end - first)
        self._attempt = attempt

    # ---- questions about the committed generation ----

    def _scan(self, action):
        states, values = scan.scan(self.device_fd, self.digest_map, self.device.io_alignment, action.first, action.count)
        self._reply(
            do.Reply(
                action.handle,
                say.Digests(
                    first=action.first,
                    states=bytes(states).translate(digesttree.SHARED_STATE),
                    values=bytes(values),
                ),
            )
        )

    def _send_leaves(self, action):
        for granule, page in scan.leaf_pages(self.device_fd, self.geometry, self.device.io_alignment, action.granules):
            self._reply(do.Reply(action.handle, say.Leaves(granule=granule, page=bytes(page))))

    # ---- sessions ----

    def _reply(self, action):
        channel = self._channels.get(action.handle)
        if channel is None or action.handle in self._lost:
            return
        crashpoint("target-reply")
        try:
            channel.send(action.message)
        except Disconnected:
            self._lost.append(action.handle)

    def _close_session(self, action):
        channel = self._channels.pop(action.handle, None)
        if channel is not None:
            log.info("%s: session %s closed: %s", self.name, action.handle, action.reason)
            self._reasons[action.handle] = action.reason
            channel.close()

    def _faulted(self, action):
        self.damaged = self.damaged or action.reason  # what was found out first says more
        log.error("%s: out of service: %s", self.name, self.damaged)
        self._end_attempt()

    _handlers = {
        do.WriteSuperblock: _write_superblock, do.ConfirmSuperblock: _confirm_superblock, do.Reshape: _reshape,
        do.SettleGroup: Member._settle_group, do.ForgetMap: _forget_map, do.SettleMap: _settle_map,
        do.WritePendingMap: _write_pending_map, do.CreateUndo: _create_undo, do.SealUndo: _seal_undo, do.RestoreUndo: _restore_undo, do.PruneUndo: _prune_undo, do.Retain: _retain,
        do.RecordPoint: _record_point, do.ApplyPoint: _apply_point, do.RolledBack: _rolled_back, do.RollbackFailed: _rollback_failed,
        do.StartLanes: _start_lanes, do.AddLanes: _add_lanes, do.SendAdded: _send_added, do.SendBegan: _send_began, do.SendResumed: _send_resumed, do.WaitLanes: _wait_lanes,
        do.DrainLanes: _drain_lanes, do.CollectManifest: _collect_manifest, do.FlushDevice: _flush_device,
        do.TakeCheckpoint: _take_checkpoint, do.SaveCheckpoint: _save_checkpoint, do.ForgetCheckpoint: _forget_checkpoint,
        do.Scan: _scan, do.SendLeaves: _send_leaves, do.Reply: _reply, do.CloseSession: _close_session,
        do.Faulted: _faulted, do.HoldOpen: _hold_open, do.Abandoned: _abandoned,
    } | RoleChanges.role_handlers | CheckDriver.handlers  # fmt: skip
