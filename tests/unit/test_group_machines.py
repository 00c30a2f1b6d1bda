"""A member of a consistency group at both ends, and the record that commits all of them."""

import os
from types import SimpleNamespace

import pytest
from unit.test_source_machine import JOB, NEW, T, TOKENS, DIGEST, KEY, draw, names, said, state
from unit.test_target_machine import COMMITTED, machine, prepared, replies

from qrep.daemon.groups import GroupAttempt
from qrep.errors import DamagedError, Interrupted, QrepError, Refused, Unreachable
from qrep.jobs.groups import Ask, FreezeAll, GroupRun, Reconnect, Withdraw
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.records import OPEN_RUN, Decided
from qrep.protocol.source_machine import SourceMachine
from qrep.protocol.target_machine import TargetMachine
from qrep.store import Directory
from qrep.target.groupcommit import GroupCommits

# ---- the source ----


def preparing():
    source = SourceMachine(
        job_id=JOB, volume_id=bytes(16), shape=(1 << 20, 4096, 16384, 512), map_tag=T, pending_new=None, record=None, epoch=0, draw=draw, in_group=True,
    )  # fmt: skip
    source.connected()
    source.message(state(source))
    source.frozen("snap", False, 1)
    source.message(say.Began(7, 1, KEY, TOKENS))
    source.lanes_finished(3, DIGEST, 0)
    return source


def agreed():
    source = preparing()
    assert source.message(say.Prepared(7)) == [do.WritePending(NEW, T, 6), do.Agree(1, 7, NEW)]
    return source


def test_a_member_says_that_it_agrees_instead_of_commit_and_hears_of_the_commit_on_its_session():
    source = agreed()
    assert names(source.message(say.Committed(NEW, 6))) == ["FoldPending", "ClearRun", "ReleaseSnapshot", "Finish"]


def test_a_member_that_lost_its_connection_learns_by_ids_whether_it_was_committed():
    source = agreed()
    source.disconnected("gone")
    source.connected()
    assert names(source.message(state(source, committed=NEW))) == ["FoldPending", "ClearRun", "ReleaseSnapshot", "Finish"]
    source = agreed()
    source.disconnected("gone")
    source.connected()
    assert names(source.message(state(source, attempt=7, new=NEW, resumable=True)))[-1] == "Freeze"


def test_a_member_is_withdrawn_and_the_target_goes_back():
    source, error = agreed(), QrepError("the other one")
    assert said(source.withdraw(error, True)) == [say.Abort(7, "the other one")]
    assert names(source.message(say.Aborted(7, "the other one"))) == ["ClearRun", "ReleaseSnapshot", "Fail"]
    assert agreed().withdraw(error, False) == [do.Fail(error, True)]
    source = agreed()
    source.message(say.Committed(NEW, 6))
    assert source.withdraw(error, True) == []


@pytest.mark.parametrize("late", [say.Prepared(7), say.Held(7, [say.Extent(0, 4096)])])
def test_what_a_target_said_before_it_heard_that_a_member_is_withdrawn_is_passed_over(late):
    source, error = preparing(), QrepError("the other one")
    assert said(source.withdraw(error, True)) == [say.Abort(7, "the other one")]
    assert source.message(late) == []
    *_, fail = source.message(say.Aborted(7, "the other one"))
    assert fail == do.Fail(error, False)


# ---- the target ----


def test_only_the_prepared_attempt_of_this_session_is_decided():
    target = prepared()
    new = target.record.open_new_id
    decided = target.decision(7, new, 1)
    assert (decided.attempt, decided.new, decided.point) == (7, new, target._point)
    for wrong in ((8, new, 1), (7, T, 1), (7, new, 2)):
        with pytest.raises(Refused, match="not prepared"):
            target.decision(*wrong)
    with pytest.raises(Refused):
        machine().decision(7, new, 1)


def test_the_superblock_follows_the_record_and_the_record_goes_before_anything_else_happens():
    target = prepared()
    actions = target.decided()
    assert [type(action).__name__ for action in actions] == ["WriteSuperblock", "SettleGroup", "Reply", "RecordPoint", "SettleMap", "PruneUndo", "Retain"]
    assert replies(actions) == [say.Committed(target.record.committed_id, 6)]


def opened(kind=OPEN_RUN):
    return TargetMachine(COMMITTED.opened(kind, b"n" * 16, 7), capacity=1 << 30, sector_size=512)


