"""SIGTERM: the agent ends soon and in order, and goes on where it was when it starts again."""

import signal
import subprocess

import pytest
from agents import MIB, QREP, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 24 * MIB


def test_sigterm_ends_an_agent_in_the_middle_of_a_run_and_its_next_start_takes_the_run_up(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=10 * MIB)
    a.qrep("start", "db")
    with subprocess.Popen([*QREP, "events", "-f"], env=a.environment, stdout=subprocess.PIPE) as follower:
        wait_until(lambda: agents.link.carried > SIZE // 2)
        before = agents.link.carried
        code, seconds = a.terminate()
        assert code == 0 and seconds < 10
        follower.send_signal(signal.SIGINT)  # it would wait for the next agent
        assert b"run-started" in follower.stdout.read()
    assert not a.socket.exists()
    a.start()
    wait_until(lambda: a.job()["counter"] == 1)
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    assert agents.link.carried - before < SIZE * 0.8
    codes = a.codes()
    assert codes.index("agent-stopped") < codes.index("run-taken-up") < codes.index("run-resumed") < codes.index("run-committed")


def test_sigterm_of_the_target_in_the_middle_of_a_first_run_keeps_what_was_applied(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=10 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > SIZE // 2)
    code, seconds = b.terminate()
    assert code == 0 and seconds < 10
    before = agents.link.carried
    b.start()
    wait_until(lambda: a.job()["counter"] == 1)
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    assert agents.link.carried - before < SIZE * 0.8


def test_an_idle_agent_ends_at_once(agents):
    code, seconds = agents.agent("site-a").terminate()
    assert code == 0 and seconds < 10
