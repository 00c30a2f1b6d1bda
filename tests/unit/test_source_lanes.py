"""Source lanes where a machine has no more threads to give."""

import threading

import pytest

from qrep.source.lanes import SourceLanes


class Run:
    """A native run whose lanes wait for stop()."""

    def __init__(self):
        self.stopped = threading.Event()
        self.going = 0

    def lane(self, _source_fd, _connection, _number):
        self.going += 1
        self.stopped.wait(20)
        self.going -= 1
        return 0

    def stop(self):
        self.stopped.set()


class Nowhere:
    native = None

    def interrupt(self):
        pass

    def close(self):
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
