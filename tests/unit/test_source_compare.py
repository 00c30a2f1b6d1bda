"""SourceMachine without a map in common: digests, the pass that looks for differences, and the leaf pages of what differs."""

import pytest
from unit.test_source_machine import DIGEST, GRANULE, JOB, KEY, LEAF, NEW, OLD, RECORD, TOKENS, VOLUME, T, draw, machine, names, said, state

from qrep.errors import DeviceReadError, ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import RunRecord
from qrep.protocol.source_machine import SourceMachine

PAGE = bytes(GRANULE // LEAF * 32)
UNKNOWN, HASHED, ZERO = b"\0", b"\x21", b"\2"


def compared(states=HASHED * 64, **arguments):
    """A machine whose target has given its digests; Freeze was asked for."""
    source = machine(**{"tag": OLD, **arguments})
    source.message(state(source))
    assert names(source.message(say.Digests(0, states, DIGEST * 64))) == ["StoreDigests", "Freeze"]
    return source


def searching(**arguments):
    source = compared(**arguments)
    actions = source.frozen("snap", False, 1)
    assert names(actions) == ["SaveRun", "FindDifferences"]  # a crash in the middle leaves a snapshot that is known
    return source


def fetching(granules=(3, 9), **arguments):
    source = searching(**arguments)
    assert said(source.differences_found(list(granules))) == [say.GetLeaves(list(granules))]
    return source


def test_the_leaves_of_exactly_what_differs_are_asked_for_before_the_generation_is_opened():
    source = fetching()
    assert source.message(say.Leaves(3, PAGE)) == [do.StoreLeaves(3, PAGE)]
    actions = source.message(say.Leaves(9, PAGE))
    assert actions[0] == do.StoreLeaves(9, PAGE)
    assert said(actions) == [say.Begin(T, NEW, 7, 2, 1 << 20)]
    [start] = source.message(say.Began(7, 1, KEY, TOKENS))
    assert (start.resumed, start.unknown) == (False, "")


def test_nothing_differs_and_nothing_is_asked_for():
    assert said(searching().differences_found([])) == [say.Begin(T, NEW, 7, 2, 1 << 20)]


@pytest.mark.parametrize("states", [UNKNOWN * 64, ZERO * 64, ZERO * 32 + UNKNOWN * 32])
def test_a_target_without_data_is_not_searched_for(states):
    source = compared(states)
    assert said(source.frozen("snap", False, 1)) == [say.Begin(T, NEW, 7, 2, 1 << 20)]


def test_a_map_that_describes_the_target_and_a_full_run_need_no_pass():
    for source in (machine(), machine(tag=OLD, initial="full")):
        source.message(state(source))
        assert names(source.frozen("snap", False, 1)) == ["SaveRun", "Send"]


def test_pages_are_asked_for_some_at_a_time():
    size, granule = 300 * (8 << 20), 8 << 20
    source = SourceMachine(
        job_id=JOB, volume_id=VOLUME, shape=(size, 4096, granule, 512), map_tag=OLD, pending_new=None, record=None, epoch=0, draw=draw
    )
    source.connected()
    source.message(state(source, size=size, granule_size=granule))
    source.message(say.Digests(0, HASHED * 256, DIGEST * 256))
    source.message(say.Digests(256, HASHED * 44, DIGEST * 44))
    source.frozen("snap", False, 1)
    page, asked = bytes(2048 * 32), source.differences_found(list(range(300)))
    seen = []
    while isinstance(said(asked)[0], say.GetLeaves):
        granules = said(asked)[0].granules
        assert len(granules) <= 64  # 64 KiB each: 4 MiB
        for number in granules:
            asked = source.message(say.Leaves(number, page))
        seen += granules
    assert seen == list(range(300))
    assert isinstance(said(asked)[0], say.Begin)


def test_large_pages_are_asked_for_fewer_at_a_time():
    size, granule = 64 << 20, 64 << 20  # 512 KiB of leaf values in a granule
    source = SourceMachine(
        job_id=JOB, volume_id=VOLUME, shape=(16 * size, 4096, granule, 512), map_tag=OLD, pending_new=None, record=None, epoch=0, draw=draw
    )
    source.connected()
    source.message(state(source, size=16 * size, granule_size=granule))
    source.message(say.Digests(0, HASHED * 16, DIGEST * 16))
    source.frozen("snap", False, 1)
    assert said(source.differences_found(list(range(16)))) == [say.GetLeaves(list(range(8)))]


@pytest.mark.parametrize("wrong", [say.Leaves(9, PAGE), say.Leaves(4, PAGE), say.Leaves(3, PAGE[:-32]), say.Leaves(3, PAGE + DIGEST), say.Leaves(3, b"")])
def test_leaves_that_were_not_asked_for_or_are_not_so_many_end_the_connection(wrong):
    [fail] = fetching().message(wrong)
    assert isinstance(fail.error, ProtocolError)


def test_leaves_come_at_no_other_time():
    for source in (machine(), compared(), searching()):
        assert isinstance(source.message(say.Leaves(3, PAGE))[-1].error, ProtocolError)


def test_a_connection_lost_during_the_pass_stops_it_and_the_next_one_begins_with_fresh_digests():
    source = searching()
    actions = source.disconnected()
    assert names(actions) == ["StopSending", "Fail"] and actions[1].keep_open
    source.connected()
    actions = source.message(state(source))
    assert names(actions) == ["ForgetSourceMap", "Send"] and said(actions) == [say.ScanTarget(0, 64)]
    assert source.message(say.Digests(0, HASHED * 64, DIGEST * 64))[-1] == do.Freeze("snap")  # the same image serves again


def test_a_stop_during_the_pass_stops_it():
    assert names(searching().stop()) == ["StopSending", "Fail"]


def test_a_pass_that_fails_ends_the_run_and_leaves_nothing_open():
    source = searching()
    actions = source.lanes_failed("shrunk", "the source ended")
    assert names(actions) == ["StopSending", "ClearRun", "ReleaseSnapshot", "Fail"]
    assert actions[2] == do.ReleaseSnapshot("snap") and isinstance(actions[-1].error, DeviceReadError)
    assert source.phase == "failed"


def test_a_target_that_is_busy_with_something_else_is_asked_again_later():
    source = fetching()
    [fail] = source.message(say.Nak(0, "busy", "not now"))
    assert fail.keep_open and source.phase == "closed"


def test_an_attempt_whose_base_is_forgotten_is_not_resumed_but_compared_anew():
    # a new process: the digests of the old one are gone, and all that was not applied yet would travel
    source = machine(tag=NO_ID, record=RECORD)
    actions = source.message(state(source, attempt=7, new=NEW, resumable=True))
    assert said(actions) == [say.Abort(7, "the source begins anew")]
    actions = source.message(say.Aborted(7, "the source begins anew"))
    assert said(actions) == [say.ScanTarget(0, 64)]


def test_an_attempt_that_compared_is_resumed_while_its_digests_are_remembered():
    source = searching()
    source.differences_found([])
    source.message(say.Began(7, source._epoch, KEY, TOKENS))
    source.disconnected()
    source.connected()
    assert source.message(state(source, attempt=7, new=NEW, resumable=True)) == [do.Freeze("snap")]
    assert isinstance(said(source.frozen("snap", False, 2))[0], say.Resume)


@pytest.mark.parametrize(("snapshot", "mixed", "resumes"), [("snap", False, True), ("snap", True, False), ("", False, False)])
def test_a_first_run_over_a_target_with_data_is_resumed_only_from_the_same_image(snapshot, mixed, resumes):
    source = compared_with_nothing_committed()
    source.record = RunRecord(3, NO_ID, NEW, 7, snapshot, not snapshot, 1, mixed)
    source.disconnected()
    source.connected()
    actions = source.message(state(source, committed=NO_ID, attempt=7, new=NEW, resumable=True))
    assert (actions == [do.Freeze(snapshot)]) == resumes


def compared_with_nothing_committed():
    source = machine(tag=NO_ID, initial="compare")
    source.message(state(source, committed=NO_ID))
    source.message(say.Digests(0, HASHED * 64, DIGEST * 64))
    return source
