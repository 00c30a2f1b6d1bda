"""One turn in the queue of runs for several jobs that wait for each other: they begin together, or one would wait for another that waits for it."""

import threading

LOOK_S = 0.1


class SharedTurn:
    """slots: slots.Slots. Each job takes member() where a lone one takes slots.turn()."""

    def __init__(self, slots):
        self._slots, self._lock = slots, threading.Lock()
        self._turn, self._users = None, 0

    def member(self):
        return _Member(self)

    def _enter(self):
        with self._lock:
            if self._turn is None:
                self._turn = self._slots.turn()
            self._users += 1
            return self._turn

    def _leave(self):
        with self._lock:
            self._users -= 1
            if not self._users:
                self._slots.end(self._turn)
                self._turn = None  # who comes later, of those that were started together, waits for a turn of its own


class _Member:
    """As slots.Turn, of one job."""

    def __init__(self, shared):
        self._shared, self._turn = shared, None
        self._stopped = threading.Event()

    def __enter__(self):
        self._turn = self._shared._enter()
        return self

    def __exit__(self, *_exception):
        self._shared._leave()

    def wait(self):
        while not self._turn.granted:
            if self._stopped.wait(LOOK_S):
                return self._turn.granted
        return True

    def stop(self):
        self._stopped.set()

    def progress(self):
        return None

    def place(self):
        return self._turn.place() if self._turn is not None and not self._stopped.is_set() else None
