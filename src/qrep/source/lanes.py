"""The lanes of one source session: a thread and a data connection each, over one native run."""

import os
import threading

from qrep.errors import QrepError

TEXTS = {
    "read": "the source could not be read",
    "connection": "the stream ended or failed",
    "frame": "the target answered with something that is no frame of this session",
    "map": "the digest map's leaf file did not take a write",
    "shrunk": "the source ended before its size; was it made smaller?",
    "memory": "memory or a ring for a lane could not be had",
}


class SourceLanes:
    """run: SourceRun. connect(token): a DataConnection; search.Nowhere for a lane that only scans. on_end(lanes): called once, from a thread
    of its own, when all lanes have ended."""

    def __init__(self, run, source_fd, tokens, connect, on_end):
        self.run, self._source_fd, self._connect, self._on_end = run, source_fd, connect, on_end
        self._lock = threading.Lock()
        self._connections = []
        self._failure = None
        self._threads = [
            threading.Thread(target=self._lane, args=(index, token), name=f"source-lane-{index}", daemon=True)
            for index, token in enumerate(tokens)
        ]
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._watch, name="source-lanes", daemon=True).start()

    def _lane(self, index, token):
        try:
            connection = self._connect(token)
        except (OSError, QrepError) as err:
            with self._lock:
                self._failure = self._failure or ("unreachable", str(err))
            self.stop()
            return
        with self._lock:
            self._connections.append(connection)
        error = 0
        try:
            error = self.run.lane(self._source_fd, connection.native, index)
        finally:
            with self._lock:
                self._connections.remove(connection)
            connection.close()
        if error:
            self.stop()

    def _watch(self):
        self.join()
        self._on_end(self)

    def failure(self):
        """(kind, text) of what went wrong first, or None. kind: a name of enum qrep_failure_kind, with underscores, or "unreachable": a
        connection could not be made."""
        native = self.run.failure()
        if native is None or self._failure is not None:
            return self._failure
        kind, error, lane, granule = native
        kind = kind.replace("-", "_")
        where = "" if granule is None else f", granule {granule}"
        what = f", {os.strerror(error)}" if error else ""
        return kind, f"{TEXTS.get(kind, kind)} (lane {lane}{where}{what})"

    def stop(self):
        """Tell every lane to end; does not wait."""
        self.run.stop()
        with self._lock:
            for connection in self._connections:
                connection.interrupt()

    def join(self):
        for thread in self._threads:
            thread.join()
