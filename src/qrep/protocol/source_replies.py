"""What a target may answer a run, and what follows: the half of SourceMachine that meets the peer.

The settle of ARCHITECTURE.md is _on_state(): whether the source's map describes what the target holds is decided there, by equality of
random ids and nothing else (R5).
"""

from qrep.errors import ProtocolError, QrepError, Refused, UndoSpaceError, Unreachable, Unsynced
from qrep.protocol import actions as do
from qrep.protocol import features as known
from qrep.protocol import messages as say
from qrep.protocol.messages import GRANULES_PER_CHUNK, NO_ID

EPOCH_MAX = 1 << 63  # no target gets there by Hellos of EPOCH_STEP_MAX; a source that believed more would have no numbers left for its next connections
STALE_ANSWERS_MAX = 8  # a target that always knows a higher epoch is lying
RETRY_NAKS = ("connection", "frame", "attempt-gone", "base", "busy")


def unsynced(unreadable, unwritten):
    """The Unsynced of blocks, (offset, size), that could not be read here and written there."""
    ends = ((unreadable, "source cannot be read"), (unwritten, "target cannot be written"))
    return Unsynced(
        "; ".join(f"{sum(size for _, size in extents)} bytes of the {what}" for extents, what in ends if extents),
        unreadable=unreadable, unwritten=unwritten,
    )  # fmt: skip


