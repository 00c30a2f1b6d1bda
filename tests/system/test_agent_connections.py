"""Connections of a job that runs: `job set --connections` and `connection add` and `remove` take effect while it goes on."""

import pytest
from agents import MIB, b3sum, wait_until

pytestmark = pytest.mark.root
SIZE = 32 * MIB


@pytest.fixture
def going(agents, loop_device, fill):
    """(site-a, source, target): job db with one connection is sending, slowly; granules are small, so that everybody gets some."""
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, source_volume=("--granule", "256K"), connections=1, link_rate=4 * MIB)
    a.qrep("start", "db")
    wait_until(lambda: up(a) == 1)
    return a, source, target


def up(agent):
    progress = agent.job()["progress"]
    return sum(entry["state"] == "up" for entry in progress["connections"]) if progress else 0


def finished(agents, a, source, target):
    agents.link.rate = 0
    wait_until(lambda: a.job()["counter"] == 1)
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    assert a.job()["last_run"]["interruptions"] == 0


def test_a_going_run_grows_and_shrinks_with_the_setting_and_so_do_later_ones(agents, going):
    a, source, target = going
    a.qrep("job", "set", "db", "--connections", 4)
    wait_until(lambda: up(a) == 4)
    a.qrep("job", "set", "db", "--connections", 2)
    wait_until(lambda: len(a.job()["progress"]["connections"]) == 2)
    finished(agents, a, source, target)
    assert a.job()["connections"] == 2
