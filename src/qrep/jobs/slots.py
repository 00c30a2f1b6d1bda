"""How many runs go on at once, and who is next: first come, first served. A job has one turn at a time, so that one that has just run
goes behind all that wait, and none can starve another.
"""

import threading
from collections import deque


class Turn:
    """The place of one run in the queue, then its slot. JobRunner follows it as it follows a run."""

    def __init__(self, slots):
        self._slots = slots
        self._decided = threading.Event()
        self.granted = False

    def wait(self):
        """Wait for the slot. False: stop() came first."""
        self._decided.wait()
        return self.granted

    def stop(self):
        """Give up waiting; nothing, once the slot is granted."""
        self._slots.leave(self)

    def progress(self):
        return None

    def place(self):
        """(position, how many wait): 1 is next. None: not waiting."""
        return self._slots.place(self)

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._slots.end(self)


class Slots:
    """limit: runs at once; may be changed while runs go on and wait (those that go on are left alone)."""

    def __init__(self, limit):
        self._lock = threading.Lock()
        self._limit, self._taken = limit, 0
        self._queue = deque()

    def turn(self):
        """A place at the end of the queue, as a context: its end gives the slot, or the place, back."""
        turn = Turn(self)
        with self._lock:
            self._queue.append(turn)
            self._grant()
        return turn

    def set_limit(self, limit):
        with self._lock:
            self._limit = limit
            self._grant()

    def as_dict(self):
        """How many go on, how many wait, how many may go on."""
        with self._lock:
            return {"going": self._taken, "waiting": len(self._queue), "limit": self._limit}

    def place(self, turn):
        with self._lock:
            return (self._queue.index(turn) + 1, len(self._queue)) if turn in self._queue else None

    def leave(self, turn):
        with self._lock:
            if turn in self._queue:
                self._queue.remove(turn)
                turn._decided.set()

    def end(self, turn):
        self.leave(turn)
        with self._lock:
            if turn.granted:
                turn.granted = False
                self._taken -= 1
                self._grant()

    def _grant(self):
        """The slot is handed to who is first: nobody who comes later can take it in between."""
        while self._queue and self._taken < self._limit:
            turn = self._queue.popleft()
            self._taken += 1
            turn.granted = True
            turn._decided.set()
