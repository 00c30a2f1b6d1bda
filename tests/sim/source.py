"""The source of the simulation: a volume that its host writes, and controllers that drive SourceMachine over it."""

import errno

import msgspec

from qrep._native import disk as records
from qrep._native import hasher, wire
from qrep.errors import ProtocolError, QrepError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.records import RunRecord
from qrep.protocol.source_machine import SourceMachine
from sim.disk import Store
from sim.target import HASHED, TOKEN_LIFE, ZERO, load_map, run_count, runs_digest
from sim.world import Process, Signal, own_fault

HOLD = TOKEN_LIFE + 1.0  # virtual seconds until a connection that could not be had may be asked for again


class Volume:
    """What the host writes to, and its snapshots, which outlive any process."""

    def __init__(self, world, size):
        self.world = world
        self.content = bytearray(size)
        self.snapshots = {}
        self.taken = 0
        self.bad_reads = 0  # how many of the next reads fail
        self.unreadable = set()  # offsets: whatever image of the volume is read there, it fails

    def write(self, offset, data):
        self.content[offset : offset + len(data)] = data

    def freeze(self):
        self.taken += 1
        token = f"snap{self.taken}"
        self.snapshots[token] = bytes(self.content)
        return token

    def read(self, token, offset, size):
        """A copy: what is hashed is what is sent."""
        if self.bad_reads:
            self.bad_reads -= 1
            raise OSError(errno.EIO, "source")
        if any(offset <= place < offset + size for place in self.unreadable):
            raise OSError(errno.EIO, "source")
        return bytes(self.snapshots[token][offset : offset + size]) if token else bytes(self.content[offset : offset + size])


class Sending:
    """The lanes of one session at the source; action None: of a pass that sends nothing."""

    def __init__(self, action):
        if action is not None:
            self.attempt, self.session, self.key = action.attempt, action.session, action.key
        self.lanes = []  # of those that were started and have not ended
        self.leaving = set()  # of these, those that are to finish what they have taken
        self.numbers = 0
        self.held = []  # until when the target may count a connection that could not be had
        self.work = []
        self.failure = None
        self.unreadable = []  # (offset, size)
        self.stopped = False
        self.image = None


