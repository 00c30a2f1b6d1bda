"""Comparing the two sides at the last sync point: each end reads its own device against its own map, then the maps are compared from the root.

    report = Verification(request, dial).run()

What crosses the wire is a root of 32 bytes when all is well, and 16 nodes a level for each leaf in which the maps differ otherwise.
"""

import itertools
import logging
import os
import queue
import threading
import time

from qrep import digesttree
from qrep._native import hasher
from qrep.digestmap import DIGEST_SIZE, DigestMap
from qrep.errors import ProtocolError, QrepError, Refused
from qrep.maptree import Descent
from qrep.protocol import messages as say
from qrep.rehash import Rehash, own_page, tree_of
from qrep.source import found
from qrep.source.hints import kept
from qrep.source.link import Link, expect
from qrep.source.repair import Repair
from qrep.source.runrecord import RunFile
from qrep.source.verifyreport import VerifyReport, judge
from qrep.volumes import registry

log = logging.getLogger("qrep.source")
STALE_ANSWERS_MAX = 8
PAGES_MAX = 8 << 20  # bytes of leaf values that are asked for; granules beyond that are told of as a whole
SAVE_EVERY_S = 5.0  # how much of a verify may have to be read again after a crash


class Verification:
    """request: source.request.RunRequest of the job. dial(): a fresh control Channel. Not while a run of the job goes on: it would end it.

    independent: the target's device is also hashed as a whole by the packaged blake3. rate: bytes per second that each end may read, 0: as fast as
    it goes. repair: heal what can be healed in place; dry_run: only say what that would be. bucket: of the job's shape, or None.
    """

    def __init__(self, request, dial, *, independent=False, rate=0, repair=False, dry_run=False, bucket=None):
        self.request, self.independent, self.rate = request, independent, rate
        self._repairing, self._dry_run, self._bucket = repair, dry_run, bucket
        self.geometry = request.geometry
        self._events = queue.SimpleQueue()
        self._link = Link(dial, self._events)
        self._map = self._tree = self._position = None
        self._stopping = threading.Event()
        self._saved_at = time.monotonic()
        self._lock = threading.Lock()  # of the position, which both ends' readings add to
        self._own_error = None
        self.wire_bytes = self.digests = 0  # of the comparing: messages both ways, and the digests in them
        self._independent_root, self._independent_read = None, 0

    def progress(self):
        """As Run.progress(), as far as it applies."""
        position = self._position
        done = position.target.next * self.geometry.granule_size if position is not None else 0
        read = (position.target.read + position.source.read if position is not None else 0) + self._independent_read
        percent = round(100 * min(1.0, done / self.geometry.size), 1)
        return {"phase": "verifying", "percent": percent, "read": read, "independent": self._independent_read, "nice": self.request.reading.shown()}

    @property
    def reached(self):
        """How many granules of the target have been read, from the first on."""
        return self._position.target.next if self._position is not None else 0

    def stop(self):
        """End soon; run() raises, and the next one goes on from there."""
        self._stopping.set()

    def run(self):
        """A VerifyReport. Raises Unreachable, Refused when the two sides are not at the same generation, a run is open there or began meanwhile."""
        self._map = DigestMap(self.request.map_directory, self.geometry, self.request.volume_id)
        frozen_fd = -1
        try:
            self._link.open()
            state = self._greet()
            if self._map.tag != state.committed or state.committed == say.NO_ID:
                raise Refused(
                    f"the map of {self.request.device.path} does not describe what the target holds: there is nothing to compare with",
                    code="no-common-generation", hint="run the job first: qrep start JOB",
                )  # fmt: skip
            if state.open_attempt:
                raise Refused(
                    "a generation is open at the target: its device does not hold the last sync point now", code="generation-open",
                    hint="let the run end first: qrep start JOB; or give the generation up: qrep snapshot rollback VOLUME@POINT at the target",
                )  # fmt: skip
            self._tree = tree_of(self._map)
            token = self._kept_of(state.committed)
            frozen_fd, sector_size = self._open_frozen(token)
            token = token if frozen_fd >= 0 else ""
            self._position = found.load_position(self.request.run_directory, state.committed, token, self._tree)
            own = threading.Thread(target=self._read_own, args=(frozen_fd, sector_size), name="verify-source", daemon=True)
            own.start()
            try:
                self._read_target(state.committed)
            except BaseException:
                self._stopping.set()
                raise
            finally:
                own.join()
                self._save(now=True)
            if self._own_error is not None:
                raise self._own_error
            return self._conclude(state, frozen_fd)
        finally:
            self._link.hang_up()
            self.request.reading.end()
            self._map.close()
            if frozen_fd >= 0:
                os.close(frozen_fd)

    # ---- reading ----

    def _kept_of(self, generation):
        """The token of the frozen image of this very generation, "" if none is kept."""
        found_kept = kept(self.request.run_directory)
        return found_kept[1] if found_kept is not None and found_kept[0] == generation else ""

    def _open_frozen(self, token):
        """(descriptor, sector size) of a kept image, (-1, 0) if it is gone."""
        try:
            frozen = registry.find(token) if token else None
            if frozen is None or frozen.size != self.geometry.size:
                return -1, 0
            return registry.open_frozen(frozen)
        except QrepError as err:
            log.warning("the frozen image of the last sync point cannot be read: %s", err)
            return -1, 0

    def _read_own(self, frozen_fd, sector_size):
        """Compare the frozen image of the generation with the map; in a thread of its own."""
        if frozen_fd < 0:
            return
        side = self._position.source
        try:
            tree = tree_of(self._map)  # of its own: nodes are cached in it
            rehash = Rehash(frozen_fd, tree, sector_size, self.rate, self._stopping.is_set, self.request.reading.limit(frozen_fd))
            for piece in itertools.chain(rehash.only(list(side.again)), rehash.pieces(side.next)):
                with self._lock:
                    side.take(piece.first, piece.count, piece.size, piece.bad, piece.whole, piece.unreadable, tree.granule_level)
        except (OSError, QrepError) as err:
            self._own_error = err if isinstance(err, QrepError) else QrepError(f"{self.request.device.path}: {err}")

    def _read_target(self, generation):
        """Have the target compare its device with its map, and take down what it finds."""
        side, granules = self._position.target, self.geometry.granules
        if self.independent:
            self._independent_root = self._ask(say.GetRoot(rate=self.rate), say.Root).root
        self._send(say.Check(generation=generation, first=side.next, rate=self.rate, again=side.again))
        done = False
        while not done:
            piece = self._expect(say.Checked)
            self._check_piece(piece, side, granules)
            with self._lock:
                bad = [(entry.leaf, entry.value) for entry in piece.bad]
                extents = [(extent.offset, extent.size) for extent in piece.unreadable]
                side.take(piece.first, piece.count, piece.size, bad, piece.whole, extents, self._tree.granule_level)
            self.wire_bytes += 40 * len(bad) + 8 * len(piece.whole)
            self.digests += len(bad)
            done = piece.done
            self._save()

    def _check_piece(self, piece, side, granules):
        """Nothing that a peer says of places is used before this."""
        end, next_granule = piece.first + piece.count, side.again[0] if side.again else side.next
        wrong = piece.count != 1 or piece.done if side.again else (not piece.count and end != granules) or piece.done != (end == granules)
        if piece.first != next_granule or end > granules or wrong:
            raise ProtocolError(f"granules from {piece.first} on were told of, those from {next_granule} on were asked for")
        level, leaf_size = self._tree.granule_level, self.geometry.leaf_size
        if any(not piece.first <= entry.leaf >> level < end or entry.leaf >= self._tree.leaves for entry in piece.bad):
            raise ProtocolError("a leaf was named that is not in the granules it was told with")
        if any(not piece.first <= granule < end for granule in piece.whole):
            raise ProtocolError("a granule was named that is not among those it was told with")
        low, high = piece.first * self.geometry.granule_size, min(end * self.geometry.granule_size, self.geometry.size)
        if any(extent.offset < low or extent.offset + extent.size > high or extent.offset % leaf_size for extent in piece.unreadable):
            raise ProtocolError("a place was named as unreadable that is not in the granules it was told with")

    def _save(self, now=False):
        if self._position is not None and (now or time.monotonic() - self._saved_at >= SAVE_EVERY_S):
            with self._lock:
                self._position.save(self.request.run_directory)
            self._saved_at = time.monotonic()

    # ---- comparing ----

    def _conclude(self, state, frozen_fd):
        descent = Descent(self._tree, self._nodes_of(state.committed)).run()
        pages = self._pages(sorted(self._position.target.whole | set(descent.granules)))
        result = judge(self._tree, self._position, descent, pages)
        repair = Repair(self, state.committed, frozen_fd, self._dry_run).run(result) if self._repairing else None
        root = self._map.root()
        independent = self._independent_root if repair is None or not repair["healed_leaves"] else None
        target_root = independent or self._target_root(result, root)
        if not self._dry_run:
            found.write_differences(self.request.run_directory, state.committed, *result.to_put_right())
        found.forget_position(self.request.run_directory)
        return VerifyReport(
            generation=state.committed.hex(), counter=state.counter, root=root.hex() if root else None,
            target_root=target_root.hex() if target_root else None, independent=self.independent, geometry=self.geometry, result=result,
            equal_maps=descent.equal, source_read=frozen_fd >= 0, wire_bytes=self.wire_bytes, digests=self.digests, nodes=descent.nodes,
            read_target=self._position.target.read, read_source=self._position.source.read, resumed=self._position.resumed, repair=repair,
        )  # fmt: skip

    def _nodes_of(self, generation):
        def ask(level, indexes):
            answer = self._ask(say.GetNodes(generation=generation, level=level, indexes=indexes), say.Nodes)
            if answer.level != level or len(answer.kinds) != len(indexes) or max(answer.kinds) > 2:
                raise ProtocolError(f"{len(indexes)} nodes of level {level} were asked for, and something else came")
            self.digests += len(indexes)
            return answer.kinds, answer.values

        return ask

    def _pages(self, granules):
        """{granule: leaf values of what the target's device holds}, None for those beyond what is held in memory at once."""
        pages, room = {}, PAGES_MAX
        for granule in granules:
            room -= self.geometry.granule_leaves(granule) * DIGEST_SIZE
            if room < 0 or own_page(self._tree, granule) is None:
                pages[granule] = None
                continue
            answer = self._ask(say.GetLeaves(granules=[granule]), say.Leaves)
            if answer.granule != granule or len(answer.page) != self.geometry.granule_leaves(granule) * DIGEST_SIZE:
                raise ProtocolError(f"the leaves of granule {granule} were asked for, and something else came")
            self.digests += len(answer.page) // DIGEST_SIZE
            pages[granule] = answer.page
        return pages

    def _target_root(self, result, root):
        """The BLAKE3 of what the target's device holds; None while it cannot be told."""
        leaves, granules = result.to_put_right()
        leaves = {leaf: value for leaf, value in leaves.items() if leaf not in result.stale_map}
        if not leaves and not granules:
            return root
        states, values, pages = found.corrected(self._map, leaves, granules)
        if self.geometry.granules > 1:
            return digesttree.root(self.geometry, states, values)
        unit = hasher.root_unit(self.geometry.size, self.geometry.granule_size, self.geometry.leaf_size)
        return hasher.root(self.geometry.size, unit, pages[0]) if 0 in pages else None

    # ---- talking ----

    def _greet(self):
        """Say Hello, stepping over epochs that were used. Returns the State."""
        request, run_file = self.request, RunFile(self.request.run_directory)
        try:
            record = run_file.load()
        finally:
            run_file.close()
        epoch = (record.epoch if record else 0) + 1
        for _ in range(STALE_ANSWERS_MAX):
            self._link.send(
                say.Hello(
                    version_min=say.VERSION_MIN, version_max=say.VERSION_MAX, job_id=request.job_id, volume_id=request.volume_id,
                    epoch=epoch, size=self.geometry.size, leaf_size=self.geometry.leaf_size, granule_size=self.geometry.granule_size,
                    sector_size=min(4096, request.device.io_alignment), plain=request.is_plain(), features=[],
                )
            )  # fmt: skip
            answer = self._expect(say.State, say.Stale)
            if isinstance(answer, say.State):
                return answer
            epoch = answer.max_epoch + 1
        raise ProtocolError("the target names a higher epoch every time")

    def _send(self, message):
        """Send what belongs to the comparing: within the job's shape, and counted."""
        size = len(say.encode(message))
        while self._bucket is not None and not self._stopping.is_set() and (wait_ns := self._bucket.take(size)):
            self._stopping.wait(min(wait_ns / 1e9, 0.25))
        self._link.send(message)
        self.wire_bytes += size

    def _ask(self, question, *answers):
        self._send(question)
        answer = self._expect(*answers)
        self.wire_bytes += len(say.encode(answer))
        return answer

    def ask(self, question, *answers):
        """For Repair."""
        return self._ask(question, *answers)

    def _expect(self, *answers):
        """As link.expect(); a Nak is told in verify's words."""
        while True:
            message = expect(self._events, *answers, say.Progress, say.Nak)
            if isinstance(message, say.Progress):
                self._independent_read = message.written
            elif isinstance(message, say.Nak):
                raise _refusal(message)
            else:
                return message


def _refusal(nak):
    if nak.code in ("busy", "base"):
        return Refused(
            "a generation was opened at the target meanwhile: what was read does not count any more", code="new-generation",
            hint="verify again when no run goes on: qrep verify JOB",
        )  # fmt: skip
    return QrepError(f"the target refused: {nak.message}", code=nak.code)


def verify(request, dial, independent=False, **options):
    """Compare once; see Verification."""
    return Verification(request, dial, independent=independent, **options).run()
