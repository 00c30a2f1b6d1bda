"""Change hints: where a source's new frozen image may differ from the one kept of the last generation, and whether that is to be believed.

A hint only ever saves reading. What it names is read, hashed and compared with the map like anything else; of what it leaves out a share is read in
every run before anything is sent (spans.py says how much), and one leaf that differs there ends it: the event hint-wrong, a full scan in that very
run, and full scans until one of them has found nothing outside of what the hint of that run named.

It is about the difference of two images, so it holds only over a map that describes the older one: kept.tag == map.tag, the map is to the byte the one that
was written with it, and of a resumed attempt only for granules that the attempt has not touched (work.py).
"""

import array
import threading

from qrep import digesttree, mapvalues, masks
from qrep._native.disk import STATE_HASHED, STATE_MASK, STATE_PAGE, STATE_UNKNOWN, STATE_ZERO
from qrep._native.source_lane import WORK_LEAVES, SourceRun
from qrep.digesttree import DIGEST_SIZE
from qrep.errors import STOPPED, Interrupted, QrepError
from qrep.source import spans
from qrep.source.kept import kept
from qrep.source.lanes import SourceLanes
from qrep.source.search import Nowhere

__all__ = ["Hints", "kept"]
OFF, NONE, USED, CHECKED, WRONG = "off", "none", "used", "checked", "wrong"
STOP_POLL_S = 0.2
BLOCK = 2048  # granules that are compared at a time
_KIND = bytes(state & STATE_MASK for state in range(256))
_ZERO = masks.table(lambda state: state & STATE_MASK == STATE_ZERO)
_HASHED_WITH_PAGE = masks.table(lambda state: state & STATE_MASK == STATE_HASHED and state & STATE_PAGE)


