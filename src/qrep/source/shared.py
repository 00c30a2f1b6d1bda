"""Runs of one source volume that start together: one frozen snapshot, held by all of them, and one pass of reading and hashing.

    tokens = SharedTokens(state)                 # of the agent: durable
    shared = SharedSource(tokens, volume, jobs)  # of runs that start together
    request.together = shared.members[job]

The snapshot belongs to every job that may resume from it: it is given back with the last. Who holds it is durable before any run notes it, so that no
crash gives it back too early; what a crash leaves with nobody is found at the next start.
"""

import contextlib
import logging
import threading
import time

from qrep._native.source_lane import SharedScan
from qrep.crashpoint import crashpoint
from qrep import sealed
from qrep.errors import STOPPED, DamagedError, Interrupted, QrepError
from qrep.volumes import registry

NAME = "shared.json"
SIZE_MAX = 1 << 20
WINDOW_BYTES = 128 << 20  # of granules that were read and are still wanted by somebody
PATIENCE_S = 5.0  # that one run may keep the others, in all
GATHER_S = 5.0  # that those whose target has answered wait for the others
LOOK_S = 0.1
log = logging.getLogger("qrep.source")


def snapshot_name(volume_id):
    return f"many-{volume_id}"


class SharedTokens:
    """Which jobs hold which snapshot that several share: `shared.json` below the agent's state directory (a store.Directory, not ours to close)."""

    def __init__(self, directory):
        self._directory, self._lock = directory, threading.Lock()
        self._held = {}  # token -> set of job ids
        try:
            fields = sealed.read(directory, NAME, SIZE_MAX)
            self._held = {} if fields is None else _decode(fields)
        except (DamagedError, ValueError, TypeError, AttributeError) as err:
            log.warning("%s/%s is not used: %s", directory.path, NAME, err)

    def _save(self):
        sealed.write(self._directory, NAME, {token: sorted(jobs) for token, jobs in self._held.items()})

    def tokens(self):
        with self._lock:
            return list(self._held)

    def hold(self, token, jobs):
        """Every one of these jobs (ids in hex) holds the snapshot, durably."""
        with self._lock:
            self._held[token] = set(jobs)
            self._save()
        crashpoint("shared-token-held")

    def release(self, token, job):
        """A job needs it no longer. Returns whether it is one that is shared; the last to let go gives it back. Raises as registry.release()."""
        with self._lock:
            jobs = self._held.get(token)
            if jobs is None:
                return False
            jobs.discard(job)
            if not jobs:
                registry.release(token)
                del self._held[token]
            crashpoint("shared-token-released")
            self._save()
            return True

    def settle(self, uses):
        """At start: nobody runs. uses(job id): the tokens that the job's own records name; what nobody names is given back."""
        for token in self.tokens():
            for job in sorted(self._held[token]):
                if token not in uses(job):
                    with contextlib.suppress(QrepError):  # the volume is away: the next start looks again
                        self.release(token, job)

    def sweep(self, backend, device, volume_id):
        """Snapshots that a crash left between freezing and noting who holds them."""
        with contextlib.suppress(QrepError):
            for token in backend.stale(device, keep=self.tokens()):
                if f"@{snapshot_name(volume_id)}~" in token:
                    backend.release(token)


def _decode(fields):
    if not all(isinstance(token, str) and isinstance(jobs, list) and all(isinstance(job, str) for job in jobs) for token, jobs in fields.items()):
        raise ValueError("it is not what it can be")
    return {token: set(jobs) for token, jobs in fields.items()}


class SharedSource:
    """Runs of one source volume that start together. jobs: {name: job id in hex}. turn: SharedTurn of all of them."""

    def __init__(self, tokens, volume_id, jobs, turn):
        self.tokens, self.volume_id, self.turn = tokens, volume_id, turn
        self.news = threading.Condition()
        self.frozen = None  # the snapshot that was made for all
        self.there, self.over = {}, set()  # name -> token of those whose target waits for data; names of those that have ended
        self.gathered = False
        self._freezing = threading.Lock()
        self._scans = {}  # token -> SharedScan
        self.members = {name: SharedMember(self, name, job) for name, job in jobs.items()}

    def freeze(self, request):
        """The snapshot of all, taken for whoever comes first."""
        with self._freezing:
            if self.frozen is None:
                self.tokens.sweep(request.backend, request.device, self.volume_id)
                frozen = request.backend.freeze(request.device, snapshot_name(self.volume_id))
                if frozen.fuzzy:
                    return frozen
                crashpoint("shared-frozen")
                with self.news:
                    holders = [member.job for name, member in self.members.items() if name not in self.over]
                try:
                    self.tokens.hold(frozen.token, holders)
                except OSError:
                    request.backend.release(frozen.token)
                    raise
                self.frozen = frozen
                with self.news:
                    over = [self.members[name] for name in self.over]
                for member in over:  # they ended while it was made
                    member.let_go()
            return self.frozen

    def scan_of(self, token, geometry):
        with self.news:
            if sum(each == token for each in self.there.values()) < 2:
                return None
            if token not in self._scans:
                entries = max(4, min(1024, geometry.granules, WINDOW_BYTES // geometry.granule_size))
                self._scans[token] = SharedScan(geometry, entries, PATIENCE_S)
            return self._scans[token]

    def gather(self, name, token, stopping):
        """Wait until every run that goes on has come so far, or long enough."""
        deadline = time.monotonic() + GATHER_S
        with self.news:
            self.there[name] = token
            self.news.notify_all()
            while not self.gathered and self.members.keys() - self.over - self.there.keys() and time.monotonic() < deadline:
                if stopping():
                    raise Interrupted(STOPPED)
                self.news.wait(LOOK_S)
            self.gathered = True
            self.news.notify_all()


class SharedMember:
    """What one run shares: RunRequest.together. name: of the job; job: its id in hex."""

    in_group = False

    def __init__(self, shared, name, job):
        self._shared, self.name, self.job = shared, name, job
        self.run, self._taken = None, False

    def turn(self):
        return self._shared.turn.member()

    def joined(self, run):
        self.run = run

    def freeze(self, token, frozen_at_ns, stopping):
        """The Frozen to read: the one of an interrupted attempt if it is there, else that of all. None: the run needs one of its own, as that of all
        is live, or this run has given it back."""
        found = self.run.request.find(token)
        if found is not None:
            return found
        frozen = None if self._taken else self._shared.freeze(self.run.request)
        if frozen is None or frozen.fuzzy:
            return None
        self._taken = True
        return frozen

    def share(self, native, token, geometry, stopping):
        """The lanes of `native` (SourceRun) are about to start, over the image of `token`, "" for a live one: let it read with the others."""
        self._shared.gather(self.name, token, stopping)
        scan = self._shared.scan_of(token, geometry) if token else None
        if scan is not None:
            native.share(scan)

    def left(self):
        """A connection is over; the next one shares again."""

    def ended(self, error):
        """The job's run is over. A snapshot that it does not name in its records it holds no longer."""
        with self._shared.news:
            self._shared.over.add(self.name)
            self._shared.there.pop(self.name, None)
            self._shared.news.notify_all()
        self.let_go()

    def let_go(self):
        frozen = self._shared.frozen
        if frozen is not None and (self.run is None or frozen.token not in self.run.held_tokens()):
            with contextlib.suppress(QrepError, OSError):  # it is found at the next start
                self._shared.tokens.release(frozen.token, self.job)
