"""TargetMachine: which actions follow which event, in which order; the order is the proof."""

import msgspec
import pytest

from qrep.errors import DamagedError, ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import OPEN_ROLLBACK, OPEN_RUN, TargetRecord
from qrep.protocol.target_machine import TargetMachine

VOLUME, JOB, T, NEW, OTHER = (bytes([i]) * 16 for i in (1, 2, 3, 4, 5))
SIZE, LEAF, GRANULE = 1 << 20, 4096, 16384
DIGEST = bytes(32)
EMPTY = TargetRecord(volume_id=VOLUME, size=SIZE, leaf_size=LEAF, granule_size=GRANULE)
COMMITTED = TargetRecord(volume_id=VOLUME, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, committed_id=T, committed_counter=5, history=(OTHER,))


def names(actions):
    return [type(action).__name__ for action in actions]


def replies(actions):
    return [action.message for action in actions if isinstance(action, do.Reply)]


def hello(epoch=1, **changes):
    fields = dict(version_min=1, version_max=1, job_id=JOB, volume_id=VOLUME, epoch=epoch, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, sector_size=512, plain=False, features=[])
    return say.Hello(**{**fields, **changes})


def chain_of(record):
    """As the undo files would have it, one for each id of the history."""
    return (record.committed_id, *record.history) if record.committed_id != NO_ID else ()


def machine(record=COMMITTED, *, checkpoint=False, capacity=SIZE, greeted=True):
    target = TargetMachine(record, capacity=capacity, sector_size=512, chain=chain_of(record))
    target.start(checkpoint)
    if greeted:
        target.connected("a")
        target.message("a", hello(target.record.max_epoch + 1))
    return target


def begun(record=COMMITTED):
    target = machine(record)
    target.message("a", say.Begin(record.committed_id, NEW, 7, 2, LEAF))
    return target


def prepared(record=COMMITTED):
    target = begun(record)
    target.message("a", say.Prepare(7, 3, DIGEST, True, 99, "", ""))
    target.manifest_collected(3, DIGEST, 0)
    assert target.phase == "prepared"
    return target


def test_a_start_with_nothing_open_only_tidies():
    target = TargetMachine(COMMITTED, capacity=SIZE, sector_size=512)
    assert target.start(False) == [do.ConfirmSuperblock(), do.SettleMap(T), do.PruneUndo(T)]
    assert target.phase == "idle"


@pytest.mark.parametrize("kind", [OPEN_RUN, OPEN_ROLLBACK])
def test_a_start_with_an_open_generation_restores_flushes_clears_and_only_then_frees_the_undo(kind):
    target = TargetMachine(COMMITTED.opened(kind, NEW, 7), capacity=SIZE, sector_size=512)
    assert target.start(False) == [do.ConfirmSuperblock(), do.RestoreUndo(T, NEW, 7)]
    assert target.phase == "recovering"
    assert target.undo_restored() == [do.FlushDevice(), do.WriteSuperblock(COMMITTED), do.SettleMap(T), do.PruneUndo(T)]
    assert target.phase == "idle"


def test_an_initial_attempt_goes_on_from_its_checkpoint_and_is_dropped_without_one():
    kept = machine(EMPTY.opened(OPEN_RUN, NEW, 7), checkpoint=True)
    assert kept.phase == "open"
    assert names(kept.message("a", say.Resume(7, 1, LEAF, True))) == ["StartLanes", "SendResumed"]
    dropped = TargetMachine(EMPTY.opened(OPEN_RUN, NEW, 7), capacity=SIZE, sector_size=512)
    assert dropped.start(False) == [do.ConfirmSuperblock(), do.WriteSuperblock(EMPTY), do.ForgetCheckpoint(), do.ForgetMap(), do.PruneUndo(NO_ID)]


def test_what_a_dead_predecessor_wrote_is_confirmed_before_anything_is_done_on_its_word():
    for record in (COMMITTED, EMPTY, COMMITTED.opened(OPEN_RUN, NEW, 7), EMPTY.opened(OPEN_RUN, NEW, 7)):
        for checkpoint in (False, True):
            target = TargetMachine(record, capacity=SIZE, sector_size=512)
            assert target.start(checkpoint)[0] == do.ConfirmSuperblock()


