"""Networks that do what networks do: keep what they were given and bring it late, pass on single bytes, or take no more on some connections."""

import contextlib
import socket
import threading

from slowlink import SlowLink

DATA_CONNECTION = 1 << 20  # bytes: what has carried so much is no control connection


class BadLink(SlowLink):
    """A SlowLink that can hold(), release(), crumble() and stall()."""

    def __init__(self, host, port, rate_bytes_per_s=0):
        super().__init__(host, port, rate_bytes_per_s)
        self.held = self.delivered = self.refused = 0  # bytes kept; brought late; that nobody took any more
        self._kept, self._room, self._holding, self._ended_ends = {}, 0, False, set()
        self._released = threading.Event()
        self._to_release = False
        self.crumbs = 0  # bytes that are still passed on one by one
        self._stalled, self._brought = False, {}

    def hold(self, limit):
        """Say nothing more to either side; keep up to `limit` bytes of what they say, and of what is closed say nothing, either."""
        self._room, self._holding = limit, True

    def release(self):
        """Bring what was kept to those it was for, wait until that is done, and close."""
        self._to_release = True
        assert self._released.wait(20)

    def crumble(self, count):
        """Pass the next `count` bytes on one by one, each a segment of its own."""
        self.crumbs = count

    def stall(self):
        """Take nothing more from the data connections there are, in either direction; they stay open."""
        self._stalled = True

    # ---- in the relay's thread ----

    def _round(self):
        if not self._to_release or self._released.is_set():
            return
        for end, parts in self._kept.items():
            data = b"".join(parts)
            end.setblocking(True)
            end.settimeout(2)
            try:
                for start in range(0, len(data), 1 << 16):
                    end.sendall(data[start : start + (1 << 16)])
                    self.delivered += len(data[start : start + (1 << 16)])
            except OSError:
                self.refused += len(data)
        self._drop()
        self._holding = False
        self._released.set()

    def _is_read(self, end):
        if self._holding:
            return end not in self._ended_ends and self._room > 0
        return not (self._stalled and self._is_data(end))

    def _is_data(self, end):
        pair = next(pair for pair in self._pairs if end in pair)
        return self._brought.get(pair[0], 0) >= DATA_CONNECTION

    def _move(self, end, other):
        if self._holding:
            return self._keep(end, other)
        if self.crumbs > 0:
            return self._pass_crumbs(end, other)
        moved = super()._move(end, other)
        self._brought[end] = self._brought.get(end, 0) + moved
        return moved

    def _keep(self, end, other):
        data = b""
        with contextlib.suppress(OSError):
            data = end.recv(min(self._room, 1 << 16))
        if not data:
            self._ended_ends.add(end)
            return 0
        self._kept.setdefault(other, []).append(data)
        self.held += len(data)
        self._room -= len(data)
        return len(data)

    def _pass_crumbs(self, end, other):
        data = b""
        other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            data = end.recv(4096)
            for byte in data:
                other.sendall(bytes((byte,)))
        self.crumbs -= len(data)
        if not data:  # as the link without faults ends it
            return super()._move(end, other)
        if any(end is pair[0] for pair in self._pairs):
            self.carried += len(data)
        return len(data)
