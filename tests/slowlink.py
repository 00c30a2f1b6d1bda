"""A network between two agents that a test can slow down, cut and count."""

import contextlib
import os
import select
import socket
import threading
import time


class SlowLink:
    """A TCP relay on 127.0.0.1 with a rate, that can be cut: what stands between two agents in a test. Counts what it carried."""

    def __init__(self, host, port, rate_bytes_per_s=0):
        self.target, self.rate = (host, port), rate_bytes_per_s
        self.carried = 0  # bytes towards the target
        self.change = self.change_back = None  # change(the near socket, bytes) -> bytes: what becomes of what goes to the target, and of what comes from it
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._pairs, self._ended, self.is_cut = [], False, False
        self._wake = os.pipe()

    def __enter__(self):
        self._thread = threading.Thread(target=self._serve, name="slow link", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception):
        self._ended = True
        os.write(self._wake[1], b"x")
        self._thread.join()
        self._listening.close()
        self._drop()
        for end in self._wake:
            os.close(end)

    def cut(self):
        self.is_cut = True

    def mend(self):
        self.is_cut = False

    def _drop(self):
        for near, far in self._pairs:
            near.close()
            far.close()
        self._pairs = []

    def _serve(self):
        due = 0.0  # when what was carried so far may have been carried, at the rate
        while not self._ended:
            if self.is_cut:
                self._drop()
            late = due - time.monotonic()
            if late > 0:  # it does not read, and TCP slows the sender down
                time.sleep(min(late, 0.05))
                continue
            self._round()
            others = {near: far for near, far in self._pairs} | {far: near for near, far in self._pairs}
            ready = select.select([self._listening, self._wake[0], *filter(self._is_read, others)], [], [], 0.02)[0]
            for end in ready:
                if end is self._listening:
                    self._accept()
                elif end in others:
                    moved = self._move(end, others[end])
                    if self.rate:
                        due = max(due, time.monotonic()) + moved / self.rate

    def _round(self):
        """Before each look at the sockets."""

    def _is_read(self, end):
        """Whether what arrives at this end is read now."""
        return True

    def _accept(self):
        near, _ = self._listening.accept()
        if self.is_cut:
            near.close()
            return
        try:
            self._pairs.append((near, socket.create_connection(self.target, 5)))
        except OSError:
            near.close()

    def _move(self, end, other):
        """One portion; returns its size if it goes to the target."""
        pair = next((pair for pair in self._pairs if end in pair), None)
        if pair is None:
            return 0
        data = b""
        with contextlib.suppress(OSError):
            data = end.recv(1 << 16)
            change = self.change if end is pair[0] else self.change_back
            if change and data:
                data = change(pair[0], data)
            other.sendall(data)
        if not data:
            self._pairs.remove(pair)
            pair[0].close()
            pair[1].close()
            return 0
        if end is not pair[0]:
            return 0
        self.carried += len(data)
        return len(data)
