"""The target of the simulation: a driver of TargetMachine over simulated disks, with lanes that keep the order rules of the native ones."""

import errno
from collections import deque

from qrep import retention
from qrep._native import disk as records
from qrep._native import hasher, wire
from qrep.errors import DamagedError, ProtocolError, QrepError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.records import TargetRecord
from qrep.protocol.target_machine import TargetMachine
from qrep.target.undomerge import Covered
from sim.disk import Disk, MediumError, SparseFile, Store
from sim.roles import Roles
from sim.world import Process, Signal, Violation, own_fault

HASHED, ZERO = records.STATE_HASHED | records.STATE_VALUE, records.STATE_ZERO
FIELDS = TargetRecord.__struct_fields__
TOKEN_LIFE = 4.0  # virtual seconds


def harmed(what):
    """Records do not rot in this world: whatever is found damaged was written, flushed or read wrongly."""
    return Violation(f"INV-W: records are damaged, and nobody harmed them: {what}")


class Lane:
    def __init__(self, index):
        self.index = index
        self.end = None
        self.frames = deque()
        self.arrived = Signal()
        self.ended = False  # END was answered
        self.void = False  # its token was forgotten before anybody brought it
        self.done = False
        self.finished = Signal()


class Run:
    """The lanes of one session of an attempt."""

    def __init__(self, action, key, tokens):
        self.added = tokens
        self.attempt, self.session, self.base = action.attempt, action.session, action.base
        self.key, self.tokens = key, tokens
        self.lanes = [Lane(index) for index in range(action.connections)]
        self.stop = False
        self.failure = None
        self.unwritten = []  # (offset, size) of what the medium did not take


class LaneFailure(Exception):
    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


