"""Trusted paths: data travels plain between two hosts that both say so, and only then; a run over one ends as any other."""

import pytest
from agents import MIB, b3sum, wait_until

from qrep._native.ring import Ring

pytestmark = pytest.mark.root
SIZE = 32 * MIB


def said_of_zero_copy():
    """False: it was tried, and the kernel said that it copied; None: without io_uring it is not tried."""
    try:
        Ring("uring", 1).close()
    except OSError:
        return None
    return False


def trust(a, b):
    a.qrep("peer", "set", b.name, "--trusted")
    assert b.qrep("peer", "set", a.name, "--trusted")["agreed"]




@pytest.fixture
def replica(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    return *agents.replica(source, target, source_volume=("--granule", "1M"), job=("--timeout", "2s")), source, target


def test_a_run_over_a_trusted_path_ends_with_equal_content_and_says_how_it_travelled(replica, fill):
    a, b, source, target = replica
    assert a.job()["transport"] == "tls"
    trust(a, b)
    report = a.run()
    assert report["root"] == b3sum(target) == b3sum(source)
    job = a.job()
    assert job["transport"] == "plain" and job["zero_copy"] is said_of_zero_copy(), "loopback copies, and the kernel says so"
    assert "data    plain" in a.text("status", "db")[0]
    assert "peer-changed" in a.codes() and a.qrep("peer")[0]["trusted"]
    fill(source, 8 * MIB)
    assert a.run()["root"] == b3sum(target) == b3sum(source)
    for agent, other in ((a, b), (b, a)):
        assert not agent.qrep("peer", "set", other.name, "--no-trusted")["trusted"]
    fill(source, 4 * MIB)
    assert a.run()["root"] == b3sum(target) == b3sum(source)
    assert a.job()["transport"] == "tls" and "data    TLS" in a.text("status", "db")[0]


@pytest.mark.parametrize("who", ["the source", "the target"])
def test_a_path_that_only_one_end_trusts_is_refused_before_anything_is_written(replica, who):
    a, b, source, target = replica
    before = b3sum(target)
    one, other = (a, b) if who == "the source" else (b, a)
    answer = one.qrep("peer", "set", other.name, "--trusted")
    assert answer["agreed"] is False
    error = a.refused("start", "db", "--wait")
    assert (error["code"], error["exit"]) == ("trust-mismatch", 5)
    assert "site-a" in error["message"] and "site-b" in error["message"] and "not trusted" in error["message"]
    assert "qrep peer set site-a" in error["hint"] and "qrep peer set site-b" in error["hint"]
    assert b3sum(target) == before and b.job()["counter"] is None
    other.qrep("peer", "set", one.name, "--trusted")
    assert a.run()["root"] == b3sum(target) == b3sum(source)


@pytest.mark.parametrize("who", ["the source", pytest.param("the target", marks=pytest.mark.slow)])
def test_trust_that_is_withdrawn_in_the_middle_of_a_run_ends_it_and_on_both_sides_it_goes_on_encrypted(agents, loop_device, fill, who):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target, link_rate=8 * MIB, source_volume=("--granule", "1M"), job=("--timeout", "20s"))
    trust(a, b)
    a.qrep("start", "db")
    wait_until(lambda: agents.link.carried > SIZE // 4)
    one, other = (a, b) if who == "the source" else (b, a)
    one.qrep("peer", "set", other.name, "--no-trusted")
    wait_until(lambda: a.job()["state"] == "failed")
    assert a.job()["problem"]["code"] == "trust-mismatch" and "qrep peer set" in a.job()["problem"]["action"]
    assert b.job()["counter"] is None and agents.link.carried < SIZE
    other.qrep("peer", "set", one.name, "--no-trusted")
    report = a.run()
    assert report["resumed"] and report["root"] == b3sum(target) == b3sum(source)
    assert a.job()["transport"] == "tls"


def test_what_a_person_is_told_when_trust_is_set(agents):
    a, b = agents.pair()
    assert "TLS" in a.text("peer")[0]
    text, _code = a.text("peer", "set", "site-b", "--trusted", "-n")
    assert text == "site-b: its paths would be trusted\n" and not a.qrep("peer")[0]["trusted"]
    text, _code = a.text("peer", "set", "site-b", "--trusted")
    assert "plain" in text and "action: site-b says that the path is not trusted; run there: qrep peer set NAME --trusted" in text
    text, _code = b.text("peer", "set", "site-a", "--trusted")
    assert "action" not in text and "plain" in b.text("peer")[0]
    assert a.refused("peer", "set", "site-b")["exit"] == 2
    assert a.refused("peer", "set", "nobody", "--trusted")["exit"] == 7
    assert "trusted = true" in (a.config / "peers" / "site-b.toml").read_text()
    a.terminate()
    a.start()
    assert a.qrep("peer")[0]["trusted"], "the file says so"
    assert a.qrep("peer", "add", "site-b", f"{b.host}:{b.port}", "-y")["agreed"], "added again, it stays what it was"
