"""The lanes of one session of a target volume: a thread and a data connection each, over one native run."""

import os
import threading
import time

from qrep.errors import TimedOut
from qrep.protocol.actions import LanesFailed
from qrep.protocol.transport import Disconnected

CONNECT_TIMEOUT = 60.0  # seconds a source may take to bring its data connections
END_TIMEOUT = 5.0  # seconds
TEXTS = {
    "read": "the target could not be read before it was overwritten",
    "write": "the target did not take a write",
    "undo_write": "the undo store did not take a write",
    "undo_space": "the undo store is full",
    "connection": "a data connection ended early",
    "frame": "a frame was refused",
    "digest": "what arrived is not what was announced",
    "value": "a granule is not what the source says once it was applied; the maps have diverged",
    "map": "the digest map's leaf file did not take a write",
    "shrunk": "the target ended before its size",
    "memory": "memory or a ring for a lane could not be had",
}


class TargetLanes:
    """run: TargetRun. tokens: of `rendezvous`, one per lane. on_failure(lanes, kind, text): called once, from a thread of its own,
    when a lane failed; not after wait() or drain() were called.
    """

    def __init__(self, run, device_fd, rendezvous, tokens, on_failure):
        self.run, self.tokens = run, tokens
        self._device_fd, self._rendezvous, self._on_failure = device_fd, rendezvous, on_failure
        self._lock = threading.Lock()
        self._connections = []
        self._failure = None  # (kind, text) of a lane that never came to run
        self._awaited = False
        self._threads = [
            threading.Thread(target=self._lane, args=(index, token), name=f"target-lane-{index}", daemon=True)
            for index, token in enumerate(tokens)
        ]
        for thread in self._threads:
            thread.start()
        threading.Thread(target=self._watch, name="target-lanes", daemon=True).start()

    def _lane(self, index, token):
        try:
            connection = self._rendezvous.wait(token, CONNECT_TIMEOUT)
        except (TimedOut, Disconnected) as err:
            self._fail("connection", err.message)
            return
        with self._lock:
            self._connections.append(connection)
        error = 0
        try:
            error = self.run.lane(self._device_fd, connection.native, index)
        finally:
            with self._lock:
                self._connections.remove(connection)
            connection.close()
        if error:
            self._fail(None, "")

    def _fail(self, kind, text):
        """A lane is gone: the others end, too, and nobody waits for connections any more."""
        with self._lock:
            if kind is not None and self._failure is None:
                self._failure = (kind, text)
        self.stop()

    def _watch(self):
        for thread in self._threads:
            thread.join()
        with self._lock:
            report = not self._awaited
        failure = self.failure()
        if report and failure is not None:
            self._on_failure(self, *failure)

    def failure(self):
        """(kind, text) of what went wrong first, or None. kind: a name of enum qrep_failure_kind, with underscores."""
        native = self.run.failure()
        if native is None:
            return self._failure
        kind, error, lane, granule = native
        kind = kind.replace("-", "_")
        where = "" if granule is None else f", granule {granule}"
        what = f", {os.strerror(error)}" if error else ""
        return kind, f"{TEXTS.get(kind, kind)} (lane {lane}{where}{what})"

    def stop(self):
        """Tell every lane to end; does not wait."""
        self.run.stop()
        self._rendezvous.withdraw(self.tokens)
        with self._lock:
            for connection in self._connections:
                connection.interrupt()

    def wait(self):
        """Wait until every lane saw the end of its connection and wrote everything. Raises LanesFailed if one did not.

        The source has had an answer to every END before this is called, so this waits for threads to return, not for the network.
        """
        with self._lock:
            self._awaited = True
        deadline = time.monotonic() + END_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            self.stop()
        self._join()
        failure = self.failure()
        if failure is None and self.run.stopped:
            failure = ("connection", "a connection had not been ended, or a newer session came")
        if failure is not None:
            raise LanesFailed(*failure)

    def drain(self):
        """R12: stop, and wait for the completion of everything submitted."""
        self.stop()
        self._join()

    def _join(self):
        with self._lock:
            self._awaited = True
        for thread in self._threads:
            thread.join()
