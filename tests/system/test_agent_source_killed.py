"""kill -9 of the source's agent in the middle of a run."""

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 24 * MIB
RATE = 10 * MIB  # bytes/s: the run takes four seconds
GRANULE = 1 * MIB


def test_the_run_is_taken_up_and_what_was_applied_is_not_sent_again(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=RATE)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > SIZE // 2)
    a.kill()
    before = agents.link.carried
    a.start()
    wait_until(lambda: a.job()["counter"] == 1)

    job = a.job()
    assert job["state"] == "idle" and job["last_run"]["resumed"]
    assert job["root"] == b3sum(target) == b3sum(source)
    assert "run-taken-up" in a.codes() and "run-resumed" in a.codes()
    # At most what was under way when it died goes twice: two connections with two frames of 2 MiB each in flight, and what the
    # link and the kernel's buffers hold of them.
    assert agents.link.carried < SIZE + 16 * MIB, f"{before} before the kill, {agents.link.carried} in all"
    assert agents.link.carried - before < SIZE * 0.8


def test_a_run_that_a_person_stopped_is_not_taken_up(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, link_rate=RATE)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > 4 * MIB)
    assert a.qrep("stop", "db")["db"]["text"] == "stopped; what has been applied is kept"
    a.kill()
    a.start()
    job = a.job()
    assert job["state"] == "stopped" and job["problem"]["action"] == "qrep start db goes on from there"
    assert "run-taken-up" not in a.codes()
    assert b.job()["state"] == "stopped"
