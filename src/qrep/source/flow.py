"""One run at its source, from the snapshot to the committed generation: drives one SourceMachine over real devices and streams.

    run = Run(request, dial, connect)    # request.RunRequest
    report = run.run()         # blocks; reconnects and resumes by itself for a while
"""

import contextlib
import errno
import logging
import os
import queue
import re
import secrets
import threading
import time

from qrep import device, digesttree
from qrep._native import wire
from qrep._native.disk import map_digest
from qrep._native.source_lane import SourceRun
from qrep.crashpoint import crashpoint
from qrep.digestmap import DigestMap
from qrep.errors import Interrupted, QrepError, Refused, Unsynced
from qrep.protocol import actions as do
from qrep.protocol.source_machine import CONNECTED, SourceMachine
from qrep.protocol.transport import Disconnected
from qrep.source import clean
from qrep.source.connections import Connections
from qrep.source.hints import Hints
from qrep.source.kept import Kept
from qrep.source.lanes import SourceLanes
from qrep.source.link import Link, Patience
from qrep.source.report import Progress, RunReport, named_blocks, zero_copy_of
from qrep.source.runrecord import RunFile
from qrep.source.search import Search
from qrep.source.snapshotwatch import SnapshotWatch
from qrep.source.watch import Watch
from qrep.source.work import WHOLE, Base, holes_of, work_list

log = logging.getLogger("qrep.source")
LAST_WORD_S = 3.0  # when data connections end, the target says why on the control connection: this long it may take once it is not busy
BAD_DATA = ("connection", "frame")  # the target's word that data connections ended, or brought what is no frame: codes of its Nak
WATCH_S = 0.5  # between two looks at the data connections
ROOT_BEFORE_COMMIT = 8 << 30  # bytes of zeroes whose values may be computed while the target waits; one second on two cores
_WHOLE_RUN = re.compile(rb"\x02+", re.DOTALL)