class Controller(Process):
    failures = (QrepError,)
    machine_class = SourceMachine
    in_group = False

    def __init__(self, world, oracle, geometry, volume, network, target, *, name, ids, retries=6):
        super().__init__(world, name)
        self.copies = 0  # leaves that were sent as copies
        self.oracle, self.geometry, self.volume, self.network, self.target = oracle, geometry, volume, network, target
        self.job_id, self.volume_id = ids
        self.store = Store(world, f"{name}-state")
        self.retries = retries
        self.machine = None
        self.finished = 0  # runs that were committed
        self.plan = None  # (frozen, initial, connections)
        self.control = None
        self.data_ends = []
        self.over = True
        self.wanted = 1  # connections
        self.pace = 1
        self.hold = True

    # ---- life ----

    def run(self, *, frozen, initial, connections):
        """Start a run in a process of its own, unless one is going."""
        if not self.alive:
            self.plan = (frozen, initial, connections)
            self.wanted = connections
            self.over = False
            self.start()

    def main(self):
        yield self.world.delay(0.01)
        self.map_tag, self.states, self.values = load_map(self.store.files.get("root"), self.geometry)
        self.leaves = dict(self.store.files.get("leaves", {}))
        pending = self.store.files.get("pending")
        pending_new = load_map(pending, self.geometry)[0] if pending else None
        saved = self.store.files.get("run")
        record = msgspec.msgpack.decode(saved, type=RunRecord) if saved else None
        g = self.geometry
        _, initial, connections = self.plan
        self.machine = self.machine_class(
            job_id=self.job_id, volume_id=self.volume_id, shape=(g.size, g.leaf_size, g.granule_size, 512), map_tag=self.map_tag,
            pending_new=pending_new, record=record, epoch=0, draw=self.draw, initial=initial, connections=connections, hold=self.hold,
            in_group=self.in_group,
        )  # fmt: skip
        self.sending, self.tries, self.same = None, 0, {}
        self.connect()
        yield from self.serve()

    def keeps(self, token):
        """Whether a snapshot is kept beyond the run, of the last generation (hinted.py)."""
        return False

    def draw(self, size):
        return self.world.random.randbytes(size)

    def died(self):
        self.over = True
        if self.control is not None:
            self.control.close()
        for end in self.data_ends:
            end.close()
        self.control, self.data_ends = None, []

    def power_cut(self):
        for end in [*self.data_ends, *([self.control] if self.control else [])]:
            end.connection.cut()
            end.open = False
        self.kill("power cut")

    def connect(self):
        """Try to reach the target; after a while give up and end the process, as a run without a peer does."""
        life = self.life
        connection = self.network.connect(f"{self.name} control")
        if connection is None or not self.target.alive:
            self.tries += 1
            if self.tries > self.retries:
                self.kill("no connection")
                return
            self.world.at(0.2 + self.world.delay(0.3), self._again, life)
            return
        self.control = end = connection.ends[0]
        end.listen(lambda body: self._said(life, end, body), lambda: self._gone(life, end))
        self.world.at(self.world.delay(self.network.latency), self.target.accept, connection.ends[1])
        self.post(self.machine.connected)
        self.world.at(15.0, self._impatient, life, end, self.machine.phase, self.world.events)

    def _again(self, life):
        if life == self.life and self.alive:
            self.connect()

    def _impatient(self, life, end, *_):
        """The heartbeat's deadline: a connection that has said nothing for long is given up."""
        if life != self.life or not self.alive or self.control is not end or not end.open:
            return
        if self.world.now - self.heard > 12.0:
            end.close()
            self._gone(life, end)
        else:
            self.world.at(15.0, self._impatient, life, end)

    heard = 0.0

    def _said(self, life, end, body):
        if life != self.life or self.control is not end:
            return
        self.heard = self.world.now
        try:
            message = say.decode(body, "target")
        except ProtocolError as err:
            own_fault(err)
        self.post(lambda: self.machine.message(message) if self.control is end else [])

    def _gone(self, life, end):
        if life == self.life and self.control is end:
            self.control = None
            self.post(lambda: self.machine.disconnected() if self.machine.phase not in ("new", "closed", "done", "failed", "degraded") else [])

    # ---- actions ----

    def _send(self, action):
        yield 0
        if self.control is not None and self.control.open:
            self.control.send(say.encode(action.message)[4:])

    def _fold(self, action):
        pending = self.store.files["pending"]
        yield from self.store.write("leaves", dict(pending[3]))
        yield from self.store.write("root", pending[:3])
        yield from self.store.write("pending", None)
        self.reload()

    def reload(self):
        self.map_tag, self.states, self.values = load_map(self.store.files.get("root"), self.geometry)
        self.leaves = dict(self.store.files.get("leaves", {}))
        self.oracle.map(self.map_tag, self.states, self.values, self.name)

    def _drop(self, action):
        yield from self.store.write("pending", None)
        self.reload()

    def _forget(self, action):
        yield from self.store.write("pending", None)
        yield from self.store.write("root", None)
        self.reload()
        self.same = {}

    def _store_digests(self, action):
        yield 0
        first, count = action.first, len(action.states)
        self.states[first : first + count] = action.states
        self.values[first * 32 : (first + count) * 32] = action.values

    def _find_differences(self, action):
        """A pass that sends nothing. What it finds the same in a snapshot is not read again by the lanes."""
        yield 0
        self.sending = sending = Sending(None)
        self.spawn(self.search(sending))

    def search(self, sending):
        g, token, different = self.geometry, self.machine.record.snapshot, []
        self.same = {}
        for granule in range(g.granules):
            if self.states[granule] & records.STATE_MASK != HASHED & records.STATE_MASK:
                continue
            yield self.world.delay(0.002 * self.pace)
            if sending.stopped:
                return
            try:
                data = self.volume.read(token, granule * g.granule_size, g.granule_bytes(granule))
            except OSError:
                continue
            page = bytearray(32 * g.granule_leaves(granule))
            value = hasher.subtree(data, granule * g.granule_size, g.leaf_size, page)
            if value == self.values[granule * 32 : granule * 32 + 32]:
                self.same[granule], self.leaves[granule] = data, bytes(page)
            elif any(data):
                different.append(granule)
        self.post(lambda: self.machine.differences_found(different) if self.sending is sending and self.machine.phase == "searching" else [])

    def _store_leaves(self, action):
        yield 0
        if self.page_counts(action.page, self.values[action.granule * 32 : action.granule * 32 + 32]):
            self.leaves[action.granule] = action.page

    def page_counts(self, page, value):
        """R8: a page that does not merge to its granule's value is not believed, wherever it comes from."""
        return hasher.merge(page) == value

    def _freeze(self, action):
        yield self.world.delay(0.01)
        at = int(self.world.now * 1e9)
        if action.token in self.volume.snapshots:
            return self.machine.frozen(action.token, False, at)
        if self.plan[0]:
            return self.machine.frozen(self.volume.freeze(), False, at)
        return self.machine.frozen("", True, at)

    def _save_run(self, action):
        yield from self.store.write("run", msgspec.msgpack.encode(action.record))

    def _clear_run(self, action):
        yield from self.store.write("run", None)

    def _release(self, action):
        yield 0
        self.volume.snapshots.pop(action.token, None)

    def _write_pending(self, action):
        g = self.geometry
        header = records.MapHeader(
            volume_id=self.volume_id, tag=action.new, base=action.base, counter=action.counter, size=g.size, leaf_size=g.leaf_size,
            granule_size=g.granule_size, granules=g.granules, digest=records.map_digest(self.fresh_states, self.fresh_values),
        )  # fmt: skip
        entry = (header.pack(), bytes(self.fresh_states), bytes(self.fresh_values), dict(self.fresh_leaves))
        yield from self.store.write("pending", entry)

    def _finish(self, action):
        yield 0
        self.finished += 1
        self.kill("finished")

    def _fail(self, action):
        yield 0
        end, self.control = self.control, None
        if end is not None:
            end.close()
        self.world.log(f"{self.name} fails: {action.error} {'(open)' if action.keep_open else ''}")
        own_fault(action.error)
        self.tries += 1
        if self.machine.phase == "closed" and self.tries <= self.retries:
            self.world.at(0.1 + self.world.delay(0.2), self._again, self.life)
        else:
            self.kill("gives up")

    def _stop_sending(self, action):
        yield 0
        if self.sending is not None:
            self.sending.stopped = True
            self.sending = None
        for end in self.data_ends:
            end.close()
        self.data_ends = []

    # ---- lanes ----

    def resize(self, count):
        """Somebody wants so many connections from now on."""
        self.wanted = count
        self.post(self.settle)

    def settle(self):
        machine, sending = self.machine, self.sending
        if machine.phase in ("done", "failed"):
            return []
        machine.set_connections(self.wanted)
        if machine.phase != "sending" or sending is None or not sending.work:
            return []
        staying = [lane for lane in sending.lanes if lane not in sending.leaving]
        sending.leaving.update(staying[self.wanted :])
        sending.held = [until for until in sending.held if until > self.world.now]
        places = len(sending.lanes) + len(sending.held)
        count = min(self.wanted - len(staying), machine.may_add_connections(), say.CONNECTIONS_MAX - places)
        return machine.add_connections(count) if count > 0 else []

    def _add_sending(self, action):
        yield 0
        self.start_lanes(self.sending, action.tokens)
        return self.settle()

    def start_lanes(self, sending, tokens):
        for token in tokens:
            index = sending.numbers
            sending.numbers += 1
            if index and self.world.chance(0.1):  # this one cannot be had
                sending.held.append(self.world.now + HOLD)
                self.world.at(HOLD + 0.1, self._settle_later, self.life, sending)
                continue
            connection = self.network.connect(f"{self.name} data {index}")
            if connection is None:
                self._lane_failed(sending, "connection", "no route")
                return
            end = connection.ends[0]
            self.data_ends.append(end)
            sending.lanes.append(index)
            self.world.at(self.world.delay(self.network.latency), self.target.join, token, connection.ends[1])
            self.spawn(self.lane(sending, index, end))

    def _settle_later(self, life, sending):
        if life == self.life and self.sending is sending:
            self.post(self.settle)

    def _start_sending(self, action):
        yield 0
        g, record = self.geometry, self.machine.record
        if record.base != say.NO_ID:  # INV-I: what is used to skip describes what the target holds
            self.oracle.map(record.base, self.states, self.values, f"{self.name} (base)")
        self.sending = sending = Sending(action)
        states, values, leaves = bytearray(self.states), bytearray(self.values), dict(self.leaves)
        marked = bytearray(g.granules)
        same = self.same if record.snapshot and (action.same_image or not action.resumed) else {}
        for chunk in action.applied:
            for i, mark in enumerate(chunk.marked):
                granule = chunk.first + i
                marked[granule] = mark
                if mark == 2:
                    states[granule] = chunk.states[i]
                    values[granule * 32 : granule * 32 + 32] = chunk.values[i * 32 : i * 32 + 32]
                    leaves.pop(granule, None)
        for granule in range(g.granules):
            whole = marked[granule] == 2
            unknown = (action.unknown == "incomplete" and not whole) or (action.unknown == "parts" and marked[granule] == 1)
            if not (action.same_image and whole) and granule not in same:
                sending.work.append((granule, unknown))
            if not whole:
                marked[granule] = 0
        sending.work.reverse()
        self.base = (states, values, leaves)
        self.fresh_states, self.fresh_values, self.fresh_leaves, self.marked = bytearray(states), bytearray(values), dict(leaves), marked
        sending.image = bytearray(self.volume.snapshots[record.snapshot]) if record.snapshot else bytearray(g.size)
        for granule, data in same.items():
            sending.image[granule * g.granule_size : granule * g.granule_size + len(data)] = data
        self.start_lanes(sending, action.tokens)
        return self.settle()

    def lane(self, sending, index, end):
        """Take granules until there are none, then say END and wait for its answer."""
        answer, state = Signal(), {"ended": False, "closed": False}

        def received(item):
            state["ended"] = True
            answer.fire()

        def closed():
            state["closed"] = True
            answer.fire()

        end.listen(received, closed)
        writer = wire.FrameWriter(self.geometry, sending.attempt, sending.session, index, sending.key, self.machine.features)
        token = self.machine.record.snapshot
        while sending.work and not sending.stopped and not state["closed"] and index not in sending.leaving:
            granule, unknown = sending.work.pop()
            yield self.world.delay(0.004 * self.pace)
            if sending.stopped:
                return
            data, missing = self.salvage(token, granule)
            sending.unreadable += [(granule * self.geometry.granule_size + leaf * self.geometry.leaf_size, self.geometry.leaf_size) for leaf in missing]
            frames = self.parts_frames(writer, granule, unknown, data, missing) if missing else self.frames(sending, writer, granule, unknown, data)
            for frame in frames:
                end.send(frame)
                yield self.world.delay(0.004 * self.pace)
                if sending.stopped:
                    return
        if not state["closed"] and not sending.stopped:
            end.send((writer.end(), b"", b""))
            while not answer.fired:
                yield answer
        if sending.stopped:
            return
        if not state["ended"]:
            self._lane_failed(sending, "connection", "the connection ended early")
            return
        sending.lanes.remove(index)
        sending.leaving.discard(index)
        if sending.lanes or sending.failure is not None:
            self.post(self.settle)
        elif self.all_taken(sending):
            self._lanes_finished(sending)
        else:
            self._lane_failed(sending, "connection", "the connections ended before all was sent")

    def all_taken(self, sending):
        return not sending.work

    def salvage(self, token, granule):
        """(bytes of a granule, leaves that could not be read); those leaves are nonsense."""
        g, start = self.geometry, granule * self.geometry.granule_size
        try:
            return self.volume.read(token, start, g.granule_bytes(granule)), []
        except OSError:
            parts, missing = [], []
        for leaf in range(g.granule_leaves(granule)):
            size = min(g.leaf_size, g.granule_bytes(granule) - leaf * g.leaf_size)
            try:
                parts.append(self.volume.read(token, start + leaf * g.leaf_size, size))
            except OSError:
                missing.append(leaf)
                parts.append(self.world.random.randbytes(size))
        return b"".join(parts), missing

    def _lane_failed(self, sending, kind, text):
        if sending.failure is None:
            sending.failure = kind
            self.post(lambda: self.machine.lanes_failed(kind, text) if self.sending is sending and self.machine.phase == "sending" else [])

    def _lanes_finished(self, sending):
        count, manifest = wire.manifest(self.marked, self.fresh_states, self.fresh_values)
        if not sending.unreadable:
            self.oracle.announce(self.machine.record.new, bytes(sending.image))
        self.post(
            lambda: self.machine.lanes_finished(count, manifest, sorted(sending.unreadable))
            if self.sending is sending and self.machine.phase == "sending"
            else []
        )

    def frames(self, sending, writer, granule, unknown, data):
        """Hash what was read, compare, and make the frames of it. The digests of this very buffer go into the map (INV-H)."""
        g, (states, values, leaves) = self.geometry, self.base
        start, leaf_size = granule * g.granule_size, g.leaf_size
        sending.image[start : start + len(data)] = data
        count = g.granule_leaves(granule)
        zero = not any(data)
        page = bytearray(32 * count)
        value = hasher.subtree(data, start, leaf_size, page)
        state = ZERO if zero else HASHED
        base = states[granule] & records.STATE_MASK
        before = bytes(values[granule * 32 : granule * 32 + 32])
        same = base == state & records.STATE_MASK and (zero or before == value)
        self.fresh_states[granule] = state
        self.fresh_values[granule * 32 : granule * 32 + 32] = bytes(32) if zero else value
        self.fresh_leaves[granule] = bytes(page)
        if same and not unknown:
            return
        if zero:
            yield writer.zero(granule, 1, wire.LAST), b"", b""
        else:
            yield from self.data_frames(writer, granule, None if unknown or base != HASHED & 3 else leaves.get(granule), before, page, value, data)
        self.marked[granule] = 2

    def parts_frames(self, writer, granule, unknown, data, missing):
        """INV-Z: of a granule with leaves that could not be read, the others, as far as they differ; nothing is noted of it."""
        g, (states, values, leaves) = self.geometry, self.base
        self.fresh_states[granule] = records.STATE_UNKNOWN
        page = bytearray(32 * g.granule_leaves(granule))
        hasher.subtree(data, granule * g.granule_size, g.leaf_size, page)
        known = not unknown and states[granule] & records.STATE_MASK == HASHED & records.STATE_MASK
        old_page = leaves.get(granule) if known else None
        if old_page is not None and not self.page_counts(old_page, bytes(values[granule * 32 : granule * 32 + 32])):
            old_page = None
        changed = [
            leaf for leaf in range(len(page) // 32)
            if leaf not in missing and (old_page is None or page[leaf * 32 : leaf * 32 + 32] != old_page[leaf * 32 : leaf * 32 + 32])
        ]  # fmt: skip
        if changed:
            yield from self.run_frames(writer, granule, changed, wire.LAST | wire.PARTS, None, data)

    def data_frames(self, writer, granule, old_page, before, page, value, data):
        g = self.geometry
        leaf_size, count = g.leaf_size, len(page) // 32
        if old_page is None or not self.page_counts(old_page, before):
            half = 1 << (count - 1).bit_length() >> 1
            parts = [(0, half), (half, count - half)] if count > 1 and self.world.random.random() < 0.5 else [(0, count)]
            for first, size in parts:
                piece = data[first * leaf_size : (first + size) * leaf_size]
                last = first + size == count
                digest = hasher.subtree(piece, granule * g.granule_size + first * leaf_size, leaf_size)
                flags = wire.LAST if last else 0
                yield writer.full(granule, first, len(piece), digest, flags, value if last else None), b"", piece
            return
        changed = [i for i in range(count) if page[i * 32 : i * 32 + 32] != old_page[i * 32 : i * 32 + 32]]
        yield from self.run_frames(writer, granule, changed, wire.LAST, value, data)

    def run_frames(self, writer, granule, changed, last_flags, value, data):
        g, leaf_size = self.geometry, self.geometry.leaf_size
        groups = [[leaf] for leaf in changed] if self.world.random.random() < 0.5 else [changed]
        for group in groups:
            last = group is groups[-1]
            runs, pieces, whole, seen = [], [], [], {}
            for leaf in group:
                piece = data[leaf * leaf_size : (leaf + 1) * leaf_size]
                zero = not any(piece)
                copy_of = seen.get(piece) if "copies" in self.machine.features and len(piece) == leaf_size and not zero else None
                last_run = runs[-1] if runs else None
                goes_on = copy_of is None if last_run is None or last_run[3] is None else copy_of == last_run[3] + last_run[1]
                if last_run and last_run[2] == zero and last_run[0] + last_run[1] == leaf and goes_on:
                    runs[-1] = (last_run[0], last_run[1] + 1, zero, last_run[3])
                else:
                    runs.append((leaf, 1, zero, copy_of))
                whole += [] if zero else [piece]
                if not zero and copy_of is None:
                    seen[piece] = leaf
                    pieces.append(piece)
            self.copies += sum(count for _, count, _, copy_of in runs if copy_of is not None)
            body = b"".join(pieces)
            table = b"".join((first | run_count(*run) << 32).to_bytes(8, "little") for first, *run in runs)
            digest = runs_digest(g, granule, runs, table, b"".join(whole))
            packed = writer.runs(granule, runs, len(body), digest, last_flags if last else 0, value if last else None)
            yield packed[: wire.HEADER_SIZE], packed[wire.HEADER_SIZE :], body

    performers = {
        do.Send: _send, do.FoldPending: _fold, do.DropPending: _drop, do.ForgetSourceMap: _forget, do.StoreDigests: _store_digests,
        do.FindDifferences: _find_differences, do.StoreLeaves: _store_leaves,
        do.Freeze: _freeze, do.SaveRun: _save_run, do.ClearRun: _clear_run, do.ReleaseSnapshot: _release, do.StartSending: _start_sending, do.AddSending: _add_sending,
        do.StopSending: _stop_sending, do.WritePending: _write_pending, do.Finish: _finish, do.Fail: _fail,
    }  # fmt: skip
