"""The lanes of one source session: a thread and a data connection each, over one native run; some may come and go meanwhile."""

import errno
import logging
import threading
import time
from concurrent.futures import CancelledError, Future, InvalidStateError

from qrep.crashpoint import crashpoint
from qrep.errors import QrepError
from qrep.lanes import Lane, Lanes
from qrep.protocol.messages import TOKEN_LIFE_S

log = logging.getLogger("qrep.source")
TEXTS = {
    "read": "the source could not be read",
    "connection": "the stream ended or failed",
    "frame": "the target answered with something that is no frame of this session",
    "map": "the digest map's leaf file did not take a write",
    "shrunk": "the source ended before its size; was it made smaller?",
    "memory": "memory or a ring for a lane could not be had",
}
# The target waits for a token that nobody brings, and counts it as a connection, until it is void; then another may be asked for.
RETRY_S = TOKEN_LIFE_S + 5.0
RATE_S = 2.0  # seconds that a rate is taken over
DIALS_MAX = 512  # connections that are being made at a time by all runs of a process, also those that nobody waits for any more
dials = threading.BoundedSemaphore(DIALS_MAX)


class SourceLane(Lane):
    def __init__(self, number, token, slot):
        super().__init__(number)
        self.token, self.slot = token, slot
        self.dialled = Future()  # its connection, once that is there; cancelled: nobody waits for it any more
        self.leaving = False  # it is to finish as soon as another one is there
        self._marks = []  # (when, bytes sent)

    @property
    def state(self):
        if self.connection is None:
            return "connecting"
        return "finishing" if self.leaving else "up"

    def rate(self, sent, now):
        """Bytes per second over the last RATE_S or so before this question."""
        self._marks = [mark for mark in self._marks if now - mark[0] <= 2 * RATE_S] or self._marks[-1:]
        first = next((mark for mark in reversed(self._marks) if now - mark[0] >= RATE_S), self._marks[0] if self._marks else (now, sent))
        if not self._marks or now - self._marks[-1][0] >= RATE_S / 8:
            self._marks.append((now, sent))
        return (sent - first[1]) / (now - first[0]) if now > first[0] else 0.0