def test_recovery_rolls_forward_exactly_the_attempt_that_a_record_names():
    target = opened()
    actions = target.start(False, Decided(COMMITTED.volume_id, 7, b"n" * 16, (False, 5)))
    assert [type(action).__name__ for action in actions] == ["ConfirmSuperblock", "WriteSuperblock", "SettleGroup", "RecordPoint", "SettleMap", "PruneUndo", "Retain"]
    assert target.record.committed_id == b"n" * 16 and target.phase == "idle"
    assert isinstance(opened().start(False)[-1], do.RestoreUndo)


def test_a_volume_that_is_ahead_of_the_record_is_only_taken_out_of_it():
    target = TargetMachine(COMMITTED, capacity=1 << 30, sector_size=512)
    actions = target.start(False, Decided(COMMITTED.volume_id, 7, COMMITTED.committed_id, (False, 5)))
    assert [type(action).__name__ for action in actions] == ["ConfirmSuperblock", "SettleGroup", "SettleMap", "PruneUndo"]


@pytest.mark.parametrize("decided", [(8, b"n" * 16), (7, b"m" * 16)])
def test_a_record_that_does_not_fit_puts_the_volume_out_of_service_and_nothing_back(decided):
    target = opened()
    actions = target.start(False, Decided(COMMITTED.volume_id, *decided, (False, 5)))
    assert target.phase == "faulted" and "group commit names" in actions[-1].reason
    assert not any(isinstance(action, (do.RestoreUndo, do.WriteSuperblock)) for action in actions)


# ---- the record ----


class OneVolume:
    """A TargetVolume as far as commit() goes."""

    def __init__(self, number, groups, refuses=False):
        import threading

        self.volume_id, self.name, self.busy, self.refuses, self.groups = bytes([number]) * 16, f"volume {number}", "", refuses, groups
        self.lock, self.done = threading.RLock(), []

    def group_decision(self, attempt, new, epoch):
        if self.refuses:
            raise Refused("not prepared", code="not-prepared")
        return Decided(self.volume_id, attempt, new, (False, 5, "crash"))

    def group_decided(self):
        assert self.groups.decided(self.volume_id, True) is not None
        self.done.append("superblock")
        self.groups.settle(self.volume_id, bytes([self.volume_id[0] + 100]) * 16)


def members(volumes):
    return [(volume, 7, bytes([volume.volume_id[0] + 100]) * 16, 3) for volume in volumes]


@pytest.fixture
def directory(tmp_path):
    os.chmod(tmp_path, 0o700)
    with Directory(tmp_path / "groups") as made:
        yield made


def test_a_record_is_there_from_the_commit_to_the_last_superblock(directory):
    groups = GroupCommits(directory)
    volumes = [OneVolume(2, groups), OneVolume(1, groups)]
    groups.commit(b"g" * 16, "shop", members(volumes))
    assert [volume.done for volume in volumes] == [["superblock"]] * 2 and directory.names() == []


def test_one_that_is_not_prepared_keeps_all_of_them(directory):
    groups = GroupCommits(directory)
    volumes = [OneVolume(1, groups), OneVolume(2, groups, refuses=True)]
    with pytest.raises(Refused, match="not prepared"):
        groups.commit(b"g" * 16, "shop", members(volumes))
    assert not volumes[0].done and directory.names() == []
    assert volumes[0].lock.acquire(timeout=1)


def test_a_record_is_found_again_and_shrinks_as_volumes_come_back(directory):
    groups = GroupCommits(directory)
    volumes = [OneVolume(number, groups) for number in (1, 2)]
    for volume in volumes:
        volume.group_decided = lambda: None  # the agent dies before the superblocks
    groups.commit(b"g" * 16, "shop", members(volumes))
    groups = GroupCommits(directory)
    assert groups.unsettled() == [("shop", [b"\1" * 16, b"\2" * 16])]
    assert groups.decided(b"\1" * 16, True) == Decided(b"\1" * 16, 7, b"\x65" * 16, (False, 5, "crash"))
    assert groups.decided(b"\3" * 16, True) is None
    groups.settle(b"\1" * 16, b"\x65" * 16)
    again = GroupCommits(directory)
    assert again.decided(b"\1" * 16, True) is None and again.decided(b"\2" * 16, True) is not None
    again.settle(b"\2" * 16, b"\x66" * 16)
    assert directory.names() == []


