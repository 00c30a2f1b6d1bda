"""What a run and its target say to each other: one control connection after another, what comes in on it and from the lanes, in order, one at a time.

Knows nothing of images, maps or blocks: flow.py carries out what the machine wants done with those.
"""

import errno
import logging
import queue
import threading
import time

from qrep.crashpoint import crashpoint
from qrep.errors import STOPPED, Interrupted, QrepError
from qrep.protocol import actions as do
from qrep.protocol.source_machine import CONNECTED
from qrep.protocol.transport import Disconnected
from qrep.source.connections import Connections
from qrep.source.link import Link, Patience
from qrep.source.report import Progress

log = logging.getLogger("qrep.source")
LAST_WORD_S = 3.0  # when data connections end, the target says why on the control connection: this long it may take once it is not busy
BAD_DATA = ("connection", "frame")  # data connections ended, or brought what is no frame: codes of the target's Nak, and kinds of our lanes' failures
WATCH_S = 0.5  # between two looks at the data connections


class Dialogue:
    """Of one run. request, dial, observer, on_lost: as for flow.Run, which is one.

    A subclass makes `_machine` before anything is said, and has _handlers: what carries out each kind of action, _lanes_ended(), called when
    those of now have, _report(): what a committed run returns, and _snapshot_lost(watch, error): actions.
    """

    def __init__(self, request, dial, observer, on_lost):
        self.request, self._observer, self._on_lost = request, observer, on_lost
        self._connections = Connections(request.connections)
        self._progress = Progress(request.geometry.size)
        self._events = queue.SimpleQueue()
        self._link = Link(dial, self._events)
        self._machine = None
        self._lanes = self._run = self._search = None  # search: the lanes are those of a search.Search, which sends nothing
        self._watch = None  # of the lanes that send
        self._lost, self._lost_until = None, None  # why the data connections ended, and until when the target may explain
        self._move = None  # (why, at_once): this connection is to be left for a new one
        self._moved = False
        self._stopping = threading.Event()
        self._ending = None  # (error, keep_open) of a Fail, or a Finish
        self._interruptions = 0

    # ---- for the caller ----

    def stop(self):
        """End the run soon, from any thread; run() raises Interrupted, and the next run resumes."""
        self._stopping.set()
        self._events.put(("stop", None, None))

    def set_connections(self, count, removed=None):
        """From any thread: `count` connections from now on, also while the run goes on: more are asked for, or the last ones finish what they
        have taken and end. removed: the slot that goes, instead of the last; those behind it move up."""
        self._events.put(("connections", None, (count, removed)))

    def move(self, why, at_once):
        """Leave the connection of now and dial anew, from any thread; what was applied stays applied. at_once False: only while frames are
        sent, when resuming costs nothing."""
        self._events.put(("move", None, (why, at_once)))

    def tell_machine(self, event):
        """From any thread: event(machine) is carried out by the run's own, as soon as it may be."""
        self._events.put(("machine", None, event))

    # ---- connections ----

    def _run_to_the_end(self):
        patience = Patience(self.request.timeout_s)
        while True:
            began = time.monotonic()
            error = self._one_connection()
            if self._machine.phase == "done":
                return self._report()
            if self._machine.phase in ("failed", "degraded") or not error.retry:
                raise error
            if self._stopping.is_set():  # it came when the connection was lost already, or was being made
                raise Interrupted(STOPPED) from error
            if self._moved:
                continue
            if error.code in BAD_DATA:
                self._lose(error.message)
            record = self._machine.record
            attempt = record.attempt if record is not None else 0
            connected_s = time.monotonic() - began if self._link.was_open else 0.0
            wait_s = patience.interrupted(attempt, self._progress.totals().get("granules_done", 0), connected_s)
            if wait_s is None:
                raise error
            self._interruptions += 1
            self._tell("run-interrupted", error.message, retry_in_s=wait_s)
            if self._stopping.wait(wait_s):
                raise Interrupted(STOPPED)

    def _one_connection(self):
        """One control connection to its end. Returns why it ended, None after Finish."""
        self._ending = self._move = self._lost_until = None
        self._moved = False
        self._progress.phase = "connecting"
        try:
            self._link.open()
        except QrepError as err:
            return err
        if self.request.wanted is not None:
            self._connections.change(self.request.wanted(), None, None, self._machine)
        self._machine.plain = self.request.is_plain()
        forgotten = self.request.forgotten is not None and self.request.forgotten()
        self._execute(self._machine.connected(compare=forgotten))
        while self._ending is None:
            self._one_event()
            self._move_if_it_is_time()
        self._link.hang_up()
        return None if isinstance(self._ending, do.Finish) else self._ending.error

    def _one_event(self):
        machine = self._machine
        try:
            kind, origin, what = self._events.get(timeout=WATCH_S)
        except queue.Empty:
            self._look_after()
            return
        if kind == "stop":
            self._execute(machine.stop())
        elif kind == "snapshot":
            self._execute(self._snapshot_lost(origin, what))
        elif kind == "machine":
            self._execute(what(machine))
        elif kind == "move":
            self._move = what
        elif origin is self._link.channel and kind == "message":
            self._execute(machine.message(what))
        elif origin is self._link.channel and kind == "gone":
            self._lose(what)
            self._execute(machine.disconnected(what))
        elif origin is self._link.channel and kind == "nonsense":
            self._execute(machine.protocol_violation(what))
        elif kind == "lanes" and origin is self._lanes:
            self._lanes_ended()
        elif kind == "slot" and origin is self._lanes:
            self._settle_connections()
        elif kind == "connections":
            self._connections.change(*what, None if self._search else self._lanes, machine)
            self._settle_connections()
        if machine.phase != "sending":
            self._lost_until = None

    def _settle_connections(self):
        if self._machine.phase == "sending" and self._lanes is not None:
            for code, text, slot in self._connections.news(self._lanes):
                self._tell(code, text, connection=slot + 1)
            self._execute(self._connections.settle(self._lanes, self._machine))

    def _look_after(self):
        """Nothing happened for a moment: is that well?"""
        now, lanes = time.monotonic(), self._lanes
        if self._lost_until is not None:
            if self._link.beat.busy:  # with putting back what cannot be committed, for instance: what went wrong is told after that
                self._lost_until = now + LAST_WORD_S
            if now >= self._lost_until:
                self._lost_until = None
                self._lose(self._lost[1])
                self._execute(self._machine.lanes_failed(*self._lost))
        elif self._machine.phase == "sending" and lanes is not None:
            if lanes.retry_in() == 0:
                self._settle_connections()
            wrong = self._watch.look(now, lanes.views(), self._run.counters(), self._link.beat)
            if wrong is not None:
                self._lose(wrong)
                self._execute(self._machine.lanes_failed("connection", wrong))

    def _move_if_it_is_time(self):
        """Not after Prepare: the commit is near, and would be asked for again."""
        if self._move is None or self._ending is not None:
            return
        why, at_once = self._move
        phase = self._machine.phase
        if phase == "sending" or (at_once and phase in CONNECTED and phase not in ("preparing", "committing", "giving-up")):
            self._moved = True
            self._execute(self._machine.disconnected(why))
        elif not at_once:
            self._move = None  # it is asked for again while there is reason to

    def _hear_last_word(self, failure):
        """The data connections ended, `failure` of the lanes: the target may say why before that counts."""
        self._lost, self._lost_until = failure, time.monotonic() + LAST_WORD_S

    def _lose(self, why):
        """The connection is dead, and with it perhaps the path."""
        if self._on_lost is not None:
            self._on_lost(why)

    # ---- actions ----

    def _execute(self, actions):
        """The driver's contract of actions.py."""
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            try:
                waiting = (self._handlers[type(action)](self, action) or []) + waiting
            except Disconnected as err:
                self._lose(err.message)
                waiting = list(self._machine.disconnected(err.message))
            except (OSError, QrepError, MemoryError) as err:
                waiting = list(self._machine.failed(action, self._named(err)))

    def _named(self, error):
        """A full disk is that of the state directory: sources are only read."""
        if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return error
        directory = self.request.run_directory
        return QrepError(f"{directory}: {error.strerror}", hint=f"make room on the filesystem of {directory}, then start the run again", code="no-space")

    def _send(self, action):
        crashpoint("source-send")
        self._link.send(action.message)

    def _tell(self, code, text, **data):
        log.info("%s: %s", code, text)
        if self._observer is not None:
            self._observer.event(code, text, **data)