class Hints:
    """Of one run. request: RunRequest. memory: kept.Kept. digest_map: the source's DigestMap. tell(code, text, **data): events.

    state: off (not asked for, or the backend has none), none (nothing to compare with), used, checked (not trusted: everything is read, and the
    hint compared with that), wrong (found wrong in this run). reason: why, in words. spans: what it names, None: everything.
    """

    def __init__(self, request, memory, digest_map, tell):
        self._request, self._memory, self._map, self._tell = request, memory, digest_map, tell
        self.state, self.reason = (NONE, "nothing was frozen yet") if request.hints else (OFF, "")
        self.spans = None
        self.sampled = 0  # leaves
        self._about = self._cursor = None  # of which image over the map of which generation this is

    @property
    def in_use(self):
        return self.spans if self.state == USED else None

    def report(self):
        """For RunReport.hints: named and sampled in bytes."""
        leaf, named = self._request.leaf_size, self.spans.leaves if self.spans is not None else None
        return {"state": self.state, "reason": self.reason, "named": None if named is None else named * leaf, "sampled": self.sampled * leaf}

    # ---- before anything is sent ----

    def look(self, frozen, source_fd, holes, sector_size, progress=None, stopping=None, trying=True):
        """The source was frozen: find out what may have changed, and try the answer. holes: of work.holes_of(). sector_size: of the image. progress: report.Progress of the run,
        which counts what is read here. stopping: a threading.Event. trying: read the sample; an estimate does without. Raises Interrupted."""
        about = (frozen.token, self._map.tag)
        if self.state == OFF or (self._about == about and frozen.token):
            return
        self._about, self.spans, self.sampled = about, None, 0
        entry = self._memory.of(self._map.tag)
        self._cursor = entry.cursor if entry is not None else 0
        self.state, self.reason = NONE, self._ask(entry, frozen)
        if self.spans is None:
            return
        if not entry.trusted:
            self.state, self.reason = CHECKED, "an earlier hint was wrong: everything is read until one is right again"
            return
        self.state = USED
        if trying:
            self._try_sample(source_fd, holes, sector_size, progress, stopping)

    def _ask(self, entry, frozen):
        """Set spans; the reason why there are none."""
        if frozen.fuzzy or not frozen.token:
            return "the source is read live"
        if entry is None:
            return "no snapshot of the last generation is kept"
        if entry.map != self._map.digest:
            return "the map was corrected since: it says what a verify found the target to hold"
        try:
            extents = self._request.backend.changes(self._request.device, entry.token, frozen.token)
            if extents is None:
                return f"{self._request.backend.name} cannot tell what changed"
            self.spans = spans.spans_of_extents(extents, self._request.geometry)
        except (OSError, QrepError, ValueError) as err:
            return f"{self._request.backend.name} could not tell what changed: {err}"
        return ""

    def _try_sample(self, source_fd, holes, sector_size, progress, stopping):
        geometry, states = self._request.geometry, self._map.states
        known = int.from_bytes(states.translate(_HASHED_WITH_PAGE), "little")
        known |= int.from_bytes(states.translate(_ZERO), "little") & ~int.from_bytes(holes or b"", "little")
        pool = spans.left_out(self.spans, spans.ranges(known.to_bytes(len(states), "little")), geometry)
        chosen, self._cursor = spans.sample(pool, self.spans.leaves, self._request.hint_sample, self._cursor, geometry.leaf_size)
        if not chosen:
            return
        taken = spans.spans_of(chosen, geometry)
        run = self._scan(taken, source_fd, sector_size, progress, stopping)
        self.sampled = taken.leaves
        if run is not None:
            self._judge(masks.places(taken.touched), run.fresh_states, run.fresh_values)

    def _scan(self, taken, source_fd, sector_size, progress, stopping):
        """Read and hash these leaves: the SourceRun, or None if it failed; the run that follows meets what is in the way of it."""
        request, ended = self._request, threading.Event()
        work = array.array("Q", (granule | WORK_LEAVES for granule in masks.places(taken.touched)))
        states, values = self._map.states, self._map.values
        run = SourceRun(
            request.geometry, attempt=0, session=0, key=bytes(32), sector_size=sector_size, base_states=states, base_values=values,
            fresh_values=mapvalues.copied(states, values), leaves_fd=self._map.leaves_fd, work=work, wanted=taken.wanted, slots=request.slots,
            nice=request.reading.limit(source_fd),
        )  # fmt: skip
        if progress is not None:
            progress.begin_search(run, taken.leaves * request.leaf_size)
        lanes = SourceLanes(run, source_fd, [None] * request.connections, lambda token, slot: Nowhere(), lambda lanes: ended.set())
        try:
            while not ended.wait(STOP_POLL_S):
                if stopping is not None and stopping.is_set():
                    raise Interrupted(STOPPED)
        finally:
            lanes.stop()
            lanes.join()
            if progress is not None:
                progress.end()
        return run if lanes.failure() is None else None

    # ---- was it right? ----

    def verdict(self, states, values):
        """Whether the hints of the next run are to be trusted. states, values: what this run's image was found to be."""
        if self.state == CHECKED and self.spans is not None:
            differing = self._differing(states, values)
            self._judge(differing, states, values)
            if self.state == CHECKED:
                self.reason = "nothing differed outside of what it named: it is trusted again"
                return True
        if self.state == USED:
            return True
        return self.state == NONE and (self._memory.kept is None or self._memory.kept.trusted)

    @property
    def cursor(self):
        return self._cursor or 0

    def _differing(self, states, values):
        known, size, found = self._map, DIGEST_SIZE, []
        for first in range(0, len(states), BLOCK):
            end = min(first + BLOCK, len(states))
            kinds, before = (array.translate(_KIND) for array in (states[first:end], known.states[first:end]))
            if kinds == before and values[first * size : end * size] == known.values[first * size : end * size]:
                continue
            for granule in range(first, end):
                span = slice(granule * size, (granule + 1) * size)
                if kinds[granule - first] != before[granule - first] or values[span] != known.values[span]:
                    found.append(granule)
        return found

    def _judge(self, granules, states, values):
        """Look for a leaf of these granules that differs from the map and is not named; the first one decides."""
        for granule in granules:
            leaf = self._unnamed_difference(granule, states[granule], bytes(values[granule * DIGEST_SIZE : (granule + 1) * DIGEST_SIZE]))
            if leaf is not None:
                self.state = WRONG
                offset = leaf * self._request.leaf_size
                self.reason = f"what {self._request.backend.name} said had not changed since the last run has: at byte {offset}"
                self._memory.distrust()
                self._tell("hint-wrong", f"{self.reason}; everything is read, until a hint is right again", offset=offset)
                return

    def _unnamed_difference(self, granule, state, value):
        """The first such leaf of a granule, None if there is none, or none that can be proved. state, value: as just found."""
        geometry, known, size = self._request.geometry, self._map.value(granule), DIGEST_SIZE
        if state & STATE_MASK == STATE_UNKNOWN or self._map.states[granule] & STATE_MASK == STATE_UNKNOWN:
            return None
        if state & STATE_MASK == self._map.states[granule] & STATE_MASK and (value == known or state & STATE_MASK == STATE_ZERO):
            return None
        old = self._map.leaf_page(granule)
        new = digesttree.read_page(geometry, self._map.leaves_fd, granule, state, value)
        first = granule * (geometry.granule_size // geometry.leaf_size)
        for start, end in spans.left_out(self.spans, [(granule, granule + 1)], geometry):
            if old is None or new is None:
                if not self.spans.touched[granule]:
                    return start  # which leaf it is cannot be told; that none of them was named can
                return None
            part = slice((start - first) * size, (end - first) * size)
            if old[part] != new[part]:
                return next(start + i for i in range(end - start) if old[part][i * size : (i + 1) * size] != new[part][i * size : (i + 1) * size])
        return None
