"""What a run does at its source, and when: the sending end of the commit protocol, without sockets, clock or devices.

One machine lives as long as one run, over any number of connections in turn. Every method takes one event and returns actions
(actions.py has the contract of drivers). After a Fail the driver may connect again (phase "closed") or not ("failed").
"""

import msgspec

from qrep import states
from qrep.errors import STOPPED, DeviceReadError, Interrupted, ProtocolError, QrepError, Refused, Unreachable
from qrep.protocol import actions as do
from qrep.protocol import features as known
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import RunRecord
from qrep.protocol.source_compare import SourceCompare
from qrep.protocol.source_connections import SourceConnections
from qrep.protocol.source_replies import SourceReplies, unsynced

CONNECTED = (
    "greeting", "aborting", "comparing", "freezing", "searching", "fetching", "starting", "overlaying", "sending", "preparing", "holding",
    "committing", "giving-up",
)  # fmt: skip


class SourceMachine(SourceReplies, SourceCompare, SourceConnections):
    """One run.

    shape: (size, leaf_size, granule_size, sector_size) of the source volume, bytes. map_tag: the generation the source's map describes,
    NO_ID: none. pending_new: the generation of the pending digests, or None. record: RunRecord of an attempt that may still be open, or None.
    epoch: a number not below the last session of this job that anyone here remembers. draw(n): n fresh random bytes.
    initial: "compare" (ask the target for digests whenever the map does not describe what it holds), "full" (send all then),
    "auto" (compare if the target ever committed, else send all).
    hold: where blocks cannot be read or written, an attempt on top of a generation stays open for the next run; False: only one that has
    nothing to go back to does.
    in_group: it is committed together with others: it says Agree instead of Commit, and hears Committed when somebody has asked for all.
    label: the name that the sync point is to bear, "": none. once: mode copy: a target that holds the one generation this map describes is the end of the run, whoever committed it.
    features: what the frames may use, as far as the target takes it.
    Public: phase (a key of states.SOURCE), record; plain, set by the driver before connected(): data connections of that session come without TLS;
    features: what this session's frames may use, valid from State on.
    """

    def __init__(self, *, job_id, volume_id, shape, map_tag, pending_new, record, epoch, draw, initial="auto", connections=2, frame_limit=1 << 20,
                 hold=True, in_group=False, once=False, label="", features=known.KNOWN):  # fmt: skip
        if initial not in ("auto", "compare", "full"):
            raise ValueError(f"initial: {initial!r} is not auto, compare or full")
        self.phase = "new"
        self.record = record
        self._job_id, self._volume_id, self._shape = job_id, volume_id, shape
        self._granules = -(-shape[0] // shape[2])
        self._map_tag, self._pending_new = map_tag, pending_new
        self._epoch = max(epoch, record.epoch if record else 0)
        self._draw, self._initial, self._label = draw, initial, label
        self._connections, self._frame_limit = connections, frame_limit
        self.plain = False
        self._offered, self.features = tuple(features), ()
        self._accepted = False  # the target has accepted an epoch of this run
        self._stale_answers = 0
        self._unsettled = (map_tag, pending_new)  # before the settle that is being carried out
        self._base_ready = False  # the driver's base is what this machine made of it, for a target at _committed
        self._committed = NO_ID  # valid from State on
        self._counter = 0
        self._resuming = False  # Freeze is followed by Resume instead of Begin
        self._was_resumed = False
        self._committing = None  # the generation whose COMMIT this process has sent, or may have
        self._same_image = False
        self._lanes = False
        self._numbers = self._asked_for = 0  # connections of this session in all; those asked for and not added yet
        self._answer = None  # the Resumed whose Applied chunks are arriving
        self._applied = []
        self._to_search = False  # the base is made of digests without leaf pages
        self._wanted, self._asked = [], []  # granules whose pages are to be had; those asked for that have not come
        self._error = None  # why it is giving up
        self._hold, self._in_group, self._once = hold, in_group, once
        self._found = None  # the Finish of a run that found what it was to make
        self._unreadable = ()  # valid from holding on

    # ---- events of the driver ----

    def connected(self, compare=False):
        """A control connection is there. Every one has an epoch of its own, so that frames of an earlier one are stale. compare: from now on as initial."""
        self._take("connected")
        if compare:
            self._initial = "compare"
        self._go("greeting")
        self._epoch += 1
        return [self._hello()]

    def disconnected(self, why="the connection to the target was lost"):
        """The control connection is gone, or was given up for another one."""
        if self.phase == "giving-up":
            return self._end(self._error)
        if self.phase == "holding":  # the answer would have changed nothing here
            return self._degrade(())
        return self._close(Unreachable(why, hint="it resumes from what has been applied"))

    def stop(self):
        """A person ends the run; what has been applied is kept for the next start."""
        done = self._stop_lanes()
        self.phase = "failed"
        return [*done, do.Fail(Interrupted(STOPPED), True)]

    def snapshot_lost(self, error):
        """The image that is read is about to be lost: its space runs full. Once all was read, that is nothing to us."""
        if self.phase not in ("searching", "fetching", "starting", "overlaying", "sending", "greeting", "aborting", "comparing", "freezing", "closed"):
            return []
        done = self._stop_lanes()
        self.phase, self._error = "failed", error
        if self.record is None or not self.record.snapshot:
            return [*done, do.Fail(error, True)]
        token = self.record.snapshot
        self.record = msgspec.structs.replace(self.record, snapshot="")  # the next run freezes anew; what was applied stays applied
        return [*done, do.SaveRun(self.record), do.ReleaseSnapshot(token), do.Fail(error, True)]

    def withdraw(self, error, abort):
        """Another member of the group cannot be committed, so this one is not (the caller knows that nobody has asked for it). abort: the target is
        to go back now; else what was applied is kept for the next start."""
        if abort and self.phase in ("sending", "preparing", "committing"):
            return self._give_up(error)
        if self.phase in ("done", "failed", "degraded", "giving-up"):
            return []
        done = self._stop_lanes()
        self.phase = "failed"
        return [*done, do.Fail(error, True)]

    def frozen(self, token, fuzzy, frozen_at_ns, consistency=""):
        """token: "" for a live volume. fuzzy: what is read may change while it is read. consistency: as of Prepare."""
        self._take("frozen")
        if self._resuming:
            self._go("starting")
            # Only the very snapshot of the first session reads the same again.
            # Once another image was used what was applied is of both, until a pass over all granules ends with the commit; and a name that was asked
            # for then is not that of what is read now.
            record = self.record
            self._same_image = bool(token) and not fuzzy and token == record.snapshot and not record.mixed
            self.record = msgspec.structs.replace(
                record, epoch=self._epoch, snapshot=token, fuzzy=fuzzy, frozen_at_ns=frozen_at_ns, mixed=not self._same_image,
                consistency=consistency, label=self._label or (record.label if self._same_image else ""),
            )
            self._numbers = self._connections
            message = say.Resume(self.record.attempt, self._numbers, self._frame_limit, self._same_image)
            return [do.SaveRun(self.record), do.Send(message)]
        # R5: fresh and random, never used again. An attempt of 0 means none.
        new, attempt = self._draw(16), int.from_bytes(self._draw(8), "little") or 1
        self.record = RunRecord(self._epoch, self._committed, new, attempt, token, fuzzy, frozen_at_ns, False, consistency, self._label)
        if self._to_search:
            return [do.SaveRun(self.record), *self._search()]
        self._go("starting")
        return [do.SaveRun(self.record), self._begin()]

    def _begin(self):
        record, self._numbers = self.record, self._connections
        return do.Send(say.Begin(record.base, record.new, record.attempt, self._numbers, self._frame_limit))

    def lanes_finished(self, count, manifest, unreadable):
        """All is sent. count, manifest: R7, over what was marked as sent. unreadable: (offset, size) of what could not be read."""
        self._take("lanes_finished")
        self._lanes = False
        record = self.record
        if unreadable:  # INV-Z: nothing is invented, so nothing is committed
            if not self._may_hold():
                return self._give_up(unsynced(unreadable, ()))
            self._go("holding")
            self._unreadable = tuple(unreadable)
            return [do.Send(say.Hold(record.attempt, [say.Extent(offset, size) for offset, size in unreadable[: say.EXTENTS_MAX]]))]
        self._go("preparing")
        return [do.Send(say.Prepare(record.attempt, count, manifest, record.fuzzy, record.frozen_at_ns, record.consistency, record.label))]

    def lanes_failed(self, kind, text):
        """A source lane failed. kind: lower-case name of enum qrep_failure_kind."""
        self._take("lanes_failed")
        if self.phase == "searching":  # nothing is open at the target
            return self._end(DeviceReadError(text) if kind in ("read", "shrunk") else QrepError(text))
        if kind in ("connection", "frame"):  # a frame that is none may have been damaged on its way
            return self._close(Unreachable(f"a data connection was lost: {text}", hint="it resumes from what has been applied"))
        return self._give_up(DeviceReadError(text) if kind in ("read", "shrunk") else QrepError(text))

    def failed(self, action, error):
        """`action` raised `error`, the rest of its list was dropped. What is returned takes its place."""
        if not isinstance(error, QrepError):
            error = QrepError(f"{type(action).__name__}: {error}")
        if self.phase == "done":
            # Committed all the same. Pending digests stay for the next State to fold, a run record for the next start to clear.
            snapshot = do.ReleaseSnapshot(self.record.snapshot if self.record is not None else "")
            return [self._finish()] if isinstance(action, (do.ClearRun, do.ReleaseSnapshot)) else [snapshot, self._finish()]
        if self.phase in ("failed", "degraded"):
            return [do.Fail(self._error, self.phase == "degraded")]
        if isinstance(action, (do.FoldPending, do.DropPending, do.ForgetSourceMap)):
            # What is durable is the old map or the new one: settle again with the next State.
            self._map_tag, self._pending_new = self._unsettled
            self._base_ready = False
        if self.phase in ("sending", "preparing", "committing"):  # COMMIT follows WritePending, so it has not been sent
            return self._give_up(error)
        return self._close(error)

    def message(self, message):
        """One decoded message of the target."""
        kind = type(message).__struct_config__.tag
        if isinstance(message, say.Beat) or (isinstance(message, (say.Progress, say.Pong)) and self._accepted):
            return []
        try:
            if isinstance(message, say.Error) and self.phase in CONNECTED:
                return self._on_error(message)
            if kind not in states.SOURCE[self.phase]:
                raise ProtocolError(f"the target said {kind} while the run was {self.phase}")
            return getattr(self, self._handlers[type(message)])(message)
        except ProtocolError as err:
            return self._close(err)

    def protocol_violation(self, error):
        """What arrived was not a message (ProtocolError of the codec)."""
        return self._close(error)

    # ---- steps ----

    def _take(self, event):
        assert event in states.SOURCE[self.phase], f"{event} while {self.phase}"

    def _go(self, phase):
        allowed = {phase for targets in states.SOURCE[self.phase].values() for phase in targets}
        assert phase in allowed, f"{self.phase} does not lead to {phase}"
        self.phase = phase

    def _hello(self):
        size, leaf_size, granule_size, sector_size = self._shape
        return do.Send(
            say.Hello(
                version_min=say.VERSION_MIN, version_max=say.VERSION_MAX, job_id=self._job_id, volume_id=self._volume_id, epoch=self._epoch,
                size=size, leaf_size=leaf_size, granule_size=granule_size, sector_size=sector_size, plain=self.plain, features=list(self._offered),
            )
        )  # fmt: skip

    def _stop_lanes(self):
        lanes, self._lanes = self._lanes, False
        return [do.StopSending()] if lanes else []

    def _close(self, error):
        """This connection is over; the attempt stays open at the target and can be resumed."""
        done = self._stop_lanes()
        self.phase = "closed"
        return [*done, do.Fail(error, True)]

    def _give_up(self, error):
        """The attempt cannot be committed: ask the target to go back, then end."""
        done = self._stop_lanes()
        self._go("giving-up")
        self._error = error
        return [*done, do.Send(say.Abort(self.record.attempt, str(error)[:2000]))]

    def _may_hold(self):
        return self._hold or self.record.base == NO_ID

    def _degrade(self, unwritten):
        """All that could be read and written is applied. The next run freezes anew, for it is to bring newer data as well, and goes over the whole
        image: what was applied and is the same is not sent again. So this image is of no more use."""
        self.phase, self._error = "degraded", unsynced(self._unreadable, unwritten)
        token = self.record.snapshot
        self.record = msgspec.structs.replace(self.record, snapshot="")
        return [do.SaveRun(self.record), do.ReleaseSnapshot(token), do.Fail(self._error, True)]

    def _end(self, error, *, forget=False):
        """The run is over and nothing of it is kept. forget: the map was found wrong."""
        done = self._stop_lanes()
        self.phase, self._error = "failed", error
        record, self.record = self.record, None
        if forget:
            done.append(do.ForgetSourceMap())
        return [*done, do.ClearRun(), do.ReleaseSnapshot(record.snapshot if record else ""), do.Fail(error, False)]

    def _finish(self):
        return self._found or do.Finish(self.record.new, self._counter, self.record.fuzzy, self._was_resumed)

    def _superseded(self):
        self.phase = "failed"
        return [do.Fail(Refused("another source has taken over the target volume", hint="see `qrep status` there", code="superseded"), True)]
