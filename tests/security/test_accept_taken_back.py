"""`volume set --accept-nobody`, or an edit of the file, ends what a peer is doing there at once; what it goes on to ask for is refused."""

import re
import time

import pytest
from agents import MIB, b3sum, wait_until
from intruder import admitted, identity_of, read_message
from security.hand import Control, ask, job_of

from qrep.daemon import asks, tls
from qrep.protocol import messages as say

pytestmark = pytest.mark.root
SIZE = 8 * MIB


@pytest.fixture
def replica(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, MIB)
    a, b = agents.replica(source, target)
    a.run()
    return a, b, target


def by_command(a, b):
    b.qrep("volume", "set", "db", "--accept-nobody")


def edit(b):
    path = b.config / "volumes" / "db.toml"
    before = path.read_text()
    path.write_text(re.sub(r'accept = \[\s*"site-a",?\s*\]', "accept = []", before))
    assert path.read_text() != before


def by_reload(a, b):
    edit(b)
    assert not b.qrep("reload")["failed"]


def by_a_peer_that_goes(a, b):
    b.qrep("peer", "remove", "site-a", "-y")


def by_a_file_of_a_peer_that_goes(a, b):
    edit(b)
    (b.config / "peers" / "site-a.toml").unlink()
    assert not b.qrep("reload")["failed"]


def begun(a, b, control, state):
    """The Began of a run that a peer begins by hand."""
    return control.say(say.Begin(state.committed, b"n" * 16, 77, 1, 1 << 20))


@pytest.mark.parametrize("revoke", [by_command, by_reload, by_a_peer_that_goes, by_a_file_of_a_peer_that_goes])
@pytest.mark.parametrize("running", [False, True])
def test_a_session_of_a_peer_that_is_not_accepted_any_more_ends_at_once(replica, revoke, running):
    a, b, target = replica
    before = b3sum(target)
    with Control(a, b) as control:
        state = control.hello()
        assert isinstance(state, say.State)
        if running:
            (token,) = begun(a, b, control, state).tokens
            data = admitted(b, identity_of(a), tls.DATA)
            data.sendall(say.encode(say.Join(token=token)))
            assert isinstance(read_message(data), say.Joined)
        revoke(a, b)
        began = time.monotonic()
        said = control.hear()
        told = "not-pinned" if revoke is by_a_peer_that_goes else "not-accepted"  # files that go are dealt with last
        assert said is None or (isinstance(said, say.Error) and said.code == told)
        with pytest.raises((OSError, AssertionError)):  # the connection is closed, not only silent
            while read_message(control.stream):
                pass
        assert time.monotonic() - began < 5, "not when it had been silent for long"
    if revoke in (by_command, by_reload):
        wait_until(lambda: b.events("session-ended"))
        assert b.events("session-ended")[-1]["text"] == "not-accepted"
    if revoke is by_command:
        a.run_command("start", "db", "--wait")
        assert "not-accepted" in a.refused("start", "db", "--wait")["code"]
        b.qrep("volume", "set", "db", "--accept", "site-a")
        assert a.run()["root"] == b3sum(target), "what was open is taken up or taken back"
    assert b3sum(target) == before


def test_what_a_peer_asks_for_later_is_refused_and_a_peer_that_stays_is_not_disturbed(replica):
    a, b, _target = replica
    with Control(a, b) as control:
        control.hello()
        b.qrep("volume", "set", "db", "--accept", "site-a")
        b.qrep("volume", "set", "db", "--keep-points", 3)
        assert isinstance(control.say(say.Ping()), say.Pong)
        assert not b.events("session-ended")
    b.qrep("volume", "set", "db", "--accept-nobody")
    assert ask(b, identity_of(a), asks.ChangePair(job_id=job_of(a)["id"], sync_points=0, keep="")).error.code == "not-accepted"
    with Control(a, b) as control:
        assert control.hello().code == "not-accepted"
