"""What the agent does every now and then."""

import threading

from qrep.daemon import housekeeping
from qrep.daemon.housekeeping import Housekeeping
from qrep.errors import QrepError


def test_every_chore_is_done_again_and_one_that_fails_keeps_no_other_from_being_done(monkeypatch, caplog):
    monkeypatch.setattr(housekeeping, "TICK_S", 0.001)
    done, again = [], threading.Event()

    def fails():
        done.append("fails")
        raise QrepError("the disk is full")

    def works():
        done.append("works")
        if done.count("works") == 3:
            again.set()

    chores = Housekeeping()
    chores.every(0.001, fails)
    chores.every(0.001, works)
    chores.every(3600.0, lambda: done.append("seldom"))
    chores.start()
    assert again.wait(20)
    chores.stop()
    assert done.count("fails") >= 3 and done.count("seldom") == 1
    assert "housekeeping: the disk is full" in caplog.text


def test_it_ends_though_it_was_never_started():
    Housekeeping().stop()