@pytest.mark.parametrize("place", range(0, 300, 7))
def test_a_damaged_record_is_never_guessed_from(directory, place):
    groups = GroupCommits(directory)
    volume = OneVolume(1, groups)
    volume.group_decided = lambda: None
    groups.commit(b"g" * 16, "shop", members([volume]))
    [name] = directory.names()
    data = bytearray(directory.read(name, 1 << 16))
    data[place % len(data)] ^= 0x10
    directory.write(name, data)
    groups = GroupCommits(directory)
    with pytest.raises(DamagedError, match="damaged"):
        groups.decided(b"\1" * 16, True)
    assert groups.decided(b"\1" * 16, False) is None, "a volume without an open generation has nothing to lose"
    with pytest.raises(Refused):
        groups.commit(b"h" * 16, "shop", members([volume]))


# ---- who waits for whom ----


def test_all_freeze_when_the_last_is_there_and_are_asked_for_when_the_last_has_agreed():
    run = GroupRun("ab")
    assert run.arrived("a") == [] and run.arrived("b") == [FreezeAll()]
    assert run.agreed("a", (1, 7, NEW)) == []
    assert run.agreed("b", (1, 8, T)) == [Ask({"a": (1, 7, NEW), "b": (1, 8, T)})]
    assert run.answered(None) == [] and run.committed


def test_a_member_that_ends_before_the_question_ends_the_others():
    run = GroupRun("ab")
    run.agreed("a", (1, 7, NEW))
    [withdrawn] = run.ended("b", QrepError("disk gone"), False)
    assert (withdrawn.member, withdrawn.abort) == ("a", True) and "disk gone" in withdrawn.error.message
    assert run.arrived("a")[0].member == "a"


def test_nobody_is_withdrawn_while_the_record_may_exist():
    run = GroupRun("ab")
    run.agreed("a", (1, 7, NEW))
    run.agreed("b", (1, 8, T))
    assert run.answered(Unreachable("lost")) == [Reconnect("a", "lost"), Reconnect("b", "lost")]
    assert run.ended("b", Unreachable("away"), True) == [], "it may be committed"
    [withdrawn] = run.agreed("a", (2, 7, NEW))
    assert isinstance(withdrawn, Withdraw) and withdrawn.member == "a", "its attempt is open, so nothing was committed"


def test_whoever_stops_one_member_stops_all_whatever_is_known():
    run = GroupRun("ab")
    run.agreed("a", (1, 7, NEW))
    run.agreed("b", (1, 8, T))
    [withdrawn] = run.ended("b", Interrupted("stopped"), True)
    assert (withdrawn.member, withdrawn.abort) == ("a", False) and isinstance(withdrawn.error, Interrupted)


@pytest.mark.parametrize("asked", [False, True])
def test_what_is_told_of_a_group_that_is_stopped_is_what_is_known(monkeypatch, asked):
    told = []
    node = SimpleNamespace(slots=None, events=SimpleNamespace(add=lambda code, text, job: told.append((code, text, job))))
    monkeypatch.setattr(GroupAttempt, "_ask", lambda self, members: None)  # its answer does not come
    attempt = GroupAttempt(node, "shop", dict.fromkeys("ab"))
    stopped = []
    attempt.members["a"].run = SimpleNamespace(stop=lambda: stopped.append("a"), _ending=None)
    for number, member in enumerate("ab" if asked else "a"):
        attempt.tell("agreed", member, (1, number + 7, NEW))
    attempt.members["b"].ended(Interrupted("b was stopped"))
    what = "the next start finds out whether all members were committed" if asked else "nothing is committed of any member"
    assert stopped == ["a"] and [(code, job) for code, _text, job in told] == [("group-withdrawn", "a"), ("group-withdrawn", "b")]
    assert all(text.startswith(f"group shop: {what}: ") for _code, text, _job in told)


def test_an_answer_that_was_lost_is_asked_for_again_when_all_say_that_they_are_open():
    run = GroupRun("ab")
    run.agreed("a", (1, 7, NEW))
    run.agreed("b", (1, 8, T))
    run.answered(Unreachable("lost"))
    assert run.agreed("a", (2, 7, NEW)) == []
    assert isinstance(run.agreed("b", (2, 8, T))[0], Ask)


def test_a_refusal_for_good_withdraws_all():
    run = GroupRun("ab")
    run.agreed("a", (1, 7, NEW))
    run.agreed("b", (1, 8, T))
    actions = run.answered(Refused("no", code="group-damaged"))
    assert [(action.member, action.abort) for action in actions] == [("a", True), ("b", True)]
