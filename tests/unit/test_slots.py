"""Slots: as many runs as may go on, the others in the order in which they came."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from qrep.jobs.slots import Slots


def test_the_first_that_came_is_the_next_that_runs_whoever_asks_in_between():
    slots = Slots(2)
    turns = [slots.turn() for _ in range(5)]
    assert [turn.granted for turn in turns] == [True, True, False, False, False]
    assert [turn.place() for turn in turns] == [None, None, (1, 3), (2, 3), (3, 3)]
    slots.end(turns[1])
    again = slots.turn()  # the job that has just run asks at once, and goes behind
    assert turns[2].granted and not again.granted and again.place() == (3, 3)
    for turn in (turns[0], turns[2], turns[3], turns[4]):
        slots.end(turn)
    assert again.granted


def test_a_turn_that_is_stopped_leaves_the_queue_and_one_that_is_granted_keeps_its_slot():
    slots = Slots(1)
    with slots.turn() as first:
        second, third = slots.turn(), slots.turn()
        waited = []
        thread = threading.Thread(target=lambda: waited.append(second.wait()))
        thread.start()
        second.stop()
        thread.join()
        assert waited == [False] and third.place() == (1, 1)
        first.stop()
        assert first.granted and not third.granted
    assert third.wait() and not slots.turn().granted


def test_a_slot_is_given_back_once_also_when_its_run_raises():
    slots = Slots(1)
    try:
        with slots.turn() as turn:
            slots.end(turn)
            raise OSError("no device")
    except OSError:
        pass
    assert slots.turn().granted and not slots.turn().granted


def test_a_limit_that_is_raised_lets_those_who_wait_run_and_one_that_is_lowered_ends_nothing():
    slots = Slots(1)
    turns = [slots.turn() for _ in range(4)]
    slots.set_limit(3)
    assert [turn.granted for turn in turns] == [True, True, True, False]
    slots.set_limit(1)
    slots.end(turns[0])
    slots.end(turns[1])
    assert turns[2].granted and not turns[3].granted
    slots.end(turns[2])
    assert turns[3].granted


@given(st.lists(st.tuples(st.sampled_from(["ask", "end", "leave", "limit"]), st.integers(0, 9)), max_size=60))
def test_whatever_happens_no_more_run_than_may_and_nobody_overtakes(steps):
    slots, turns, limit, left = Slots(3), [], 3, set()
    for what, number in steps:
        open_turns = [turn for turn in turns if turn not in left]
        if what == "ask":
            turns.append(slots.turn())
        elif what == "limit":
            slots.set_limit(limit := number)
        elif open_turns:
            turn = open_turns[number % len(open_turns)]
            if what == "end" or not turn.granted:
                (slots.end if what == "end" else slots.leave)(turn)
                left.add(turn)
        still = [turn for turn in turns if turn not in left]
        running = [turn for turn in still if turn.granted]
        waiting = [turn for turn in still if not turn.granted]
        assert [turn.place() for turn in waiting] == [(place, len(waiting)) for place in range(1, len(waiting) + 1)]
        assert not waiting or len(running) >= limit
        assert not waiting or not running or turns.index(running[-1]) < turns.index(waiting[0])


def test_many_threads_each_get_their_turns_and_never_more_at_once_than_may():
    slots, lock = Slots(4), threading.Lock()
    going, most, done = 0, 0, [0] * 16

    def run(number):
        nonlocal going, most
        for _ in range(50):
            with slots.turn() as turn:
                assert turn.wait()
                with lock:
                    going += 1
                    most = max(most, going)
                done[number] += 1
                with lock:
                    going -= 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 4 and done == [50] * 16
    assert all(slots.turn().granted for _ in range(4))
