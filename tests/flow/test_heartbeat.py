"""Heartbeats: a target that is busy is not taken for a dead one, a dead one is noticed, and the half-open rest of a session is in nobody's way."""

import threading
import time

import pytest
from agents import wait_until
from flow.harness import JOB, VOLUME, b3sum

from qrep.errors import Unreachable
from qrep.protocol import messages as say
from qrep.protocol.transport import Disconnected, Rendezvous, local_pair
from qrep.source import link
from qrep.source.link import Patience
from qrep.target import pulse
from qrep.target import volume as target_volume

pytestmark = pytest.mark.root
SILENCE_S = 2.0


@pytest.fixture
def quick(monkeypatch):
    """Two seconds of silence are too long, and hearts beat ten times as often."""
    monkeypatch.setattr(link, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(target_volume, "SILENCE_S", SILENCE_S)
    monkeypatch.setattr(target_volume, "TICK_S", 0.1)
    for module in (link, pulse):
        monkeypatch.setattr(module, "BEAT_S", 0.1)


def hello(epoch, geometry):
    return say.Hello(
        version_min=1, version_max=1, job_id=JOB, volume_id=VOLUME, epoch=epoch, size=geometry.size, leaf_size=geometry.leaf_size,
        granule_size=geometry.granule_size, sector_size=512, plain=False, features=[],
    )  # fmt: skip


def next_of(channel, kind, seconds=10):
    """The next message that is no heartbeat; it must be of that kind."""
    deadline = time.monotonic() + seconds
    while True:
        message = channel.receive(max(0.0, deadline - time.monotonic()))
        if not isinstance(message, say.Beat):
            assert isinstance(message, kind), message
            return message


def test_a_target_that_flushes_for_longer_than_a_dead_one_is_waited_for_is_not_taken_for_dead(site, quick, monkeypatch):
    with site:
        flush, seen = target_volume.TargetDriver._flush_device, []

        def slow(volume, action):
            time.sleep(2 * SILENCE_S)
            seen.append(run._link.beat.busy)
            return flush(volume, action)

        handlers = {action: slow if handler is flush else handler for action, handler in site.volume._handlers.items()}
        monkeypatch.setattr(target_volume.TargetDriver, "_handlers", handlers)
        run = site.make_run()
        report = run.run()
        assert report.interruptions == 0 and report.root == b3sum(site.target_path) == b3sum(site.source)
        assert seen == ["FlushDevice"]


def test_a_target_without_a_heartbeat_is_given_up_after_its_silence(site, quick, monkeypatch):
    with site:
        monkeypatch.setattr(pulse.Pulse, "_beat", lambda self: None)
        held = site.volume.lock
        held.acquire()  # nothing is answered, either
        try:
            began = time.monotonic()
            with pytest.raises(Unreachable, match="nothing was heard from the target for 2 s"):
                site.make_run(timeout_s=0.5).run()
            assert time.monotonic() - began >= SILENCE_S
        finally:
            held.release()


def test_a_source_that_fell_silent_is_closed_and_its_open_generation_kept(site, quick):
    with site:
        ours, theirs = local_pair()
        thread = threading.Thread(target=site.volume.serve, args=(theirs, Rendezvous()))
        thread.start()
        ours.send(hello(1, site.volume.geometry))
        state = next_of(ours, say.State)
        ours.send(say.Begin(state.committed, bytes([7]) * 16, 77, 1, 1 << 20))
        next_of(ours, say.Began)
        thread.join(20)
        assert not thread.is_alive() and site.volume.machine.phase == "open" and site.volume.machine.session is None
        with pytest.raises(Disconnected):
            while True:
                ours.receive(5)
        report = site.run()
        assert report.root == b3sum(site.source)


def test_a_half_open_session_that_takes_nothing_more_does_not_keep_a_newer_one_waiting(site, monkeypatch):
    with site:
        stuck, theirs = local_pair()
        threading.Thread(target=site.volume.serve, args=(theirs, Rendezvous()), daemon=True).start()
        stuck.send(hello(1, site.volume.geometry))
        next_of(stuck, say.State)
        full = threading.Event()

        def fill():  # the target says more than the socket takes, and holds its lock meanwhile
            with site.volume.lock, pytest.raises(Disconnected):
                full.set()
                while True:
                    theirs.send(say.Leaves(0, bytes(1 << 16)))

        filler = threading.Thread(target=fill)
        filler.start()
        full.wait()
        time.sleep(0.3)
        assert filler.is_alive()
        began = time.monotonic()
        newer, theirs_too = local_pair()
        threading.Thread(target=site.volume.serve, args=(theirs_too, Rendezvous()), daemon=True).start()
        newer.send(hello(2, site.volume.geometry))
        assert next_of(newer, say.State).max_epoch == 2
        assert time.monotonic() - began < theirs.send_timeout / 2
        filler.join(10)
        for channel in (stuck, newer):
            channel.close()
        wait_until(lambda: site.volume.machine.session is None)


class TestPatience:
    """timeout_s counts without a connection, waits grow and are never in step."""

    def test_waits_grow_to_a_limit_and_end_with_the_timeout(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(link.time, "monotonic", lambda: now[0])
        patience, waits = Patience(30, spread=lambda low, high: 1.0), []
        while (wait_s := patience.interrupted(1, 0, 0.0)) is not None:
            waits.append(wait_s)
            now[0] += wait_s
        # 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 4 * 5 = 26.2 s; one more would pass 30
        assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]

    def test_an_attempt_that_moved_on_may_take_its_time_again(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(link.time, "monotonic", lambda: now[0])
        patience = Patience(10, spread=lambda low, high: 1.0)
        for done in range(1, 20):
            assert patience.interrupted(1, done, 5.0) == 0.2
            now[0] += 8

    def test_time_with_a_connection_is_no_waiting_for_it(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(link.time, "monotonic", lambda: now[0])
        patience = Patience(10, spread=lambda low, high: 1.0)
        now[0] = 300.0  # of comparing, in which no granule is finished
        assert patience.interrupted(0, 0, 300.0) is not None

    def test_waits_are_spread_by_a_fifth(self):
        waits = {Patience(30).interrupted(0, 0, 0.0) for _ in range(100)}
        assert len(waits) > 50 and all(0.16 <= wait_s <= 0.24 for wait_s in waits)
