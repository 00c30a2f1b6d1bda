"""Choosing among a job's paths: a dead one is never taken before a living one, and a path that flaps moves nobody for long."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qrep.jobs.paths import DOWN, FORGIVEN_S, HOLD_FIRST_S, HOLD_MAX_S, UNKNOWN, UP, Paths


def codes(told):
    return [code for code, _index, _text in told]


def test_the_first_path_is_taken_as_long_as_nothing_is_known():
    paths = Paths(3)
    assert paths.order(0.0) == [0, 1, 2] and paths.current(0.0) == 0 and paths.better(0.0) is None


def test_a_lost_path_is_left_for_the_next_and_it_is_told_why():
    paths = Paths(2)
    paths.taken(0, 0.0)
    assert paths.failed(0, 5.0, "no route to host") == [("path-down", 0, "no route to host")]
    assert paths.order(5.0) == [1, 0]
    assert paths.taken(1, 5.2) == [("path-switched", 1, "from path 1 to path 2: no route to host")]
    assert paths.failed(0, 7.0, "timed out") == [] and paths.paths[0].reason == "timed out" and paths.paths[0].since == 5.0


def test_a_lost_path_that_answers_a_probe_at_once_is_not_taken_before_one_that_was_not_lost():
    """Such as one that lets questions through and swallows data."""
    paths = Paths(2)
    paths.taken(0, 0.0)
    paths.succeeded(1, 0.0)
    paths.failed(0, 5.0, "nothing moved")
    paths.succeeded(0, 5.1)
    assert paths.order(5.2) == [1, 0]
    paths.taken(1, 5.2)
    assert paths.order(5.3) == [1, 0] and paths.better(5.1 + HOLD_FIRST_S) == 0
    alone = Paths(1)
    alone.taken(0, 0.0)
    alone.failed(0, 5.0, "nothing moved")
    assert alone.order(5.1) == [0]


def test_when_all_are_down_all_are_tried_the_preferred_one_first():
    paths = Paths(3, preferred=1)
    for index in range(3):
        paths.failed(index, 1.0, "gone")
    assert paths.order(1.0) == [1, 0, 2]


def test_the_preferred_path_is_returned_to_when_it_has_been_well_for_its_hold():
    paths = Paths(2)
    paths.taken(0, 0.0)
    paths.failed(0, 10.0, "gone")
    paths.taken(1, 10.0)
    assert codes(paths.succeeded(0, 100.0)) == ["path-up"]
    assert paths.better(100.0 + HOLD_FIRST_S - 1) is None and paths.order(100.0 + HOLD_FIRST_S - 1) == [1, 0]
    assert paths.hold_left_s(0, 101.0) == HOLD_FIRST_S - 1 and paths.hold_left_s(1, 101.0) is None
    assert paths.better(100.0 + HOLD_FIRST_S) == 0 and paths.order(100.0 + HOLD_FIRST_S) == [0, 1]
    (told,) = paths.taken(0, 121.0)
    assert told[0] == "path-switched" and "has been well" in told[2]


@pytest.mark.parametrize(("failures", "hold_s"), [(1, 20), (2, 40), (3, 80), (7, 1280), (8, 1280), (400, 1280)])
def test_each_failure_doubles_the_hold_up_to_a_limit(failures, hold_s):
    paths = Paths(2)
    for turn in range(failures):
        paths.succeeded(0, 10.0 * turn)
        paths.failed(0, 10.0 * turn + 1, "gone")
    assert paths.paths[0].hold_s(HOLD_FIRST_S) == hold_s <= HOLD_MAX_S


def test_failures_are_forgotten_after_an_hour_of_health():
    paths = Paths(2)
    for turn in range(5):
        paths.succeeded(0, 10.0 * turn)
        paths.failed(0, 10.0 * turn + 1, "gone")
    paths.succeeded(0, 100.0)
    paths.succeeded(0, 100.0 + FORGIVEN_S)
    assert paths.paths[0].failures == 0
    paths.failed(0, 100.0 + FORGIVEN_S, "gone")
    assert paths.paths[0].failures == 1


def test_a_path_that_a_person_chose_is_taken_and_returned_to():
    paths = Paths(2)
    paths.taken(0, 0.0)
    paths.succeeded(1, 0.0)
    paths.use(1)
    assert paths.order(1.0) == [1, 0]
    assert paths.taken(1, 1.0) == [("path-switched", 1, "from path 1 to path 2: as it was asked for")]
    assert paths.better(1e9) is None
    paths.failed(1, 5.0, "gone")
    paths.taken(0, 5.0)
    paths.succeeded(1, 6.0)
    assert paths.better(6.0 + HOLD_FIRST_S) == 1


def test_a_path_that_never_failed_is_returned_to_at_once():
    """An agent that has just started and reached only the second one: the first answers its first probe."""
    paths = Paths(2)
    paths.taken(1, 0.0)
    paths.succeeded(0, 1.0)
    assert paths.better(1.0) == 0


EVENTS = st.lists(
    st.tuples(st.sampled_from(["succeeded", "failed", "dial", "use", "return"]), st.integers(0, 3), st.floats(0.01, 100)), max_size=80
)


@settings(max_examples=300, deadline=None)
@given(count=st.integers(1, 4), events=EVENTS)
def test_whatever_happens_a_dead_path_is_never_tried_before_one_that_is_not(count, events):
    paths, now, down, returned = Paths(count), 0.0, set(), {}
    for event, index, pause in events:
        now += pause
        index %= count
        if event == "succeeded":
            paths.succeeded(index, now)
            down.discard(index)
        elif event == "failed":
            paths.failed(index, now, "gone")
            down.add(index)
        elif event == "use":
            paths.use(index)
        elif event == "return" and paths.better(now) is not None:
            better = paths.better(now)
            assert better not in down and better != paths.active
            path = paths.paths[better]
            assert now - path.since >= path.hold_s(HOLD_FIRST_S)
            paths.taken(better, now)
            returned[better] = now
        elif event == "dial":
            first = paths.order(now)[0]
            if first not in down:
                paths.taken(first, now)
                assert paths.active == first
        order = paths.order(now)
        assert sorted(order) == list(range(count))
        assert order[0] not in down or len(down) == count
        assert [index in down for index in order[1:]] == sorted(index in down for index in order[1:])
        assert {index for index, path in enumerate(paths.paths) if path.state == DOWN} == down
        assert all((path.since is None) == (path.state == UNKNOWN) for path in paths.paths)
        for index, path in enumerate(paths.paths):
            assert path.state in (UNKNOWN, UP, DOWN) and bool(path.reason) == (index in down)


@settings(max_examples=100, deadline=None)
@given(ups=st.lists(st.floats(1, 300), min_size=1, max_size=200), downs=st.floats(1, 60))
def test_a_path_that_flaps_is_returned_to_a_bounded_number_of_times(ups, downs):
    """Each return costs a failure, and each failure doubles how long the path must be well before the next."""
    paths, now, switches = Paths(2), 0.0, 0
    paths.taken(0, now)
    paths.succeeded(1, now)
    for up in ups:
        paths.failed(0, now, "gone")
        if paths.active == 0:
            paths.taken(1, now)
        now += downs
        paths.succeeded(0, now)
        for _second in range(int(up)):
            now += 1
            if paths.better(now) == 0:
                paths.taken(0, now)
                switches += 1
                break
    # Well for at most 300 s at a time: with the fifth failure the hold is 20 * 2**4 = 320 s.
    assert switches <= 4
