"""One run at its source, from the snapshot to the committed generation: drives one SourceMachine over real devices and streams.

    run = Run(request, dial, connect)    # request.RunRequest
    report = run.run()         # blocks; reconnects and resumes by itself for a while
"""

import contextlib
import logging
import secrets
import time

from qrep import mapvalues, masks
from qrep._native import wire
from qrep._native.source_lane import SourceRun
from qrep.crashpoint import crashpoint
from qrep.digestmap import DigestMap
from qrep.errors import Unsynced
from qrep.protocol import actions as do
from qrep.protocol import features
from qrep.protocol.source_machine import SourceMachine
from qrep.source import clean
from qrep.source.dialogue import BAD_DATA, Dialogue
from qrep.source.image import Image
from qrep.source.lanes import SourceLanes
from qrep.source.report import RunReport, named_blocks, zero_copy_of
from qrep.source.runrecord import RunFile
from qrep.source.search import Search
from qrep.source.watch import Watch
from qrep.source.work import WHOLE, Base, work_list

log = logging.getLogger("qrep.source")
MARKED = masks.table(lambda mark: mark)
ROOT_BEFORE_COMMIT = 8 << 30  # bytes of zeroes whose values may be computed while the target waits; one second on two cores


class Run(Dialogue):
    """request: RunRequest. dial(): a fresh control Channel, raises Unreachable. connect(token, slot): a DataConnection that the target
    has taken for `token`; slot: its place among the run's connections, from 0. on_lost(why): told when a
    connection was found dead, before dial() is called again. observer.event(code, text, **data): run-interrupted, run-resumed,
    run-fuzzy, connection-down, connection-up.
    """

    def __init__(self, request, dial, connect, *, observer=None, on_lost=None):
        super().__init__(request, dial, observer, on_lost)
        self.geometry, self._connect = request.geometry, connect
        with contextlib.ExitStack() as made:
            self._map = made.enter_context(contextlib.closing(DigestMap(request.map_directory, self.geometry, request.volume_id)))
            self._run_file = made.enter_context(contextlib.closing(RunFile(request.run_directory)))
            self._run_file.directory.sweep()
            self._image = Image(
                request, self._map, self._progress, self._stopping, self._tell, lambda watch, error: self._events.put(("snapshot", watch, error))
            )
            made.pop_all()  # run() closes them
        self._base = self._session_base = self._marked = None
        self._unreadable = []

    # ---- for the caller ----

    def run(self):
        """Run to the commit; a RunReport. Raises Interrupted after stop(), Unsynced with the extents that were left out,
        Unreachable when the target stayed away, and whatever else ended it. What was applied is kept for the next run where the
        error says so in its hint."""
        try:
            self._machine = self._make_machine()
            pending = self._map.pending
            self._image.settle(self._machine.record, pending.tag if pending is not None else None)
            return self._run_to_the_end()
        finally:
            self._stop_lanes()
            self._link.hang_up()
            self._image.close()
            self.request.reading.end()
            self._map.close()
            self._run_file.close()
            self._base = self._session_base = self._run = self._marked = None  # megabytes each, of a large volume

    def held_tokens(self):
        """Snapshots that this job's records name, once run() is over."""
        return self._image.named(self._machine.record if self._machine is not None else None)

    def progress(self):
        self._progress.received_by_target = self._link.beat.written
        progress, lanes = self._progress.as_dict(self.geometry.granule_size, len(self._unreadable)), self._lanes
        sending = lanes is not None and self._search is None
        return progress | {"connections": lanes.connections() if sending else [], "nice": self.request.reading.shown()}

    def _make_machine(self):
        request, pending = self.request, self._map.pending
        return SourceMachine(
            job_id=request.job_id, volume_id=request.volume_id, map_tag=self._map.tag,
            shape=(self.geometry.size, request.leaf_size, request.granule_size, min(4096, request.device.io_alignment)),
            pending_new=pending.tag if pending is not None else None, record=self._run_file.load(), epoch=0, draw=secrets.token_bytes,
            initial=clean.initial(request, self._map), connections=self._connections.count, frame_limit=max(request.frame_limit, request.leaf_size),
            features=[name for name in features.KNOWN if name != "zstd" or request.compress != "off"], hold=request.hold, label=self.request.label, once=request.once, in_group=request.together is not None and request.together.in_group,
        )  # fmt: skip

    # ---- actions ----

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
            self._base_now(), self.geometry, self._image.fd, self._image.holes, self._image.sector_size, self._map.leaves_fd, self.request.connections,
            self.request.slots, lambda lanes: self._events.put(("lanes", lanes, None)), self.request.reading.limit(self._image.fd),
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
        image = self._image
        frozen = image.freeze(action.token, self._machine.record)
        if frozen.fuzzy:
            self._tell("run-fuzzy", f"{self.request.device.path} is read live: the sync point is fuzzy if it is written meanwhile")
        return self._machine.frozen(image.token, frozen.fuzzy, frozen.time_ns, frozen.consistency)

    def _snapshot_lost(self, watch, error):
        return self._machine.snapshot_lost(error) if self._image.is_watched_by(watch) else []

    def _agree(self, action):
        crashpoint("source-agreed")
        self.request.together.agree(action)

    def _release_snapshot(self, action):
        self._image.give_back(action.token)

    def _save_run(self, action):
        self._run_file.save(action.record)
        crashpoint("source-run-saved")

    def _clear_run(self, action):
        self._run_file.clear()

    def _start_sending(self, action):
        self._stop_lanes()
        base, image = self._base_now(), self._image
        if action.resumed:
            base = base.overlaid(action.applied, action.unknown)
            self._tell("run-resumed", f"{base.marked.count(WHOLE)} of {self.geometry.granules} granules were applied already")
        self._base = base
        searched = 1 in base.same and (action.same_image or not (action.resumed or image.frozen.fuzzy))
        hint = image.hints.in_use
        work = work_list(
            base, image.holes, self.geometry, resumed=action.resumed, same_image=action.same_image, unknown=action.unknown, searched=searched, hint=hint
        )
        self._run = SourceRun(
            self.geometry, attempt=action.attempt, session=action.session, key=action.key, sector_size=image.sector_size,
            base_states=base.states, base_values=base.values, fresh_values=mapvalues.copied(base.states, base.values),
            leaves_fd=self._map.leaves_fd, work=work, wanted=hint and hint.wanted,
            frame_size=max(self.request.frame_limit, self.request.leaf_size), slots=self.request.slots, features=self._machine.features,
            nice=self.request.reading.limit(image.fd), packing=self.request.compress,
        )  # fmt: skip
        if self.request.together is not None:
            self.request.together.share(self._run, image.token, self.geometry, self._stopping.is_set)
        skipped = 0 if work is None else self.geometry.granules - len(work)
        self._progress.begin(self._run, skipped * self.geometry.granule_size)
        self._watch = Watch(time.monotonic())
        crashpoint("source-lanes-before")
        self._lanes = SourceLanes(
            self._run, image.fd, action.tokens, self._connect, lambda lanes: self._events.put(("lanes", lanes, None)),
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
        if failure is not None and failure[0] in BAD_DATA:
            self._hear_last_word(failure)
            return
        if failure is not None and failure[0] == "unreachable":  # the target knows nothing of a connection that never was
            failure = ("connection", failure[1])
            self._lose(failure[1])
        if failure is not None:
            self._execute(self._machine.lanes_failed(*failure))
            return
        self._unreadable = run.bad_extents()
        marked = bytearray(self._base.marked)  # R7: what earlier sessions sent counts, too
        for first, end in masks.runs(run.marked.translate(MARKED)):
            marked[first:end] = run.marked[first:end]
        self._marked = marked
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
        run = self._run
        content = self._map.following(
            action.new, action.base, action.counter, run.fresh_states, run.fresh_values, marked=self._marked, zeroes=ROOT_BEFORE_COMMIT
        )
        self._image.remember(action.new, self._machine.record, content)
        self._map.write(content)

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
        root = self._root() if self._map.tag == ending.generation else None
        return RunReport(
            generation=ending.generation.hex(), counter=ending.counter, root=root.hex() if root else None, fuzzy=ending.fuzzy,
            resumed=ending.resumed, frozen_at_ns=self._image.frozen_at_ns, seconds=self._progress.seconds,
            interruptions=self._interruptions, zero_copy=zero_copy_of(totals), ktls=self._progress.ktls,
            hints=self._image.hints.report(), clean=is_clean, **{name: totals.get(name, 0) for name in ("read", "read_shared", "hashed", "zero", "changed", "sent", "copies", "packed", "packed_sent", "frames")},
        )  # fmt: skip

    def _root(self):
        """Of the map. What had to be computed for it is kept, so that the next run need not."""
        known, before = self._map.root_value, self._map.digest
        root = self._map.root()
        if known is None and root is not None:
            try:
                self._map.keep_values()
                self._image.redescribe(before)
            except OSError as err:  # the run is committed all the same
                log.warning("the root could not be noted in the map: %s", err)
        return root

    _handlers = {
        do.Send: Dialogue._send, do.FoldPending: _fold_pending, do.DropPending: _drop_pending, do.ForgetSourceMap: _forget_map,
        do.StoreDigests: _store_digests, do.FindDifferences: _find_differences, do.StoreLeaves: _store_leaves, do.Freeze: _freeze, do.SaveRun: _save_run, do.ClearRun: _clear_run,
        do.ReleaseSnapshot: _release_snapshot, do.StartSending: _start_sending, do.AddSending: _add_sending, do.StopSending: _stop_sending,
        do.WritePending: _write_pending, do.Agree: _agree, do.Finish: _finish, do.Fail: _fail,
    }  # fmt: skip
