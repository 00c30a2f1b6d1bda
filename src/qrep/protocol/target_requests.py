"""What a source may ask of a target volume, and the answers: the half of TargetMachine that meets the peer.

Every check comes before the first change of state, so that a message that may not come leaves no trace but a closed session.
"""

from qrep import states
from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import features as known
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import OPEN_NONE, OPEN_RUN
from qrep.protocol.skew import versions_apart


class TargetRequests:
    """Mixin of TargetMachine: sessions, and one handler per message."""

    def connected(self, handle):
        """A peer that may talk about this volume has connected. handle: any hashable value, never used again for another."""
        self._greeting.add(handle)
        return []

    def expel(self, handle, error):
        """A peer broke the protocol (ProtocolError): say so, close its session, and nothing else."""
        return self._expel(handle, error.code, error.message, error.hint)

    def message(self, handle, message):
        """One decoded message of the control session `handle`."""
        try:
            if handle in self._greeting:
                if not isinstance(message, say.Hello):
                    raise ProtocolError(f"a {_kind(message)} before hello")
                return self._on_hello(handle, message)
            if handle != self.session:
                return [do.CloseSession(handle, "it was superseded")]
            if _kind(message) not in states.TARGET[self.phase] or isinstance(message, say.Hello):
                raise ProtocolError(f"a {_kind(message)} may not come while the volume is {self.phase}")
            return getattr(self, self._handlers[type(message)])(handle, message)
        except ProtocolError as err:
            return self.expel(handle, err)

    def supersedes(self, hello):
        """Whether this Hello, of a peer that may talk about this volume, will be taken if nothing happens meanwhile: only such a one may end the older
        session's waiting. Reads only what is replaced as a whole, so it may be asked while another thread has the machine."""
        record = self.record
        if record is None or hello.volume_id != record.volume_id or not 0 < hello.epoch - record.max_epoch <= say.EPOCH_STEP_MAX:
            return False
        shape = (hello.size, hello.leaf_size, hello.granule_size)
        return say.common_version(hello.version_min, hello.version_max) is not None and shape == (record.size, record.leaf_size, record.granule_size)

    def _on_hello(self, handle, hello):
        version = say.common_version(hello.version_min, hello.version_max)
        if version is None:
            return self.expel(handle, versions_apart(say.VERSION_MIN, say.VERSION_MAX, hello.version_min, hello.version_max))
        if self._is_primary():
            return self._refuse_primary(handle)
        if self.phase not in ("idle", "open", "prepared"):
            return self._expel(handle, "faulted", "the target volume is out of service", "see `qrep status` on the target")
        record = self.record
        if hello.volume_id != record.volume_id:
            return self._expel(handle, "wrong-volume", "the target holds another volume than the one that was named")
        if hello.epoch <= record.max_epoch:
            return [do.Reply(handle, say.Stale(record.max_epoch))]
        if hello.epoch - record.max_epoch > say.EPOCH_STEP_MAX:
            raise ProtocolError(f"epoch {hello.epoch} is too far above {record.max_epoch}")
        shape = (hello.size, hello.leaf_size, hello.granule_size)
        reshape = []
        if shape != (record.size, record.leaf_size, record.granule_size):
            refusal = self._refuse_shape(hello)
            if refusal:
                return self._expel(handle, *refusal)
            record = record.reshaped(*shape)
            reshape = [do.Reshape(*shape)]
        # Durable before anybody relies on it, and before the older session's frames are shut out: from here on its epoch is over.
        self.record = record.with_epoch(hello.epoch)
        older, self.session = self.session, handle
        self.features = known.common(hello.features)
        self._greeting.discard(handle)
        done = [do.WriteSuperblock(self.record), *reshape, *self._stop_lanes(checkpoint=False)]
        if older is not None:
            done.append(do.CloseSession(older, f"superseded by session {hello.epoch}"))
        return [*done, do.Reply(handle, self._state(version))]

    def _refuse_shape(self, hello):
        """Why this shape cannot be taken on: (code, message, hint), or None if it can."""
        if hello.leaf_size & (hello.leaf_size - 1) or hello.granule_size & (hello.granule_size - 1) or hello.granule_size < 2 * hello.leaf_size:
            raise ProtocolError("leaf and granule are not powers of two, or not a granule of many leaves")
        if say.is_too_fine(hello.size, hello.granule_size):
            return "too-fine", f"{hello.size} bytes in granules of {hello.granule_size} take too much memory", "use larger granules, such as 8M"
        if hello.size > self._capacity:
            return "too-small", f"the target has {self._capacity} bytes, the source {hello.size}", "use a target at least as large as the source"
        if hello.size < 2 * hello.leaf_size or hello.size % self._sector_size:
            return "sector-size", f"{hello.size} bytes are not whole sectors of {self._sector_size}", "use a target with smaller sectors"
        if self.record.committed_id != NO_ID or self.record.open_kind != OPEN_NONE:
            return "resized", f"the volume has {self.record.size} bytes here and {hello.size} at the source, or other leaves", "add the volume anew"
        return None

    def _state(self, version):
        record = self.record
        return say.State(
            version=version, committed=record.committed_id, counter=record.committed_counter, size=record.size, leaf_size=record.leaf_size,
            granule_size=record.granule_size, role=record.role, history=list(record.history), open_new=record.open_new_id,
            open_attempt=record.open_attempt, resumable=self._can_resume(), sector_size=self._sector_size, max_epoch=record.max_epoch,
            features=list(self.features),
        )  # fmt: skip

    def _can_resume(self):
        return self.phase in ("open", "prepared") and self._applied and self.record.open_kind == OPEN_RUN

    def _on_begin(self, handle, begin):
        """Compare-and-swap on the base, after giving up whatever is open."""
        record = self.record
        if begin.base != record.committed_id:  # R5
            return self._reply(handle, say.Nak(begin.attempt, "base", say.NAK_CODES["base"]))
        if record.role != say.REPLICA:
            return self._reply(handle, say.Nak(begin.attempt, "role", say.NAK_CODES["role"]))
        if begin.new in self.used_ids() or begin.attempt in (0, record.open_attempt):
            return self._reply(handle, say.Nak(begin.attempt, "id", say.NAK_CODES["id"]))
        if begin.frame_limit < record.leaf_size or begin.frame_limit & (begin.frame_limit - 1):
            raise ProtocolError(f"frames of {begin.frame_limit} bytes do not fit leaves of {record.leaf_size}")
        if self.phase in ("open", "prepared"):
            return self._roll_back(lambda: [do.Abandoned("another run begins"), *self._open(handle, begin)])
        return self._open(handle, begin)

    def _open(self, handle, begin):
        base, epoch = self.record.committed_id, self.record.max_epoch
        self._go("open")
        self.record = self.record.opened(OPEN_RUN, begin.new, begin.attempt)
        self._lanes = self._applied = True
        self._numbers, self._ended = begin.connections, 0
        self._checkpoints = base == NO_ID  # with an undo, a restart goes back to the committed generation instead
        # Without a committed generation there is nothing to go back to, so nothing to log.
        undo = [do.CreateUndo(base, begin.new, begin.attempt)] if base != NO_ID else [do.ForgetCheckpoint()]
        return [
            *undo,
            do.WriteSuperblock(self.record),
            do.StartLanes(begin.attempt, epoch, begin.connections, begin.frame_limit, True, base),
            do.SendBegan(handle, begin.attempt, epoch),
        ]

    def _on_resume(self, handle, resume):
        if not self._can_resume() or resume.attempt != self.record.open_attempt:
            return self._reply(handle, say.Nak(resume.attempt, "attempt-gone", say.NAK_CODES["attempt-gone"]))
        if resume.frame_limit < self.record.leaf_size or resume.frame_limit & (resume.frame_limit - 1):
            raise ProtocolError(f"frames of {resume.frame_limit} bytes do not fit leaves of {self.record.leaf_size}")
        self._go("open")
        done = self._stop_lanes(checkpoint=False)
        if self._checkpoints and not resume.same_image:
            # Granules that the checkpoint claims may be written again with other content: it would lie after a restart.
            self._checkpoints = False
            done.append(do.ForgetCheckpoint())
        self._lanes = True
        self._numbers, self._ended = resume.connections, 0
        base, epoch = self.record.committed_id, self.record.max_epoch
        return [
            *done,
            do.StartLanes(resume.attempt, epoch, resume.connections, resume.frame_limit, False, base),
            do.SendResumed(handle, resume.attempt, epoch),
        ]

    def _on_add_connections(self, handle, message):
        if self.phase != "open" or message.attempt != self.record.open_attempt or not self._lanes:  # they ended while this was under way
            return self._reply(handle, say.Nak(message.attempt, "attempt-gone", say.NAK_CODES["attempt-gone"]))
        going = self._numbers - self._ended
        if going + message.count > say.CONNECTIONS_MAX:
            raise ProtocolError(f"{message.count} more connections were asked for with {going} going; the limit is {say.CONNECTIONS_MAX}")
        if self._numbers + message.count > say.CONNECTION_NUMBERS_MAX:
            raise ProtocolError(f"a session has {say.CONNECTION_NUMBERS_MAX} connections in all")
        first, self._numbers = self._numbers, self._numbers + message.count
        return [do.AddLanes(first, message.count), do.SendAdded(handle, message.attempt)]

    def _on_prepare(self, handle, prepare):
        if self.phase != "open" or prepare.attempt != self.record.open_attempt or not self._lanes:
            return self._reply(handle, say.Nak(prepare.attempt, "attempt-gone", say.NAK_CODES["attempt-gone"]))
        self._go("preparing")
        self._lanes = False
        self._prepare = prepare
        return [do.WaitLanes(), do.CollectManifest(prepare.attempt)]

    def _on_hold(self, handle, hold):
        """As Prepare, but for the commit: the last writes are waited for, and what is missing is named."""
        if any(extent.offset + extent.size > -(-self.record.size // 4096) * 4096 for extent in hold.unreadable):
            raise ProtocolError("a place beyond the end of the volume was named as unreadable")
        return self._on_prepare(handle, hold)

    def _on_commit(self, handle, commit):
        if self.phase != "prepared" or commit.attempt != self.record.open_attempt:
            return self._reply(handle, say.Nak(commit.attempt, "attempt-gone", say.NAK_CODES["attempt-gone"]))
        return self._commit(handle)

    def _on_abort(self, handle, abort):
        if self.phase not in ("open", "prepared"):
            return self._reply(handle, say.Aborted(abort.attempt, "nothing was open"))
        if abort.attempt not in (0, self.record.open_attempt):
            return self._reply(handle, say.Nak(abort.attempt, "attempt-gone", say.NAK_CODES["attempt-gone"]))
        attempt = self.record.open_attempt
        return self._roll_back(lambda: [do.Abandoned(abort.reason), *self._reply(handle, say.Aborted(attempt, abort.reason))])

    def _on_read(self, handle, message):
        """Questions about the committed generation; while one is open the device does not hold it."""
        if self.phase != "idle":
            return self._reply(handle, say.Nak(0, "busy", say.NAK_CODES["busy"]))
        granules = -(-self.record.size // self.record.granule_size)
        match message:
            case say.GetRoot():
                return [do.StartRoot(handle, message.rate, self.mark())]
            case say.GetLeaves():
                if max(message.granules) >= granules:
                    raise ProtocolError(f"granule {max(message.granules)} of {granules} was asked for")
                return [do.SendLeaves(handle, tuple(message.granules))]
        if message.first + message.count > granules:
            raise ProtocolError(f"granules {message.first} to {message.first + message.count} of {granules} were asked for")
        return [do.Scan(handle, message.first, message.count)]

    def _on_ping(self, handle, ping):
        return self._reply(handle, say.Pong())

    _handlers = {
        say.Begin: "_on_begin", say.Resume: "_on_resume", say.AddConnections: "_on_add_connections", say.Prepare: "_on_prepare", say.Hold: "_on_hold", say.Commit: "_on_commit", say.Abort: "_on_abort",
        say.ScanTarget: "_on_read", say.Check: "_on_check", say.GetNodes: "_on_get_nodes", say.Repair: "_on_repair", say.GetLeaves: "_on_read", say.GetRoot: "_on_read", say.Ping: "_on_ping",
    }  # fmt: skip

    def _reply(self, handle, message):
        return [do.Reply(handle, message)] if handle is not None else []

    def _expel(self, handle, code, message, hint=""):
        done = [do.Reply(handle, say.Error(code, message[:2000], hint)), do.CloseSession(handle, code)]
        self._greeting.discard(handle)
        if handle == self.session:
            self.session = None
            done += self._stop_lanes(checkpoint=True)
        return done


def _kind(message):
    return type(message).__struct_config__.tag
