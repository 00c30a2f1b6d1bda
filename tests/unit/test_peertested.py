"""The end of a bandwidth test that is measured: one test of a peer at a time."""

import threading
from types import SimpleNamespace

import pytest

from qrep.daemon import peertested
from qrep.errors import Refused


def test_a_tester_that_is_back_before_its_last_test_was_seen_to_end_waits_for_that():
    tested, waits = peertested.Tested(SimpleNamespace(name="site-b")), threading.Event()
    tested._changed = Noticed(waits)
    with tested._place("site-a"):
        again = threading.Thread(target=take, args=(tested,))
        again.start()
        assert waits.wait(10)
    again.join(10)
    assert not again.is_alive() and tested._testing == set()


def test_a_peer_whose_test_goes_on_is_refused_a_second_one(monkeypatch):
    monkeypatch.setattr(peertested, "ENDING_S", 0.01)
    tested = peertested.Tested(SimpleNamespace(name="site-b"))
    with tested._place("site-a"), pytest.raises(Refused, match="being tested already"), tested._place("site-a"):
        pass
    take(tested)


class Noticed(threading.Condition):
    """Sets `waits` when somebody waits."""

    def __init__(self, waits):
        super().__init__()
        self._waits = waits

    def wait(self, timeout=None):
        self._waits.set()
        return super().wait(timeout)


def take(tested):
    with tested._place("site-a"):
        pass