def test_damaged_superblocks_and_damaged_undo_put_the_volume_out_of_service():
    target = TargetMachine(None, capacity=SIZE, sector_size=512)
    assert names(target.start(False)) == ["Faulted"]
    target = TargetMachine(COMMITTED.opened(OPEN_RUN, NEW, 7), capacity=SIZE, sector_size=512)
    restore = target.start(False)[-1]
    assert names(target.failed(restore, DamagedError("a batch is lost"))) == ["Faulted"]
    target.connected("a")
    assert names(target.message("a", hello())) == ["Reply", "CloseSession"]


def test_the_epoch_is_durable_and_the_older_session_drained_before_a_new_one_hears_the_state():
    target = begun()
    target.connected("b")
    actions = target.message("b", hello(2))
    assert names(actions) == ["WriteSuperblock", "DrainLanes", "CloseSession", "Reply"]
    assert actions[0].record.max_epoch == 2
    assert actions[2].handle == "a"
    [state] = replies(actions)
    assert (state.committed, state.open_attempt, state.resumable, state.max_epoch) == (T, 7, True, 2)
    assert names(target.message("a", say.Commit(7))) == ["CloseSession"]


def test_an_epoch_that_was_used_is_answered_with_the_highest_and_changes_nothing():
    target = begun()
    target.connected("b")
    assert target.message("b", hello(1)) == [do.Reply("b", say.Stale(1))]
    assert target.session == "a"
    assert names(target.message("b", hello(2))) == ["WriteSuperblock", "DrainLanes", "CloseSession", "Reply"]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version_min": 2, "version_max": 3}, "version"),
        ({"volume_id": OTHER}, "wrong-volume"),
        ({"size": SIZE * 2}, "too-small"),
        ({"size": SIZE // 2}, "resized"),
        ({"leaf_size": LEAF * 2}, "resized"),
        ({"granule_size": LEAF}, "protocol"),
        ({"size": SIZE - 1}, "sector-size"),
        ({"epoch": 2**63}, "protocol"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_and_nothing_is_written(changes, code):
    target = machine(greeted=False)
    target.connected("a")
    actions = target.message("a", hello(**changes))
    assert names(actions) == ["Reply", "CloseSession"]
    assert actions[0].message.code == code
    assert target.record == COMMITTED
    assert target.session is None


def test_a_target_that_never_committed_takes_on_the_shape_of_the_source():
    target = machine(EMPTY, capacity=SIZE * 4, greeted=False)
    target.connected("a")
    actions = target.message("a", hello(size=SIZE * 2, leaf_size=LEAF * 2, granule_size=GRANULE * 4))
    assert names(actions) == ["WriteSuperblock", "Reshape", "Reply"]
    assert (target.record.size, target.record.leaf_size, target.record.granule_size) == (SIZE * 2, LEAF * 2, GRANULE * 4)


def test_no_shape_is_taken_on_whose_map_would_use_up_the_memory():
    for size, granule, taken in ((1 << 40, GRANULE, False), (1 << 60, 8 << 20, True), ((1 << 24) * 65536, 65536, True), ((1 << 24) * 65536 + 65536, 65536, False)):
        target = machine(EMPTY, capacity=1 << 62, greeted=False)
        target.connected("a")
        actions = target.message("a", hello(size=size, leaf_size=LEAF, granule_size=granule))
        assert (replies(actions)[0].code if not taken else "") == ("" if taken else "too-fine")
        assert ("Reshape" in names(actions)) == taken and (target.record.size == size) == taken


def test_begin_creates_the_undo_before_open_is_durable_and_lanes_start_after_both():
    actions = machine().message("a", say.Begin(T, NEW, 7, 2, LEAF))
    assert names(actions) == ["CreateUndo", "WriteSuperblock", "StartLanes", "SendBegan"]
    assert actions[0] == do.CreateUndo(T, NEW, 7)
    assert actions[2] == do.StartLanes(7, 1, 2, LEAF, True, T)


def test_the_first_begin_has_nothing_to_go_back_to_and_logs_nothing():
    assert names(machine(EMPTY).message("a", say.Begin(NO_ID, NEW, 7, 1, LEAF))) == ["ForgetCheckpoint", "WriteSuperblock", "StartLanes", "SendBegan"]


@pytest.mark.parametrize(
    ("begin", "code"),
    [
        (say.Begin(OTHER, NEW, 7, 1, LEAF), "base"),
        (say.Begin(NO_ID, NEW, 7, 1, LEAF), "base"),
        (say.Begin(T, T, 7, 1, LEAF), "id"),
        (say.Begin(T, OTHER, 7, 1, LEAF), "id"),
        (say.Begin(T, NO_ID, 7, 1, LEAF), "id"),
        (say.Begin(T, NEW, 0, 1, LEAF), "id"),
    ],
)
def test_begin_is_a_compare_and_swap_with_fresh_ids(begin, code):
    target = machine()
    [answer] = replies(target.message("a", begin))
    assert (answer.code, target.phase) == (code, "idle")


@pytest.mark.parametrize("limit", [LEAF // 2, LEAF + 512, 3 * LEAF])
def test_frames_hold_a_power_of_two_of_leaves(limit):
    assert names(machine().message("a", say.Begin(T, NEW, 7, 2, limit))) == ["Reply", "CloseSession"]
    assert names(begun().message("a", say.Resume(7, 2, limit, True)))[:2] == ["Reply", "CloseSession"]


def test_a_begin_is_refused_by_the_role_whatever_let_its_session_in():
    target = machine()
    target.record = msgspec.structs.replace(target.record, role=say.PRIMARY)
    [answer] = replies(target.message("a", say.Begin(T, NEW, 7, 2, LEAF)))
    assert (answer.code, target.phase) == ("role", "idle")


def test_begin_over_an_open_generation_goes_back_first():
    target = begun()
    [answer] = replies(target.message("a", say.Begin(T, b"n" * 16, 7, 1, LEAF)))
    assert (answer.code, target.phase) == ("id", "open"), "frames of the attempt before would pass for those of this one"
    actions = target.message("a", say.Begin(T, b"n" * 16, 8, 1, LEAF))
    assert names(actions) == ["DrainLanes", "RestoreUndo"]
    assert names(target.undo_restored()) == [
        "FlushDevice", "WriteSuperblock", "SettleMap", "PruneUndo", "Abandoned", "CreateUndo", "WriteSuperblock", "StartLanes", "SendBegan",
    ]  # fmt: skip
    assert target.record.open_attempt == 8


def test_prepare_waits_compares_flushes_and_only_then_says_prepared():
    target = begun()
    assert target.message("a", say.Prepare(7, 3, DIGEST, False, 0, "", "")) == [do.WaitLanes(), do.CollectManifest(7)]
    actions = target.manifest_collected(3, DIGEST, 0)
    assert names(actions) == ["SealUndo", "FlushDevice", "WritePendingMap", "Reply"]
    assert replies(actions) == [say.Prepared(7)]


@pytest.mark.parametrize(("count", "manifest", "partial"), [(2, DIGEST, 0), (3, b"x" * 32, 0), (3, DIGEST, 1)])
def test_what_was_applied_must_be_exactly_what_was_announced(count, manifest, partial):
    target = begun()
    target.message("a", say.Prepare(7, 3, DIGEST, False, 0, "", ""))
    [answer] = replies(target.manifest_collected(count, manifest, partial))
    assert (answer.code, target.phase) == ("manifest", "open")
    assert replies(target.message("a", say.Commit(7)))[0].code == "attempt-gone"


def held(target, message=None, unwritten=()):
    """After Hold (or another message) was answered: the actions of the answer."""
    missing = [say.Extent(4096, 512)]
    assert target.message("a", message or say.Hold(7, missing)) == [do.WaitLanes(), do.CollectManifest(7)]
    return target.manifest_collected(3, DIGEST, 1, unwritten)


def test_a_run_that_could_not_read_everything_leaves_its_attempt_open_and_uncommitted():
    target = begun()
    assert held(target) == [do.HoldOpen(7, (say.Extent(4096, 512),), ()), do.Reply("a", say.Held(7, []))]
    assert (target.phase, target.record.open_attempt, target.record.committed_id) == ("open", 7, T)
    for message in (say.Prepare(7, 3, DIGEST, False, 0, "", ""), say.Hold(7, [say.Extent(0, 512)]), say.Commit(7)):
        assert replies(target.message("a", message))[0].code == "attempt-gone", "the lanes have ended"
    assert target.disconnected("a") == []
    assert names(target.abandon("nobody came")) == ["RestoreUndo"]
    assert target.undo_restored()[-1] == do.Abandoned("nobody came")


def test_a_held_attempt_is_resumed_by_the_next_session():
    target = begun()
    held(target)
    target.disconnected("a")
    target.connected("b")
    [state] = replies(target.message("b", hello(2)))
    assert (state.resumable, state.open_attempt) == (True, 7)
    assert names(target.message("b", say.Resume(7, 1, LEAF, False))) == ["StartLanes", "SendResumed"]


def test_blocks_that_the_device_did_not_take_are_named_and_nothing_is_prepared():
    target = begun()
    [held_open, answer] = held(target, say.Prepare(7, 3, DIGEST, False, 0, "", ""), [(8192, 512)])
    assert held_open == do.HoldOpen(7, (), (say.Extent(8192, 512),)) and answer.message == say.Held(7, [say.Extent(8192, 512)])
    assert target.phase == "open"


def test_a_first_run_that_is_held_notes_what_it_has_applied():
    target = begun(EMPTY)
    assert names(held(target)) == ["TakeCheckpoint", "FlushDevice", "SaveCheckpoint", "HoldOpen", "Reply"]


def test_a_first_run_that_is_held_over_a_second_image_notes_it_too_and_forgets_it_before_a_third():
    target = begun(EMPTY)
    held(target)
    assert "ForgetCheckpoint" in names(target.message("a", say.Resume(7, 1, LEAF, False)))
    assert names(held(target)) == ["TakeCheckpoint", "FlushDevice", "SaveCheckpoint", "HoldOpen", "Reply"]
    assert "ForgetCheckpoint" in names(target.message("a", say.Resume(7, 1, LEAF, False)))


def test_a_place_beyond_the_end_cannot_be_held():
    target = begun()
    assert "CloseSession" in names(target.message("a", say.Hold(7, [say.Extent(SIZE, 4097)])))


def test_commit_is_one_superblock_write_before_everything_else():
    target = prepared()
    actions = target.message("a", say.Commit(7))
    assert names(actions) == ["WriteSuperblock", "Reply", "RecordPoint", "SettleMap", "PruneUndo", "Retain"]
    record = actions[0].record
    assert (record.committed_id, record.committed_counter, record.history, record.open_attempt) == (NEW, 6, (T, OTHER), 0)
    assert replies(actions) == [say.Committed(NEW, 6)]
    assert actions[2] == do.RecordPoint(NEW, 6, True, 99)
    assert target.chain == (NEW, T, OTHER)


def test_a_commit_of_another_attempt_or_before_prepare_or_twice_is_refused():
    target = prepared()
    assert replies(target.message("a", say.Commit(8)))[0].code == "attempt-gone"
    assert replies(begun().message("a", say.Commit(7)))[0].code == "attempt-gone"
    target.message("a", say.Commit(7))
    assert replies(target.message("a", say.Commit(7)))[0].code == "attempt-gone"


def test_a_resume_drains_the_older_lanes_and_keeps_what_was_applied():
    target = begun()
    actions = target.message("a", say.Resume(7, 4, LEAF, False))
    assert names(actions) == ["DrainLanes", "StartLanes", "SendResumed"]
    assert actions[1] == do.StartLanes(7, 1, 4, LEAF, False, T)
    assert replies(target.message("a", say.Resume(8, 4, LEAF, False)))[0].code == "attempt-gone"


def test_a_resume_over_another_image_forgets_the_checkpoint_before_anything_is_written():
    same, other = begun(EMPTY), begun(EMPTY)
    assert names(same.message("a", say.Resume(7, 1, LEAF, True))) == ["DrainLanes", "StartLanes", "SendResumed"]
    assert names(same.checkpoint_due()) == ["TakeCheckpoint", "FlushDevice", "SaveCheckpoint"]
    assert names(other.message("a", say.Resume(7, 1, LEAF, False))) == ["DrainLanes", "ForgetCheckpoint", "StartLanes", "SendResumed"]
    assert other.checkpoint_due() == []


def test_a_lost_connection_leaves_the_attempt_open_and_abandoning_it_goes_back():
    target = begun()
    assert names(target.disconnected("a")) == ["DrainLanes"]
    assert target.phase == "open"
    assert target.abandon() == [do.RestoreUndo(T, NEW, 7)]


def test_an_initial_attempt_keeps_a_checkpoint_of_what_was_flushed():
    target = begun(EMPTY)
    assert names(target.checkpoint_due()) == ["TakeCheckpoint", "FlushDevice", "SaveCheckpoint"]
    assert names(target.disconnected("a")) == ["DrainLanes", "TakeCheckpoint", "FlushDevice", "SaveCheckpoint"]
    assert begun().checkpoint_due() == []


@pytest.mark.parametrize("kind", ["connection", "frame", "digest"])
def test_a_lane_that_fails_on_the_wire_can_be_resumed(kind):
    target = begun()
    actions = target.lanes_failed(kind, "text")
    assert names(actions) == ["DrainLanes", "Reply"]
    assert (actions[1].message.code, target.phase) == ("connection" if kind == "connection" else "frame", "open")


@pytest.mark.parametrize("kind", ["write", "read", "undo_write", "undo_space", "value", "map", "memory"])
def test_a_lane_that_fails_on_the_device_or_the_undo_goes_back_exactly(kind):
    target = begun()
    assert names(target.lanes_failed(kind, "text")) == ["DrainLanes", "RestoreUndo"]
    actions = target.undo_restored()
    assert replies(actions) == [say.Aborted(7, f"{kind}: text")]
    assert ("ForgetMap" in names(actions)) == (kind == "value")


def test_a_failed_superblock_write_is_final_until_the_volume_is_opened_anew():
    target = prepared()
    write = target.message("a", say.Commit(7))[0]
    assert names(target.failed(write, OSError("EIO"))) == ["Reply", "CloseSession", "Faulted"]
    assert target.phase == "faulted"


def test_no_undo_file_means_no_attempt():
    target = machine()
    create = target.message("a", say.Begin(T, NEW, 7, 1, LEAF))[0]
    actions = target.failed(create, OSError("ENOSPC"))
    assert names(actions) == ["PruneUndo", "Reply"]
    assert isinstance(actions[1].message, say.Aborted)
    assert (target.phase, target.record.open_attempt) == ("idle", 0)


def test_a_rollback_is_a_generation_of_its_own():
    target = machine()
    actions = target.rollback(OTHER, NEW, 9)
    assert actions == [do.CreateUndo(T, NEW, 9), do.WriteSuperblock(target.record), do.ApplyPoint(OTHER, (T,), 9)]
    assert target.record.open_kind == OPEN_ROLLBACK
    assert names(target.point_applied()) == ["SealUndo", "FlushDevice", "WriteSuperblock", "SettleMap", "PruneUndo", "CloseSession", "RolledBack", "Retain"]
    assert (target.record.committed_id, target.record.history) == (NEW, (T, OTHER))


def test_a_session_that_reads_the_volume_does_not_outlive_a_rollback():
    target = machine()
    target.rollback(OTHER, NEW, 9)
    actions = target.point_applied()
    assert [action.handle for action in actions if isinstance(action, do.CloseSession)] == ["a"] and target.session is None
    assert names(actions)[:3] == ["SealUndo", "FlushDevice", "WriteSuperblock"]
    assert names(target.message("a", say.ScanTarget(0, 1))) == ["CloseSession"]


def test_a_bug_in_the_middle_of_something_stops_the_lanes_and_is_final_until_the_volume_is_opened_anew():
    for target in (begun(), prepared()):
        actions = target.broken("a bug")
        assert names(actions)[0] == "DrainLanes" and names(actions)[-1] == "Faulted"
        assert target.phase == "faulted" and target.session is None


def test_a_rollback_that_fails_is_rolled_back():
    target = machine()
    apply_point = target.rollback(OTHER, NEW, 9)[-1]
    assert names(target.failed(apply_point, DamagedError("gone", hint="find it"))) == ["RestoreUndo"]
    told = target.undo_restored()[-1]
    assert names([told]) == ["RollbackFailed"] and told.reason == "gone" and told.hint == "find it"
    assert target.record.committed_id == T


@pytest.mark.parametrize(("point", "new", "attempt"), [(T, NEW, 9), (b"?" * 16, NEW, 9), (OTHER, T, 9), (OTHER, NO_ID, 9), (OTHER, NEW, 0)])
def test_only_a_retained_point_can_be_rolled_back_to_and_only_under_a_fresh_id(point, new, attempt):
    with pytest.raises(ProtocolError):
        machine().rollback(point, new, attempt)
    with pytest.raises(ProtocolError):
        begun().rollback(OTHER, NEW, 9)


@pytest.mark.parametrize("message", [say.Ping(), say.GetRoot(0), say.Begin(T, NEW, 7, 1, LEAF), say.Commit(7)])
def test_nothing_may_be_said_before_hello(message):
    target = machine(greeted=False)
    target.connected("a")
    assert names(target.message("a", message)) == ["Reply", "CloseSession"]
    assert target.record == COMMITTED


def test_a_second_hello_on_one_session_closes_that_session_only():
    target = begun()
    target.connected("b")
    assert names(target.message("a", hello(9))) == ["Reply", "CloseSession", "DrainLanes"]
    assert (target.session, target.phase) == (None, "open")
    assert names(target.message("b", hello(2))) == ["WriteSuperblock", "Reply"]


def test_questions_are_answered_only_while_the_device_holds_the_committed_generation():
    target = machine()
    assert target.message("a", say.ScanTarget(60, 4)) == [do.Scan("a", 60, 4)]
    assert target.message("a", say.GetLeaves([63])) == [do.SendLeaves("a", (63,))]
    assert names(target.message("a", say.ScanTarget(61, 4))) == ["Reply", "CloseSession"]
    assert names(machine().message("a", say.GetLeaves([64]))) == ["Reply", "CloseSession"]
    for question in (say.ScanTarget(0, 1), say.GetRoot(0), say.GetLeaves([0])):
        assert replies(begun().message("a", question))[0].code == "busy"


def test_a_check_reads_beside_everything_and_counts_only_if_nothing_was_opened_meanwhile():
    target = machine()
    (start,) = target.message("a", say.Check(T, 3, 1 << 20, [0, 2]))
    assert start == do.StartCheck("a", 3, 1 << 20, (0, 2), target.mark())
    piece = say.Checked(3, 1, 1 << 20, [], [], [], 0, False)
    assert replies(target.checked("a", start.mark, piece)) == [piece]
    assert target.checked("b", start.mark, piece) == [], "its session is not there any more"
    target.message("a", say.Begin(T, NEW, 7, 1, LEAF))
    assert replies(target.checked("a", start.mark, piece))[0].code == "busy"
    target.message("a", say.Abort(7, "why"))
    target.undo_restored()
    assert target.phase == "idle" and target.record.committed_id == T
    assert replies(target.checked("a", start.mark, piece))[0].code == "busy", "the device was written to and put back meanwhile"
    target.rollback(OTHER, NEW[::-1], 9)
    mark = target.mark()
    target.point_applied()
    assert mark[1] is None and mark != target.mark()


def test_checks_nodes_and_repairs_are_of_the_committed_generation_and_inside_the_volume():
    asks = (say.Check(T, 0, 0, []), say.GetNodes(T, 0, [0]), say.Repair(T, 0, bytes(LEAF)))
    assert [names(machine().message("a", ask)) for ask in asks] == [["StartCheck"], ["SendNodes"], ["RepairLeaf"]]
    for ask in asks:
        assert replies(begun().message("a", ask))[0].code == "busy"
        assert replies(machine().message("a", msgspec.structs.replace(ask, generation=OTHER)))[0].code == "base"
    leaves = SIZE // LEAF
    wrong = (
        say.Check(T, 65, 0, []), say.Check(T, 3, 0, [3]), say.Check(T, 9, 0, [2, 1]), say.Check(T, 9, 0, [1, 1]), say.GetNodes(T, 0, [leaves]), say.GetNodes(T, 63, [1]), say.GetNodes(T, 63, [0] * 256), say.GetNodes(T, 0, [1, 0]), say.Repair(T, leaves, bytes(LEAF)),
        say.Repair(T, 0, bytes(LEAF - 512)),
        say.GetNodes(T, 0, [index * (GRANULE // LEAF) for index in range(say.NODE_GRANULES_MAX + 1)]),
    )  # fmt: skip
    for ask in wrong:
        assert names(machine().message("a", ask)) == ["Reply", "CloseSession"]


def test_abort_tells_when_it_is_done_and_is_idempotent():
    target = begun()
    target.message("a", say.Abort(7, "why"))
    assert replies(target.undo_restored()) == [say.Aborted(7, "why")]
    assert replies(target.message("a", say.Abort(7, "why"))) == [say.Aborted(7, "nothing was open")]
    assert replies(begun().message("a", say.Abort(8, "why")))[0].code == "attempt-gone"


def test_the_target_takes_what_it_knows_of_each_session_and_says_so():
    target = machine(greeted=False)
    for handle, epoch, offered, expected in (("a", 1, ["copies", "from-tomorrow"], ("copies",)), ("b", 2, [], ())):
        target.connected(handle)
        (answer,) = replies(target.message(handle, hello(epoch=target.record.max_epoch + epoch, features=offered)))
        assert isinstance(answer, say.State) and tuple(answer.features) == target.features == expected
