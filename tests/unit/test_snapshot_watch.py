"""A snapshot whose space runs full ends the run before it is lost, and what was applied is kept."""

import queue

from qrep.source.snapshotwatch import SnapshotWatch
from qrep.volumes.base import SnapshotError


class Filling:
    """A backend whose snapshot is full at the second look."""

    watched = True
    looks = 0

    def check(self, token):
        self.looks += 1
        if self.looks == 2:
            raise SnapshotError(f"{token} is nearly full", code="snapshot-full")


def test_it_looks_again_and_again_until_the_space_is_nearly_full_and_says_so_once(monkeypatch):
    monkeypatch.setattr("qrep.source.snapshotwatch.EVERY_S", 0.01)
    told, backend = queue.Queue(), Filling()
    watch = SnapshotWatch(backend, "x", lambda watch, error: told.put((watch, error)))
    who, error = told.get(timeout=20)
    watch.stop()
    assert who is watch and error.code == "snapshot-full" and backend.looks == 2 and told.empty()


def test_what_needs_no_look_has_no_thread():
    backend = Filling()
    SnapshotWatch(backend, "", None).stop()
    backend.watched = False
    SnapshotWatch(backend, "x", None).stop()
    assert backend.looks == 0
