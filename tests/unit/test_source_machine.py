"""SourceMachine: what a run says and does, in which order, and what it believes."""

import msgspec
import pytest

from qrep.errors import ProtocolError, QrepError, Refused, UndoSpaceError, Unreachable, Unsynced
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import RunRecord
from qrep.protocol.source_machine import SourceMachine

VOLUME, JOB, T, NEW, OLD = (bytes([i]) * 16 for i in (1, 2, 3, 4, 5))
SIZE, LEAF, GRANULE = 1 << 20, 4096, 16384
DIGEST, KEY, TOKENS = bytes(32), b"k" * 32, [b"a" * 16, b"b" * 16]
RECORD = RunRecord(epoch=3, base=T, new=NEW, attempt=7, snapshot="snap", fuzzy=False, frozen_at_ns=1, mixed=False)


def draw(size):
    return NEW if size == 16 else (7).to_bytes(8, "little")


def names(actions):
    return [type(action).__name__ for action in actions]


def said(actions):
    return [action.message for action in actions if isinstance(action, do.Send)]


def machine(*, tag=T, pending=None, record=None, initial="auto", hold=True, once=False):
    source = SourceMachine(
        job_id=JOB, volume_id=VOLUME, shape=(SIZE, LEAF, GRANULE, 512), map_tag=tag, pending_new=pending, record=record, epoch=0, draw=draw, initial=initial,
        hold=hold, once=once,
    )  # fmt: skip
    source.connected()
    return source


def state(source, *, committed=T, attempt=0, new=NO_ID, resumable=False, **changes):
    fields = dict(
        version=1, committed=committed, counter=5, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, role=1, history=[], open_new=new,
        open_attempt=attempt, resumable=resumable, sector_size=512, max_epoch=source._epoch, features=[],
    )  # fmt: skip
    return say.State(**{**fields, **changes})


def sending(**arguments):
    source = machine(**arguments)
    source.message(state(source))
    source.frozen("snap", False, 1)
    source.message(say.Began(7, source._epoch, KEY, TOKENS))
    assert source.phase == "sending"
    return source


def committing():
    source = sending()
    source.lanes_finished(3, DIGEST, 0)
    source.message(say.Prepared(7))
    return source


def test_a_run_from_hello_to_finish():
    source = machine()
    assert source.message(state(source)) == [do.Freeze("")]
    actions = source.frozen("snap", False, 1)
    assert names(actions) == ["SaveRun", "Send"]  # durable before the target hears of it
    assert said(actions) == [say.Begin(T, NEW, 7, 2, 1 << 20)]
    assert source.message(say.Began(7, 1, KEY, TOKENS)) == [do.StartSending(7, 1, KEY, tuple(TOKENS), False, False, "", ())]
    assert said(source.lanes_finished(3, DIGEST, 0)) == [say.Prepare(7, 3, DIGEST, False, 1, "", "")]
    assert source.message(say.Prepared(7)) == [do.WritePending(NEW, T, 6), do.Send(say.Commit(7))]
    assert source.message(say.Committed(NEW, 6)) == [do.FoldPending(), do.ClearRun(), do.ReleaseSnapshot("snap"), do.Finish(NEW, 6, False, False)]
    assert source.phase == "done"


def test_a_snapshot_that_runs_full_ends_the_run_and_keeps_what_was_applied():
    full = QrepError("nearly full", code="snapshot-full")
    source = sending()
    actions = source.snapshot_lost(full)
    assert names(actions) == ["StopSending", "SaveRun", "ReleaseSnapshot", "Fail"] and source.phase == "failed"
    assert actions[1].record.snapshot == "" and actions[1].record.attempt == 7 and actions[2].token == "snap"
    assert actions[3] == do.Fail(full, True)
    waiting = machine(record=RECORD)  # a resumed run has its image from the start
    assert names(waiting.snapshot_lost(full)) == ["SaveRun", "ReleaseSnapshot", "Fail"]
    assert names(machine().snapshot_lost(full)) == ["Fail"]


def test_a_snapshot_that_runs_full_once_all_was_read_is_nothing_to_the_run():
    source = sending()
    source.lanes_finished(3, DIGEST, 0)
    assert source.snapshot_lost(QrepError("full")) == [] and source.phase == "preparing"
    assert committing().snapshot_lost(QrepError("full")) == []


