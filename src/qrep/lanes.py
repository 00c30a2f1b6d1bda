"""Lanes that come and go: a thread and a data connection each, over one native run. What source lanes and target lanes have in common."""

import abc
import errno
import logging
import os
import threading

log = logging.getLogger("qrep.lanes")


class Lane:
    """number: of its connection inside the session. connection: a DataConnection, valid while its lane runs."""

    def __init__(self, number):
        self.number = number
        self.connection = None


class Lanes(abc.ABC):
    """run: SourceRun or TargetRun. texts: names of enum qrep_failure_kind, with underscores, in words.

    A subclass says how a lane gets its connection, what it means when it gets none, and who hears of the end.
    """

    def __init__(self, run, device_fd, name, texts):
        self.run = run
        self._device_fd, self._name, self._texts = device_fd, name, texts
        self._lock = threading.Condition()
        self._going = {}  # number -> Lane
        self._broken = None  # the bug of ours that a lane died of
        self._over = False  # the last of them has ended, and no more are started

    # ---- of the subclass ----

    @abc.abstractmethod
    def _connect(self, lane):
        """The DataConnection of a lane, in its thread; None if it has none."""

    def _connected(self):
        """A lane got its connection. The lock is held."""

    def _left(self, lane, error):
        """A lane is gone. error: errno it ended with, 0 if in order, None if it never ran. The lock is held."""

    def _ended(self):
        """The last lane is gone; in its thread, once."""

    # ---- life ----

    def _start(self, lanes):
        """False if all have ended: then none is started. Raises OSError when there is no thread to be had; whoever has one goes on."""
        with self._lock:
            if self._over:
                return False
            self._going.update((lane.number, lane) for lane in lanes)
        for lane in lanes:
            thread = threading.Thread(target=self._serve, args=(lane,), name=f"{self._name}-lane-{lane.number}", daemon=True)
            try:
                thread.start()
            except RuntimeError as err:
                for late in lanes[lanes.index(lane) :]:
                    self._leave(late, None)
                raise OSError(errno.EAGAIN, f"no thread for another lane: {err}") from err
        return True

    def _serve(self, lane):
        error = None
        try:
            connection = self._connect(lane)
            if connection is not None:
                try:
                    with self._lock:
                        lane.connection = connection
                        self._connected()
                    error = self.run.lane(self._device_fd, connection.native, lane.number)
                finally:
                    with self._lock:
                        lane.connection = None
                    connection.close()
                if error:
                    self.stop()
        except Exception as err:  # a bug of ours: what this lane had taken is done by nobody, so nothing may be made of the rest
            log.exception("%s lane %d died", self._name, lane.number)
            self._broken = self._broken or f"internal error in lane {lane.number}: {err!r}"
            self.stop()
        finally:
            self._leave(lane, error)

    def _leave(self, lane, error):
        with self._lock:
            del self._going[lane.number]
            self._left(lane, error)
            last = self._over = not self._going
            self._lock.notify_all()
        if last:
            self._ended()

    def stop(self):
        """Tell every lane to end; does not wait."""
        self.run.stop()
        self.interrupt()

    def interrupt(self):
        """Break every connection that is there."""
        with self._lock:
            for lane in self._going.values():
                if lane.connection is not None:
                    lane.connection.interrupt()

    def join(self, timeout=None):
        """Wait until every lane has ended; whether they have."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._going, timeout)

    def failure(self):
        """(kind, text) of the lane that failed first, or None. kind: a name of enum qrep_failure_kind, with underscores, or `internal`."""
        if self._broken is not None:
            return "internal", self._broken
        native = self.run.failure()
        if native is None:
            return None
        kind, error, lane, granule = native
        kind = kind.replace("-", "_")
        where = "" if granule is None else f", granule {granule}"
        what = f", {os.strerror(error)}" if error else ""
        return kind, f"{self._texts.get(kind, kind)} (lane {lane}{where}{what})"
