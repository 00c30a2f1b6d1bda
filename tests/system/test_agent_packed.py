"""Data that travels packed, between two agents over a cable: what arrives is the source, what travels is less, and people are told."""

import os
import re

import pytest
from agents import MIB, b3sum, inside, wait_until
from cables import Cables, addresses
from machine import run

pytestmark = pytest.mark.root
KIB = 1 << 10
SIZE = 16 * MIB
TEXT = b"".join(b"%08d a record that has much in common with all the others\n" % i for i in range(40000))


def write(device, random_source, size=SIZE, offset=0):
    """Text, random bytes and zeroes, 64 KiB each, in an order of chance; half of it is text."""
    with open(device, "r+b") as file:
        file.seek(offset)
        for _ in range(size // (64 * KIB)):
            start = random_source.randrange(len(TEXT) - 64 * KIB)
            kind = random_source.choice(["text", "text", "random", "zero"])
            file.write({"text": TEXT[start : start + 64 * KIB], "random": random_source.randbytes(64 * KIB), "zero": bytes(64 * KIB)}[kind])
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def wired(agents, loop_device, undo_after, random_source):
    """wired(rate, *options of the job) -> (site-a, site-b, source, target): agents in two network namespaces with one cable."""

    def make(rate, *options, fill=True):
        try:
            cables = undo_after.enter_context(Cables([rate]))
        except RuntimeError as err:
            pytest.skip(f"no shaped namespaces here: {err}")
        source, target = loop_device(SIZE), loop_device(SIZE)
        if fill:
            write(source, random_source)
        a, b = (
            agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space)) for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
        )
        a.qrep("peer", "add", "site-b", addresses(0)[1], "-y")
        b.qrep("peer", "add", "site-a", addresses(0)[0], "-y")
        a.qrep("volume", "add", "db", source, "--granule", "1M")
        b.qrep("volume", "add", "db", target, "--accept", "site-a")
        a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db", *options)
        return a, b, source, target, cables

    return make


def test_a_volume_travels_packed_and_arrives_whole_and_everybody_is_told(wired, random_source):
    a, b, source, target, cables = wired(0, "--compress", "on")
    before = b3sum(source)
    report = a.run()
    assert report["root"] == b3sum(target) == before
    assert report["packed"] > 4 * MIB and report["packed_sent"] < report["packed"] / 2
    assert report["sent"] < report["changed"] - (report["packed"] - report["packed_sent"]) + 2 * MIB
    assert cables.sent(0) < report["sent"] + 2 * MIB  # the wire says the same; the rest is TLS, TCP and control
    shown = a.text("status", "db")[0]
    assert re.search(r"sent \d+(\.\d+)? MiB \(\d\.\dx packed\)", shown), shown
    metrics = {line.split("{")[0]: float(line.split()[-1]) for line in a.text("metrics")[0].splitlines() if line.startswith("qrep_job_packed")}
    assert metrics == {"qrep_job_packed_bytes_total": report["packed"], "qrep_job_packed_sent_bytes_total": report["packed_sent"]}

    write(source, random_source, 2 * MIB, offset=5 * MIB)  # a differential run keeps before-images at the target
    changed = a.run()
    assert changed["root"] == b3sum(target) == b3sum(source)
    assert 0 < changed["packed"] <= changed["changed"] <= 2 * MIB
    b.qrep("snapshot", "rollback", f"db@{report['counter']}", "-y")
    assert b3sum(target) == before


def test_auto_packs_where_a_limit_is_in_force_and_the_setting_may_be_changed(wired, random_source):
    a, _b, source, target, cables = wired(0)
    a.qrep("shape", "set", "slow", "--peak", "6M")
    a.qrep("job", "set", "db", "--shape", "slow")
    assert a.job()["compress"] == "auto"
    report = a.run()
    assert report["root"] == b3sum(target) == b3sum(source)
    assert report["packed"] > 4 * MIB
    assert a.job()["last_run"]["packed"] == report["packed"]
    a.qrep("job", "set", "db", "--compress", "off")
    assert "compress" in a.text("job", "show", "db")[0]
    write(source, random_source, 2 * MIB)
    plain = a.run()
    assert plain["root"] == b3sum(target) == b3sum(source)
    assert (plain["packed"], plain["packed_sent"]) == (0, 0) and plain["sent"] > 0
    assert a.refused("job", "set", "db", "--compress", "maybe")["exit"] == 2


@pytest.mark.slow
def test_a_packed_run_that_is_cut_goes_on_from_what_was_applied(wired):
    a, _b, source, target, cables = wired(2 * MIB, "--compress", "on", "--connections", 2)
    task = a.qrep("start", "db")
    assert task
    wait_until(lambda: (a.job()["progress"] or {}).get("packed", 0) > 3 * MIB, seconds=60)
    run("ip", "-n", cables.spaces[1], "link", "set", "cable-0", "down")
    wait_until(lambda: "run-interrupted" in a.codes(), seconds=60)
    run("ip", "-n", cables.spaces[1], "link", "set", "cable-0", "up")
    wait_until(lambda: a.job()["counter"] == 1, seconds=90)
    report = a.job()["last_run"]
    assert report["root"] == b3sum(target) == b3sum(source)
    assert report["interruptions"] >= 1 and report["sent"] < SIZE * 0.75


@pytest.mark.slow
def test_a_local_job_does_not_pack(agents, loop_device, random_source):
    agent = agents.agent("site-a")
    source, target = loop_device(SIZE), loop_device(SIZE)
    write(source, random_source)
    agent.qrep("volume", "add", "db", source)
    agent.qrep("volume", "add", "copy", target)
    agent.qrep("job", "create", "db", "--source", "db", "--target", "copy", "--compress", "on")
    report = agent.run()
    assert report["root"] == b3sum(target) == b3sum(source) and report["packed"] == 0
