"""How fast counters grow now, as opposed to since the start: a rate limit may have changed, or a link."""

import threading
from collections import deque

READINGS = 20  # that are kept


class Recent:
    """Remembers what counters were within the last `window_s` seconds, as often as somebody asks. Thread-safe."""

    def __init__(self, window_s):
        self._window_s = window_s
        self._lock = threading.Lock()
        self._seen = deque()

    def begin(self, now):
        """All counters are 0 now (seconds of a monotonic clock)."""
        with self._lock:
            self._seen = deque([(now, {})])

    def rates(self, now, counters):
        """{name: growth per second} over the window, or since the reading before that if nobody asked meanwhile."""
        with self._lock:
            seen = self._seen
            while len(seen) > 1 and seen[1][0] <= now - self._window_s:
                seen.popleft()
            if not seen or now - seen[-1][0] >= self._window_s / READINGS:
                seen.append((now, dict(counters)))
            then, before = seen[0]
        elapsed = max(now - then, 1e-3)
        return {name: max(0, value - before.get(name, 0)) / elapsed for name, value in counters.items()}
