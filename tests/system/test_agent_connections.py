"""Connections of a job that runs: `job set --connections` and `connection add` and `remove` take effect while it goes on."""

import pytest
from agents import MIB, b3sum, inside, wait_until
from cables import Cables, addresses
from machine import run

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


def test_connections_are_added_and_removed_by_hand_while_a_run_goes_on(agents, going):
    a, source, target = going
    assert [(one["path"], one["number"], one["state"]) for one in a.qrep("connection")] == [(1, 1, "up")]
    would = a.qrep("connection", "add", "db/1", "-n")
    assert (would["number"], would["connections"]) == (2, 2) and up(a) == 1
    for number in (2, 3):
        assert a.qrep("connection", "add", "db/1")["number"] == number
    wait_until(lambda: up(a) == 3)
    assert "3 connections  " in a.text("status", "db")[0] and "db/1/3" in a.text("connection")[0]
    assert a.qrep("connection", "remove", "db/1/2", "-n")["connections"] == 2
    assert a.qrep("connection", "remove", "db/1/1")["connections"] == 2
    wait_until(lambda: [one["number"] for one in a.job()["progress"]["connections"] if one["state"] == "up"] == [1, 2])
    finished(agents, a, source, target)
    assert a.job()["connections"] == 2
    assert {"connection-added", "connection-removed"} <= set(a.codes())
    assert [one["state"] for one in a.qrep("connection")] == ["idle", "idle"]


def test_what_cannot_be_added_or_removed_is_refused_with_the_way_out(agents, loop_device):
    a, _b = agents.replica(loop_device(MIB), loop_device(MIB), connections=16)
    assert a.refused("connection", "add", "db/1")["code"] == "too-many-connections"
    assert a.refused("connection", "add", "db/2")["exit"] == 7
    assert a.refused("connection", "remove", "db/1/17")["exit"] == 7
    assert a.refused("connection", "remove", "db/1")["exit"] == 2
    assert a.refused("connection", "add", "db")["exit"] == 2
    a.qrep("job", "set", "db", "--connections", 1)
    assert a.refused("connection", "remove", "db/1/1")["code"] == "last-connection"
    assert a.refused("connection", "add", "db/1", "--from", "192.0.2.1")["code"] == "not-our-address"


@pytest.fixture
def wired(agents, loop_device, fill, undo_after):
    """wired(rates, size) -> (site-a, source, target, cables): agents joined by cables, the job's only path over the first of them."""

    def make(rates, size):
        try:
            cables = undo_after.enter_context(Cables(rates))
        except RuntimeError as err:
            pytest.skip(f"no shaped namespaces here: {err}")
        source, target = loop_device(size), loop_device(size)
        fill(source, size)
        a, b = (
            agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space))
            for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
        )
        a.qrep("peer", "add", "site-b", addresses(0)[1], "-y")
        b.qrep("peer", "add", "site-a", addresses(0)[0], "-y")
        a.qrep("volume", "add", "db", source, "--granule", "256K")
        b.qrep("volume", "add", "db", target, "--accept", "site-a")
        a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--connections", 1)
        return a, source, target, cables

    return make


def add_cable(agent, number):
    ours, theirs = addresses(number)
    return agent.qrep("connection", "add", "db/1", "--from", ours, "--to", theirs)


def test_connections_go_over_the_addresses_they_were_given_and_one_that_cannot_leaves_its_work(agents, wired):
    a, source, target, cables = wired([2 * MIB] * 3, 12 * MIB)
    assert add_cable(a, 1)["reason"] == ""
    run("ip", "-n", cables.spaces[1], "link", "set", "cable-2", "down")
    a.qrep("start", "db")
    wait_until(lambda: up(a) == 2)
    assert "does not answer" in a.text("connection", "add", "db/1", "--from", addresses(2)[0], "--to", addresses(2)[1])[0]
    wait_until(lambda: a.job()["counter"] == 1, seconds=60)
    assert min(cables.sent(0), cables.sent(1)) > 4 * MIB and cables.sent(2) < MIB
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    shown = a.qrep("connection")
    assert [(one["from"], one["to"]) for one in shown] == [("auto", addresses(0)[1]), addresses(1), addresses(2)]


@pytest.mark.slow
def test_four_connections_over_four_cables_carry_four_times_what_one_does(agents, wired, fill):
    rate, size = 4 * MIB, 64 * MIB
    a, source, target, cables = wired([rate] * 4, size)

    def rate_of_a_run(changed):
        fill(source, changed)
        report = a.run()
        assert report["root"] == b3sum(target) == b3sum(source)
        return report["sent"] / report["seconds"]

    a.qrep("job", "set", "db", "--initial", "compare")
    one = rate_of_a_run(16 * MIB)
    for number in (1, 2, 3):
        add_cable(a, number)
    before = [cables.sent(number) for number in range(4)]
    four = rate_of_a_run(64 * MIB)
    sent = [cables.sent(number) - before[number] for number in range(4)]
    assert four >= 0.8 * 4 * one, f"{four / MIB:.2f} and {one / MIB:.2f} MiB/s"
    assert min(sent) > 0.7 * max(sent)