def test_settle_folds_when_the_acknowledgement_was_lost_but_the_commit_was_not():
    source = machine(tag=OLD, pending=T)
    assert source.message(state(source)) == [do.FoldPending(), do.Freeze("")]


def test_a_run_that_is_made_once_ends_where_the_target_holds_what_its_map_describes():
    found = do.Finish(T, 5, False, False)
    assert machine(once=True).message(state(machine(once=True))) == [found]
    committed_by_a_dead_process = machine(once=True, tag=NO_ID, pending=T, record=RECORD.__class__(3, NO_ID, T, 7, "snap", True, 1, False))
    actions = committed_by_a_dead_process.message(state(committed_by_a_dead_process))
    assert actions == [do.FoldPending(), do.ClearRun(), do.ReleaseSnapshot("snap"), do.Finish(T, 5, True, False)]
    assert committed_by_a_dead_process.phase == "done"
    assert committed_by_a_dead_process.failed(actions[0], OSError("full"))[-1] == actions[-1]  # it is committed all the same
    other = machine(once=True, tag=NO_ID)
    assert not any(isinstance(action, do.Finish) for action in other.message(state(other)))
    fresh = machine(once=True, tag=NO_ID)
    assert names(fresh.message(state(fresh, committed=NO_ID))) == ["ForgetSourceMap", "Freeze"]


def test_settle_drops_pending_when_the_commit_did_not_happen():
    source = machine(tag=T, pending=NEW)
    assert source.message(state(source)) == [do.DropPending(), do.Freeze("")]


def test_settle_believes_nothing_when_the_target_holds_another_generation():
    source = machine(tag=OLD, pending=NEW)
    actions = source.message(state(source))
    assert names(actions) == ["ForgetSourceMap", "Send"]
    assert said(actions) == [say.ScanTarget(0, 64)]
    full = machine(tag=OLD, initial="full")
    assert names(full.message(state(full))) == ["ForgetSourceMap", "Freeze"]


def test_a_target_that_never_committed_is_compared_with_only_when_asked_to():
    auto, compare = machine(tag=NO_ID), machine(tag=NO_ID, initial="compare")
    assert names(auto.message(state(auto, committed=NO_ID))) == ["ForgetSourceMap", "Freeze"]
    assert names(compare.message(state(compare, committed=NO_ID))) == ["ForgetSourceMap", "Send"]


def test_a_settle_that_could_not_be_made_durable_is_settled_again():
    source = machine(tag=OLD, pending=T)
    fold = source.message(state(source))[0]
    assert names(source.failed(fold, OSError("ENOSPC"))) == ["Fail"]
    source.connected()
    assert names(source.message(state(source))) == ["FoldPending", "Freeze"]


def test_digests_are_asked_for_chunk_by_chunk_and_only_those_are_taken():
    source = SourceMachine(
        job_id=JOB, volume_id=VOLUME, shape=(300 * GRANULE, LEAF, GRANULE, 512), map_tag=OLD, pending_new=None, record=None, epoch=0, draw=draw
    )
    source.connected()
    assert said(source.message(state(source, size=300 * GRANULE))) == [say.ScanTarget(0, 256)]
    actions = source.message(say.Digests(0, b"\x21" * 256, DIGEST * 256))
    assert names(actions) == ["StoreDigests", "Send"]
    assert said(actions) == [say.ScanTarget(256, 44)]
    assert names(source.message(say.Digests(256, b"\x21" * 43, DIGEST * 43))) == ["Fail"]


def test_digests_of_an_earlier_session_are_asked_for_anew():
    source = machine(tag=OLD)
    source.message(state(source))
    source.message(say.Digests(0, b"\x21" * 64, DIGEST * 64))
    source.disconnected()
    source.connected()
    assert said(source.message(state(source))) == [say.ScanTarget(0, 64)]


def test_a_used_epoch_is_stepped_over_once_but_later_means_that_somebody_took_over():
    source = machine()
    [hello] = said(source.message(say.Stale(40)))
    assert hello.epoch == 41
    source.message(state(source))
    source.disconnected()
    source.connected()
    [fail] = source.message(say.Stale(50))
    assert isinstance(fail.error, Refused)
    assert (fail.error.code, source.phase) == ("superseded", "failed")