class Target(Process, Roles):
    failures = (do.LanesFailed, DamagedError)
    machine_class = TargetMachine

    def __init__(self, world, oracle, geometry, *, volume_id, sync_points, undo_limit, restart_delay=0.5):
        super().__init__(world, "target")
        self.oracle, self.geometry, self.volume_id = oracle, geometry, volume_id
        self.sync_points, self.undo_limit, self.restart_delay = sync_points, undo_limit, restart_delay
        self.device = Disk(world, "device", geometry.size)
        self.device.observer = oracle.landed
        self.superblock = Disk(world, "superblock", 2 * records.SUPERBLOCK_SLOT_DISTANCE, shorn=0.5)
        self.store = Store(world, "target-state")
        self.undo = {}  # new id -> SparseFile
        self.ends = {}  # handle -> control End
        self.handles = 0
        self.data_ends = []
        self.machine = self.run = None
        self.ready = self.merging = False
        self.wanted = True
        self.lies = 0.0  # how often a frame of an earlier session, a frame twice or a flipped bit comes out of a connection
        self.checkpoint_every = 0.3  # seconds, scale
        self.heard = deque(maxlen=32)
        block = records.Superblock(volume_id=volume_id, size=geometry.size, leaf_size=geometry.leaf_size, granule_size=geometry.granule_size, sequence=1)
        self.superblock.cache[: records.SUPERBLOCK_SIZE] = self.superblock.durable[: records.SUPERBLOCK_SIZE] = block.pack()

    # ---- life ----

    def main(self):
        self.ready = self.merging = False
        yield from self.claim()
        try:
            block, self.slot = records.choose_superblock(self._slot(0), self._slot(1))
            self.sequence = block.sequence
            record = TargetRecord(**{name: getattr(block, name) for name in FIELDS})
        except records.RecordDamaged as err:
            raise harmed(err) from err
        self.machine = self.machine_class(record, capacity=self.geometry.size, sector_size=512, chain=self.way_back(record))
        self.run = self.checkpoint = None
        self.states = self.values = self.marked = None
        self.load_map()
        yield from self.drive(self.machine.start(self.load_checkpoint(), *self.decided()))
        self.world.log(f"target is {self.machine.phase}")
        if self.machine.phase == "faulted":
            self.kill("faulted")
            return
        self.settle_role()
        self.ready = True
        self.spawn(self.timer())
        yield from self.serve()

    def decided(self):
        """What the record of a group commit says, if it may be a member of one (group.py)."""
        return ()

    def claim(self):
        """R1: nothing a dead predecessor submitted is under way any more."""
        for disk in (self.device, self.superblock, *self.undo.values()):
            yield from disk.drained()

    def _slot(self, slot):
        start = slot * records.SUPERBLOCK_SLOT_DISTANCE
        return self.superblock.read(start, records.SUPERBLOCK_SIZE)

    def timer(self):
        """Checkpoints of initial attempts, and the end of the grace of one nobody comes back for."""
        lonely = 0
        while True:
            yield 0.2 + self.world.delay(self.checkpoint_every)
            self.post(lambda: self.machine.checkpoint_due() if self.machine.phase in ("open", "idle", "prepared") else [])
            alone = self.machine.session is None and self.machine.phase in ("open", "prepared")
            lonely = lonely + 1 if alone else 0
            if lonely > 40:
                self.post(lambda: self.machine.abandon() if self.machine.session is None else [])

    def died(self):
        for end in [*self.ends.values(), *self.data_ends]:
            end.close()
        self.ends, self.data_ends = {}, []
        self.ready = False
        if self.wanted:
            self.world.at(self.restart_delay, self.revive)

    def revive(self):
        if not self.alive and self.wanted:
            self.start()

    def power_cut(self):
        """Everything in memory and any part of what was not flushed is gone; peers hear nothing."""
        for end in [*self.ends.values(), *self.data_ends]:
            end.connection.cut()
            end.open = False
        self.kill("power cut")
        for disk in (self.device, self.superblock, *self.undo.values()):
            disk.power_cut()

    # ---- connections ----

    def accept(self, end):
        """A control connection arrives."""
        if not self.ready:
            end.close()
            return
        self.handles += 1
        handle = self.handles
        self.ends[handle] = end
        self.post(self.machine.connected, handle)
        end.listen(lambda body: self._said(handle, body), lambda: self._gone(handle))

    def _said(self, handle, body):
        try:
            message = say.decode(body, "source")
        except ProtocolError as err:
            own_fault(err)
        self.post(self._message, handle, message)

    def _message(self, handle, message):
        if self.run is not None and not self.run.stop:
            self.machine.connections_ended(sum(lane.ended or lane.void for lane in self.run.lanes))
        return self.machine.message(handle, message)

    def _gone(self, handle):
        if self.ends.pop(handle, None) is not None:
            self.post(self.machine.disconnected, handle)

    def join(self, token, end):
        """A data connection arrives with its token, which counts once."""
        run = self.run
        if not self.ready or run is None or run.stop or token not in run.tokens:
            end.close()
            return
        lane = run.lanes[run.tokens.index(token)]
        if lane.end is not None or lane.void:
            end.close()
            return
        lane.end = end
        self.data_ends.append(end)
        end.listen(lambda frame: self._frame(lane, frame), lambda: self._frame(lane, None))
        self.spawn(self.serve_lane(run, lane))

    def _frame(self, lane, frame):
        if frame is not None:
            if self.lies and self.world.chance(self.lies):
                frame = self.lie(frame)
            self.heard.append(frame)
        lane.frames.append(frame)
        lane.arrived.fire()

    def lie(self, frame):
        """R6: what a network may deliver instead. None of it may be applied."""
        random, (header, table, data) = self.world.random, frame
        self.world.log("a frame is not what was sent")
        if self.heard and random.random() < 0.7:
            return random.choice(self.heard)
        part = bytearray(random.choice([part for part in frame if part]))
        length = len(part)
        part[random.randrange(length)] ^= 1 << random.randrange(8)
        return tuple(bytes(part) if len(old) == length else old for old in (header, table, data))

    # ---- lanes ----

    def make_reader(self, run, lane):
        return wire.FrameReader(self.geometry, run.attempt, run.session, lane.index, run.key, self.machine.features)

    def serve_lane(self, run, lane):
        """One connection to its END, stop or a failure; what it submitted is complete when it is done (R12)."""
        lane.reader = self.make_reader(run, lane)
        lane.segment = None
        try:
            while not run.stop and not lane.ended:
                if not lane.frames:
                    lane.arrived = Signal()
                    yield lane.arrived
                    continue
                frame = lane.frames.popleft()
                if frame is None:
                    raise LaneFailure("connection", "the connection ended early")
                yield from self.apply(run, lane, frame)
        except LaneFailure as err:
            if run.failure is None:
                run.failure = failure = err
                self.world.log(f"target lane {lane.index} fails: {err.kind} {err}")
                self.post(lambda: self.machine.lanes_failed(failure.kind, str(failure)) if self.run is run and not run.stop else [])
        if not lane.ended:
            lane.end.close()
        lane.done = True
        lane.finished.fire()

    def check_frame(self, run, lane, header, table, data):
        """The frame and its runs [(first leaf, count, zero)], or LaneFailure."""
        try:
            frame = lane.reader.header(header)
            if frame.kind == wire.RUNS:
                runs = [(run_.first, run_.count, run_.zero) for run_ in lane.reader.runs(frame, table)]
            elif frame.kind == wire.FULL:
                runs = [(frame.first_leaf, -(-frame.data_size // self.geometry.leaf_size), False)]
            else:
                runs = []
        except ValueError as err:
            raise LaneFailure("frame", str(err)) from err
        if announced_digest(self.geometry, frame, runs, table, with_copies(self.geometry, lane.reader, frame, table, data)) != frame.digest:
            raise LaneFailure("digest", "what arrived is not what was announced")
        return frame, runs

    def apply(self, run, lane, parts):
        """Read old, log a batch, flush the undo (R3), write, mark when the writes are complete."""
        frame, runs = self.check_frame(run, lane, *parts)
        if frame.kind == wire.END:
            lane.ended = True
            lane.end.send(b"end")
            return
        geometry, device = self.geometry, self.device
        start = frame.granule * geometry.granule_size
        content = self.resolve(lane, frame, *parts[1:])
        if frame.kind == wire.ZERO:
            writes = [(start + i * geometry.granule_size, bytes(geometry.granule_bytes(frame.granule + i))) for i in range(frame.span)]
        else:
            writes, taken = [], 0
            for first, count, zero in runs:
                offset = start + first * geometry.leaf_size
                size = min(count * geometry.leaf_size, geometry.size - offset)
                writes.append((offset, bytes(size) if zero else content[taken : taken + size]))
                taken += 0 if zero else size
        try:
            before = [(offset, device.read(offset, len(data))) for offset, data in writes]
        except OSError as err:
            raise LaneFailure("read", str(err)) from err
        if run.base != say.NO_ID:
            yield from self.log_undo(run, lane, before)
        if run.stop:
            return
        done, failure = [], None
        try:
            for offset, data in writes:
                self.write(run, offset, data, done)
        except OSError as err:
            failure = err
        for signal in done:
            yield signal
        if failure is not None:
            raise LaneFailure("write", str(failure)) from failure
        self.mark(run, frame)

    def resolve(self, lane, frame, table, data):
        """What the leaves of the frame that are not zero are written with."""
        return with_copies(self.geometry, lane.reader, frame, table, data)

    def write(self, run, offset, data, under_way):
        """Submit, by the leaf where the medium does not take all of it; what it does not take is noted."""
        try:
            under_way.append(self.device.submit(offset, data, run.session))
        except MediumError:
            size = self.geometry.leaf_size
            if len(data) <= size:
                run.unwritten.append((offset, len(data)))
                return
            for start in range(0, len(data), size):
                self.write(run, offset + start, data[start : start + size], under_way)

    def lacks(self, run, frame, granule):
        """Whether leaves of a granule whose last frame has come are missing on the device."""
        return frame.flags & wire.PARTS or any(offset // self.geometry.granule_size == granule for offset, _ in run.unwritten)

    def mark(self, run, frame):
        last, value = frame.flags & wire.LAST, frame.value
        for granule in range(frame.granule, frame.granule + max(frame.span, 1)):
            if not last or self.lacks(run, frame, granule):
                self.marked[granule] = 1
                continue
            if frame.kind == wire.ZERO:
                self.states[granule] = ZERO
                self.values[granule * 32 : granule * 32 + 32] = bytes(32)
            else:
                self.states[granule] = HASHED
                self.values[granule * 32 : granule * 32 + 32] = value
                start = granule * self.geometry.granule_size
                content = bytes(self.device.cache[start : start + self.geometry.granule_bytes(granule)])
                if hasher.subtree(content, start, self.geometry.leaf_size) != value:
                    raise LaneFailure("value", f"granule {granule} is not what the source says")
            self.marked[granule] = 2

    def log_undo(self, run, lane, before):
        file = self.undo[self.machine.record.open_new_id]
        extents = tuple((offset, len(old), records.UNDO_DATA if any(old) else records.UNDO_ZERO) for offset, old in before)
        payload = b"".join(old for _, old in before if any(old))
        if lane.segment is None:
            self.undo_segment += 1
            lane.segment = lane.flushed = lane.position = self.undo_segment * records.UNDO_SEGMENT_SIZE
        batch = records.UndoBatch(
            base_id=run.base, attempt=run.attempt, sequence=self.undo_sequence, position=lane.position, flushed=lane.flushed, extents=extents, payload=payload
        ).pack(self.geometry.size)
        self.undo_sequence += 1
        self.undo_used += len(batch)
        if self.undo_used > self.undo_limit and not self.world.calm:
            raise LaneFailure("undo_space", f"{self.undo_used} bytes of undo, the limit is {self.undo_limit}")
        try:
            written = file.submit(lane.position, batch)
        except OSError as err:
            raise LaneFailure("undo_write", str(err)) from err
        lane.position += len(batch)
        yield written
        yield from self.flush_undo(file)
        self.undo_flushed += 1
        lane.flushed = lane.position

    def flush_undo(self, file):
        yield from file.flush()

    # ---- maps and checkpoints ----

    def map_bytes(self, tag, base, counter, states, values):
        g = self.geometry
        header = records.MapHeader(
            volume_id=self.volume_id, tag=tag, base=base, counter=counter, size=g.size, leaf_size=g.leaf_size, granule_size=g.granule_size,
            granules=g.granules, digest=records.map_digest(states, values),
        )  # fmt: skip
        return header.pack(), bytes(states), bytes(values)

    def load_map(self):
        self.map_tag, self.base_states, self.base_values = load_map(self.store.files.get("root"), self.geometry)

    def load_checkpoint(self):
        entry = self.store.files.get("checkpoint")
        if entry is None or self.machine.record is None or entry[0] != self.machine.record.open_attempt:
            return False
        self.marked, self.states, self.values = (bytearray(part) for part in entry[1:])
        return True

    # ---- actions ----

    def _write_superblock(self, action):
        record = action.record
        self.slot = self.other_slot()
        self.sequence += 1
        block = records.Superblock(sequence=self.sequence, **{name: getattr(record, name) for name in FIELDS}).pack()
        yield self.superblock.submit(self.slot * records.SUPERBLOCK_SLOT_DISTANCE, block)
        yield from self.superblock.flush()
        self.oracle.superblock(record, self.device)
        self.settle_role()

    def _confirm_superblock(self, action):
        yield from self.superblock.flush()
        self.oracle.superblock(self.machine.record.opened(1, b"x" * 16, 1), self.device)  # the chain only: recovery comes after this

    def other_slot(self):
        return 1 - self.slot

    def _create_undo(self, action):
        file = SparseFile(self.world, "undo")
        g = self.geometry
        header = records.UndoHeader(
            volume_id=self.volume_id, base_id=action.base, new_id=action.new, attempt=action.attempt, size=g.size, leaf_size=g.leaf_size,
            granule_size=g.granule_size,
        ).pack()  # fmt: skip
        if self.store.faults.hits("write"):
            raise OSError(errno.ENOSPC, "no space for the undo file")
        self.undo[action.new] = file
        self.undo_segment = self.undo_sequence = self.undo_flushed = self.undo_used = 0
        yield file.submit(0, header)
        yield from file.flush()

    def _start_lanes(self, action):
        yield 0
        draw = self.world.random.randbytes
        self.run = Run(action, draw(32), [draw(16) for _ in range(action.connections)])
        if action.fresh:
            self.marked = bytearray(self.geometry.granules)
            self.states, self.values = bytearray(self.base_states), bytearray(self.base_values)

    def _add_lanes(self, action):
        yield 0
        run = self.run
        assert action.first == len(run.lanes), "a connection number is used twice"
        run.added = [self.world.random.randbytes(16) for _ in range(action.count)]
        run.tokens = [*run.tokens, *run.added]
        run.lanes += [Lane(action.first + i) for i in range(action.count)]
        if sum(not lane.ended and not lane.void for lane in run.lanes) > say.CONNECTIONS_MAX:
            raise Violation(f"{len(run.lanes)} lanes were started, too many of them are there")
        for lane in run.lanes[action.first :]:
            self.world.at(TOKEN_LIFE, self._forget_token, lane)

    def _forget_token(self, lane):
        lane.void = lane.end is None

    def _send_added(self, action):
        yield 0
        self._reply(action.handle, say.Added(action.attempt, self.run.added))

    def _send_began(self, action):
        yield 0
        self._reply(action.handle, say.Began(action.attempt, action.session, self.run.key, self.run.tokens))

    def _send_resumed(self, action):
        yield 0
        chunks = 1 if any(self.marked) else 0
        self._reply(action.handle, say.Resumed(action.attempt, action.session, self.run.key, self.run.tokens, chunks))
        if chunks:
            self._reply(action.handle, say.Applied(0, bytes(self.marked), bytes(self.states), bytes(self.values)))

    def _wait_lanes(self, action):
        yield 0
        for lane in self.run.lanes:
            lane.void = lane.end is None
            if not lane.ended and not lane.void:
                failure = self.run.failure
                raise do.LanesFailed(failure.kind if failure else "connection", str(failure or "a lane has not seen its end"))
        self.run.stop = True

    def _drain_lanes(self, action):
        run = self.run
        if run is None:
            return
        run.stop = True
        for lane in run.lanes:
            lane.arrived.fire()
            if lane.end is None:
                continue
            while not lane.done:
                yield lane.finished

    def _collect_manifest(self, action):
        yield 0
        count, manifest = wire.manifest(self.marked, self.states, self.values)
        return self.machine.manifest_collected(count, manifest, self.marked.count(1), sorted(self.run.unwritten))

    def _flush_device(self, action):
        yield from self.device.flush()

    def _take_checkpoint(self, action):
        yield 0
        self.checkpoint = (self.machine.record.open_attempt, bytes(self.marked), bytes(self.states), bytes(self.values))

    def _save_checkpoint(self, action):
        yield from self._quietly(self.store.write("checkpoint", self.checkpoint))

    def _forget_checkpoint(self, action):
        yield from self.store.write("checkpoint", None)

    def _seal_undo(self, action):
        file = self.undo.get(action.new)
        if file is None:
            return
        header = records.UndoHeader.unpack(file.read(0, records.UNDO_HEADER_SIZE))
        yield file.submit(records.UNDO_COPY_OFFSET, header.replace(batches=self.undo_flushed).pack())
        yield from file.flush()

    def _restore_undo(self, action):
        file = self.undo.get(action.new)
        if file is None:
            raise harmed("the undo file of the open generation is missing")
        yield from file.flush()
        try:
            header = records.UndoHeader.unpack(file.read(0, records.UNDO_HEADER_SIZE))
            if (header.base_id, header.new_id, header.attempt) != (action.base, action.new, action.attempt):
                raise harmed("the undo file is of another attempt")
            for offset, data in before_images(file, header, self.geometry.size):
                yield from self.put_back(offset, data)
        except records.RecordDamaged as err:
            raise harmed(err) from err
        return self.machine.undo_restored()

    def put_back(self, offset, data):
        """A place that takes no write may hold its before-image all the same."""
        try:
            yield self.device.submit(offset, data)
        except MediumError:
            size = self.geometry.leaf_size
            if len(data) > size:
                for start in range(0, len(data), size):
                    yield from self.put_back(offset + start, data[start : start + size])
            elif self.device.read(offset, len(data)) != data:
                raise

    def _apply_point(self, action):
        content = bytearray(self.device.cache)
        for new in action.way:
            file = self.undo.get(new)
            if file is None:
                raise harmed("the undo file of a sync point is missing")
            for offset, data in self.shown(file):
                content[offset : offset + len(data)] = data
        self.oracle.points[self.machine.record.open_new_id] = action.point
        run, lane = Run(do.StartLanes(action.attempt, None, 1, 0, True, self.machine.record.committed_id), b"", []), Lane(0)
        lane.segment, step = None, self.geometry.leaf_size
        for offset in range(0, len(content), step):
            old, new = bytes(self.device.cache[offset : offset + step]), bytes(content[offset : offset + step])
            if old == new:
                continue
            try:
                yield from self.log_undo(run, lane, [(offset, self.device.read(offset, len(old)))])
            except LaneFailure as err:
                raise DamagedError(str(err)) from err
            yield self.device.submit(offset, new)
        return self.machine.point_applied()

    def shown(self, file):
        """(offset, bytes) in the order in which they are put back, by the reader of records under test."""
        try:
            yield from before_images(file, records.UndoHeader.unpack(file.read(0, records.UNDO_HEADER_SIZE)), self.geometry.size)
        except records.RecordDamaged as err:
            raise harmed(err) from err

    def _write_pending_map(self, action):
        yield from self.store.write("pending", self.map_bytes(action.new, action.base, action.counter, self.states, self.values))

    def _settle_map(self, action):
        pending = self.store.files.get("pending")
        if pending is not None and load_map(pending, self.geometry)[0] == action.committed:
            yield from self.store.write("root", pending)
        elif self.map_tag != action.committed:
            yield from self.store.write("root", None)
        if pending is not None:
            yield from self.store.write("pending", None)
        self.load_map()
        self.oracle.map(self.map_tag, self.base_states, self.base_values, "the target")

    def _forget_map(self, action):
        yield from self.store.write("root", None)
        yield from self.store.write("pending", None)
        self.load_map()

    def _prune_undo(self, action):
        yield 0
        chain = self.way_back(self.machine.record)
        for new in list(self.undo):
            if new not in chain and new != self.machine.record.open_new_id:
                del self.undo[new]

    def way_back(self, record):
        """Ids within reach, newest first, by the headers of the undo files."""
        chain = [record.committed_id] if record is not None and record.committed_id != say.NO_ID else []
        while chain and chain[-1] in self.undo:
            file = self.undo[chain[-1]]
            try:
                base = records.UndoHeader.unpack(bytes(file.cache[: records.UNDO_HEADER_SIZE])).base_id
            except records.RecordDamaged:
                break
            if base in chain:
                break
            chain.append(base)
        return chain

    def _retain(self, action):
        """As target/keeping.py: by the policy, from the oldest end."""
        yield 0
        chain = self.way_back(self.machine.record)
        plan = self.plan([retention.Point(new, len(chain) - i, len(chain) - i) for i, new in enumerate(chain)])
        for new in reversed(chain[chain.index(plan.cut[0]) - 1 :] if plan.cut else ()):
            self.undo.pop(new, None)
            yield self.world.delay(0.002)  # a place to be killed at
        self.machine.set_chain(self.way_back(self.machine.record))

    def merge_some(self):
        """Take sync points out of the middle, beside everything else that goes on."""
        chain = list(self.machine.chain) if self.ready else []
        if len(chain) > 2 and self.machine.phase == "idle" and not self.merging:
            first = self.world.random.randrange(1, len(chain) - 1)
            last = self.world.random.randrange(first, len(chain) - 1)
            self.merging = True
            self.spawn(self.merge(chain[first - 1 : last + 2]))

    def merge(self, ids):
        """As target/undomerge.py: one file of several, written beside them, flushed, renamed over the newest; then the others go."""
        self.world.log(f"target merges {len(ids) - 1} undo files")
        header = records.UndoHeader.unpack(bytes(self.undo[ids[0]].cache[: records.UNDO_HEADER_SIZE])).replace(base_id=ids[-1])
        merged, covered, places = SparseFile(self.world, "undo"), Covered(), []
        merged.sealed = False
        for new in self.order_of_merging(ids[:-1]):
            file = self.undo.get(new)
            if file is None:  # it was pruned meanwhile
                self.merging = False
                return
            of_file = records.UndoHeader.unpack(bytes(file.cache[: records.UNDO_HEADER_SIZE]))
            for offset, data in reversed(list(before_images(file, of_file, self.geometry.size))):
                places += [(start, data[start - offset : start - offset + size]) for start, size in covered.take(offset, len(data))]
            yield self.world.delay(0.02)
        position = records.UNDO_SEGMENT_SIZE
        for sequence, start in enumerate(range(0, len(places), 4)):
            some = places[start : start + 4]
            batch = records.UndoBatch(
                base_id=ids[-1], attempt=header.attempt, sequence=sequence, position=position, flushed=position, payload=b"".join(data for _, data in some if any(data)),
                extents=tuple((offset, len(data), records.UNDO_DATA if any(data) else records.UNDO_ZERO) for offset, data in some),
            ).pack(self.geometry.size)  # fmt: skip
            yield merged.submit(position, batch)
            position += len(batch)
        yield merged.submit(0, header.pack())
        yield from self.flush_merged(merged)
        self.between_actions(lambda: self.finish_merge(ids, merged))

    def between_actions(self, function):
        """What needs the volume's lock: while a commit is carried out the machine is ahead of the superblock."""
        self.post(lambda: function() or [])

    def order_of_merging(self, ids):
        """The oldest file first: of every place what it holds stays."""
        return reversed(ids)

    def flush_merged(self, file):
        yield from file.flush()

    def finish_merge(self, ids, merged):
        """The rename, if the files are still those of `ids`."""
        self.merging = False
        chain = self.way_back(self.machine.record)
        at = chain.index(ids[0]) if ids[0] in chain else None
        if at is None or chain[at : at + len(ids)] != ids:
            return
        self.undo[ids[0]] = merged
        self.machine.set_chain(self.way_back(self.machine.record))
        for gone in ids[1:-1]:
            self.oracle.delete(gone)
        self.spawn(self.remove_merged(ids[1:-1]))

    def remove_merged(self, ids):
        for gone in ids:
            yield self.world.delay(0.02)  # a place to be killed at
            self.undo.pop(gone, None)

    def plan(self, points):
        return retention.plan(points, retention.Policy(count=self.sync_points))

    def _scan(self, action):
        states, values, step = bytearray(), bytearray(), self.geometry.granule_size
        for granule in range(action.first, action.first + action.count):
            content = self.device.read(granule * step, self.geometry.granule_bytes(granule))
            states.append(HASHED if any(content) else ZERO)
            values += hasher.subtree(content, granule * step, self.geometry.leaf_size) if any(content) else bytes(32)
            yield self.world.delay(0.001)
        self._reply(action.handle, say.Digests(action.first, bytes(states), bytes(values)))

    def _send_leaves(self, action):
        g = self.geometry
        for granule in action.granules:
            page = bytearray(32 * g.granule_leaves(granule))
            content = self.device.read(granule * g.granule_size, g.granule_bytes(granule))
            hasher.subtree(content, granule * g.granule_size, g.leaf_size, page)
            yield self.world.delay(0.001)
            self._reply(action.handle, say.Leaves(granule, self.told_page(page)))

    def told_page(self, page):
        """What it says of its leaves; a lie about them may cost bandwidth and nothing else."""
        if self.lies and self.world.chance(self.lies):
            leaf = self.world.random.randrange(len(page) // 32)
            page[leaf * 32 : leaf * 32 + 32] = self.world.random.randbytes(32)
        return bytes(page)

    def _send_message(self, action):
        yield 0
        if isinstance(action.message, say.State):
            self.oracle.accepted(action.message.max_epoch)
        self._reply(action.handle, action.message)

    def _reply(self, handle, message):
        if isinstance(message, say.Error):
            own_fault(QrepError(message.message, code=message.code))
        end = self.ends.get(handle)
        if end is not None and end.open:
            end.send(say.encode(message)[4:])

    def _close_session(self, action):
        yield 0
        end = self.ends.pop(action.handle, None)
        if end is not None:
            end.close()

    def _faulted(self, action):
        yield 0
        self.kill(f"faulted: {action.reason}")

    def _quietly(self, task):
        try:
            yield from task
        except OSError as err:
            self.world.log(f"target goes on: {err}")

    def _nothing(self, action):
        yield 0

    performers = {
        do.WriteSuperblock: _write_superblock, do.ConfirmSuperblock: _confirm_superblock, do.CreateUndo: _create_undo, do.StartLanes: _start_lanes, do.AddLanes: _add_lanes, do.SendAdded: _send_added, do.SendBegan: _send_began,
        do.SendResumed: _send_resumed, do.WaitLanes: _wait_lanes, do.DrainLanes: _drain_lanes, do.CollectManifest: _collect_manifest,
        do.FlushDevice: _flush_device, do.TakeCheckpoint: _take_checkpoint, do.SaveCheckpoint: _save_checkpoint,
        do.ForgetCheckpoint: _forget_checkpoint, do.SealUndo: _seal_undo, do.RestoreUndo: _restore_undo, do.ApplyPoint: _apply_point,
        do.WritePendingMap: _write_pending_map, do.SettleMap: _settle_map, do.ForgetMap: _forget_map, do.PruneUndo: _prune_undo, do.Retain: _retain,
        do.Scan: _scan, do.SendLeaves: _send_leaves, do.Reply: _send_message, do.CloseSession: _close_session, do.Faulted: _faulted, do.RecordPoint: _nothing,
        do.RolledBack: _nothing, do.RollbackFailed: _nothing, do.HoldOpen: _nothing, do.Abandoned: _nothing,
    } | Roles.role_performers  # fmt: skip


def batches_told(file, header):
    """How many batches there are at least."""
    try:
        return records.UndoHeader.unpack(file.read(records.UNDO_COPY_OFFSET, records.UNDO_HEADER_SIZE)).batches
    except records.RecordDamaged:
        return header.batches


def before_images(file, header, size):
    """(offset, bytes) in the order they are put back: the latest logged first. Raises RecordDamaged."""
    batches = []
    for position, segment in file.segments():
        scan = records.scan_undo_segment(segment, position, size, header.base_id, header.attempt)
        if scan.damaged is not None:
            raise records.RecordDamaged(f"undo batch at {scan.damaged} was flushed and is lost")
        batches += [(batch, segment, position) for batch in scan.batches]
    told = batches_told(file, header)
    if len(batches) < told:
        raise records.RecordDamaged(f"{len(batches)} of {told} undo batches are there")
    batches.sort(key=lambda entry: entry[0].sequence, reverse=True)
    for batch, segment, position in batches:
        end = batch.payload_position - position + batch.payload_size
        for extent in reversed(batch.extents):
            if extent.kind == records.UNDO_DATA:
                yield extent.offset, bytes(segment[end - extent.size : end])
                end -= extent.size
            else:
                yield extent.offset, bytes(extent.size)


def load_map(entry, geometry):
    """(tag, states, values) of a stored map; without one, everything is UNKNOWN."""
    if entry is None:
        return say.NO_ID, bytearray(geometry.granules), bytearray(32 * geometry.granules)
    packed, states, values = entry[:3]
    header = records.MapHeader.unpack(packed, records.map_size(geometry.granules))
    header.check_body(states, values)
    return header.tag, bytearray(states), bytearray(values)


def announced_digest(geometry, frame, runs, table, data):
    """What the digest of a frame must be, from its parts."""
    if frame.kind == wire.FULL:
        offset = frame.granule * geometry.granule_size + frame.first_leaf * geometry.leaf_size
        return hasher.subtree(data, offset, geometry.leaf_size)
    if frame.kind != wire.RUNS:
        return bytes(32)
    return runs_digest(geometry, frame.granule, runs, table, data)


def run_count(count, zero, copy_of=None):
    """The second word of a run table's entry."""
    return count | (wire.RUN_ZERO if zero else 0 if copy_of is None else wire.RUN_COPY | copy_of << 16)


def with_copies(geometry, reader, frame, table, data):
    """The bytes of all leaves that are not zero, in order: data, and copies of it."""
    if frame.kind != wire.RUNS or not frame.copy_leaves:
        return data
    parts, carried, taken, leaf_size = [], {}, 0, geometry.leaf_size
    for run in reader.runs(frame, table):
        if run.zero:
            continue
        for leaf in range(run.first, run.first + run.count):
            if run.copy_of is None:
                size = min(leaf_size, geometry.granule_bytes(frame.granule) - leaf * leaf_size)
                carried[leaf] = data[taken : taken + size]
                taken += size
                parts.append(carried[leaf])
            else:
                parts.append(carried[run.copy_of + leaf - run.first])
    return b"".join(parts)


def runs_digest(geometry, granule, runs, table, data):
    """BLAKE3 of the run table followed by the chaining values of the leaves that are not zero, which `data` is."""
    parts, taken = [table], 0
    for first, count, zero, *_copy_of in runs:
        for leaf in range(first, first + count if not zero else first):
            offset = granule * geometry.granule_size + leaf * geometry.leaf_size
            size = min(geometry.leaf_size, geometry.size - offset)
            parts.append(hasher.subtree(data[taken : taken + size], offset, geometry.leaf_size))
            taken += size
    return hasher.hash(b"".join(parts))
