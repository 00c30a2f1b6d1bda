"""A source that asks for more connections than there may be, at the wrong time, or never brings them: bounded, refused, and the target is whole."""

import contextlib
import threading

import pytest
from flow.harness import GRANULE, JOB, LEAF, MIB, VOLUME, b3sum

from qrep._native import wire
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected
from qrep.target import lanes as target_lanes

pytestmark = pytest.mark.root
SIZE, NEW, ATTEMPT = 24 * MIB, bytes([9]) * 16, 77


class Hostile:
    """A control connection of a source that says what it likes."""

    def __init__(self, site):
        self.site, self.channel = site, site.local.dial()

    def says(self, message):
        self.channel.send(message)

    def hears(self):
        """The next message that is no heartbeat."""
        while isinstance(message := self.channel.receive(20), (say.Beat, say.Progress)):
            pass
        return message

    def begins(self, connections=1):
        self.says(say.Hello(1, 1, JOB, VOLUME, self.epoch(), SIZE, LEAF, GRANULE, 512, False, []))
        self.state = self.hears()
        self.says(say.Begin(self.state.committed, NEW, ATTEMPT, connections, 1 << 20))
        began = self.hears()
        assert isinstance(began, say.Began)
        return began

    def epoch(self):
        return self.site.volume.machine.record.max_epoch + 1

    def is_refused(self):
        error = self.hears()
        assert isinstance(error, say.Error) and error.code == "protocol"


@pytest.fixture
def hostile(site):
    """A source in front of a target with one committed generation."""
    with site:
        site.run()
        site.before = b3sum(site.target_path)
        made = Hostile(site)
        yield made
        made.channel.close()
        assert site.run().root == b3sum(site.target_path) == site.before, "whatever a source says, the next one commits"


def lane_threads():
    return sum(thread.name.startswith("target-lane") for thread in threading.enumerate())


def test_many_additions_are_refused_before_anything_is_started_for_them(hostile):
    hostile.begins()
    hostile.says(say.AddConnections(ATTEMPT, 16))  # one there and 16 more: already the first is one too many
    with contextlib.suppress(Disconnected):
        for _ in range(100_000):
            hostile.says(say.AddConnections(ATTEMPT, 16))
    with contextlib.suppress(Disconnected):
        hostile.is_refused()
    assert hostile.site.volume.machine.session is None
    assert lane_threads() <= 16


def test_the_seventeenth_connection_closes_the_session(hostile):
    hostile.begins(15)
    hostile.says(say.AddConnections(ATTEMPT, 1))
    added = hostile.hears()
    assert isinstance(added, say.Added) and len(added.tokens) == 1 and lane_threads() == 16
    hostile.says(say.AddConnections(ATTEMPT, 1))
    hostile.is_refused()
    assert hostile.site.volume.machine.phase == "open"  # and can be resumed by a source that behaves


def test_connections_added_and_dropped_for_ever_end_at_the_numbers_of_a_session(hostile, monkeypatch):
    monkeypatch.setattr(target_lanes, "TOKEN_LIFE_S", 0.05)
    hostile.begins()
    granted = 1
    for _ in range(10_000):
        hostile.says(say.AddConnections(ATTEMPT, 1))
        answer = hostile.hears()
        if isinstance(answer, say.Error):
            break
        granted += 1
        assert lane_threads() <= 16
        # a place is free again only when its token is void
        if granted % 15 == 0:
            lanes = hostile.site.volume._attempt.lanes
            lanes._lock.acquire()
            lanes._lock.wait_for(lambda lanes=lanes: not lanes._going, 5)
            lanes._lock.release()
    assert answer.code == "protocol" and 15 <= granted <= say.CONNECTION_NUMBERS_MAX


def test_an_addition_after_prepare_closes_the_session_and_commits_nothing(hostile):
    began = hostile.begins()
    rendezvous = hostile.site.local.rendezvous
    states, values = bytes(24), bytes(32 * 24)
    rendezvous.withdraw(began.tokens)  # nobody brings it: nothing is sent
    count, manifest = wire.manifest(bytes(24), states, values)
    hostile.says(say.Prepare(ATTEMPT, count, manifest, True, 0, "", ""))
    assert isinstance(hostile.hears(), say.Prepared)
    hostile.says(say.AddConnections(ATTEMPT, 1))
    hostile.is_refused()
    assert hostile.site.volume.machine.record.committed_counter == 1


def test_an_addition_to_another_attempt_is_refused_and_the_session_goes_on(hostile):
    hostile.begins()
    hostile.says(say.AddConnections(ATTEMPT + 1, 1))
    nak = hostile.hears()
    assert isinstance(nak, say.Nak) and nak.code == "attempt-gone"
    hostile.says(say.AddConnections(ATTEMPT, 1))
    assert isinstance(hostile.hears(), say.Added)


def test_a_token_of_an_addition_that_is_void_brings_nothing(hostile, monkeypatch):
    monkeypatch.setattr(target_lanes, "TOKEN_LIFE_S", 0.05)
    hostile.begins()
    hostile.says(say.AddConnections(ATTEMPT, 1))
    [token] = hostile.hears().tokens
    lanes = hostile.site.volume._attempt.lanes
    assert lanes.join(5)
    assert hostile.site.local.rendezvous.deliver(token, lambda index: None) is None