def test_a_target_that_always_knows_a_higher_epoch_is_not_followed_for_ever():
    source = machine()
    for epoch in range(10, 100, 10):
        actions = source.message(say.Stale(epoch))
    assert isinstance(actions[0], do.Fail)


def test_an_open_attempt_of_ours_is_resumed_with_what_the_target_has():
    source = machine(record=RECORD)
    assert source.message(state(source, attempt=7, new=NEW, resumable=True)) == [do.Freeze("snap")]
    assert said(source.frozen("snap", False, 2)) == [say.Resume(7, 2, 1 << 20, True)]
    assert source.message(say.Resumed(7, 4, KEY, TOKENS, 1)) == []
    applied = say.Applied(0, b"\2" * 64, b"\x21" * 64, DIGEST * 64)
    assert source.message(applied) == [do.StartSending(7, 4, KEY, tuple(TOKENS), True, True, "", (applied,))]


@pytest.mark.parametrize(("token", "fuzzy"), [("", True), ("other", False), ("snap", True)])
def test_another_image_is_not_the_same_image_and_never_becomes_it_again(token, fuzzy):
    source = machine(record=RECORD)
    source.message(state(source, attempt=7, new=NEW, resumable=True))
    actions = source.frozen(token, fuzzy, 2)
    assert said(actions)[0].same_image is False
    [start] = source.message(say.Resumed(7, 4, KEY, TOKENS, 0))
    assert (start.resumed, start.same_image, start.unknown) == (True, False, "parts")
    source.disconnected()
    source.connected()
    source.message(state(source, attempt=7, new=NEW, resumable=True))
    assert said(source.frozen(token, False, 3))[0].same_image is False


@pytest.mark.parametrize("token, fuzzy, name", [("snap", False, "before-upgrade"), ("other", False, ""), ("snap", True, ""), ("", True, "")])
def test_the_name_of_an_attempt_stays_only_with_the_image_that_was_frozen_for_it(token, fuzzy, name):
    source = machine(record=msgspec.structs.replace(RECORD, label="before-upgrade"))
    source.message(state(source, attempt=7, new=NEW, resumable=True))
    source.frozen(token, fuzzy, 2)
    assert source.record.label == name


def test_without_a_committed_generation_a_resume_of_another_image_trusts_whole_granules_only():
    source = machine(tag=NO_ID, record=RunRecord(3, NO_ID, NEW, 7, "", True, 1, False))
    source.message(state(source, committed=NO_ID, attempt=7, new=NEW, resumable=True))
    source.frozen("", True, 2)
    [start] = source.message(say.Resumed(7, 4, KEY, TOKENS, 0))
    assert start.unknown == "incomplete"


@pytest.mark.parametrize("changes", [{"attempt": 8}, {"new": OLD}, {"resumable": False}, {"committed": OLD}])
def test_an_open_attempt_that_is_not_exactly_ours_is_aborted_and_begun_anew(changes):
    source = machine(record=RECORD, initial="full")  # it would not compare, so nothing but what does not fit keeps it from resuming
    actions = source.message(state(source, **{"attempt": 7, "new": NEW, "resumable": True, **changes}))
    assert isinstance(said(actions)[0], say.Abort)
    assert source.phase == "aborting"


def test_a_snapshot_older_than_the_targets_generation_is_not_used_again():
    source = machine(tag=OLD, record=RECORD, initial="full")
    actions = source.message(state(source, committed=OLD))
    assert actions == [do.ClearRun(), do.ReleaseSnapshot("snap"), do.Freeze("")]


def test_an_answer_for_another_attempt_or_generation_is_not_the_answer():
    source = sending()
    source.lanes_finished(3, DIGEST, 0)
    assert isinstance(source.message(say.Prepared(8))[0].error, ProtocolError)
    source = committing()
    assert isinstance(source.message(say.Committed(OLD, 6))[0].error, ProtocolError)
    assert source.phase == "closed"