class SourceLanes(Lanes):
    """run: SourceRun. connect(token, slot): a DataConnection; token None: search.Nowhere, for a lane that only scans. slot: place of the connection in its
    path's list, from 0. on_end(lanes): called once, from the last lane's thread, when all have ended. on_change(lanes): a
    connection has come, has ended in order, or could not be had. on_connection(connection): of each that is made.

    A connection that cannot be had leaves its work to the others, and its slot empty. One that ends early stops them all: what the target
    has of it is not known here, and the next session asks.
    """

    def __init__(self, run, source_fd, tokens, connect, on_end, on_change=None, on_connection=None):
        super().__init__(run, source_fd, "source", TEXTS)
        self._get, self._on_end, self._on_change = connect, on_end, on_change or (lambda lanes: None)
        self._on_connection = on_connection or (lambda connection: None)
        self._down = {}  # slot -> (text, when the target has forgotten its token)
        self._refused = None  # why the first connection that could not be had could not
        self._numbers = 0
        try:
            self.add(tokens, range(len(tokens)))
        except OSError:  # those that were started use the source, which is closed once nobody knows of them
            self.stop()
            self.join()
            raise

    def add(self, tokens, slots):
        """Start a lane for each; False if all work is done."""
        lanes = [SourceLane(self._numbers + i, token, slot) for i, (token, slot) in enumerate(zip(tokens, slots, strict=True))]
        self._numbers += len(lanes)
        return self._start(lanes)

    # ---- which there are ----

    def missing(self, count):
        """Slots below `count` that nobody has, none once all work is taken. A slot whose connection could not be had is left alone for a while."""
        now = time.monotonic()
        with self._lock:
            self._down = {slot: entry for slot, entry in self._down.items() if entry[1] > now}
            if self.run.complete:
                return []
            taken = {lane.slot for lane in self._going.values() if not lane.leaving} | self._down.keys()
        return [slot for slot in range(count) if slot not in taken]

    def places(self):
        """How many connections the target counts, at most."""
        now = time.monotonic()
        with self._lock:
            return len(self._going) + sum(until > now for _, until in self._down.values())

    def retry_in(self):
        """Seconds until a connection that could not be had may be asked for again, None: all are there."""
        with self._lock:
            return max(0.0, min(until for _, until in self._down.values()) - time.monotonic()) if self._down else None

    def shrink(self, count):
        """Let those of the slots from `count` on finish what they have taken and end, once another one is there."""
        with self._lock:
            self._down = {slot: entry for slot, entry in self._down.items() if slot < count}
            for lane in self._going.values():
                if lane.slot >= count:
                    lane.leaving = True
            self._connected()

    def remove(self, slot):
        """As shrink, for one slot; those behind it move up by one."""
        with self._lock:
            self._down = {place - (place > slot): entry for place, entry in self._down.items() if place != slot}
            for lane in self._going.values():
                if not lane.leaving:
                    lane.leaving = lane.slot == slot
                    lane.slot -= lane.slot > slot
            self._connected()

    def _connected(self):
        """Work goes on as long as one connection is there that stays; until then those that leave do not."""
        if any(lane.connection is not None and not lane.leaving for lane in self._going.values()):
            for lane in self._going.values():
                if lane.leaving and lane.connection is not None and not lane.connection.native.finishing:
                    lane.connection.native.finish()
                    crashpoint("source-lane-leaves")

    def connections(self):
        """What people are told: a dict for each, by slot; those that leave have none any more and come last."""
        now = time.monotonic()
        with self._lock:
            found = []
            for lane in self._going.values():
                sent = lane.connection.native.sent if lane.connection is not None else 0
                number = None if lane.leaving else lane.slot + 1
                found.append({"number": number, "state": lane.state, "sent": sent, "rate_bytes_per_s": lane.rate(sent, now), "text": None})
            found += [
                {"number": slot + 1, "state": "down", "sent": 0, "rate_bytes_per_s": 0.0, "text": text} for slot, (text, _) in self._down.items()
            ]
        return sorted(found, key=lambda entry: entry["number"] or len(found) + 1)

    # ---- their life ----

    def _connect(self, lane):
        try:
            connection = self._dialled(lane)
        except CancelledError:
            return None
        except (OSError, QrepError) as err:
            text = err.message if isinstance(err, QrepError) else str(err)
            err.__traceback__ = None  # its frames and lane.dialled would keep each other, and the run with its megabytes
            with self._lock:
                self._refused = self._refused or text
                if not lane.leaving:
                    self._down[lane.slot] = (text, time.monotonic() + RETRY_S)
            self._on_change(self)
            return None
        self._on_connection(connection)
        self._on_change(self)
        return connection

    def _dialled(self, lane):
        """Its connection, made in a thread of its own: on a path that went silent it may take long to fail, and stop() does not wait
        for that. Raises CancelledError after stop(), OSError, QrepError."""
        if self.run.stopped:
            raise CancelledError
        if lane.token is None:  # of a lane that sends nothing
            return self._get(None, lane.slot)
        if not dials.acquire(blocking=False):
            raise OSError(errno.EAGAIN, f"{DIALS_MAX} connections are being made already")
        try:
            threading.Thread(target=_dial, args=(self._get, lane.dialled, lane.token, lane.slot), name=f"source-dial-{lane.number}", daemon=True).start()
        except (RuntimeError, MemoryError) as err:
            dials.release()
            raise OSError(errno.EAGAIN, f"no thread for another connection: {err}") from err
        return lane.dialled.result()

    def stop(self):
        """As Lanes; and connections that are being made are not waited for: they are closed when they are there."""
        super().stop()
        with self._lock:
            for lane in self._going.values():
                lane.dialled.cancel()

    def _left(self, lane, error):
        if error == 0:
            self._on_change(self)  # there is a place for another

    def _ended(self):
        self._on_end(self)

    def failure(self):
        """As Lanes; and lanes that ended before all work was taken had no connection."""
        failure = super().failure()
        if failure is None and not self.run.complete:
            failure = "unreachable", self._refused or "the data connections ended before all was sent"
        return failure

    def views(self):
        """[(number, transport.TcpView or None)] of the connections that lanes use now."""
        with self._lock:
            return [(lane.number, lane.connection.view()) for lane in self._going.values() if lane.connection is not None]


def _dial(get, dialled, token, slot):
    """get(token, slot), for who waits for `dialled`; nobody does after stop()."""
    try:
        connection = get(token, slot)
    except BaseException as err:
        try:
            dialled.set_exception(err)
        except InvalidStateError:
            log.info("a connection that nobody waits for any more could not be had: %r", err)
        finally:
            del dialled  # else the two keep each other: frames stay as long as an exception that came of them
        return
    finally:
        dials.release()
    try:
        dialled.set_result(connection)
    except InvalidStateError:
        connection.close()
