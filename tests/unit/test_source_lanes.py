"""Source lanes whose connections, or threads, cannot be had."""

import gc
import threading
import time
import weakref

import pytest

from qrep.errors import Unreachable
from qrep.source import lanes as source_lanes
from qrep.source.lanes import SourceLanes


class Run:
    """A native run whose lanes wait for stop()."""

    complete = False

    def __init__(self):
        self._over = threading.Event()
        self.going = 0
        self.begun = []  # numbers of lanes

    @property
    def stopped(self):
        return self._over.is_set()

    def lane(self, _source_fd, _connection, number):
        self.begun.append(number)
        self.going += 1
        self._over.wait(20)
        self.going -= 1
        return 0

    def stop(self):
        self._over.set()

    def failure(self):
        return None


class Nowhere:
    native = None

    def __init__(self):
        self.closed = threading.Event()
        self.close = self.closed.set

    def interrupt(self):
        pass


def test_lanes_that_could_be_started_have_ended_when_another_one_could_not(monkeypatch):
    run, real, started = Run(), threading.Thread.start, []

    def start(thread):
        if thread.name.startswith("source-lane"):
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
            started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread for another lane"):
        SourceLanes(run, -1, [None] * 3, lambda token, slot: Nowhere(), lambda lanes: None)
    assert len(started) == 2 and run.going == 0


class Silent:
    """Gives connections of slot 0 at once, the others when they are let through: the path went silent meanwhile."""

    def __init__(self):
        self.asked, self.through = threading.Semaphore(0), threading.Event()
        self.made = []

    def __call__(self, _token, slot):
        if slot:
            self.asked.release()
            assert self.through.wait(20)
        self.made.append(Nowhere())
        return self.made[-1]


def test_the_end_of_a_session_does_not_wait_for_connections_that_are_being_made():
    run, path, ends, changes = Run(), Silent(), [], []
    lanes = SourceLanes(run, -1, [b"t"] * 3, path, ends.append, changes.append)
    for _ in range(2):
        assert path.asked.acquire(timeout=20)
    lanes.stop()
    assert lanes.join(10), "lanes wait for connections that nobody needs"
    told = len(changes)
    assert ends == [lanes] and not path.through.is_set()
    path.through.set()
    deadline = time.monotonic() + 20
    while len(path.made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(path.made) == 3 and all(connection.closed.wait(20) for connection in path.made)
    assert run.begun in ([0], []) and len(changes) == told and ends == [lanes]


def test_lanes_that_are_added_to_a_run_that_was_stopped_dial_nobody():
    run, path = Run(), Silent()
    lanes = SourceLanes(run, -1, [b"t"], path, lambda lanes: None)
    run.stop()
    lanes.add([b"t"], [1])
    assert lanes.join(10) and not path.asked.acquire(blocking=False)


def test_connections_that_are_being_made_are_bounded(monkeypatch):
    monkeypatch.setattr(source_lanes, "dials", threading.BoundedSemaphore(2))
    run, path, ends = Run(), Silent(), threading.Event()
    lanes = SourceLanes(run, -1, [b"t"] * 2, lambda token, slot: path(token, slot + 1), lambda lanes: ends.set())
    for _ in range(2):
        assert path.asked.acquire(timeout=20)
    lanes.add([b"t"], [2])
    deadline = time.monotonic() + 20
    while len(lanes.connections()) < 3 or lanes.connections()[2]["state"] != "down":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "are being made already" in lanes.connections()[2]["text"]
    path.through.set()
    while len(path.made) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    lanes.stop()
    assert ends.wait(20)
    assert all(source_lanes.dials.acquire(timeout=20) for _ in range(2)), "each that ends makes room for another"


def test_a_connection_that_could_not_be_had_keeps_nothing_alive():
    class Path:
        """Refuses."""

        def __call__(self, token, slot):
            try:
                raise OSError("no route")
            except OSError as err:
                raise Unreachable("nothing answers") from err

    gc.disable()
    try:
        run = Run()
        kept = weakref.ref(run)
        lanes = SourceLanes(run, -1, [b"t"] * 2, Path(), lambda lanes: None)
        assert lanes.join(20)
        lanes.stop()
        deadline = time.monotonic() + 20
        del run, lanes
        while kept() is not None and time.monotonic() < deadline:  # its threads are about to end
            time.sleep(0.01)
        assert kept() is None
    finally:
        gc.enable()
