"""Looks after the snapshots that sources keep between runs, for the next one to compare with or to resume: they fill a space, too.

A snapshot that a run reads is watched by the run (source/snapshotwatch.py). These here are given back when their space is nearly full, so that the
volume below them is not harmed; that costs the next run a full scan, or the image it would have resumed.
"""

import os
import threading

from qrep.errors import QrepError
from qrep.source.kept import Kept
from qrep.source.runrecord import RunFile
from qrep.volumes import registry

EVERY_S = 5.0


class SnapshotKeeper:
    """node: Node. look() is called every now and then, and waits for nothing."""

    def __init__(self, node):
        self._node, self._thread = node, None

    def look(self):
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self.look_now, name="snapshot keeper", daemon=True)  # a device may keep it waiting
            self._thread.start()

    def look_now(self):
        for name, runner in self._node.jobs.active():
            for token in tokens_of(os.path.join(self._node.state.path, "sources", runner.settings.id)):
                self._check(name, token)

    def _check(self, name, token):
        try:
            backend = registry.by_token(token)
            if not backend.watched or backend.find(token) is None:
                return
            backend.check(token)
        except QrepError as err:
            if err.code == "snapshot-full":
                self._give_back(name, token, err)

    def _give_back(self, name, token, why):
        events = self._node.events
        try:
            registry.release(token)  # refused while a run reads it; that run gives it up by itself
        except (QrepError, OSError) as err:
            events.add("snapshot-left", getattr(err, "message", str(err)), job=name)
        else:
            events.add("snapshot-given-back", why.message, job=name)


def tokens_of(directory):
    """Of all snapshots that the job with this state directory holds."""
    if not os.path.isdir(directory):
        return []
    kept, record = Kept(directory, registry.release), RunFile.read(directory)
    try:
        tokens = [*kept.tokens, record.snapshot if record is not None else ""]
    finally:
        kept.close()
    return [token for token in dict.fromkeys(tokens) if token]
