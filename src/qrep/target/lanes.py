"""The lanes of one session of a target volume: a thread and a data connection each, over one native run."""

from qrep.errors import TimedOut
from qrep.lanes import Lane, Lanes
from qrep.protocol.actions import LanesFailed
from qrep.protocol.messages import TOKEN_LIFE_S
from qrep.protocol.transport import Disconnected

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


class TargetLane(Lane):
    def __init__(self, number, token):
        super().__init__(number)
        self.token = token
        self.native = None  # the Connection, from when it came on


class TargetLanes(Lanes):
    """run: TargetRun. on_failure(lanes, kind, text): called once, from the thread of the last lane, when one failed; not after
    wait() or drain() were called. Start lanes with add().

    A lane whose token nobody brings ends: it has applied nothing, and it is the source's to know what it sent (R7).
    """

    def __init__(self, run, device_fd, rendezvous, on_failure):
        super().__init__(run, device_fd, "target", TEXTS)
        self._rendezvous, self._on_failure = rendezvous, on_failure
        self._gone = 0  # lanes that have ended
        self._awaited = False

    def add(self, first, count):
        """Wait for `count` more connections, numbered from `first`. Returns their tokens. Raises OSError."""
        tokens = self._rendezvous.offer(count, first)
        if not self._start([TargetLane(first + i, token) for i, token in enumerate(tokens)]):
            self._rendezvous.withdraw(tokens)  # nobody waits: the source has ended every other one, or something failed
            with self._lock:
                self._gone += count
        return tokens

    def ended(self):
        """How many connections of this session are over, also those whose source has just been told so."""
        with self._lock:
            return self._gone + sum(lane.native is not None and lane.native.ended for lane in self._going.values())

    def _connect(self, lane):
        try:
            connection = self._rendezvous.wait(lane.token, TOKEN_LIFE_S)
        except (TimedOut, Disconnected):
            return None
        lane.native = connection.native
        return connection

    def _left(self, lane, error):
        self._gone += 1

    def _ended(self):
        with self._lock:
            report = not self._awaited
        failure = self.failure()
        if report and failure is not None:
            self._on_failure(self, *failure)

    def _withdraw(self):
        with self._lock:
            tokens = [lane.token for lane in self._going.values() if lane.native is None]
        self._rendezvous.withdraw(tokens)

    def stop(self):
        super().stop()
        self._withdraw()

    def wait(self):
        """Wait until every lane saw the end of its connection and wrote everything. Raises LanesFailed if one did not.

        The source has had an answer to every END before this is called, so this waits for threads to return, not for the network.
        """
        self._await()
        self._withdraw()
        if not self.join(END_TIMEOUT):
            self.stop()
            self.join()
        failure = self.failure()
        if failure is None and self.run.stopped:
            failure = ("connection", "a connection had not been ended, or a newer session came")
        if failure is not None:
            raise LanesFailed(*failure)

    def drain(self):
        """R12: stop, and wait for the completion of everything submitted."""
        self._await()
        self.stop()
        self.join()

    def _await(self):
        with self._lock:
            self._awaited = True