class Run:
    """request: RunRequest. dial(): a fresh control Channel, raises Unreachable. connect(token, slot): a DataConnection that the target
    has taken for `token`; slot: its place among the run's connections, from 0. on_lost(why): told when a
    connection was found dead, before dial() is called again. observer.event(code, text, **data): run-interrupted, run-resumed,
    run-fuzzy, connection-down, connection-up.
    """

    def __init__(self, request, dial, connect, *, observer=None, on_lost=None):
        self.request, self._connect, self._observer, self._on_lost = request, connect, observer, on_lost
        self.geometry = request.geometry
        self._connections = Connections(request.connections)
        self._map = DigestMap(request.map_directory, self.geometry, request.volume_id)
        self._run_file = RunFile(request.run_directory)
        self._kept = Kept(request.run_directory, request.release)
        self._hints = Hints(request, self._kept, self._map, self._tell)
        self._progress = Progress(self.geometry.size)
        self._events = queue.SimpleQueue()
        self._link = Link(dial, self._events)
        self._lanes = self._run = self._base = self._session_base = self._search = None
        self._source_fd, self._source_info, self._frozen, self._snapshot_watch = -1, None, None, None
        self._frozen_at_ns = 0
        self._lost, self._lost_until = None, None  # why the data connections ended, and until when the target may explain
        self._unreadable = []
        self._watch = None  # of the lanes that send
        self._move = None  # (why, at_once): this connection is to be left for a new one
        self._moved = False
        self._stopping = threading.Event()
        self._ending = None  # (error, keep_open) of a Fail, or a Finish
        self._interruptions = 0
        self._machine = None

    # ---- for the caller ----

    def run(self):
        """Run to the commit; a RunReport. Raises Interrupted after stop(), Unsynced with the extents that were left out,
        Unreachable when the target stayed away, and whatever else ended it. What was applied is kept for the next run where the
        error says so in its hint."""
        try:
            self._machine = self._make_machine()
            self._settle_kept()
            self._sweep_snapshots()
            return self._run_to_the_end()
        finally:
            self._stop_lanes()
            self._link.hang_up()
            self._close_source()
            self._map.close()
            self._run_file.close()
            self._kept.close()

    def stop(self):
        """End the run soon, from any thread; run() raises Interrupted, and the next run resumes."""
        self._stopping.set()
        self._events.put(("stop", None, None))

    def set_connections(self, count, removed=None):
        """From any thread: `count` connections from now on, also while the run goes on: more are asked for, or the last ones finish what they
        have taken and end. removed: the slot that goes, instead of the last; those behind it move up."""
        self._events.put(("connections", None, (count, removed)))

    def move(self, why, at_once):
        """Leave the connection of now and dial anew, from any thread; what was applied stays applied. at_once False: only while frames are
        sent, when resuming costs nothing."""
        self._events.put(("move", None, (why, at_once)))

    def tell_machine(self, event):
        """From any thread: event(machine) is carried out by the run's own, as soon as it may be."""
        self._events.put(("machine", None, event))

    def held_tokens(self):
        """Snapshots that this job's records name, once run() is over."""
        record = self._machine.record if self._machine is not None else None
        return ([record.snapshot] if record is not None and record.snapshot else []) + self._kept.tokens

    def progress(self):
        self._progress.received_by_target = self._link.beat.written
        progress, lanes = self._progress.as_dict(self.geometry.granule_size, len(self._unreadable)), self._lanes
        sending = lanes is not None and self._search is None
        return progress | {"connections": lanes.connections() if sending else []}

    # ---- connections ----

    def _make_machine(self):
        request, pending = self.request, self._map.pending
        return SourceMachine(
            job_id=request.job_id, volume_id=request.volume_id, map_tag=self._map.tag,
            shape=(self.geometry.size, request.leaf_size, request.granule_size, min(4096, request.device.io_alignment)),
            pending_new=pending.tag if pending is not None else None, record=self._run_file.load(), epoch=0, draw=secrets.token_bytes,
            initial=clean.initial(request, self._map), connections=self._connections.count, frame_limit=max(request.frame_limit, request.leaf_size),
            hold=request.hold, label=self.request.label, once=request.once, in_group=request.together is not None and request.together.in_group,
        )  # fmt: skip

    def _run_to_the_end(self):
        patience = Patience(self.request.timeout_s)
        while True:
            began = time.monotonic()
            error = self._one_connection()
            if self._machine.phase == "done":
                return self._report()
            if self._stopping.is_set() or self._machine.phase in ("failed", "degraded") or not error.retry:
                raise error
            if self._moved:
                continue
            if error.code in BAD_DATA:
                self._lose(error.message)
            record = self._machine.record
            attempt = record.attempt if record is not None else 0
            connected_s = time.monotonic() - began if self._link.was_open else 0.0
            wait_s = patience.interrupted(attempt, self._progress.totals().get("granules_done", 0), connected_s)
            if wait_s is None:
                raise error
            self._interruptions += 1
            self._tell("run-interrupted", error.message, retry_in_s=wait_s)
            if self._stopping.wait(wait_s):
                raise Interrupted("the run was stopped; start resumes it")

    def _one_connection(self):
        """One control connection to its end. Returns why it ended, None after Finish."""
        self._ending = self._move = self._lost_until = None
        self._moved = False
        self._progress.phase = "connecting"
        try:
            self._link.open()
        except QrepError as err:
            return err
        if self.request.wanted is not None:
            self._connections.change(self.request.wanted(), None, None, self._machine)
        self._machine.plain = self.request.is_plain()
        self._execute(self._machine.connected())
        while self._ending is None:
            self._one_event()
            self._move_if_it_is_time()
        self._link.hang_up()
        return None if isinstance(self._ending, do.Finish) else self._ending.error

    def _one_event(self):
        machine = self._machine
        try:
            kind, origin, what = self._events.get(timeout=WATCH_S)
        except queue.Empty:
            self._look_after()
            return
        if kind == "stop":
            self._execute(machine.stop())
        elif kind == "snapshot":
            self._execute(machine.snapshot_lost(what) if self._snapshot_watch is origin else [])
        elif kind == "machine":
            self._execute(what(machine))
        elif kind == "move":
            self._move = what
        elif origin is self._link.channel and kind == "message":
            self._execute(machine.message(what))
        elif origin is self._link.channel and kind == "gone":
            self._lose(what)
            self._execute(machine.disconnected(what))
        elif origin is self._link.channel and kind == "nonsense":
            self._execute(machine.protocol_violation(what))
        elif kind == "lanes" and origin is self._lanes:
            self._lanes_ended()
        elif kind == "slot" and origin is self._lanes:
            self._settle_connections()
        elif kind == "connections":
            self._connections.change(*what, None if self._search else self._lanes, machine)
            self._settle_connections()
        if machine.phase != "sending":
            self._lost_until = None

    def _settle_connections(self):
        if self._machine.phase == "sending" and self._lanes is not None:
            for code, text, slot in self._connections.news(self._lanes):
                self._tell(code, text, connection=slot + 1)
            self._execute(self._connections.settle(self._lanes, self._machine))

    def _look_after(self):
        """Nothing happened for a moment: is that well?"""
        now, lanes = time.monotonic(), self._lanes
        if self._lost_until is not None:
            if self._link.beat.busy:  # with putting back what cannot be committed, for instance: what went wrong is told after that
                self._lost_until = now + LAST_WORD_S
            if now >= self._lost_until:
                self._lost_until = None
                self._lose(self._lost[1])
                self._execute(self._machine.lanes_failed(*self._lost))
        elif self._machine.phase == "sending" and lanes is not None:
            if lanes.retry_in() == 0:
                self._settle_connections()
            wrong = self._watch.look(now, lanes.views(), self._run.counters(), self._link.beat)
            if wrong is not None:
                self._lose(wrong)
                self._execute(self._machine.lanes_failed("connection", wrong))

    def _move_if_it_is_time(self):
        """Not after Prepare: the commit is near, and would be asked for again."""
        if self._move is None or self._ending is not None:
            return
        why, at_once = self._move
        phase = self._machine.phase
        if phase == "sending" or (at_once and phase in CONNECTED and phase not in ("preparing", "committing", "giving-up")):
            self._moved = True
            self._execute(self._machine.disconnected(why))
        elif not at_once:
            self._move = None  # it is asked for again while there is reason to

    def _lose(self, why):
        """The connection is dead, and with it perhaps the path."""
        if self._on_lost is not None:
            self._on_lost(why)

    # ---- actions ----

    def _execute(self, actions):
        """The driver's contract of actions.py."""
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            try:
                waiting = (self._handlers[type(action)](self, action) or []) + waiting
            except Disconnected as err:
                self._lose(err.message)
                waiting = list(self._machine.disconnected(err.message))
            except (OSError, QrepError, MemoryError) as err:
                waiting = list(self._machine.failed(action, self._named(err)))

    def _named(self, error):
        """A full disk is that of the state directory: sources are only read."""
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        directory = self.request.run_directory
        return QrepError(f"{directory}: {error.strerror}", hint=f"make room on the filesystem of {directory}, then start the run again", code="no-space")

    def _send(self, action):
        crashpoint("source-send")
        self._link.send(action.message)

    def _fold_pending(self, action):
        self._map.fold(self._map.pending.tag)
        self._session_base = None

    def _drop_pending(self, action):
        self._map.drop_pending()

    def _forget_map(self, action):
        self._map.forget()
        self._session_base = None

    def _store_digests(self, action):
        self._base_now().store(action.first, action.states, action.values)
        self._progress.compared(action.first + len(action.states), self.geometry.granules)

    def _find_differences(self, action):
        self._search = Search(
            self._base_now(), self.geometry, self._source_fd, self._holes, self._source_info.io_alignment, self._map.leaves_fd, self.request.connections,
            self.request.slots, lambda lanes: self._events.put(("lanes", lanes, None)),
        )  # fmt: skip
        self._lanes = self._search.lanes
        self._progress.begin_search(self._search.run, self._search.bytes)

    def _store_leaves(self, action):
        if not self._base_now().store_page(self.geometry, self._map.leaves_fd, action.granule, action.page):
            log.warning("the leaf values that the target gave for granule %d are not those of its digest", action.granule)

    def _base_now(self):
        if self._session_base is None:
            self._session_base = Base(self._map.states, self._map.values)
        return self._session_base

    def _freeze(self, action):
        self._progress.phase = "freezing"
        backend, frozen = self.request.backend, self._image(action.token)
        token = "" if frozen.fuzzy else frozen.token
        try:
            if frozen.size < self.geometry.size or (frozen.size != self.geometry.size and not self.request.size):
                raise Refused(
                    f"{self.request.device.path} has {frozen.size} bytes now, the job was made for {self.geometry.size}",
                    code="resized", hint="add the volume anew",
                )  # fmt: skip
            if self._source_fd < 0 or self._frozen is None or self._frozen.token != frozen.token:
                self._close_source()
                self._source_info = device.inspect(frozen.path)
                self._source_fd = device.open_source(self._source_info)
                self._snapshot_watch = SnapshotWatch(backend, token, lambda watch, error: self._events.put(("snapshot", watch, error)))
            self._holes = holes_of(self._source_fd, self.geometry, backend.allocated(token) if token else None)
            self._hints.look(frozen, self._source_fd, self._holes, self._source_info.io_alignment, self._progress, self._stopping)
        except (OSError, QrepError):
            if token and token != action.token:
                self.request.release(token)
            raise
        self._frozen, self._frozen_at_ns = frozen, frozen.time_ns
        if frozen.fuzzy:
            self._tell("run-fuzzy", f"{self.request.device.path} is read live: the sync point is fuzzy if it is written meanwhile")
        return self._machine.frozen(token, frozen.fuzzy, frozen.time_ns, frozen.consistency)

    def _image(self, token):
        """The Frozen to read: that of `token` again if it is there, else a new one; with others, what all of them agree on."""
        request, record = self.request, self._machine.record
        if request.together is not None:
            frozen = request.together.freeze(token, record.frozen_at_ns if record is not None else 0, self._stopping.is_set)
        else:
            anew = request.label and record is not None and record.label != request.label  # a name is of the moment it was asked for
            frozen = request.find(token) if token and not anew else None
        if frozen is None or frozen.token != token:
            self._close_source()
            if token:
                request.release(token)  # also of one that was lost: something may be left
            frozen = frozen or request.backend.freeze(request.device, request.snapshot)
            crashpoint("source-frozen")
        return frozen

    def _agree(self, action):
        crashpoint("source-agreed")
        self.request.together.agree(action)

    def _release_snapshot(self, action):
        crashpoint("source-release-before")
        self._close_source()
        if action.token:
            self._kept.give_back(action.token, self._map.tag)

    def _save_run(self, action):
        self._run_file.save(action.record)
        crashpoint("source-run-saved")

    def _clear_run(self, action):
        self._run_file.clear()

    def _start_sending(self, action):
        self._stop_lanes()
        base = self._base_now()
        if action.resumed:
            base = base.overlaid(action.applied, action.unknown)
            self._tell("run-resumed", f"{base.marked.count(WHOLE)} of {self.geometry.granules} granules were applied already")
        self._base = base
        searched = any(base.same) and (action.same_image or not (action.resumed or self._frozen.fuzzy))
        hint = self._hints.in_use
        work = work_list(
            base, self._holes, self.geometry, resumed=action.resumed, same_image=action.same_image, unknown=action.unknown, searched=searched, hint=hint
        )
        self._run = SourceRun(
            self.geometry, attempt=action.attempt, session=action.session, key=action.key, sector_size=self._source_info.io_alignment,
            base_states=base.states, base_values=base.values, leaves_fd=self._map.leaves_fd, work=work, wanted=hint and hint.wanted,
            frame_size=max(self.request.frame_limit, self.request.leaf_size), slots=self.request.slots,
        )  # fmt: skip
        if self.request.together is not None:
            self.request.together.share(self._run, "" if self._frozen.fuzzy else self._frozen.token, self.geometry, self._stopping.is_set)
        skipped = 0 if work is None else self.geometry.granules - len(work)
        self._progress.begin(self._run, skipped * self.geometry.granule_size)
        self._watch = Watch(time.monotonic())
        crashpoint("source-lanes-before")
        self._lanes = SourceLanes(
            self._run, self._source_fd, action.tokens, self._connect, lambda lanes: self._events.put(("lanes", lanes, None)),
            lambda lanes: self._events.put(("slot", lanes, None)), self._progress.connected,
        )  # fmt: skip

    def _add_sending(self, action):
        if self._lanes is None:  # they broke while the target was asked; its word on that is still waited for
            return
        crashpoint("source-lanes-added")
        self._connections.added(action.tokens, self._lanes)
        self._settle_connections()  # what was wanted may have changed while the target was asked

    def _lanes_ended(self):
        lanes, run, search = self._lanes, self._run, self._search
        self._lanes = self._search = None
        self._progress.end()
        if search is None:
            run.leave()
        failure = lanes.failure()
        if search is not None:
            crashpoint("source-searched")
            self._execute(self._machine.lanes_failed(*failure) if failure else self._machine.differences_found(search.take_over()))
            return
        if failure is not None and failure[0] == "connection":
            self._lost, self._lost_until = failure, time.monotonic() + LAST_WORD_S
            return
        if failure is not None and failure[0] == "unreachable":  # the target knows nothing of a connection that never was
            failure = ("connection", failure[1])
            self._lose(failure[1])
        if failure is not None:
            self._execute(self._machine.lanes_failed(*failure))
            return
        self._unreadable = run.bad_extents()
        marked = bytearray(self._base.marked)  # R7: what earlier sessions sent counts, too
        for found in re.finditer(rb"[\x01\x02]+", bytes(run.marked), re.DOTALL):
            marked[found.start() : found.end()] = run.marked[found.start() : found.end()]
        count, manifest = wire.manifest(marked, run.fresh_states, run.fresh_values)
        crashpoint("source-lanes-done")
        self._progress.phase = "committing"
        self._execute(self._machine.lanes_finished(count, manifest, [(offset, size) for offset, size, _ in self._unreadable]))

    def _stop_sending(self, action):
        self._stop_lanes()

    def _stop_lanes(self):
        lanes, self._lanes, self._search = self._lanes, None, None
        if lanes is not None:
            lanes.stop()
            lanes.join()
            self._progress.end()
            if self._run is not None:
                self._run.leave()

    def _write_pending(self, action):
        run, record = self._run, self._machine.record
        root = digesttree.root(self.geometry, run.fresh_states, run.fresh_values, self._map.leaves_fd, ROOT_BEFORE_COMMIT)
        if self.request.hints and record.snapshot:
            digest = map_digest(run.fresh_states, run.fresh_values)
            self._kept.remember(action.new, record.snapshot, self._hints.verdict(run.fresh_states, run.fresh_values), self._hints.cursor, digest)
        self._map.write_pending(action.new, action.base, action.counter, run.fresh_states, run.fresh_values, root)

    def _finish(self, action):
        self._ending = action

    def _fail(self, action):
        error = action.error
        if self.request.together is not None:
            self.request.together.left()
        if isinstance(error, Unsynced):
            action = do.Fail(named_blocks(error, self.request.device.path, action.keep_open), action.keep_open)
        self._ending = action

    # ---- the rest ----

    def _report(self):
        ending, totals, record = self._ending, self._progress.totals(), self._machine.record
        known = record is not None and self._map.tag == ending.generation  # no record: another process committed it
        is_clean = known and clean.is_clean(record.base, self._map.states, totals.get("changed", 0))
        root = self._map.root() if self._map.tag == ending.generation else None
        return RunReport(
            generation=ending.generation.hex(), counter=ending.counter, root=root.hex() if root else None, fuzzy=ending.fuzzy,
            resumed=ending.resumed, frozen_at_ns=self._frozen_at_ns, seconds=self._progress.seconds,
            interruptions=self._interruptions, zero_copy=zero_copy_of(totals), ktls=self._progress.ktls,
            hints=self._hints.report(), clean=is_clean, **{name: totals.get(name, 0) for name in ("read", "read_shared", "hashed", "zero", "changed", "sent", "frames")},
        )  # fmt: skip

    def _sweep_snapshots(self):
        """Snapshots of this job that a crash left between freezing and noting it."""
        record = self._machine.record
        keep = [record.snapshot] if record is not None and record.snapshot else []
        keep += self._kept.tokens
        backend = self.request.backend
        with contextlib.suppress(QrepError):  # a backend that does not suit this device: freeze() will say so
            for token in backend.stale(self.request.device, keep=keep):
                if f"@{self.request.snapshot}~" in token:
                    backend.release(token)

    def _settle_kept(self):
        """A snapshot that cannot be given back now is no reason not to replicate: nothing but hints waits for it, and the next run tries again."""
        record, pending = self._machine.record, self._map.pending
        try:
            self._kept.begin(
                self.request.hints, self._map.tag, pending.tag if pending is not None else None, record.snapshot if record is not None else ""
            )
        except QrepError as err:
            self._tell("snapshot-left", f"{err.message}; the next run tries again")

    def _close_source(self):
        watch, self._frozen, self._snapshot_watch = self._snapshot_watch, None, None
        if watch is not None:
            watch.stop()
        if self._source_fd >= 0:
            os.close(self._source_fd)
            self._source_fd = -1

    def _tell(self, code, text, **data):
        log.info("%s: %s", code, text)
        if self._observer is not None:
            self._observer.event(code, text, **data)

    _handlers = {
        do.Send: _send, do.FoldPending: _fold_pending, do.DropPending: _drop_pending, do.ForgetSourceMap: _forget_map,
        do.StoreDigests: _store_digests, do.FindDifferences: _find_differences, do.StoreLeaves: _store_leaves, do.Freeze: _freeze, do.SaveRun: _save_run, do.ClearRun: _clear_run,
        do.ReleaseSnapshot: _release_snapshot, do.StartSending: _start_sending, do.AddSending: _add_sending, do.StopSending: _stop_sending,
        do.WritePending: _write_pending, do.Agree: _agree, do.Finish: _finish, do.Fail: _fail,
    }  # fmt: skip
