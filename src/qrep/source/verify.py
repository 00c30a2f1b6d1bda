"""Comparing the two sides at the last sync point: the target reads its device afresh, the source holds its map against it."""

import queue
from dataclasses import dataclass, field

from qrep import digesttree
from qrep._native import disk, hasher
from qrep.digestmap import DIGEST_SIZE, DigestMap
from qrep.errors import ProtocolError, QrepError, Refused
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected
from qrep.source.link import Link
from qrep.source.runrecord import RunFile
from qrep.store import Directory

STALE_ANSWERS_MAX = 8
DIFFERS = "differs"  # a file beside run.json: a verify found that the target does not hold what the map says


@dataclass
class VerifyReport:
    """differences: (granule, leaves) with leaf indexes inside the granule, in order; leaves None: which ones is not known.

    root: hex, what the source's map says; target_root: what the target's device gives, read afresh.
    """

    generation: str
    counter: int
    root: str | None
    target_root: str | None
    independent: bool
    size: int
    leaf_size: int
    granule_size: int
    differences: list = field(default_factory=list)

    @property
    def ok(self):
        return not self.differences and self.root == self.target_root


class Verification:
    """request: source.request.RunRequest of the job. dial(): a fresh control Channel. Not while a run of the job goes on: it would end it."""

    def __init__(self, request, dial, *, independent=False):
        self.request, self.independent = request, independent
        self.geometry = request.geometry
        self._events = queue.SimpleQueue()
        self._link = Link(dial, self._events)
        self._map = None
        self.compared = 0  # granules, for progress
        self.read_by_target = 0  # bytes, of an independent reading

    def progress(self):
        """As Run.progress(), as far as it applies."""
        done = max(self.compared * self.geometry.granule_size, self.read_by_target)
        return {"phase": "verifying", "percent": round(100 * min(1.0, done / self.geometry.size), 1), "read": done}

    def run(self):
        """A VerifyReport. Raises Unreachable, Refused when the two sides are not at the same generation or a run is open there."""
        self._map = DigestMap(self.request.map_directory, self.geometry, self.request.volume_id)
        try:
            self._link.open()
            state = self._greet()
            if self._map.tag != state.committed or state.committed == say.NO_ID:
                raise Refused(
                    f"the map of {self.request.device.path} does not describe what the target holds: there is nothing to compare with",
                    code="no-common-generation", hint="run the job first: qrep start JOB",
                )  # fmt: skip
            report = self._compare(state)
            if not report.ok:
                with Directory(self.request.run_directory) as directory:
                    directory.write(DIFFERS, b"")
            return report
        finally:
            self._link.hang_up()
            self._map.close()

    def _greet(self):
        """Say Hello, stepping over epochs that were used. Returns the State."""
        request, run_file = self.request, RunFile(self.request.run_directory)
        try:
            record = run_file.load()
        finally:
            run_file.close()
        epoch = (record.epoch if record else 0) + 1
        for _ in range(STALE_ANSWERS_MAX):
            answer = self._ask(
                say.Hello(
                    version_min=say.VERSION_MIN, version_max=say.VERSION_MAX, job_id=request.job_id, volume_id=request.volume_id,
                    epoch=epoch, size=self.geometry.size, leaf_size=self.geometry.leaf_size, granule_size=self.geometry.granule_size,
                    sector_size=min(4096, request.device.io_alignment), plain=request.is_plain(),
                ), say.State, say.Stale,
            )  # fmt: skip
            if isinstance(answer, say.State):
                return answer
            epoch = answer.max_epoch + 1
        raise ProtocolError("the target names a higher epoch every time")

    def _compare(self, state):
        target_root = None
        if self.independent:
            target_root = self._ask(say.GetRoot(independent=True), say.Root).root
        ours = self._map.root()
        differences = []
        if not self.independent or ours is None or target_root != ours:
            differences, fresh_root = self._compare_granules()
            target_root = target_root or fresh_root
        return VerifyReport(
            state.committed.hex(), state.counter, ours.hex() if ours else None, target_root.hex() if target_root else None,
            self.independent, self.geometry.size, self.geometry.leaf_size, self.geometry.granule_size, differences,
        )  # fmt: skip

    def _compare_granules(self):
        """([(granule, leaves)], root of what the target has just read)."""
        total = self.geometry.granules
        states, values, different = bytearray(total), bytearray(total * DIGEST_SIZE), []
        for first in range(0, total, say.GRANULES_PER_SCAN):
            count = min(say.GRANULES_PER_SCAN, total - first)
            answer = self._ask(say.ScanTarget(first=first, count=count), say.Digests)
            if answer.first != first or len(answer.states) != count:
                raise ProtocolError(f"digests of granules from {answer.first} on were not asked for")
            states[first : first + count] = answer.states
            values[first * DIGEST_SIZE : (first + count) * DIGEST_SIZE] = answer.values
            different += [granule for granule in range(first, first + count) if not self._same(granule, states, values)]
            self.compared = first + count
        differences = []
        for start in range(0, len(different), say.LEAF_PAGES_MAX):
            differences += self._leaves(different[start : start + say.LEAF_PAGES_MAX], states, values)
        return differences, self._root(states, values)

    def _same(self, granule, states, values):
        ours, theirs = self._map.states[granule], states[granule]
        if ours & disk.STATE_MASK == theirs & disk.STATE_MASK == disk.STATE_ZERO:
            return True
        span = slice(granule * DIGEST_SIZE, (granule + 1) * DIGEST_SIZE)
        known = ours & disk.STATE_MASK == theirs & disk.STATE_MASK == disk.STATE_HASHED
        return known and values[span] == self._map.values[span]

    def _leaves(self, granules, states, values):
        """Which leaves of these granules differ."""
        self._link.send(say.GetLeaves(granules=granules))
        found = []
        for granule in granules:
            answer = self._expect(say.Leaves)
            size = self.geometry.granule_leaves(granule) * DIGEST_SIZE
            if answer.granule != granule or len(answer.page) != size:
                raise ProtocolError(f"the leaves of granule {granule} were asked for, and something else came")
            ours = self._map.leaf_page(granule)
            if ours is None:
                found.append((granule, None))
                continue
            pairs = range(0, size, DIGEST_SIZE)
            leaves = [at // DIGEST_SIZE for at in pairs if ours[at : at + DIGEST_SIZE] != answer.page[at : at + DIGEST_SIZE]]
            if leaves:
                found.append((granule, leaves))
        return found

    def _root(self, states, values):
        if self.geometry.granules > 1:
            return digesttree.root(self.geometry, states, values)
        self._link.send(say.GetLeaves(granules=[0]))
        return hasher.root(self.geometry.size, self.geometry.leaf_size, self._expect(say.Leaves).page)

    def _ask(self, question, *answers):
        self._link.send(question)
        return self._expect(*answers)

    def _expect(self, *answers):
        """The next message that is one of `answers`. Raises what an Error or Nak stands for."""
        while True:
            kind, _channel, message = self._events.get()
            if kind == "gone":
                raise Disconnected(message)
            if kind == "nonsense":
                raise message
            if isinstance(message, answers):
                return message
            if isinstance(message, say.Progress):
                self.read_by_target = message.written
            elif isinstance(message, say.Error):
                raise Refused(message.message, hint=message.hint, code=message.code)
            elif isinstance(message, say.Nak):
                raise QrepError(f"the target refused: {message.message}", code=message.code)
            else:
                raise ProtocolError(f"the target said {type(message).__struct_config__.tag}, which was not asked for")


def forget_if_different(request):
    """Before a run: if a verify found differences since the last one, the map is forgotten, so that both sides are compared afresh and
    what differs is put right. The map is kept until then, so that a second verify finds the same. Returns whether it was forgotten."""
    with Directory(request.run_directory) as directory:
        if directory.read(DIFFERS, 0) is None:
            return False
        digest_map = DigestMap(request.map_directory, request.geometry, request.volume_id)
        try:
            digest_map.forget()
        finally:
            digest_map.close()
        directory.remove(DIFFERS)
    return True


def verify(request, dial, independent=False):
    """Compare once; see Verification."""
    return Verification(request, dial, independent=independent).run()
