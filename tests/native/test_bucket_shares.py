"""Trees of buckets against max-min fairness, in virtual time: who gets how much, over which window, and when somebody comes or goes."""

import random

import pytest
from bucket_rig import MB, Lane, Level, Rig, S, fair_shares, most_in, sum_of
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep._native.bucket import Bucket

FAST = 10_000 * MB


def jobs_of(*lanes):
    return [Level(0, list(each)) for each in lanes]


def lanes_below(level):
    return [level] if isinstance(level, Lane) else [lane for each in level.below for lane in lanes_below(each)]


def shares(tree, seconds=4, late_ns=lambda: 0, warm=0.5):
    """{id(Lane): bytes/s} after a start."""
    rig = Rig(tree, late_ns)
    rig.run(warm)
    before = dict(rig.taken)
    rig.run(warm + seconds)
    return {lane: (taken - before[lane]) / seconds for lane, taken in rig.taken.items()}


lanes = st.builds(Lane, st.sampled_from([3 * MB, 10 * MB, 40 * MB, FAST]))
jobs = st.builds(Level, st.just(0), st.lists(lanes, min_size=1, max_size=4))
groups = st.builds(Level, st.sampled_from([0, 8 * MB, 30 * MB, 100 * MB]), st.lists(jobs, min_size=1, max_size=3))
trees = st.builds(Level, st.sampled_from([20 * MB, 60 * MB, 150 * MB]), st.lists(groups, min_size=1, max_size=3))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(trees, st.sampled_from([0, 100_000, 1_500_000]), st.randoms(use_true_random=False))
def test_every_lane_gets_its_max_min_share(tree, late, chance):
    # A piece is 2 ms of the rate, and a connection that asks one ahead may still have to wait for its turn if many come at once: hence 2 %.
    limited = sum(fair_shares(tree, 0).values())
    found = shares(tree, 2, (lambda: chance.randrange(late)) if late else (lambda: 0))
    for lane, share in fair_shares(tree, 0).items():
        assert abs(found[lane] - share) <= 0.03 * share + 0.02 * limited, f"{found[lane] / MB:.2f} instead of {share / MB:.2f} MB/s"
    assert sum(found.values()) >= 0.985 * limited, "something that was earned was given to nobody"


@pytest.mark.parametrize("rate", [64 << 10, MB, 100 * MB, 600 * MB])
def test_one_connection_gets_as_much_as_eight_of_another_job(rate):
    one, eight = jobs_of([Lane(FAST)], [Lane(FAST) for _ in range(8)])
    chance = random.Random(rate)
    found = shares(Level(rate, [one, eight]), 8 if rate < MB else 3, lambda: chance.randrange(500_000))
    assert sum_of(found, one) == pytest.approx(rate / 2, rel=0.03)
    assert [found[id(lane)] for lane in eight.below] == pytest.approx([rate / 16] * 8, rel=0.1)


def test_requests_of_2_mib_get_as_much_as_requests_of_64_kib():
    large, small = Lane(FAST, 2 << 20), Lane(FAST, 64 << 10)
    found = shares(Level(100 * MB, jobs_of([large], [small])))
    assert [found[id(large)], found[id(small)]] == pytest.approx([50 * MB] * 2, rel=0.02)


def test_what_a_slow_job_leaves_goes_to_the_others_alike_and_a_job_at_its_share_keeps_it():
    slow, just, fast, other = Lane(10 * MB), Lane(30 * MB), Lane(FAST), Lane(FAST)
    found = shares(Level(100 * MB, jobs_of([slow], [just], [fast], [other])))
    assert [found[id(lane)] / MB for lane in (slow, just, fast, other)] == pytest.approx([10, 30, 30, 30], rel=0.02)


def test_a_group_at_its_own_rate_does_not_hold_back_its_siblings_nor_they_it():
    a, b, c = Lane(FAST), Lane(FAST), Lane(FAST)
    tree = Level(100 * MB, [Level(20 * MB, jobs_of([a])), Level(500 * MB, jobs_of([b], [c]))])
    found = shares(tree)
    assert [found[id(lane)] / MB for lane in (a, b, c)] == pytest.approx([20, 40, 40], rel=0.02)


def test_a_job_that_begins_gets_its_share_at_once_and_one_that_ends_leaves_its_own_at_once():
    first, second = Lane(FAST), Lane(FAST, on=(1.0, 2.0))
    rig, at = Rig(Level(100 * MB, jobs_of([first], [second]))), {}
    for tenth in range(1, 31):
        rig.run(tenth / 10)
        at[tenth] = rig.taken[id(first)]
    speed = {tenth: (at[tenth] - at[tenth - 1]) * 10 / MB for tenth in range(2, 31)}
    assert all(97 <= speed[tenth] <= 103 for tenth in [*range(2, 10), *range(22, 31)])
    # A newcomer is let in as one that was late for its turn, by 64 ms at most: less than a tenth of a second of the others' share.
    assert 10 <= speed[11] <= 51 and all(48 <= speed[tenth] <= 52 for tenth in range(12, 21))


