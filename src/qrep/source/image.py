"""The frozen image that a run reads, from freezing it, or finding the one of an interrupted attempt, to giving it back or keeping it for hints.

    image.settle(record, pending_tag)         # what an earlier process left
    frozen = image.freeze(token, record)      # then fd, sector_size, holes and hints are those of this image
    image.remember(generation, ...)           # before Commit: it is what the next run compares with
    image.give_back(token)
"""

import contextlib
import os

from qrep.crashpoint import crashpoint
from qrep.errors import QrepError, Refused
from qrep.source.hints import Hints
from qrep.source.kept import Kept
from qrep.source.snapshotwatch import SnapshotWatch
from qrep.source.work import holes_of


class Image:
    """Of one run. request: RunRequest. digest_map: the source's DigestMap. progress: report.Progress. stopping: a threading.Event, of the run.
    tell(code, text, **data): events. on_lost(watch, error): from a thread of its own, that the snapshot is (about to be) lost; is_watched_by() tells
    whether it still is the one that is read. record of all methods: the RunRecord of now, or None.

    frozen: the Frozen, None while none is open. fd: of it, opened for reading. holes: of work.holes_of(). hints: hints.Hints.
    """

    def __init__(self, request, digest_map, progress, stopping, tell, on_lost):
        self.request, self._map, self._progress, self._stopping = request, digest_map, progress, stopping
        self._tell, self._on_lost = tell, on_lost
        self._kept = Kept(request.run_directory, request.release)
        self.hints = Hints(request, self._kept, digest_map, tell)
        self.frozen, self.fd, self.holes = None, -1, None
        self._watch = None
        self.sector_size = 0  # of it
        self.frozen_at_ns = 0  # of the last one that was opened
        self._last = ""  # its token

    @property
    def token(self):
        """Of the snapshot, "" where the source is read live."""
        return "" if self.frozen.fuzzy else self.frozen.token

    def is_watched_by(self, watch):
        return self._watch is watch

    def named(self, record):
        """Snapshots that this job's records name."""
        return ([record.snapshot] if record is not None and record.snapshot else []) + self._kept.tokens

    # ---- what an earlier process left ----

    def settle(self, record, pending_tag):
        """Before a run. pending_tag: of the pending map, or None."""
        self._settle_kept(record, pending_tag)
        self._sweep(record)

    def _settle_kept(self, record, pending_tag):
        """A snapshot that cannot be given back now is no reason not to replicate: nothing but hints waits for it, and the next run tries again."""
        try:
            self._kept.begin(self.request.hints, self._map.tag, pending_tag, record.snapshot if record is not None else "")
        except QrepError as err:
            self._tell("snapshot-left", f"{err.message}; the next run tries again")

    def _sweep(self, record):
        """Snapshots of this job that a crash left between freezing and noting it."""
        backend = self.request.backend
        with contextlib.suppress(QrepError):  # a backend that does not suit this device: freeze() will say so
            for token in backend.stale(self.request.device, keep=self.named(record)):
                if f"@{self.request.snapshot}~" in token:
                    backend.release(token)

    # ---- from here on it is read ----

    def freeze(self, token, record):
        """Freeze the source, or find the image of `token` again; open and watch it. Returns the Frozen. Raises Refused where the device has
        another size than the job was made for, Interrupted, and what the backend raises; a snapshot that was made here is given back then."""
        backend, frozen = self.request.backend, self._found_or_made(token, record)
        made = "" if frozen.fuzzy else frozen.token
        try:
            self._check_size(frozen)
            if self.fd < 0 or self.frozen is None or self.frozen.token != frozen.token:
                self.stop_reading()
                self.fd, self.sector_size = self.request.open(frozen)
                self._watch = SnapshotWatch(backend, made, self._on_lost)
            self.holes = holes_of(self.fd, self.request.geometry, backend.allocated(made) if made else None)
            self.hints.look(frozen, self.fd, self.holes, self.sector_size, self._progress, self._stopping)
        except (OSError, QrepError):
            if made and made != token:
                self.request.release(made)
            raise
        self.frozen, self.frozen_at_ns, self._last = frozen, frozen.time_ns, made
        return frozen

    def _found_or_made(self, token, record):
        """The Frozen to read: that of `token` again if it is there, else a new one; with others, what all of them agree on."""
        request = self.request
        known = "" if request.label and token != self._last else token  # a name is of the moment it was asked for: not of an attempt before
        if request.together is not None:
            frozen = request.together.freeze(known, record.frozen_at_ns if record is not None else 0, self._stopping.is_set)
        else:
            frozen = request.find(known)
        if frozen is None or frozen.token != token:
            self.stop_reading()
            if token:
                request.release(token)  # also of one that was lost: something may be left
            frozen = frozen or request.backend.freeze(request.device, request.snapshot)
            crashpoint("source-frozen")
        return frozen

    def _check_size(self, frozen):
        request, size = self.request, self.request.geometry.size
        if frozen.size < size or (frozen.size != size and not request.size):
            raise Refused(
                f"{request.device.path} has {frozen.size} bytes now, the job was made for {size}", code="resized", hint="add the volume anew"
            )

    # ---- and then ----

    def remember(self, generation, record, content):
        """It shows what `generation` will hold, if that is committed: the digestmap.Content. Where hints are wanted this is durable when it returns."""
        if self.request.hints and record.snapshot:
            verdict = self.hints.verdict(content.states, content.values)
            self._kept.remember(generation, record.snapshot, verdict, self.hints.cursor, content.row.digest)

    def redescribe(self, before):
        """The map, whose digest was `before`, says the same as ever in other bytes."""
        self._kept.redescribe(self._map.tag, before, self._map.digest)

    def give_back(self, token):
        """The run needs the snapshot no longer. What is kept for hints stays."""
        crashpoint("source-release-before")
        self.stop_reading()
        if token:
            self._kept.give_back(token, self._map.tag)

    def stop_reading(self):
        """Open no more; the snapshot stays."""
        watch, self.frozen, self._watch = self._watch, None, None
        if watch is not None:
            watch.stop()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self):
        self.stop_reading()
        self._kept.close()