class SourceReplies:
    """Mixin of SourceMachine: one handler per message of the target."""

    def _on_stale(self, message):
        """The epoch was used. Before this run was ever accepted that is a number to step over; afterwards somebody took over."""
        if message.max_epoch < self._epoch or message.max_epoch >= EPOCH_MAX:
            raise ProtocolError(f"the target refused epoch {self._epoch} and named {message.max_epoch}")
        if self._accepted:
            return self._superseded()
        self._stale_answers += 1
        if self._stale_answers > STALE_ANSWERS_MAX:
            raise ProtocolError("the target names a higher epoch every time")
        self._epoch = message.max_epoch + 1
        return [self._hello()]

    def _on_state(self, state):
        self._check_state(state)
        self.features = known.agreed(self._offered, state.features)
        self._accepted = True
        if state.committed != self._committed:
            self._base_ready = False
        self._committed, self._counter = state.committed, state.counter
        self._unsettled = (self._map_tag, self._pending_new)
        done = []
        if self._pending_new is not None and self._pending_new == state.committed:
            # Settle, first branch: the acknowledgement was lost, the commit was not.
            done.append(do.FoldPending())
            self._map_tag, self._pending_new = self._pending_new, None
        fuzzy = self.record is not None and self.record.fuzzy
        if self.record is not None and self.record.new == state.committed:
            done += [do.ClearRun(), do.ReleaseSnapshot(self.record.snapshot)]
            if self._committing == state.committed:  # of this very run: it is over
                self._go("done")
                return [*done, self._finish()]
            self.record = None  # of a run whose process is gone: this one makes a generation of its own
        if self._once and self._map_tag == state.committed != NO_ID:
            self._go("done")
            self._found = do.Finish(state.committed, state.counter, fuzzy, False)
            return [*done, self._found]
        if self._may_resume(state):
            self._resuming = self._was_resumed = True
            if not self._base_ready:
                done += self._settle()
            self._go("freezing")
            return [*done, do.Freeze(self.record.snapshot)]
        self._resuming = self._was_resumed = False
        if state.open_attempt:
            self._go("aborting")
            return [*done, do.Send(say.Abort(state.open_attempt, "the source begins anew"))]
        return [*done, *self._prepare_base()]

    def _check_state(self, state):
        if not say.VERSION_MIN <= state.version <= say.VERSION_MAX:
            raise ProtocolError(f"the target chose protocol version {state.version}")
        if (state.size, state.leaf_size, state.granule_size) != self._shape[:3]:
            raise ProtocolError(f"the target answered for a volume of {state.size} bytes, not of {self._shape[0]}")
        if state.max_epoch != self._epoch:
            raise ProtocolError(f"the target accepted epoch {state.max_epoch}, not {self._epoch}")
        if self._shape[1] % state.sector_size:
            raise ProtocolError(f"sectors of {state.sector_size} bytes do not divide leaves of {self._shape[1]}")

    def _may_resume(self, state):
        record = self.record
        return (
            record is not None
            and state.resumable
            and state.open_attempt == record.attempt
            and state.open_new == record.new
            and state.committed == record.base
            # Without the base it began with, everything that was not applied yet would travel. Comparing anew costs less.
            and (self._base_ready or not self._would_compare())
            # Nor does a live image overlay digests where nothing was committed: what was applied stays, and comparing finds it.
            and (record.base != NO_ID or self._initial != "compare" or (bool(record.snapshot) and not record.mixed))
        )

    def _settle(self):
        """Settle, second and third branch: the map describes what the target holds, or everything is UNKNOWN (R9)."""
        pending, self._pending_new = self._pending_new, None
        self._base_ready = True
        if self._map_tag == self._committed and self._committed != NO_ID:
            return [do.DropPending()] if pending is not None else []
        self._map_tag = NO_ID
        return [do.ForgetSourceMap()]

    def _prepare_base(self):
        """What this run compares with; afterwards the snapshot."""
        # Digests the target gave in an earlier session are not asked twice of: they are asked for anew.
        done = self._settle()
        self._to_search = False
        return [*done, *(self._compare() if self._would_compare() else self._freeze())]

    def _freeze(self):
        """The snapshot of an attempt that is gone serves again, unless the target has moved on since it was taken."""
        self._go("freezing")
        stale = self.record is not None and self.record.base != self._committed
        token = self.record.snapshot if self.record is not None else ""
        return [do.ClearRun(), do.ReleaseSnapshot(token), do.Freeze("")] if stale else [do.Freeze(token)]

    def _on_began(self, message):
        if self._resuming:
            raise ProtocolError("the target began what was to be resumed")
        self._check_lanes(message)
        return self._start_sending(message, ())

    def _on_resumed(self, message):
        if not self._resuming:
            raise ProtocolError("the target resumed what was to be begun")
        self._check_lanes(message)
        if message.applied_chunks > -(-self._granules // GRANULES_PER_CHUNK):
            raise ProtocolError(f"{message.applied_chunks} chunks of a list of {self._granules} granules were announced")
        if not message.applied_chunks:
            return self._start_sending(message, ())
        self._go("overlaying")
        self._answer, self._applied = message, []
        return []

    def _check_lanes(self, message):
        if message.attempt != self.record.attempt or message.session != self._epoch:
            raise ProtocolError("the target opened another attempt or session than this one")
        if len(message.tokens) != self._numbers or len(set(message.tokens)) != self._numbers:  # what was asked for; it may have changed since
            raise ProtocolError(f"the target gave {len(message.tokens)} tokens for {self._numbers} connections")

    def _on_applied(self, message):
        following = self._applied[-1].first + GRANULES_PER_CHUNK if self._applied else 0
        if message.first % GRANULES_PER_CHUNK or message.first < following or message.first + len(message.marked) > self._granules:
            raise ProtocolError(f"an applied list from granule {message.first} on does not follow")
        if len(message.marked) != min(GRANULES_PER_CHUNK, self._granules - message.first) or max(message.marked) > 2:
            raise ProtocolError(f"the applied list from granule {message.first} on is not one")
        self._applied.append(message)
        if len(self._applied) < self._answer.applied_chunks:
            return []
        return self._start_sending(self._answer, tuple(self._applied))

    def _start_sending(self, answer, applied):
        self._go("sending")
        self._lanes = True
        self._asked_for = 0
        self._answer, self._applied = None, []
        unknown = ""
        if self._resuming and self.record.base == NO_ID:
            # Nothing can be put back: the target may have restarted from a checkpoint, and where it was writing when the power went even a granule
            # without a mark may hold sectors that are neither what was there nor what was sent.
            unknown = "incomplete"
        elif self._resuming and not self._same_image:
            unknown = "parts"  # a granule applied in part may hold leaves that were changed and changed back since
        record = self.record
        return [
            do.StartSending(
                record.attempt, answer.session, answer.key, tuple(answer.tokens), self._resuming, self._resuming and self._same_image, unknown, applied
            )
        ]

    def _on_prepared(self, message):
        self._check_attempt(message)
        if self.phase == "giving-up":
            return []
        self._go("committing")
        self._pending_new = self._committing = self.record.new
        # Once the target has COMMIT, only these digests can say what it holds.
        record = self.record
        commit = do.Agree(self._epoch, record.attempt, record.new) if self._in_group else do.Send(say.Commit(record.attempt))
        return [do.WritePending(record.new, record.base, self._counter + 1), commit]

    def _on_held(self, message):
        """Where it answers Prepare, the target could not write all of it."""
        self._check_attempt(message)
        limit = -(-self._shape[0] // 4096) * 4096
        if any(extent.offset + extent.size > limit for extent in message.unwritten) or not (message.unwritten or self._unreadable):
            raise ProtocolError("the target kept an attempt open and did not say what of it is missing")
        if self.phase == "giving-up":
            return []
        unwritten = [(extent.offset, extent.size) for extent in message.unwritten]
        if not self._may_hold():
            return self._give_up(unsynced(self._unreadable, unwritten))
        return self._degrade(unwritten)

    def _on_committed(self, message):
        if message.new != self.record.new:
            raise ProtocolError("the target committed another generation than this run's")
        self._go("done")
        self._map_tag, self._pending_new, self._counter = self.record.new, None, message.counter
        return [do.FoldPending(), do.ClearRun(), do.ReleaseSnapshot(self.record.snapshot), self._finish()]

    def _on_aborted(self, message):
        if self.phase == "aborting":
            return self._prepare_base()
        self._check_attempt(message)
        if self.phase == "giving-up":
            return self._end(self._error)
        kind, _, text = message.reason.partition(": ")
        if kind in ("undo", "undo_space"):
            error = UndoSpaceError(
                f"the undo store of the target is full, the run was rolled back: {text}",
                hint="where the target is: qrep volume set VOLUME --undo-space SIZE, or make room there; or keep fewer sync points, or run more often",
            )
        else:
            error = QrepError(f"the target rolled the run back: {message.reason}", code="rolled-back")
        return self._end(error, forget=kind == "value")

    def _on_nak(self, message):
        error = QrepError(f"the target refused: {message.message}", code=message.code)
        if self.phase == "giving-up":
            return self._end(self._error)
        if message.code == "manifest" and self.phase == "preparing":
            return self._give_up(error)
        if message.code in RETRY_NAKS:
            error = Unreachable(error.message, code=message.code)
        return self._close(error)

    def _on_error(self, message):
        """The target ends the session. What it refuses it will refuse again; that is for a person."""
        error = Refused(message.message, hint=message.hint, code=message.code)
        return self._end(self._error) if self.phase == "giving-up" else self._close(error)

    def _check_attempt(self, message):
        if message.attempt != self.record.attempt:
            raise ProtocolError("the target answered for another attempt")

    _handlers = {
        say.State: "_on_state", say.Stale: "_on_stale", say.Began: "_on_began", say.Resumed: "_on_resumed", say.Applied: "_on_applied",
        say.Prepared: "_on_prepared", say.Committed: "_on_committed", say.Aborted: "_on_aborted", say.Nak: "_on_nak", say.Digests: "_on_digests",
        say.Leaves: "_on_leaves", say.Added: "_on_added", say.Held: "_on_held",
    }  # fmt: skip
