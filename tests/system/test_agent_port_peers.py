"""A pinned peer that breaks the rules: its connection is closed, nothing is written, and a legitimate run goes on."""

import os

import msgspec
import pytest
from agents import MIB, Agents, b3sum, wait_until
from intruder import admitted, hears, identity_of, read_message
from machine import loop_devices

from qrep.daemon import asks, tls
from qrep.protocol import messages

pytestmark = pytest.mark.root
SIZE = 8 * MIB


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    """(site-a, site-b, target): job db, run once, and again at the end."""
    directory = tmp_path_factory.mktemp("agents")
    for name in ("source", "target"):
        (directory / name).write_bytes(os.urandom(SIZE) if name == "source" else bytes(SIZE))
    with loop_devices(directory / "source", directory / "target") as (source, target), Agents(directory) as agents:
        a, b = agents.replica(source, target)
        a.run()
        yield a, b, target
        assert a.run()["root"] == b3sum(target) == b3sum(source), "whatever a peer says, it goes on"


def frame(body):
    return len(body).to_bytes(4, "little") + body


def hello(a, **changed):
    job = msgspec.toml.decode((a.config / "jobs" / "db.toml").read_bytes())
    fields = {
        "version_min": 1, "version_max": 1, "job_id": bytes.fromhex(job["id"]), "volume_id": bytes.fromhex(job["target_volume"]), "epoch": 900,
        "size": job["size"], "leaf_size": job["leaf"], "granule_size": job["granule"], "sector_size": 512, "plain": False, "features": [],
    }  # fmt: skip
    return messages.encode(messages.Hello(**fields | changed))


@pytest.mark.parametrize("purpose", [tls.CONTROL, tls.DATA, tls.ASK])
@pytest.mark.parametrize("first", [
    b"\xff\xff\xff\xff", (1 << 20).to_bytes(4, "little") + b"x" * 100, bytes(4), frame(b"\xc1" * 100), frame(b"\x80"),
], ids=["4 GiB", "1 MiB", "nothing", "no msgpack", "an empty map"])  # fmt: skip
def test_first_bytes_that_are_no_message(replica, purpose, first):
    a, b, target = replica
    before, refused = b3sum(target), len(b.events("peer-refused"))
    stream = admitted(b, identity_of(a), purpose)
    stream.sendall(first)
    said = hears(stream)
    assert len(said) < 1024
    if purpose != tls.ASK:  # a question gets its answer, even a wrong one
        wait_until(lambda: len(b.events("peer-refused")) == refused + 1)
    assert b3sum(target) == before


def test_a_hello_for_a_job_that_is_not_this_peers(replica, agents):
    a, b, target = replica
    before = b3sum(target)
    third = agents.agent("third")
    b.qrep("peer", "add", "third", f"{third.host}:{third.port}", "-y")
    for identity, message in (
        (identity_of(third), hello(a)),  # the right key of another peer
        (identity_of(a), hello(a, job_id=bytes(16))),
        (identity_of(a), hello(a, volume_id=b"v" * 16)),
        (identity_of(a), messages.encode(messages.Ping())),
    ):
        stream = admitted(b, identity, tls.CONTROL)
        stream.sendall(message)
        said = messages.decode(hears(stream)[4:], "target")
        assert isinstance(said, messages.Error) and said.code in ("not-paired", "wrong-volume", "protocol")
    assert b3sum(target) == before


def test_a_join_with_a_wrong_token(replica):
    a, b, _target = replica
    refused = len(b.events("peer-refused"))
    stream = admitted(b, identity_of(a), tls.DATA)
    stream.sendall(messages.encode(messages.Join(token=b"t" * 32)))
    assert hears(stream) == b""
    assert wait_until(lambda: len(b.events("peer-refused")) == refused + 1)


def test_a_join_with_a_used_token_and_lanes_of_a_session_that_is_over(replica):
    """The peer begins a run by hand: its tokens are good once, and for nobody after the session."""
    a, b, target = replica
    before = b3sum(target)
    identity = identity_of(a)
    control = admitted(b, identity, tls.CONTROL)
    control.sendall(hello(a))
    state = read_message(control)
    control.sendall(messages.encode(messages.Begin(state.committed, b"n" * 16, 77, 1, 1 << 20)))
    began = read_message(control)
    (token,) = began.tokens
    first, second = admitted(b, identity, tls.DATA), admitted(b, identity, tls.DATA)
    first.sendall(messages.encode(messages.Join(token=token)))
    assert isinstance(read_message(first), messages.Joined)
    second.sendall(messages.encode(messages.Join(token=token)))
    assert hears(second) == b""
    control.close()
    first.sendall(b"\x00" * 4096)  # no frame
    hears(first)
    third = admitted(b, identity, tls.DATA)
    third.sendall(messages.encode(messages.Join(token=token)))
    assert hears(third) == b""
    assert b3sum(target) == before
    assert a.run()["root"] == b3sum(target), "the run that follows steps over that session"


@pytest.mark.parametrize("field, value", [
    ("job", "x\x1b[31m"), ("source", "site-a:\x07"), ("volume", "../../etc"), ("job_id", "zz"), ("size", -1), ("leaf", 3), ("sync_points", 999), ("keep", "1x1y"),
])  # fmt: skip
def test_a_pair_that_cannot_be(replica, field, value):
    a, b, _target = replica
    fields = {
        "job_id": "0" * 32, "job": "x", "source": "site-a:db", "volume": "db", "size": SIZE, "leaf": 4096, "granule": 8 << 20, "sync_points": 7, "keep": "",
        "overwrite": True, "check_only": False, "once": False,
    }  # fmt: skip
    stream = admitted(b, identity_of(a), tls.ASK)
    stream.sendall(frame(msgspec.msgpack.encode(asks.CreatePair(**fields | {field: value}))))
    said = hears(stream)
    if field in ("job_id", "size", "leaf"):
        assert not said, "it does not get past the process that faces the network"
    else:
        answer = msgspec.msgpack.decode(said[4:], type=asks.Answer)
        assert answer.error and answer.error.exit in (1, 2, 7)
    assert len(b.db_pairs()) == 1
    assert all(event["text"].isprintable() for event in b.events()) and b.log.replace("\n", "").isprintable()


def test_what_a_peer_is_told_of_volumes_it_may_not_use_is_nothing(replica, loop_device):
    a, b, _target = replica
    b.qrep("volume", "add", "secret", loop_device(2 * SIZE))
    a.qrep("volume", "add", "other", loop_device(SIZE))
    error = a.refused("job", "create", "x", "--source", "other", "--target", "site-b:secret")
    assert error["code"] == "not-accepted" and "loop" not in error["message"] + error["hint"]
