"""A TargetMachine that takes over and gives up: one sector decides, the id is new, and a primary volume admits no session."""

import pytest
from qrep.errors import DeviceReadError, ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID, PRIMARY, REPLICA
from qrep.protocol.records import TargetRecord
from qrep.protocol.target_machine import TargetMachine

VOLUME, T, NEW, OTHER = (bytes([i]) * 16 for i in (1, 3, 4, 5))
SIZE, LEAF, GRANULE = 1 << 20, 4096, 16384
EMPTY = TargetRecord(volume_id=VOLUME, size=SIZE, leaf_size=LEAF, granule_size=GRANULE)
COMMITTED = TargetRecord(volume_id=VOLUME, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, committed_id=T, committed_counter=5, history=(OTHER,))


def names(actions):
    return [type(action).__name__ for action in actions]


def replies(actions):
    return [action.message for action in actions if isinstance(action, do.Reply)]


def hello(epoch):
    return say.Hello(
        version_min=1, version_max=1, job_id=VOLUME, volume_id=VOLUME, epoch=epoch, size=SIZE, leaf_size=LEAF, granule_size=GRANULE, sector_size=512,
        plain=False, features=[],
    )  # fmt: skip


def machine(record=COMMITTED, greeted=True):
    target = TargetMachine(record, capacity=SIZE, sector_size=512)
    target.start(False)
    if greeted:
        target.connected("a")
        target.message("a", hello(1))
    return target


def begun():
    target = machine()
    target.message("a", say.Begin(T, NEW, 7, 2, LEAF))
    return target


def primary():
    target = machine(greeted=False)
    target.take_over(NEW)
    return target


def restarted(record):
    target = TargetMachine(record, capacity=SIZE, sector_size=512)
    return target, target.start(False)


def test_taking_over_ends_the_session_then_writes_one_sector_then_gives_the_undo_back():
    target = machine()
    done = target.take_over(NEW)
    assert names(done) == ["CloseSession", "WriteSuperblock", "PruneUndo"] and target.phase == "primary"
    assert (done[1].record.role, done[1].record.committed_id, done[1].record.history) == (PRIMARY, NEW, ()) and done[2].committed == NEW
    assert done[1].record.committed_counter == COMMITTED.committed_counter + 1 and done[1].record.max_epoch == target.record.max_epoch


@pytest.mark.parametrize("new", [NO_ID, T, OTHER])
def test_an_id_that_was_used_cannot_name_a_change_of_role(new):
    target = machine()
    with pytest.raises(ProtocolError, match="fresh"):
        target.take_over(new)
    assert target.phase == "idle" and target.record.role == REPLICA


@pytest.mark.parametrize("target", [machine(EMPTY), begun()], ids=["nothing was ever committed", "a generation is open"])
def test_a_volume_that_does_not_hold_a_generation_does_not_take_over(target):
    with pytest.raises(ProtocolError, match="committed generation"):
        target.take_over(bytes([77]) * 16)


def test_a_primary_volume_refuses_every_run_and_stays_as_it_is():
    target = primary()
    target.connected("b")
    done = target.message("b", hello(99))
    assert replies(done)[0].code == "split-brain" and names(done) == ["Reply", "CloseSession"]
    assert target.phase == "primary" and target.record.max_epoch == COMMITTED.max_epoch


def test_a_start_of_a_primary_volume_touches_nothing():
    target, done = restarted(primary().record)
    assert target.phase == "primary" and done == [do.ConfirmSuperblock()]


def test_giving_up_maps_the_device_flushes_it_and_only_then_writes_the_sector():
    target = primary()
    assert target.give_up(OTHER, 5) == [do.MapDevice(OTHER, NO_ID)] and target.phase == "mapping"
    done = target.device_mapped()
    assert names(done) == ["FlushDevice", "WriteSuperblock", "RecordPoint", "SettleMap", "PruneUndo", "GivenUp"] and target.phase == "idle"
    record = done[1].record
    assert (record.role, record.committed_id, record.history) == (REPLICA, OTHER, ()) and done[3].committed == OTHER
    target.connected("b")
    assert replies(target.message("b", hello(99)))[0].committed == OTHER


def test_a_device_that_cannot_be_mapped_stays_primary():
    target = primary()
    (action,) = target.give_up(OTHER, 5)
    assert target.failed(action, DeviceReadError("bad sector")) == [do.GivenUp(NO_ID, "bad sector")]
    assert target.phase == "primary" and target.record.role == PRIMARY and target.record.committed_id == NEW


def test_a_crash_while_the_device_is_mapped_leaves_a_primary():
    target = primary()
    target.give_up(OTHER, 5)
    assert restarted(target.record)[0].phase == "primary"


def test_only_a_primary_gives_up():
    with pytest.raises(ProtocolError, match="primary"):
        machine().give_up(NEW, 0)
