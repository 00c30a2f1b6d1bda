"""How much a nice run may read: the controller against made-up devices, in made-up time."""

import random

import pytest

from qrep.source.nice import FLOOR, PIECE, PIECE_SLOW, SHARE_MAX, SHARE_MAX_LIGHT, SHARE_MIN, Nice, Sample

STEP_S = 0.002
FULL_SPEED = 5_000_000_000
SPLIT = 7  # requests that the kernel makes of a large read
LARGE = 8 << 20


class Device:
    """One server. others(now): requests a second that somebody else wants; at most what is left of its time when ours are served. noise: of every
    figure, as a share. One of theirs takes service_s, a read of ours piece_s, or that and what queues before it."""

    def __init__(self, *, service_s=20e-6, piece_s=60e-6, others=lambda now: 0, closed=False, noise=0.0, seed=1, inside=True):
        self.service_s, self.piece_s, self.others, self.closed = service_s, piece_s, others, closed
        self.random, self.noise, self.inside = random.Random(seed), noise, inside
        self.nice, self.now, self.next_look = Nice(), 1000.0, 0.0
        self.ios = self.own = self.busy_s = self.timed = self.timed_s = self.read = 0.0
        self.served = 0.0  # of the others
        self.order = self.look()
        self.trace = []  # (seconds, bytes per second read, whether it shares, share)

    def look(self):
        self.next_look = None
        order = self.nice.look(
            Sample(
                now=self.now, ios=int(self.ios), own_ios=int(self.own) if self.inside else 0, busy_s=self.busy_s, below=0, in_flight=0,
                timed=int(self.timed), timed_s=self.timed_s,
            )
        )  # fmt: skip
        self.next_look = self.now + order.wait_s
        return order

    def shaken(self, figure):
        return figure * (1 + self.noise * self.random.uniform(-1, 1))

    def step(self):
        wanted, order = self.others(self.now), self.order
        speed = 0 if order.paused else order.rate or FULL_SPEED
        size = order.piece or LARGE
        reads = speed / size
        ours = min(0.95, reads * self.piece_s * size / PIECE)  # share of the device's time
        room = (1 - ours) / self.service_s
        theirs = self.shaken(min(room, wanted) if not self.closed else room * (wanted > 0))
        latency = self.shaken(self.piece_s * (1 + theirs * self.service_s))
        self.read += speed * STEP_S
        self.own += reads * STEP_S
        self.served += theirs * STEP_S
        self.ios += (theirs + (reads * (1 if order.piece else SPLIT) if self.inside else 0)) * STEP_S
        self.busy_s += theirs * self.service_s * 4 * STEP_S
        if order.piece:
            self.timed += reads * STEP_S
            self.timed_s += reads * STEP_S * latency
        self.now += STEP_S
        if self.now >= self.next_look:
            self.order = self.look()

    def go(self, seconds):
        """Bytes per second that were read, and requests per second of the others."""
        before, served, end = self.read, self.served, self.now + seconds
        while self.now < end:
            self.step()
            self.trace.append((self.now, self.order.rate, self.nice.sharing, self.nice.share))
        return (self.read - before) / seconds, (self.served - served) / seconds


def test_nothing_is_read_before_it_has_listened():
    device = Device()
    assert device.order.paused
    device.go(0.1)
    assert not device.order.paused and device.order.rate == 0


def test_alone_it_reads_as_fast_as_it_goes_and_listens_for_a_few_thousandths_now_and_then():
    device = Device()
    speed, _ = device.go(10)
    assert speed > 0.95 * FULL_SPEED
    assert not any(sharing for _, _, sharing, _ in device.trace)


@pytest.mark.parametrize("inside", [True, False], ids=["read live", "read from a snapshot"])
def test_with_somebody_there_from_the_start_it_never_reads_at_full_speed(inside):
    device = Device(others=lambda now: 4000, inside=inside)
    device.go(5)
    assert all(sharing for when, _, sharing, _ in device.trace if when > 1000.05)
    assert device.read / 5 < 0.05 * FULL_SPEED