@pytest.mark.parametrize("rate", [MB, 10 * MB, 100 * MB, 600 * MB])
@pytest.mark.parametrize("count", [1, 32])
def test_no_tenth_of_a_second_has_more_than_a_quarter_above_the_rate(rate, count):
    chance = random.Random(count)
    rig = Rig(Level(rate, jobs_of(*([Lane(FAST)] for _ in range(count)))), lambda: chance.randrange(4_000_000))
    rig.run(1.5)
    assert most_in(rig.history, 0.1) <= 1.25 * rate / 10
    assert sum(rig.taken.values()) >= 0.98 * 1.5 * rate


@pytest.mark.parametrize("count", [1, 8])
def test_lanes_that_are_all_late_at_once_get_back_what_they_missed_and_no_more(count):
    chance = random.Random(count)
    rig = Rig(Level(100 * MB, jobs_of(*([Lane(FAST)] for _ in range(count)))))
    rig.late_ns = lambda: max(0, stall[0] - rig.now) + chance.randrange(200_000)  # until the end of a stall nobody wakes
    stall, total = [0], []
    for half in range(1, 21):
        if half % 5 == 0:
            stall[0] = rig.now + 70_000_000
        rig.run(half / 2)
        total.append(sum(rig.taken.values()))
    for first in range(10):
        assert 0.98 * 500 * MB <= total[first + 10] - total[first] <= 1.02 * 500 * MB
    assert most_in(rig.history, 0.1) <= 1.25 * 10 * MB


def test_what_nobody_waited_for_is_not_owed():
    bucket = Bucket(1000, 1000, now_ns=0)
    assert bucket.take(1000, now_ns=0) == 0
    assert bucket.take(500, now_ns=60 * S) == bucket.take(500, now_ns=60 * S) == 0
    assert bucket.take(500, now_ns=60 * S) == S // 2


def test_a_new_rate_counts_for_lanes_that_wait_and_no_debt_outlives_it():
    tree = Level(600 * MB, jobs_of([Lane(FAST)], [Lane(FAST)]))
    rig = Rig(tree)
    rig.run(0.5)
    rig.buckets[id(tree)].set_rate(MB, now_ns=rig.now)
    before = sum(rig.taken.values())
    rig.run(1.0)
    assert 0.45 * MB <= sum(rig.taken.values()) - before <= 0.56 * MB + 2 * (1 << 20)  # what had been granted was on its way
    rig.buckets[id(tree)].set_rate(0, now_ns=rig.now)
    before = sum(rig.taken.values())
    rig.run(1.06)  # the longest sleep is 50 ms
    assert sum(rig.taken.values()) - before > 10 * MB


def test_a_job_that_moves_to_another_group_shares_there_with_what_it_waits_for():
    node = Bucket(0, now_ns=0)
    slow, fast = Bucket(1000, 1000, node, now_ns=0), Bucket(10_000_000, parent=node, now_ns=0)
    job = Bucket(0, parent=slow, now_ns=0)
    lane = Bucket(0, parent=job, now_ns=0)
    assert lane.take(1000, now_ns=0) == 0 < lane.take(400, now_ns=0)
    job.move(fast)
    assert job.parent is fast and lane.take(400, now_ns=0) == 0
    assert (slow.taken, fast.taken, node.taken) == (1000, 400, 1400)
    with pytest.raises(ValueError, match="below itself"):
        job.move(lane)
    with pytest.raises(ValueError, match="inside its tree"):
        job.move(Bucket(0))


def test_a_lane_that_goes_away_gives_back_what_it_was_granted_and_lets_the_others_pass():
    shared = Bucket(1000, 1000, now_ns=0)
    gone, other = Bucket(0, parent=shared, now_ns=0), Bucket(0, parent=shared, now_ns=0)
    assert other.take(600, now_ns=0) == gone.take(400, now_ns=0) == 0 < gone.take(300, now_ns=0)
    assert other.take(500, now_ns=S // 2) > 0  # hands out what is there: to the other one first, which has had less
    assert shared.taken == 1300
    gone.leave()
    assert shared.taken == 1000 and other.take(500, now_ns=S // 2) == 0
    assert gone.take(400, now_ns=S // 2) > 0
    del gone  # with a request that stands
    assert other.take(500, now_ns=S) == 0


def test_what_was_asked_for_ahead_is_collected_without_waiting():
    bucket = Bucket(1000, 1000, now_ns=0)
    assert bucket.take(1000, now_ns=0) == 0
    bucket.ask(300, now_ns=0)
    assert bucket.take(300, now_ns=S * 3 // 10) == 0
    bucket.ask(300, now_ns=S)
    assert bucket.take(200, now_ns=S) == 0 and bucket.taken == 1500  # another size than was asked for is a request of its own
