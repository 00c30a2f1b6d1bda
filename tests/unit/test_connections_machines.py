"""Data connections that come and go while a run sends: what both machines say, take and refuse."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.records import TargetRecord
from qrep.protocol.source_machine import SourceMachine
from qrep.protocol.target_machine import TargetMachine
from qrep.source.connections import Connections

JOB, VOLUME, T, NEW = (bytes([i]) * 16 for i in range(1, 5))
SIZE, LEAF, GRANULE = 1 << 20, 4096, 16384
DIGEST, KEY, TOKENS, MORE = bytes(32), b"k" * 32, [b"a" * 16, b"b" * 16], [b"c" * 16, b"d" * 16]


def names(actions):
    return [type(action).__name__ for action in actions]


def replies(actions):
    return [action.message for action in actions if isinstance(action, do.Reply)]


def said(actions):
    return [action.message for action in actions if isinstance(action, do.Send)]


def hello(epoch):
    return say.Hello(1, 1, JOB, VOLUME, epoch, SIZE, LEAF, GRANULE, 512, False, [])


def begun():
    """A target whose attempt 7 is open over two connections."""
    record = TargetRecord(volume_id=VOLUME, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, committed_id=T, committed_counter=5)
    target = TargetMachine(record, capacity=SIZE, sector_size=512)
    target.start(False)
    target.connected("a")
    target.message("a", hello(1))
    target.message("a", say.Begin(T, NEW, 7, 2, LEAF))
    return target


def prepared():
    target = begun()
    target.message("a", say.Prepare(7, 3, DIGEST, True, 99, "", ""))
    target.manifest_collected(3, DIGEST, 0)
    return target


def state(source, **changes):
    fields = dict(version=1, committed=T, counter=5, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, role=1, history=[], open_new=say.NO_ID,
                  open_attempt=0, resumable=False, sector_size=512, max_epoch=source._epoch, features=[])  # fmt: skip
    return say.State(**{**fields, **changes})


def sending():
    """A source that sends attempt 7 over two connections."""
    source = SourceMachine(
        job_id=JOB, volume_id=VOLUME, shape=(SIZE, LEAF, GRANULE, 512), map_tag=T, pending_new=None, record=None, epoch=0,
        draw=lambda size: NEW if size == 16 else (7).to_bytes(8, "little"),
    )  # fmt: skip
    source.connected()
    source.message(state(source))
    source.frozen("snap", False, 1)
    source.message(say.Began(7, source._epoch, KEY, TOKENS))
    assert source.phase == "sending"
    return source


# ---- the target ----


def test_more_lanes_are_numbered_behind_those_that_were_ever_there():
    target = begun()  # with two
    assert target.message("a", say.AddConnections(7, 3)) == [do.AddLanes(2, 3), do.SendAdded("a", 7)]
    target.connections_ended(4)
    assert target.message("a", say.AddConnections(7, 1)) == [do.AddLanes(5, 1), do.SendAdded("a", 7)]
    assert target.phase == "open"


def test_no_more_than_sixteen_are_there_at_a_time_and_the_refusal_leaves_the_attempt_to_be_resumed():
    target = begun()
    assert names(target.message("a", say.AddConnections(7, 14))) == ["AddLanes", "SendAdded"]
    actions = target.message("a", say.AddConnections(7, 1))
    assert names(actions) == ["Reply", "CloseSession", "DrainLanes"]
    assert actions[0].message.code == "protocol"
    target.connected("b")
    target.message("b", hello(2))
    assert names(target.message("b", say.Resume(7, 16, LEAF, True))) == ["StartLanes", "SendResumed"]
    assert names(target.message("b", say.AddConnections(7, 1)))[:2] == ["Reply", "CloseSession"]


def test_places_of_ended_connections_are_given_again_numbers_never_and_they_end():
    target, granted = begun(), 2
    while granted + 16 <= say.CONNECTION_NUMBERS_MAX:
        target.connections_ended(granted)  # all of them
        [lanes, _] = target.message("a", say.AddConnections(7, 16))
        assert lanes == do.AddLanes(granted, 16)
        granted += 16
    target.connections_ended(granted)
    assert names(target.message("a", say.AddConnections(7, say.CONNECTION_NUMBERS_MAX - granted + 1)))[:2] == ["Reply", "CloseSession"]


def test_what_was_asked_for_while_the_lanes_ended_is_refused_without_closing():
    target = begun()
    target.lanes_failed("connection", "cut")
    assert [message.code for message in replies(target.message("a", say.AddConnections(7, 1)))] == ["attempt-gone"]
    idle = begun()
    idle.message("a", say.Abort(7, "why"))
    idle.undo_restored()
    assert idle.phase == "idle"
    assert [message.code for message in replies(idle.message("a", say.AddConnections(7, 1)))] == ["attempt-gone"]
    other = begun()
    assert [message.code for message in replies(other.message("a", say.AddConnections(8, 1)))] == ["attempt-gone"]


def test_after_prepare_no_connection_is_added():
    target = prepared()
    actions = target.message("a", say.AddConnections(7, 1))
    assert names(actions) == ["Reply", "CloseSession"]
    assert target.phase == "prepared"  # and may be committed by a session that behaves


def test_lanes_that_could_not_be_added_end_the_lanes_and_the_source_resumes():
    target = begun()
    actions = target.message("a", say.AddConnections(7, 1))
    actions = target.failed(actions[0], OSError("no thread"))
    assert names(actions) == ["DrainLanes", "Reply"]
    assert replies(actions)[0].code == "connection"
    assert target.phase == "open"


class Additions(RuleBasedStateMachine):
    """Whatever is asked for, in whatever order: never more than sixteen lanes, every number once."""

    def __init__(self):
        super().__init__()
        self.target, self.numbers, self.ended, self.open = begun(), [0, 1], 0, True

    @rule(count=st.integers(1, 16))
    @precondition(lambda self: self.open)
    def add(self, count):
        self.target.connections_ended(self.ended)
        actions = self.target.message("a", say.AddConnections(7, count))
        if names(actions) == ["AddLanes", "SendAdded"]:
            self.numbers += range(actions[0].first, actions[0].first + actions[0].count)
            assert actions[0].count == count
        else:
            assert names(actions) == ["Reply", "CloseSession", "DrainLanes"]
            assert len(self.numbers) - self.ended + count > 16 or len(self.numbers) + count > say.CONNECTION_NUMBERS_MAX
            self.open = False
        assert len(set(self.numbers)) == len(self.numbers)
        assert len(self.numbers) - self.ended <= 16
        assert max(self.numbers) < say.CONNECTION_NUMBERS_MAX

    @rule(share=st.floats(0, 1))
    def some_end(self, share):
        self.ended += int(share * (len(self.numbers) - self.ended))


Additions.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAdditions = Additions.TestCase


# ---- the source ----


def test_more_are_asked_for_once_and_their_lanes_join_those_that_run():
    source = sending()
    actions = source.add_connections(2)
    assert said(actions) == [say.AddConnections(7, 2)]
    assert source.may_add_connections() == 0  # until the answer is there
    assert source.message(say.Added(7, MORE)) == [do.AddSending(tuple(MORE))]
    assert source.phase == "sending" and source.may_add_connections() == 16


def test_an_answer_that_comes_when_all_is_sent_is_passed_over():
    source = sending()
    source.add_connections(2)
    source.lanes_finished(3, DIGEST, 0)
    assert source.message(say.Added(7, MORE)) == []
    assert names(source.message(say.Prepared(7))) == ["WritePending", "Send"]


def test_an_answer_while_the_run_gives_up_is_passed_over():
    source = sending()
    source.add_connections(2)
    source.lanes_failed("read", "EIO")
    assert source.phase == "giving-up"
    assert source.message(say.Added(7, MORE)) == []
    assert names(source.message(say.Aborted(7, "why")))[-1] == "Fail"


@pytest.mark.parametrize("answer", [say.Added(7, MORE[:1]), say.Added(7, [MORE[0], MORE[0]]), say.Added(8, MORE), say.Added(7, [*MORE, b"e" * 16])])
def test_an_answer_to_something_else_closes_the_session(answer):
    source = sending()
    source.add_connections(2)
    assert names(source.message(answer)) == ["StopSending", "Fail"]
    assert source.phase == "closed"


def test_connections_nobody_asked_for_close_the_session():
    assert names(sending().message(say.Added(7, MORE))) == ["StopSending", "Fail"]
    source = sending()
    source.lanes_finished(3, DIGEST, 0)
    assert names(source.message(say.Added(7, MORE)))[-1] == "Fail"


def test_a_new_session_begins_with_as_many_as_are_wanted_by_then_and_numbers_them_anew():
    source = sending()
    source.add_connections(2)
    source.set_connections(5)
    source.disconnected()
    assert source.may_add_connections() == 0
    source.connected()
    source.message(state(source, open_new=NEW, open_attempt=7, resumable=True))
    [resume] = said(source.frozen("snap", False, 1))
    assert resume.connections == 5
    source.message(say.Resumed(7, source._epoch, KEY, [bytes([i]) * 16 for i in range(5)], 0))
    assert source.may_add_connections() == 16
    source.add_connections(1)


@pytest.mark.parametrize("resumed", [False, True])
def test_a_number_that_changes_while_the_target_opens_the_session_closes_nothing(resumed):
    source = sending()
    source.disconnected()
    source.connected()
    source.message(state(source, **({"open_new": NEW, "open_attempt": 7, "resumable": True} if resumed else {})))
    source.frozen("snap", False, 1)
    source.set_connections(1)
    answer = say.Resumed(7, source._epoch, KEY, TOKENS, 0) if resumed else say.Began(7, source._epoch, KEY, TOKENS)
    assert names(source.message(answer)) == ["StartSending"] and source.phase == "sending"


def test_a_session_asks_for_no_more_than_it_has_numbers_for():
    source, had = sending(), len(TOKENS)
    while had < say.CONNECTION_NUMBERS_MAX:
        count = source.may_add_connections()
        assert count == min(16, say.CONNECTION_NUMBERS_MAX - had)
        source.add_connections(count)
        source.message(say.Added(7, [(had + i).to_bytes(16, "big") for i in range(count)]))
        had += count
    assert source.may_add_connections() == 0


def test_tokens_that_come_when_the_lanes_have_ended_meanwhile_are_left_to_become_void():
    class Machine:
        def may_add_connections(self):
            return 16

        def add_connections(self, count):
            return [do.Send(say.AddConnections(7, count))]

    class Lanes:
        added = None

        def shrink(self, count):
            pass

        def places(self):
            return 1

        def missing(self, count):
            return list(range(1, count))

        def add(self, tokens, slots):
            self.added = tokens, slots

    connections, lanes = Connections(3), Lanes()
    assert said(connections.settle(lanes, Machine())) == [say.AddConnections(7, 2)]
    connections.added(MORE, None)
    connections.settle(lanes, Machine())
    connections.added(MORE, lanes)
    assert lanes.added == (MORE, [1, 2])
