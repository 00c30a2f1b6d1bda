"""Whoever holds a source's key asks its target by hand: what the target's own operator set and does is stronger (docs/ROLES.md)."""

import msgspec
import pytest
from agents import MIB, b3sum, wait_until
from intruder import admitted, hears, identity_of

from qrep import sealed
from qrep.daemon import asks, tls

pytestmark = pytest.mark.root
SIZE = 16 * MIB


class Thief:
    """Has the key of `a`, and the id of its job db to `b`."""

    def __init__(self, a, b):
        self.a, self.b = a, b
        self.job_id = msgspec.toml.decode((a.config / "jobs" / "db.toml").read_bytes())["id"]

    def ask(self, kind, **fields):
        stream = admitted(self.b, identity_of(self.a), tls.ASK)
        body = msgspec.msgpack.encode(kind(job_id=self.job_id, **fields) if kind is not asks.CommitGroup else kind(**fields))
        stream.sendall(len(body).to_bytes(4, "little") + body)
        said = hears(stream)
        return msgspec.msgpack.decode(said[4:], type=asks.Answer) if said else None


def test_a_stolen_key_takes_no_sync_point_under_a_floor_and_does_not_bar_the_operator(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    a, b = agents.replica(source, target, volume=("--keep-points", 2))
    b.qrep("peer", "set", a.name, "--may-switch")
    a.run()
    fill(source, 64 << 10, offset=MIB)
    a.run()
    thief, content = Thief(a, b), b3sum(target)
    points = b.qrep("snapshot", "db")
    assert len(points) == 2

    standing = thief.ask(asks.Standing).value
    refused = thief.ask(asks.TakeBack, id="ab" * 16, same_as=standing["id"]).error
    assert refused.code == "retention-floor" and refused.exit == 5 and "promote db" in refused.hint
    assert thief.ask(asks.SendBack, point=points[1]["point"]).error is None
    wait_until(lambda: thief.ask(asks.Standing).value["task"]["state"] == "failed")
    assert thief.ask(asks.Standing).value["task"]["error"]["code"] == "source-answers", "the source is asked, and it has not given up"
    stranger = asks.GroupMember(job_id="f" * 32, volume_id="f" * 32, epoch=1, attempt=1, new="1" * 32)
    assert thief.ask(asks.CommitGroup, id="1" * 32, group="shop", members=[stranger]).error.code == "not-paired"
    assert thief.ask(asks.CommitGroup, id="1" * 32, group="a\n\x1b[2J", members=[stranger]) is None
    assert thief.ask(asks.GiveBack).error.code == "no-such-pair", "it is no copy that is made once"
    assert thief.ask(asks.PinPoint, point="9" * 60000) is None, "it does not get past the process that faces the network"
    assert thief.ask(asks.PinPoint, point=points[1]["point"]).error is None
    assert thief.ask(asks.PinPoint, point="../x").error.code == "no-such-point"
    assert b.qrep("snapshot", "db") == points and b3sum(target) == content

    b.qrep("volume", "set", "db", "--accept-nobody")
    for kind in (asks.PinPoint, asks.SendBack):
        assert thief.ask(kind, point=points[1]["point"]).error.code == "not-accepted", "what was taken back is not asked for"
    a.kill()
    assert b.qrep("job", "promote", "db", "--force", "-y")["what"] == "forced", "a pin that the source asked for is no obstacle"
    assert b3sum(target) == content


def test_a_question_whose_ids_are_none_changes_nothing_and_the_agent_starts_again(agents, loop_device):
    a, b = agents.replica(loop_device(SIZE), loop_device(SIZE))
    b.qrep("peer", "set", a.name, "--may-switch")
    a.run()
    thief = Thief(a, b)
    mine = thief.ask(asks.Standing).value["id"]
    for bad in ("zz", "", "A" * 32, "0" * 32, mine[:-1], mine + "\n"):
        assert thief.ask(asks.TakeBack, id=bad, same_as=mine) is None
        assert thief.ask(asks.TakeBack, id="ab" * 16, same_as=bad) is None
    b.terminate()
    b.start()
    standing = thief.ask(asks.Standing).value
    assert (standing["role"], standing["id"]) == ("replica", mine)
    a.run()
    assert b.qrep("volume", "show", "db")["problem"] is None


def test_a_standing_that_holds_such_an_id_is_told_of_its_volume_and_keeps_no_agent_from_starting(agents, loop_device):
    """As an agent that did not look at the ids left it, after its superblock was written."""
    a, b = agents.replica(loop_device(SIZE), loop_device(SIZE))
    a.run()
    b.qrep("job", "promote", "db", "--force", "-y")
    b.terminate()
    (file,) = (b.state / "targets").glob("*/standing.json")
    held = sealed.load(file.read_bytes(), str(file))
    file.write_bytes(sealed.dump(held | {"same_as": "zz", "done": False}))
    b.start()
    problem = b.qrep("volume", "show", "db")["problem"]
    assert problem["code"] == "damaged" and "same_as" in problem["message"] and "qrep volume remove" in problem["hint"]
    assert "volume-damaged" in b.codes() and b.qrep("volume", "show", "db")["role"] == "primary"
    file.write_bytes(sealed.dump(held))
    b.terminate()
    b.start()
    assert b.qrep("volume", "show", "db")["problem"] is None
