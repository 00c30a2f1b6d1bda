"""Connections that have not proved who they are: bounded in number, and those that only sit there make room for others."""

import contextlib
import socket
import threading
import time
from collections import Counter

TOLD_MAX = 20  # refusals told one by one in TOLD_PERIOD_S; what comes above is counted
TOLD_PERIOD_S = 60.0


class HalfOpen:
    """At most `limit` sockets in their handshake. Thread-safe.

    A handshake takes milliseconds, so when the limit is met the oldest one of the address that has most is given up: a host that
    opens connections and says nothing pushes out its own.
    """

    def __init__(self, limit):
        self._limit = limit
        self._lock = threading.Lock()
        self._sockets = {}  # socket -> host, oldest first

    def add(self, stream, host):
        with self._lock:
            if len(self._sockets) >= self._limit:
                counts = Counter(self._sockets.values())
                most = max(counts, key=counts.__getitem__)  # not most_common(): it imports, and the front can load nothing
                oldest = next(known for known, owner in self._sockets.items() if owner == most)
                del self._sockets[oldest]
                with contextlib.suppress(OSError):  # below TLS; its thread sees the end and closes it
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            self._sockets[stream] = host

    def remove(self, stream):
        with self._lock:
            self._sockets.pop(stream, None)

    def __len__(self):
        with self._lock:
            return len(self._sockets)


class Refusals:
    """Tells of refused connections, and stays bounded however many there are."""

    def __init__(self, tell):
        """tell(text, **data): what is to be heard of."""
        self._tell = tell
        self._lock = threading.Lock()
        self._since, self._told, self._untold = time.monotonic(), 0, 0

    def tell(self, text, **data):
        with self._lock:
            now, untold = time.monotonic(), 0
            if now - self._since >= TOLD_PERIOD_S:
                untold = self._untold
                self._since, self._told, self._untold = now, 0, 0
            if self._told >= TOLD_MAX:
                self._untold += 1
                return
            self._told += 1
        if untold:
            self._tell(f"{untold} more connections were refused and not told one by one", count=untold)
        self._tell(text, **data)