def test_somebody_who_comes_is_noticed_within_a_tenth_of_a_second():
    device = Device(others=lambda now: 4000 if now >= 1002 else 0)
    device.go(2.1)
    assert device.nice.sharing
    # 50 ms to the next look, a few to listen
    assert sum(not sharing for when, _, sharing, _ in device.trace if when >= 1002) * STEP_S < 0.1


def test_a_few_requests_are_noticed_when_it_listens_next():
    device = Device(others=lambda now: 300 if now >= 1002 else 0)
    device.go(4)
    assert device.nice.sharing


def test_when_they_have_gone_it_is_fast_again_within_two_seconds():
    device = Device(others=lambda now: 4000 if now < 1005 else 0)
    device.go(5)
    assert device.nice.sharing
    device.go(2)
    assert not device.nice.sharing
    assert device.go(2)[0] > 0.95 * FULL_SPEED


def test_single_requests_of_housekeeping_do_not_hold_it_back_for_long():
    device = Device(others=lambda now: 2)
    assert device.go(30)[0] > 0.8 * FULL_SPEED


@pytest.mark.parametrize("noise", [0.0, 0.2], ids=["calm", "noisy"])
@pytest.mark.parametrize("seed", range(3))
def test_who_takes_all_that_is_left_keeps_nine_tenths(noise, seed):
    device = Device(others=lambda now: 1, closed=True, noise=noise, seed=seed)
    alone = 1 / device.service_s
    device.go(5)
    speed, theirs = device.go(20)
    assert theirs >= 0.9 * alone, f"seed {seed}: {theirs / alone:.3f}"
    assert speed >= FLOOR


def test_the_share_settles_and_does_not_swing():
    device = Device(others=lambda now: 4000)
    device.go(10)
    device.trace.clear()
    device.go(10)
    shares = [share for _, _, _, share in device.trace]
    assert max(shares) - min(shares) <= 0.02 and max(shares) <= SHARE_MAX


def test_who_needs_little_leaves_more():
    busy, light = Device(others=lambda now: 20000), Device(others=lambda now: 100)
    assert light.go(20)[0] > 2 * busy.go(20)[0]
    assert light.nice.share <= SHARE_MAX_LIGHT


def test_a_device_that_becomes_slower_is_read_less_at_once():
    device = Device(others=lambda now: 4000)
    before, _ = device.go(5)
    device.piece_s *= 5
    device.go(0.5)
    after, _ = device.go(1)
    assert after < before / 4
    assert device.nice.share >= SHARE_MIN


@pytest.mark.parametrize("piece_s", [0.02, 1.0, 30.0], ids=str)
def test_it_always_comes_to_its_end(piece_s):
    """However slow the device has become, a mebibyte a second is asked for."""
    device = Device(others=lambda now: 4000, piece_s=piece_s)
    device.go(20)
    assert device.nice.sharing and all(rate >= FLOOR for when, rate, _, _ in device.trace if when > 1000.1)


def test_where_it_is_the_seek_that_counts_it_reads_more_at_once():
    device = Device(others=lambda now: 50, piece_s=0.009, service_s=0.008)
    device.go(10)
    assert device.order.piece == PIECE_SLOW


def test_reads_that_do_not_end_are_not_waited_for_without_end():
    nice = Nice()
    stuck = {"ios": 0, "own_ios": 0, "busy_s": 0, "below": 0, "in_flight": 3, "timed": 0, "timed_s": 0}
    assert nice.look(Sample(now=0, **stuck)).paused
    assert not all([nice.look(Sample(now=0.1 * i, **stuck)).paused for i in range(1, 40)])


def test_what_happens_below_the_device_counts_too():
    nice = Nice()
    quiet = {"ios": 0, "own_ios": 0, "busy_s": 0, "in_flight": 0, "timed": 0, "timed_s": 0}
    for i in range(20):
        nice.look(Sample(now=i * 0.004, below=10 * i, **quiet))
    assert nice.sharing
