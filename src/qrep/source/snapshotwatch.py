"""Looks after the snapshot that a run reads: one whose space runs full is given up before it is lost."""

import logging
import threading

from qrep.errors import QrepError

log = logging.getLogger("qrep.source")
EVERY_S = 1.0


class SnapshotWatch:
    """From now until stop(). backend: a SnapshotBackend; on_lost(self, error): told once, from a thread of its own, that the
    snapshot is (about to be) lost."""

    def __init__(self, backend, token, on_lost):
        self._backend, self._token, self._on_lost = backend, token, on_lost
        self._stopping = threading.Event()
        self._thread = None
        if backend.watched and token:
            self._thread = threading.Thread(target=self._watch, name="snapshot watch", daemon=True)
            self._thread.start()

    def stop(self):
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self):
        while not self._stopping.wait(EVERY_S):
            try:
                self._backend.check(self._token)
            except (QrepError, OSError) as err:
                if self._stopping.is_set():  # it was released while it was looked at
                    return
                error = err if isinstance(err, QrepError) else QrepError(f"the snapshot cannot be watched: {err}")
                log.warning("%s", error.message)
                self._on_lost(self, error)
                return
