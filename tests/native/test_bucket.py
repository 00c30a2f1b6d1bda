"""The token bucket's arithmetic, with a clock of our own, against exact sums."""

import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrep._native.bucket import Bucket

S = 10**9
KIB = 1 << 10
rates = st.integers(1, 12_500_000_000)
capacities = st.integers(1, 1 << 26)
pauses = st.lists(st.integers(0, 3 * S), min_size=1, max_size=60)


def take_after_waiting(bucket, size, now):
    """Ask, wait as told, ask again, as a lane does: the time at which it was granted."""
    for _ in range(3):
        wait_ns = bucket.take(size, now_ns=now)
        if wait_ns == 0:
            return now
        now += wait_ns
    pytest.fail(f"still told to wait {wait_ns} ns after waiting as told")


@given(rates, capacities, st.lists(st.tuples(st.integers(0, 3 * S), st.integers(1, 1 << 26)), min_size=1, max_size=60))
def test_never_more_than_rate_times_time_plus_capacity(rate, capacity, asked):
    bucket = Bucket(rate, capacity, now_ns=0)
    now = granted = 0
    for pause, size in asked:
        now += pause
        size = min(size, capacity // 2)
        if bucket.take(size, now_ns=now) == 0:
            granted += size
        assert granted <= Fraction(rate * now, S) + capacity
        assert bucket.taken == granted


@given(rates, capacities, st.integers(1, 1 << 27), pauses)
def test_whoever_waits_as_told_is_granted_and_never_early(rate, capacity, size, waits):
    bucket = Bucket(rate, capacity, now_ns=0)
    now = granted = 0
    for pause in waits:
        # an hour is the longest wait that is told; slow rates with large frames would need more
        if Fraction(2 * max(size, capacity), rate) > 3000:
            return
        now = take_after_waiting(bucket, size, now + pause)
        granted += size
        # what a large frame has above half the capacity comes on top
        assert granted <= Fraction(rate * now, S) + capacity + max(0, size - capacity // 2)


@given(rates, st.integers(1, 1 << 20), st.lists(st.integers(1, 1_000_000), min_size=1, max_size=300))
def test_refilling_in_small_steps_loses_nothing(rate, capacity, steps):
    once, often = Bucket(rate, capacity, now_ns=0), Bucket(rate, capacity, now_ns=0)
    for bucket in (once, often):
        assert bucket.take(capacity, now_ns=0) == 0
    now = 0
    for step in steps:
        now += step
        often.take(0, now_ns=now)
    once.take(0, now_ns=now)
    assert often.level == once.level == min(capacity, rate * now // S)


@pytest.mark.parametrize("rate", [1, 7, 333, 10_000_000, 600_000_000, 12_500_000_000])
def test_exact_over_a_long_time(rate):
    size = max(1, rate // 1000)
    bucket = Bucket(rate, 2 * size, now_ns=0)
    now = 0
    for _ in range(20_000):
        now = take_after_waiting(bucket, size, now)
    # Two came out of the full bucket; the other 19,998 take size / rate each, rounded up by less than 1 ns in all, not each.
    exact = Fraction(19_998 * size * S, rate)
    assert exact <= now <= exact + 1


def test_idle_at_12_5_GB_per_s_for_years_does_not_overflow():
    # rate * elapsed passes 2^64 after 1.48 s; a year is 3.2e16 ns
    bucket = Bucket(12_500_000_000, 25_000_000, now_ns=0)
    assert bucket.take(25_000_000, now_ns=0) == 0
    for idle in (2 * S, 365 * 86400 * S, 500 * 365 * 86400 * S):
        now = 10 * S + idle
        assert bucket.take(12_500_000, now_ns=now) == 0 == bucket.take(12_500_000, now_ns=now)
        assert bucket.level == 0
        assert bucket.take(12_500, now_ns=now) == 1000  # 12,500 bytes at 12.5 GB/s


def test_the_clock_of_another_core_may_be_behind():
    bucket = Bucket(1000, 1000, now_ns=5 * S)
    assert bucket.take(1000, now_ns=5 * S) == 0
    assert bucket.take(1, now_ns=4 * S) == S // 1000
    assert bucket.take(1, now_ns=5 * S + S // 1000) == 0


def test_a_frame_larger_than_half_the_bucket_goes_when_it_is_half_full_and_is_paid_after():
    bucket = Bucket(1000, 200, now_ns=0)
    assert bucket.take(1100, now_ns=0) == 0  # 900 bytes of debt
    assert bucket.level == -900
    assert bucket.take(1000, now_ns=0) == S  # 900 of debt and half a bucket of 200, at 1000 per second
    assert bucket.take(1000, now_ns=S) == 0


def test_a_sleeper_that_is_late_by_half_the_burst_loses_nothing():
    # 100 MB/s, frames of 1 MB, 16 ms of burst: woken 7 ms late each time. The bucket starts full, so two frames come free; 998 take 10 ms each.
    bucket = Bucket(100_000_000, now_ns=0)
    now = 0
    for _ in range(1000):
        wait_ns = bucket.take(1_000_000, now_ns=now)
        while wait_ns:
            now += wait_ns + 7_000_000
            wait_ns = bucket.take(1_000_000, now_ns=now)
    assert 998 * S // 100 - 10_000_000 <= now <= 998 * S // 100 + 10_000_000


def test_small_frames_do_not_starve_a_large_one():
    shared = Bucket(1000, 1000, now_ns=0)
    large, small = Bucket(0, parent=shared, now_ns=0), Bucket(0, parent=shared, now_ns=0)
    assert large.take(900, now_ns=0) == 0  # 100 are left, and it has had its share for some time
    now = 0
    while large.take(400, now_ns=now):
        small.take(10, now_ns=now)
        now += S // 1000
    # It waits for 500 bytes at most, half of the bucket, whatever the small ones take before their turn is over.
    assert small.taken <= 920 and now <= S * 13 // 10


def test_default_capacity_is_16_ms_of_the_rate_and_at_least_1_kib():
    assert Bucket(64 * KIB // 2).capacity == KIB
    assert Bucket(600_000_000).capacity == 9_600_000


def test_unlimited_grants_everything_and_counts_it():
    bucket = Bucket(0)
    assert [bucket.take(1 << 40) for _ in range(10)] == [0] * 10
    assert (bucket.rate, bucket.taken) == (0, 10 << 40)


def test_a_new_rate_counts_from_now_on():
    bucket = Bucket(1000, 1000, now_ns=0)
    bucket.take(1000, now_ns=0)
    bucket.set_rate(10, 1000, now_ns=S // 2)  # half a second at 1000: 500 bytes were earned
    bucket.take(100, now_ns=S // 2)
    assert bucket.take(410, now_ns=S // 2) == S  # 10 more at 10 per second
    bucket.set_rate(0, now_ns=S)
    assert bucket.take(1 << 30, now_ns=S) == 0
    bucket.set_rate(1000, 100, now_ns=2 * S)
    assert bucket.level == 100


def test_bytes_are_taken_from_the_whole_chain_or_not_at_all():
    node = Bucket(1000, 1000, now_ns=0)
    job = Bucket(0, parent=node, now_ns=0)
    one, two = Bucket(10_000, 1200, job, now_ns=0), Bucket(10_000, 1200, job, now_ns=0)
    assert one.take(600, now_ns=0) == 0
    assert two.take(600, now_ns=0) == 100 * S // 1000  # node has 400 left and grants from 500 on
    assert (one.taken, two.taken, job.taken, node.taken, two.level) == (600, 0, 600, 600, 1200)
    assert two.take(600, now_ns=S // 10) == 0  # 500 - 600
    two.give_back(100)
    assert (two.taken, job.taken, node.taken, node.level) == (500, 1100, 1100, 0)
    assert two.parent is job and job.parent is node


@given(st.integers(1, 10**9), st.lists(st.tuples(st.integers(0, 1), st.integers(0, S), st.integers(1, 1 << 20)), max_size=60))
def test_a_parent_bounds_the_sum_of_its_children(rate, asked):
    parent = Bucket(rate, 1 << 20, now_ns=0)
    children = [Bucket(0, parent=parent, now_ns=0), Bucket(2 * rate, 1 << 20, parent, now_ns=0)]
    now = 0
    for which, pause, size in asked:
        now += pause
        children[which].take(size, now_ns=now)
        assert children[0].taken + children[1].taken == parent.taken <= Fraction(rate * now, S) + (3 << 19)


def test_threads_that_share_a_bucket_get_the_rate_together():
    # 4 threads, 20 MB/s with 64 KiB of burst, 0.3 s: 6 MB and not a frame more
    started = time.monotonic_ns()
    shared = Bucket(20_000_000, 64 * KIB, now_ns=started)
    children = [Bucket(0, parent=shared) for _ in range(4)]

    def lane(bucket):
        while time.monotonic_ns() < started + S * 3 // 10:
            wait_ns = bucket.take(16 * KIB)
            time.sleep(min(wait_ns, S // 100) / S)

    threads = [threading.Thread(target=lane, args=[child]) for child in children]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic_ns() - started
    assert sum(child.taken for child in children) == shared.taken
    # The least is what threads get that a busy machine lets run for a sixth of the time.
    assert 1_000_000 < shared.taken <= 20_000_000 * elapsed / S + 80 * KIB
    assert all(child.taken for child in children)


def test_what_was_granted_before_a_move_and_is_given_back_after_it_takes_nothing_from_the_new_parent():
    now = 1_000_000_000
    root = Bucket(0, now_ns=now)
    before, after = (Bucket(1 << 20, parent=root, now_ns=now) for _ in range(2))
    job = Bucket(0, parent=before, now_ns=now)
    lane = Bucket(0, parent=job, now_ns=now)
    lane.ask(4096, now_ns=now)  # granted at once, and not collected
    assert before.taken == 4096
    job.move(after)
    lane.leave()
    assert (after.taken, job.taken, lane.taken) == (0, 0, 0) and after.level == after.capacity
