"""A thread of a run or of a session that dies of a bug ends that run or session, and says so: nobody waits for it."""

import threading

import pytest
from flow.harness import b3sum, write_at

from qrep.errors import QrepError, Refused
from qrep.lanes import Lane, Lanes
from qrep.protocol import actions as do
from qrep.source.flow import Run
from qrep.source.lanes import SourceLanes
from qrep.target import pulse
from qrep.target.lanes import TargetLanes
from qrep.target.volume import TargetVolume

pytestmark = pytest.mark.root
WAIT_S = 30


def error_of(run):
    """What a run ends with; it must end."""
    ended = []

    def go():
        try:
            ended.append(run.run())
        except QrepError as err:
            ended.append(err)

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert ended, "the run waits for a thread that is gone"
    assert isinstance(ended[0], QrepError), ended[0]
    return ended[0]


class Deaf:
    """A control channel whose listener meets a bug after so many messages."""

    def __init__(self, channel, after):
        self._channel, self._left = channel, after
        self.send, self.close = channel.send, channel.close

    @property
    def heard(self):
        return self._channel.heard

    def receive(self, timeout=None):
        if self._left == 0:
            raise TypeError("a bug")
        message = self._channel.receive(timeout)
        self._left -= 1
        return message


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_whose_listener_dies_ends_and_the_next_one_works(site, after):
    with site:
        error = error_of(Run(site.make_run_request(), lambda: Deaf(site.local.dial(), after), site.local.connect))
        assert error.code == "internal" and "a bug" in error.message
        assert site.run().root == b3sum(site.source)


@pytest.mark.parametrize("lanes", [SourceLanes, TargetLanes])
def test_lanes_that_die_end_the_run_and_what_they_were_to_do_is_not_taken_for_done(site, monkeypatch, lanes):
    with site:
        site.run()
        write_at(site.source, 0, b"new")

        def dies(self, lane):
            raise KeyError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr(lanes, "_connect", dies)
            error = error_of(site.make_run(timeout_s=0.5))
        # Where the other end misses the connection of the dead lane first, that is heard first: then it was tried again for a while.
        assert "internal error in lane" in error.message or error.retry
        assert site.volume.sync_points()[0].counter == 1
        assert site.run().root == b3sum(site.source)


def test_a_lane_that_dies_alone_takes_the_others_with_it():
    class Half(Lanes):
        """Lane 0 dies, lane 1 goes on until it is stopped."""

        def __init__(self, run):
            super().__init__(run, -1, "half", {})
            self.over = threading.Event()

        def start(self):
            self._start([Lane(0), Lane(1)])

        def _connect(self, lane):
            if lane.number == 0:
                raise KeyError("a bug")
            assert self.run.stopped.wait(WAIT_S)

        def _ended(self):
            self.over.set()

    class Native:
        def __init__(self):
            self.stopped = threading.Event()
            self.stop = self.stopped.set

        def failure(self):
            return None

    lanes = Half(Native())
    lanes.start()
    assert lanes.over.wait(WAIT_S)
    assert lanes.failure() == ("internal", "internal error in lane 0: KeyError('a bug')")


def test_a_bug_of_the_target_takes_the_volume_out_of_service_and_nobody_is_left_waiting(site, monkeypatch):
    with site:

        def dies(volume, action):
            raise KeyError("a bug")

        monkeypatch.setattr(TargetVolume, "_handlers", TargetVolume._handlers | {do.CollectManifest: dies})
        assert "internal error: CollectManifest" in error_of(site.make_run()).message
        site.local.join()
        assert "a bug" in site.volume.damaged and site.volume.machine.session is None and site.volume._attempt is None
        monkeypatch.undo()
        site.close()
        with site:
            assert site.run().root == b3sum(site.source)


def test_a_heart_that_dies_closes_its_session():
    class Channel:
        def __init__(self):
            self.closed = threading.Event()
            self.close = self.closed.set

    def tell():
        raise KeyError("a bug")

    channel = Channel()
    beating = pulse.Pulse(channel, tell)
    assert channel.closed.wait(WAIT_S)
    beating.end()


def test_connections_that_are_granted_when_all_others_have_broken_are_left_alone(site):
    with site:
        run = site.make_run()
        run._lanes = None
        assert not run._add_sending(do.AddSending((b"t" * 32,)))
        run.run()


def test_what_is_asked_of_a_volume_that_was_closed_meanwhile_finds_it_closed(site):
    with site:
        site.run()
        volume = site.volume
        volume.machine.phase = "open"  # as it is where a run was interrupted
        site.close()
        assert volume.abandon("nobody came") is False and volume.damaged is None
        volume.machine.phase = "idle"
        with pytest.raises(Refused, match="closed meanwhile"):
            volume.rollback(volume.machine.record.committed_id)
