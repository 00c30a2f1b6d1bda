"""Two agents in network namespaces of their own; the cable between them is pulled in the middle of a run."""

import os

import pytest
from agents import MIB, b3sum, inside, wait_until
from machine import need_tool, run

pytestmark = pytest.mark.root
SIZE = 24 * MIB


@pytest.fixture
def cable(undo_after):
    """(namespace of site-a, namespace of site-b): joined by a veth pair, 10.97.0.1 and 10.97.0.2, shaped to 10 MiB/s."""
    need_tool("ip")
    names = [f"qrep-{os.getpid()}-{side}" for side in "ab"]
    try:
        for name in names:
            run("ip", "netns", "add", name)
            undo_after.callback(run, "ip", "netns", "delete", name)
        run("ip", "link", "add", "veth-a", "netns", names[0], "type", "veth", "peer", "name", "veth-b", "netns", names[1])
    except RuntimeError as err:
        pytest.skip(f"no network namespaces here: {err}")
    for name, side, address in zip(names, "ab", ("10.97.0.1", "10.97.0.2"), strict=True):
        within = ["ip", "netns", "exec", name]
        run(*within, "ip", "address", "add", f"{address}/24", "dev", f"veth-{side}")
        run(*within, "ip", "link", "set", f"veth-{side}", "up")
        run(*within, "ip", "link", "set", "lo", "up")
    return names


@pytest.mark.slow
def test_a_run_whose_network_was_cut_goes_on_when_it_is_back_and_sends_only_what_is_missing(agents, cable, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = (
        agents.agent(name, host=host, port=7414, prefix=inside(space))
        for name, host, space in zip(("site-a", "site-b"), ("10.97.0.1", "10.97.0.2"), cable, strict=True)
    )
    a.qrep("peer", "add", "site-b", "10.97.0.2", "-y")
    b.qrep("peer", "add", "site-a", "10.97.0.1", "-y")
    a.qrep("volume", "add", "db", source, "--granule", "1M")
    b.qrep("volume", "add", "db", target, "--accept", "site-a")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", "--timeout", "60s")

    def link(word):
        run("ip", "netns", "exec", cable[0], "ip", "link", "set", "veth-a", word)

    def sent():
        text = run("ip", "netns", "exec", cable[0], "cat", "/sys/class/net/veth-a/statistics/tx_bytes")
        return int(text)

    try:
        run("ip", "netns", "exec", cable[0], "tc", "qdisc", "add", "dev", "veth-a", "root", "tbf", "rate", "80mbit", "burst", "64k", "latency", "50ms")
    except RuntimeError as err:
        pytest.skip(f"no shaping here: {err}")
    a.qrep("start", "db")
    wait_until(lambda: sent() > SIZE // 2)
    link("down")
    before = sent()
    waiting = wait_until(lambda: a.job()["state"] == "waiting" and a.job())  # no acknowledgement in ten seconds
    assert waiting["problem"]["action"].startswith("check the link") and not waiting["path"]["ok"]
    assert "waiting" in a.text("status")[0] and "action: check the link" in a.text("status")[0]
    link("up")
    wait_until(lambda: a.job()["counter"] == 1, seconds=60)
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    assert a.job()["last_run"]["resumed"] and "run-interrupted" in a.codes()
    assert sent() - before < SIZE * 0.9


def test_a_relay_that_drops_its_connections_is_ridden_out(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target, source_volume=("--granule", "1M"), link_rate=10 * MIB)
    a.qrep("start", "db")
    for part in (0.3, 0.6):
        wait_until(lambda part=part: agents.link.carried > SIZE * part)
        agents.link.cut()
        wait_until(lambda: a.job()["state"] == "waiting")
        agents.link.mend()
    wait_until(lambda: a.job()["counter"] == 1)
    assert a.job()["root"] == b3sum(target) == b3sum(source)
    assert a.job()["last_run"]["interruptions"] >= 2
    assert agents.link.carried < SIZE * 1.9
