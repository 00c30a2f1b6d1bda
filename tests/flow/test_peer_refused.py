"""A peer that may not write to a volume any more: every step that leads to a commit asks, and a session that goes on can be ended from outside."""

import threading

import pytest
from flow.harness import GRANULE, JOB, LEAF, MIB, VOLUME

from qrep.errors import Refused
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected, Rendezvous, local_pair

REFUSED = Refused("not any more", code="not-accepted", hint="ask")


class Peer:
    """A source that speaks by hand. refused: what it is told from now on."""

    def __init__(self, site):
        self.refused = None
        self.channel, self.far = local_pair()
        self.ended = []
        self.thread = threading.Thread(target=lambda: self.ended.append(site.volume.serve(self.far, Rendezvous(), None, lambda: self.refused)))
        self.thread.start()

    def say(self, message):
        self.channel.send(message)
        return self.hear()

    def hear(self):
        while isinstance(message := self.channel.receive(10), say.Beat):
            pass
        return message

    def hello(self, size, epoch=1):
        return self.say(say.Hello(1, 1, JOB, VOLUME, epoch, size, LEAF, GRANULE, 512, False, []))

    def begin(self, state):
        return self.say(say.Begin(state.committed, b"n" * 16, 77, 1, MIB))

    def is_told(self, said):
        assert isinstance(said, say.Error) and (said.code, said.hint) == ("not-accepted", "ask")
        with pytest.raises(Disconnected):
            self.hear()
        self.thread.join(10)
        assert self.ended == ["not-accepted"]


@pytest.fixture
def peer(site):
    with site:
        site.run()
        peer = Peer(site)
        yield peer
        peer.channel.close()
        peer.thread.join(10)


def test_each_step_that_leads_to_a_commit_asks(site, peer):
    state = peer.hello(site.volume.geometry.size, epoch=5)
    peer.refused = REFUSED
    assert isinstance(peer.say(say.Ping()), say.Pong), "what leads nowhere does not"
    peer.is_told(peer.begin(state))
    assert site.volume.machine.phase == "idle" and site.volume.machine.session is None


def test_a_first_word_asks_too(site, peer):
    peer.refused = REFUSED
    peer.is_told(peer.hello(site.volume.geometry.size, epoch=5))
    assert site.volume.machine.record.max_epoch < 5


def test_a_session_that_is_ended_from_outside_leaves_the_open_generation_as_a_lost_connection_does(site, peer):
    began = peer.begin(peer.hello(site.volume.geometry.size, epoch=5))
    assert isinstance(began, say.Began) and site.volume.has_open_generation()
    site.volume.expel(peer.far, REFUSED)
    peer.is_told(peer.hear())
    assert site.volume.has_open_generation() and site.volume.machine.session is None
    assert site.run().generation == site.volume.machine.record.committed_id.hex()


def test_a_session_that_is_only_beginning_is_cut(site, peer):
    stranger, far = local_pair()
    site.volume.expel(far, REFUSED)
    with pytest.raises(Disconnected):
        stranger.receive(5)