@pytest.mark.parametrize("code", ["connection", "frame", "attempt-gone", "base", "busy"])
def test_a_refusal_that_passes_is_tried_again(code):
    source = machine()
    source.message(state(source))
    source.frozen("snap", False, 1)
    [end] = source.message(say.Nak(7, code, "not now"))
    assert isinstance(end.error, Unreachable) and end.keep_open and end.error.code == code


def test_a_lost_acknowledgement_in_the_same_run_finishes_it():
    source = committing()
    source.disconnected()
    source.connected()
    assert names(source.message(state(source, committed=NEW))) == ["FoldPending", "ClearRun", "ReleaseSnapshot", "Finish"]


def test_a_commit_of_a_run_that_died_is_folded_and_a_new_generation_is_made():
    source = machine(tag=T, pending=NEW, record=RECORD)
    actions = source.message(state(source, committed=NEW))
    assert actions == [do.FoldPending(), do.ClearRun(), do.ReleaseSnapshot("snap"), do.Freeze("")]


BAD = [(4096, 512), (12288, 4096)]


def test_what_could_not_be_read_is_never_committed_and_the_attempt_is_kept_for_the_next_run():
    source = sending()
    assert said(source.lanes_finished(3, DIGEST, BAD)) == [say.Hold(7, [say.Extent(4096, 512), say.Extent(12288, 4096)])]
    actions = source.message(say.Held(7, [say.Extent(8192, 512)]))
    assert names(actions) == ["SaveRun", "ReleaseSnapshot", "Fail"]
    assert (actions[0].record.attempt, actions[0].record.snapshot, actions[1].token) == (7, "", "snap"), "the next run freezes anew"
    error = actions[-1].error
    assert isinstance(error, Unsynced) and actions[-1].keep_open and source.phase == "degraded" and not error.retry
    assert (error.unreadable, error.unwritten) == (BAD, [(8192, 512)])


def test_what_the_target_could_not_write_ends_a_run_in_the_same_way():
    source = sending()
    source.lanes_finished(3, DIGEST, ())
    actions = source.message(say.Held(7, [say.Extent(8192, 512)]))
    assert names(actions) == ["SaveRun", "ReleaseSnapshot", "Fail"] and actions[-1].error.unwritten == [(8192, 512)]


@pytest.mark.parametrize("unwritten", [[], [say.Extent(SIZE + 4096, 1)], [say.Extent((1 << 63) - 1, (1 << 63) - 1)]])
def test_a_target_that_keeps_an_attempt_without_a_reason_is_not_believed(unwritten):
    source = sending()
    source.lanes_finished(3, DIGEST, ())
    assert isinstance(source.message(say.Held(7, unwritten))[-1].error, ProtocolError)


def test_a_connection_lost_while_the_target_is_told_changes_nothing():
    source = sending()
    source.lanes_finished(3, DIGEST, BAD)
    assert names(source.disconnected()) == ["SaveRun", "ReleaseSnapshot", "Fail"] and source.phase == "degraded"


def test_where_nobody_keeps_the_target_in_service_it_goes_back():
    source = sending(hold=False)
    assert isinstance(said(source.lanes_finished(3, DIGEST, BAD))[0], say.Abort)
    actions = source.message(say.Aborted(7, "why"))
    assert names(actions) == ["ClearRun", "ReleaseSnapshot", "Fail"]
    assert isinstance(actions[-1].error, Unsynced) and not actions[-1].keep_open


def test_the_next_run_goes_over_a_new_image_and_on_with_the_attempt():
    source = sending()
    source.lanes_finished(3, DIGEST, BAD)
    source.message(say.Held(7, []))
    again = machine(record=source.record)
    assert again.message(state(again, attempt=7, new=NEW, resumable=True))[-1] == do.Freeze("")
    [_, resume] = again.frozen("snap2", False, 2)
    assert resume.message.attempt == 7 and not resume.message.same_image and again.record.mixed


def test_commit_is_not_said_when_the_pending_digests_could_not_be_written():
    source = sending()
    source.lanes_finished(3, DIGEST, 0)
    write = source.message(say.Prepared(7))[0]
    assert isinstance(said(source.failed(write, OSError("ENOSPC")))[0], say.Abort)


