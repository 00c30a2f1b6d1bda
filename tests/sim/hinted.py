"""A controller that keeps the snapshot of its last generation and reads only what has changed since: the shipping memory and work list over the
simulation's volume and store."""

from qrep._native.source_lane import WORK_UNKNOWN
from qrep.extents import Extent
from qrep.protocol import actions as do
from qrep.source.kept import Entry, Kept
from qrep.source.spans import spans_of_extents
from qrep.source.work import Base, work_list
from sim.source import Controller
from sim.target import load_map

FLAGS = 0xF << 60


class Memory(Kept):
    """Kept, whose steps are noted and done one after the other by whoever can be killed between them."""

    def __init__(self, stored):
        self.steps = []
        self.kept, self.next = ((Entry(*entry) if entry else None) for entry in stored or (None, None))

    def _release(self, token):
        self.steps.append(("release", token))

    def _save(self, kept, following):
        self.steps.append(("save", (kept and tuple(kept), following and tuple(following))))
        self.kept, self.next = kept, following

    def taken(self):
        steps, self.steps = self.steps, []
        return steps


class HintedController(Controller):
    memory_class = Memory
    skipped = 0  # granules that no run has read, in all

    def main(self):
        self.memory = self.memory_class(self.store.files.get("kept"))
        self.settled = False
        yield from super().main()

    def keeps(self, token):
        stored = self.store.files.get("kept")
        return bool(stored and stored[0] and stored[0][1] == token)

    def do_steps(self):
        for what, value in self.memory.taken():
            if what == "save":
                yield from self.store.write("kept", value)
            else:
                yield self.world.delay(0.002)  # a place to be killed at
                self.volume.snapshots.pop(value, None)

    def _send(self, action):
        if not self.settled:  # before the first word to the target
            self.settled = True
            pending, record = self.store.files.get("pending"), self.machine.record
            pending_tag = load_map(pending, self.geometry)[0] if pending else None
            self.memory.begin(True, self.map_tag, pending_tag, record.snapshot if record is not None else "")
            yield from self.do_steps()
        return (yield from Controller._send(self, action))

    def _write_pending(self, action):
        if self.machine.record.snapshot:
            self.remember(action)
            yield from self.do_steps()
        yield from Controller._write_pending(self, action)

    def remember(self, action):
        self.memory.remember(action.new, self.machine.record.snapshot, True, 0, bytes(32))

    def _release_snapshot(self, action):
        yield 0
        if action.token:
            self.memory.give_back(action.token, self.map_tag)
            yield from self.do_steps()

    # ---- the hint ----

    def entry(self):
        return self.memory.of(self.map_tag)

    def hint(self):
        """Spans of what differs between the kept image and the one of this run, by the leaf; None: everything may."""
        record, entry, leaf = self.machine.record, self.entry(), self.geometry.leaf_size
        if entry is None or not record.snapshot or record.fuzzy or entry.token not in self.volume.snapshots:
            return None
        old, new = self.volume.snapshots[entry.token], self.volume.snapshots[record.snapshot]
        places = range(0, self.geometry.size, leaf)
        return spans_of_extents([Extent(place, leaf) for place in places if old[place : place + leaf] != new[place : place + leaf]], self.geometry)

    def marks(self, action):
        marked = bytearray(self.geometry.granules)
        for chunk in action.applied:
            marked[chunk.first : chunk.first + len(chunk.marked)] = chunk.marked
        return marked

    def _start_sending(self, action):
        following = yield from Controller._start_sending(self, action)
        hint, sending = self.hint(), self.sending
        if hint is not None:
            base = Base(self.base[0], self.base[1])
            base.marked = self.marks(action)
            record = self.machine.record
            searched = bool(self.same) and bool(record.snapshot) and (action.same_image or not action.resumed)
            base.same = bytearray(granule in self.same for granule in range(self.geometry.granules))
            work = work_list(
                base, None, self.geometry, resumed=action.resumed, same_image=action.same_image, unknown=action.unknown, searched=searched, hint=hint
            )
            before = len(sending.work)
            sending.work[:] = [(item & ~FLAGS, bool(item & WORK_UNKNOWN)) for item in reversed(work)]
            HintedController.skipped += before - len(sending.work)
        return following

    performers = Controller.performers | {
        do.Send: _send, do.WritePending: _write_pending, do.ReleaseSnapshot: _release_snapshot, do.StartSending: _start_sending,
    }  # fmt: skip
