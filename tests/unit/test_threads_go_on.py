"""The threads of the agent that nobody can do without go on after a bug, and tell of it."""

import threading
import types

import pytest

from qrep.daemon import housekeeping, metricsfile, pathwatch, shapes
from qrep.daemon.hooks import Hooks
from qrep.daemon.housekeeping import Housekeeping
from qrep.daemon.listener import Listener
from qrep.daemon.metricsfile import MetricsFile
from qrep.daemon.pathwatch import PathWatch
from qrep.daemon.scheduler import Scheduler
from qrep.daemon.shapes import Shapes

WAIT_S = 20


class Twice:
    """Something that is done again and again, and dies of a bug the first time."""

    def __init__(self):
        self.times, self.again = 0, threading.Event()

    def __call__(self, *_given):
        self.times += 1
        if self.times == 1:
            raise KeyError("a bug")
        self.again.set()
        return 0.001


def test_housekeeping(monkeypatch, caplog):
    monkeypatch.setattr(housekeeping, "TICK_S", 0.001)
    twice, chores = Twice(), Housekeeping()
    chores.every(0.001, twice)
    chores.start()
    assert twice.again.wait(WAIT_S)
    chores.stop()
    assert "a bug" in caplog.text


@pytest.mark.parametrize(
    ("module", "kind", "tick", "method", "ending", "loop"),
    [
        (pathwatch, PathWatch, "TICK_S", "look", "_ended", "_watch"),
        (shapes, Shapes, "WATCH_S", "look", "_ending", "_watch"),
        (metricsfile, MetricsFile, "TICK_S", "_tick", "_ending", "_run"),
    ],
)
def test_watches(monkeypatch, caplog, module, kind, tick, method, ending, loop):
    monkeypatch.setattr(module, tick, 0.001)
    twice, ended = Twice(), threading.Event()
    made = kind.__new__(kind)  # nothing but its loop
    setattr(made, method, twice)
    setattr(made, ending, ended)
    thread = threading.Thread(target=getattr(made, loop), daemon=True)
    thread.start()
    assert twice.again.wait(WAIT_S)
    ended.set()
    thread.join(WAIT_S)
    assert not thread.is_alive() and "a bug" in caplog.text


def test_scheduler(caplog):
    clock = types.SimpleNamespace(wait=lambda event, seconds: event.wait(min(seconds, 0.001)))
    scheduler = Scheduler(jobs=list, start=None, db=None, events=None, clock=clock)
    scheduler.look = twice = Twice()
    scheduler.start()
    assert twice.again.wait(WAIT_S)
    scheduler.stop()
    assert "a bug" in caplog.text


def test_hooks(caplog):
    events = types.SimpleNamespace(listeners=[])
    hook = types.SimpleNamespace(events=["run-failed"], command=["/bin/true"], timeout="1s")
    hooks = Hooks([hook], events)
    hooks._run = twice = Twice()
    event = {"code": "run-failed", "level": "error"}
    for _ in range(2):
        hooks._queue.put((hook, event))
    threading.Thread(target=hooks._work, daemon=True).start()
    assert twice.again.wait(WAIT_S)
    hooks._offer_end()
    assert "a bug" in caplog.text


class Stream:
    def __init__(self, closed):
        self.close = lambda: closed.append(True)


def test_a_connection_that_no_thread_can_be_had_for_is_refused_and_takes_no_place(monkeypatch):
    told, closed = [], []
    events = types.SimpleNamespace(add=lambda code, text, **data: told.append((code, data["reason"])))
    listener = Listener(types.SimpleNamespace(connections=1), lambda: {"b": None}, {"ask": None}, events)

    def none_left(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    listener.accepted(Stream(closed), "b", "ask", "10.0.0.2")
    assert closed and told == [("peer-refused", "no-thread")] and not listener.counts()
