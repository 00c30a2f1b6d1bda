"""Which sync points are kept: by count, by an age grid, by the target's floor, and under pressure. Examples, and what holds of any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrep.errors import UsageError
from qrep.retention import POINTS_MAX, Point, Policy, Rule, parse_grid, never_rising, plan

MINUTE, HOUR, DAY, WEEK = 60, 3600, 86400, 7 * 86400
START = 1_800_000_000 // DAY * DAY  # a Friday, 00:00 UTC


def points(*seconds):
    """Points made at these times, oldest first; numbered from 1."""
    return [Point(bytes([number >> 8, number & 255]) * 8, int((START + when) * 1e9), int(when * 1e9)) for number, when in enumerate(seconds, 1)][::-1]


def numbers(ids):
    return [id[0] << 8 | id[1] for id in ids]


def kept(made, **policy):
    return numbers(plan(made, Policy(**{"count": 0, **policy})).keep)


def test_the_newest_are_kept_by_count_and_the_rest_is_cut():
    made = points(*range(10))
    found = plan(made, Policy(count=3))
    assert numbers(found.keep) == [10, 9, 8, 7]
    assert numbers(found.cut) == [6, 5, 4, 3, 2, 1] and found.merge == ()


def test_what_the_device_holds_always_stays():
    assert kept(points(0, 1, 2)) == [3]
    assert plan([], Policy()) == ((), (), ())


def test_a_grid_keeps_the_newest_of_each_of_its_newest_periods():
    made = points(*(hour * HOUR for hour in range(72)))  # three days of hours: 1 is Friday 00:00, 72 Sunday 23:00
    assert kept(made, grid=parse_grid("3x1h")) == [72, 71, 70]
    assert kept(made, grid=parse_grid("2x1h 3x1d")) == [72, 71, 48, 24]
    assert kept(made, grid=parse_grid("2x1w")) == [72]


def test_weeks_begin_on_monday():
    made = points(*(day * DAY for day in range(10)))  # Friday to Sunday of the week after: day 3 (number 4) is a Monday
    assert kept(made, grid=parse_grid("2x1w")) == [10, 3]


def test_a_replica_that_gets_no_runs_loses_nothing():
    """Periods without a sync point do not count, and ages are those at the newest sync point."""
    made = points(0, HOUR, 100 * DAY)
    assert kept(made, grid=parse_grid("3x1h")) == [3, 2, 1]
    assert kept(points(0, DAY), floor_seconds=2 * DAY) == [2, 1]


def test_what_nobody_wants_between_two_that_stay_is_merged():
    found = plan(points(0, 10 * MINUTE, 20 * MINUTE, HOUR), Policy(count=0, grid=parse_grid("2x1h")))
    assert numbers(found.keep) == [4, 3] and numbers(found.cut) == [2, 1] and found.merge == ()
    found = plan(points(0, HOUR, HOUR + 10, 2 * HOUR), Policy(count=0, grid=parse_grid("3x1h")))
    assert numbers(found.keep) == [4, 3, 1] and numbers(found.merge) == [2] and found.cut == ()


def test_a_floor_of_the_target_stands_whatever_the_source_asks_for():
    made = points(*(hour * HOUR for hour in range(48)))
    assert kept(made, floor_points=5) == [48, 47, 46, 45, 44, 43]
    assert kept(made, floor_seconds=DAY) == list(range(48, 24, -1))
    assert kept(made, count=2, grid=parse_grid("1x1d"), floor_points=1) == [48, 47, 46]


def test_a_sync_point_in_use_stays_and_so_does_the_way_to_it():
    made = points(*range(10))
    found = plan(made, Policy(count=2), {made[8].id})
    assert numbers(found.keep) == [10, 9, 8, 2] and numbers(found.cut) == [1]
    assert numbers(found.merge) == [7, 6, 5, 4, 3]


def test_a_time_that_lies_ahead_of_that_of_a_newer_point_counts_as_the_newer_one_s():
    assert never_rising([5, 7, 5, 9, 3, 4]) == [5, 5, 5, 5, 3, 3]
    made = points(0, DAY, 2 * DAY)
    made[2] = made[2]._replace(kept_ns=int(9 * DAY * 1e9))
    assert numbers(plan(made, Policy(count=0, floor_seconds=DAY + 1)).keep) == [3, 2, 1]


def test_a_point_whose_time_is_in_doubt_takes_no_period_and_stays_while_the_grid_reaches_back():
    made = points(*(hour * HOUR for hour in range(10)))
    made[0], made[2] = made[0]._replace(sure=False), made[2]._replace(sure=False, time_ns=made[1].time_ns)
    assert kept(made, grid=parse_grid("3x1h")) == [10, 9, 8, 7, 6]
    assert kept(made, grid=parse_grid("2x1h")) == [10, 9, 7], "the third is two hours old"
    assert kept(made) == [10]


def test_a_burst_of_runs_never_pushes_out_what_the_floor_protects():
    """A source that commits as often as it can for ever: the hourly sync points of the day before are still there."""
    day = [hour * HOUR for hour in range(24)]
    burst = [DAY + second for second in range(1000)]
    found = plan(points(*day, *burst), Policy(count=0, floor_seconds=7 * DAY))
    assert len(found.keep) == POINTS_MAX + 1
    assert set(range(1, 25)) <= set(numbers(found.keep)), "the old ones lie far apart, the new ones close together"
    assert found.cut == ()


@pytest.mark.parametrize("text", ["1h", "x1h", "0x1h", "257x1h", "3x5s", "3x1y", "24x1h,7x1d", "1x" + "9" * 50 + "d", "3x1d" + " 1x1h" * 8, "²x1h"])
def test_a_grid_that_means_nothing_is_refused_with_an_example(text):
    with pytest.raises(UsageError) as refused:
        parse_grid(text)
    assert refused.value.hint


def test_a_grid_is_read():
    assert parse_grid("24x1h  7x1d 4x1w") == (Rule(24, HOUR), Rule(7, DAY), Rule(4, WEEK))
    assert parse_grid("") == ()


seconds = st.lists(st.integers(0, 400 * DAY), max_size=400).map(sorted)
policies = st.builds(
    Policy, count=st.integers(0, 300), floor_points=st.integers(0, 300), floor_seconds=st.sampled_from([0, HOUR, DAY, 90 * DAY]),
    grid=st.lists(st.builds(Rule, st.integers(1, 256), st.sampled_from([MINUTE, HOUR, DAY, WEEK])), max_size=4).map(tuple),
)  # fmt: skip


@given(seconds, policies, st.sets(st.integers(0, 400), max_size=5))
def test_whatever_is_asked_for_a_plan_is_a_partition_in_order_and_keeps_what_must_stay(when, policy, in_use):
    made = points(*when)
    pinned = {made[i].id for i in in_use if i < len(made)}
    found = plan(made, policy, pinned)
    everything = [point.id for point in made]
    assert sorted(found.keep + found.cut + found.merge) == sorted(everything)
    for part in found:
        assert list(part) == [id for id in everything if id in set(part)], "newest first"
    if made:
        assert found.keep[0] == everything[0] and pinned <= set(found.keep)
        assert list(found.cut) == everything[len(found.keep) + len(found.merge) :], "what is cut is older than all that stays"
    assert len(found.keep) <= POINTS_MAX + 1
    newest = set(everything[1 : 1 + min(policy.floor_points, POINTS_MAX - len(pinned))])
    assert newest <= set(found.keep)


@given(seconds, policies)
def test_doing_what_was_planned_leaves_nothing_to_do(when, policy):
    made = points(*when)
    found = plan(made, policy)
    left = [point for point in made if point.id in set(found.keep)]
    again = plan(left, policy)
    assert again == (found.keep, (), ())


@given(seconds, policies, policies)
def test_no_wish_of_a_source_takes_away_what_the_floor_keeps(when, one, other):
    """count and grid are the source's; whatever it says, the floor's own points stay."""
    floor = {"floor_points": min(one.floor_points, 100), "floor_seconds": one.floor_seconds}
    made = points(*when[-200:])
    alone = set(plan(made, Policy(count=0, **floor)).keep)
    assert alone <= set(plan(made, Policy(count=other.count, grid=other.grid, **floor)).keep)