def test_a_fold_that_fails_after_the_commit_does_not_undo_it():
    source = committing()
    fold = source.message(say.Committed(NEW, 6))[0]
    assert names(source.failed(fold, OSError("ENOSPC")))[-1] == "Finish"


@pytest.mark.parametrize(
    ("reason", "error", "forgets"), [("undo_space: full", UndoSpaceError, False), ("value: granule 3", Exception, True), ("write: EIO", Exception, False)]
)
def test_a_target_that_rolled_back_ends_the_run_and_a_diverged_map_is_forgotten(reason, error, forgets):
    source = sending()
    actions = source.message(say.Aborted(7, reason))
    assert isinstance(actions[-1].error, error)
    assert ("ForgetSourceMap" in names(actions)) == forgets
    assert source.phase == "failed"


@pytest.mark.parametrize("code", ["connection", "frame"])
def test_a_wire_failure_keeps_the_attempt_for_a_resume(code):
    source = sending()
    actions = source.message(say.Nak(7, code, "text"))
    assert names(actions) == ["StopSending", "Fail"]
    assert actions[1].keep_open
    assert (isinstance(actions[1].error, Unreachable), source.phase) == (True, "closed")


@pytest.mark.parametrize("kind", ["connection", "frame"])
def test_what_comes_to_grief_on_the_wire_at_our_end_keeps_the_attempt_for_a_resume(kind):
    source = sending()
    actions = source.lanes_failed(kind, "text")
    assert names(actions) == ["StopSending", "Fail"]
    assert actions[1].keep_open
    assert (isinstance(actions[1].error, Unreachable), source.phase) == (True, "closed")


def test_stop_keeps_what_was_applied():
    source = sending()
    actions = source.stop()
    assert names(actions) == ["StopSending", "Fail"]
    assert actions[1].keep_open
    assert source.record is not None


@pytest.mark.parametrize(
    "message",
    [
        say.Began(8, 1, KEY, TOKENS),
        say.Began(7, 2, KEY, TOKENS),
        say.Began(7, 1, KEY, TOKENS[:1]),
        say.Began(7, 1, KEY, TOKENS[:1] * 2),
        say.Resumed(7, 1, KEY, TOKENS, 0),
        say.Prepared(7),
        say.Committed(NEW, 6),
        say.Digests(0, b"\1", DIGEST),
    ],
    ids=lambda message: type(message).__name__,
)
def test_an_answer_to_another_question_ends_the_connection(message):
    source = machine()
    source.message(state(source))
    source.frozen("snap", False, 1)
    actions = source.message(message)
    assert names(actions) == ["Fail"]
    assert isinstance(actions[0].error, ProtocolError)


@pytest.mark.parametrize("changes", [{"size": SIZE * 2}, {"leaf_size": 8192}, {"max_epoch": 9}, {"version": 2}])
def test_a_state_that_is_not_of_this_session_ends_the_connection(changes):
    source = machine()
    assert isinstance(source.message(state(source, **changes))[0].error, ProtocolError)


@pytest.mark.parametrize(
    "applied",
    [
        say.Applied(64, b"\2", b"\x21", DIGEST),
        say.Applied(0, b"\2" * 63, b"\x21" * 63, DIGEST * 63),
        say.Applied(0, b"\3" * 64, b"\x21" * 64, DIGEST * 64),
        say.Applied(1, b"\2" * 63, b"\x21" * 63, DIGEST * 63),
    ],
)
def test_an_applied_list_that_does_not_fit_the_volume_ends_the_connection(applied):
    source = machine(record=RECORD)
    source.message(state(source, attempt=7, new=NEW, resumable=True))
    source.frozen("snap", False, 2)
    source.message(say.Resumed(7, 4, KEY, TOKENS, 1))
    assert isinstance(source.message(applied)[0].error, ProtocolError)


def test_the_source_offers_what_it_knows_and_uses_what_the_target_took():
    source = machine()
    assert source.features == ()
    source.message(state(source, committed=T, features=["copies"]))
    assert source.features == ("copies",)
    other = machine()
    other.message(state(other, committed=T))
    assert other.features == ()


def test_a_target_that_chooses_what_was_not_offered_loses_the_connection():
    source = machine()
    source.message(state(source, committed=T, features=["made-up"]))
    assert source.phase == "closed"
