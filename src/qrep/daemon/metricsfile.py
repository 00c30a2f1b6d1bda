"""A file of metrics for somebody who collects files, such as node_exporter: replaced as a whole, readable by everyone."""

import contextlib
import logging
import os
import secrets
import threading
import time

log = logging.getLogger("qrep.agent")
TICK_S = 0.5
END_S = 0.3  # seconds that a file which is being written gets at the end


def write(path, text):
    """Replace `path`. Raises OSError; then the old one is still there. Its reader must never see half of one, nor need it last."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".{name}.{secrets.token_hex(4)}.tmp")  # collectors read *.prom
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "w") as file:
            os.fchmod(descriptor, 0o644)  # by the descriptor: the directory may be another user's, who could put a link in its place
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class MetricsFile:
    """Written by a thread of its own: looking at a volume may wait for its device, and nobody else may wait for that.

    node: the Node, whose settings say where and how often.
    """

    def __init__(self, node):
        self.node = node
        self._path, self._due, self._failing = None, 0.0, False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)

    def start(self):
        self._thread.start()

    def stop(self):
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(END_S)
        self._remove()

    def _run(self):
        while not self._ending.wait(TICK_S):
            try:
                self._tick(time.monotonic())
            except Exception:  # of whatever is counted: the next file may be whole again
                log.exception("metrics: internal error")

    def _tick(self, now):
        settings = self.node.settings.metrics
        if settings.file != self._path:
            self._remove()
            self._path, self._due = settings.file, now
        if not self._path or now < self._due:
            return
        self._due = now + settings.seconds()
        text = self.node.metrics.text()
        if self._ending.is_set():
            return
        try:
            write(self._path, text)
        except OSError as err:
            if not self._failing:
                self.node.events.add("metrics-not-written", f"{self._path}: {err.strerror}", path=self._path)
            self._failing = True
        else:
            self._failing = False

    def _remove(self):
        """What is not kept up to date must not look as if it were."""
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
