"""Records on disk against a second description of them: struct and the packaged blake3."""

import struct

import blake3
import pytest
from golden import check_golden
from hypothesis import given
from hypothesis import strategies as st

from qrep._native import disk

MIB, GIB = 1 << 20, 1 << 30
ID_A, ID_B, ID_C = (bytes([letter]) * 16 for letter in b"abc")
SUPERBLOCK = disk.Superblock(
    volume_id=ID_A, size=GIB, sequence=41, committed_id=ID_B, committed_counter=12, max_epoch=9, open_kind=disk.OPEN_RUN,
    open_new_id=ID_C, open_attempt=0xDEADBEEF, history=(bytes(range(16)), bytes(range(1, 17))))
UNDO_HEADER = disk.UndoHeader(volume_id=ID_A, base_id=ID_B, new_id=ID_C, attempt=7, size=GIB)
MAP_HEADER = disk.MapHeader(
    volume_id=ID_A, tag=ID_B, base=ID_C, counter=12, size=GIB, granules=128, root=bytes(range(32)), digest=bytes(range(32, 64)))
MAP_SIZE = 256 + 128 + 128 * 32

numbers = st.integers(0, 2**64 - 1)
ids = st.binary(min_size=16, max_size=16).filter(any)
geometries = st.fixed_dictionaries({
    "size": st.integers(4096, 2**54 - 1).map(lambda sectors: sectors * 512),
    "leaf_size": st.integers(12, 20).map(lambda bits: 1 << bits),
    "granule_size": st.integers(21, 26).map(lambda bits: 1 << bits),
})


def reseal(record, **fields):
    """Change bytes of a packed record ("offset_format": value) and give it a right checksum again."""
    body = bytearray(record[:-32])
    for place, value in fields.items():
        _, offset, layout = place.split("_")
        struct.pack_into("<" + layout, body, int(offset), value)
    return bytes(body) + blake3.blake3(bytes(body)).digest()


def unpack_map(data):
    return disk.MapHeader.unpack(data, MAP_SIZE)


RECORDS = [(SUPERBLOCK, disk.Superblock.unpack), (UNDO_HEADER, disk.UndoHeader.unpack), (MAP_HEADER, unpack_map)]
record_cases = pytest.mark.parametrize(("record", "unpack"), RECORDS, ids=["superblock", "undo-header", "map-header"])


@record_cases
def test_a_record_comes_back_as_it_was_packed(record, unpack):
    assert unpack(record.pack()) == record
    assert blake3.blake3(record.pack()[:-32]).digest() == record.pack()[-32:]


@record_cases
def test_every_flipped_bit_of_a_record_is_caught(record, unpack):
    data = record.pack()
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(disk.RecordDamaged):
            unpack(flipped)


@record_cases
def test_a_record_of_another_length_or_of_zeroes_is_damaged(record, unpack):
    data = record.pack()
    for wrong in (data[:-1], data + b"\0", b"", bytes(len(data)), b"\xff" * len(data)):
        with pytest.raises(disk.RecordDamaged):
            unpack(wrong)


@record_cases
def test_a_later_version_or_an_unknown_feature_is_hands_off(record, unpack):
    for change in ({"at_8_H": 2}, {"at_8_H": 65535}, {"at_12_I": 1}, {"at_12_I": 1 << 31}):
        with pytest.raises(disk.RecordNewer):
            unpack(reseal(record.pack(), **change))
    with pytest.raises(disk.RecordDamaged):
        unpack(reseal(record.pack(), at_8_H=0))


# Offsets as in docs/DISK_FORMAT.md: geometry, reserved fields, ids that may not be zero, kinds.
@pytest.mark.parametrize("change", [
    {"at_10_B": 0}, {"at_10_B": 3}, {"at_11_B": 3}, {"at_11_B": 0}, {"at_24_Q": 0}, {"at_24_Q": 2**63}, {"at_24_Q": GIB + 1},
    {"at_32_I": 0}, {"at_32_I": 2048}, {"at_32_I": 4097}, {"at_36_I": 4096}, {"at_36_I": 128 * MIB}, {"at_40_16s": bytes(16)},
    {"at_88_16s": bytes(16)}, {"at_112_16s": bytes(16)}, {"at_304_B": 1}, {"at_479_B": 1},
])
def test_a_superblock_with_a_field_out_of_range_is_damaged_although_its_checksum_is_right(change):
    with pytest.raises(disk.RecordDamaged, match="out of range"):
        disk.Superblock.unpack(reseal(SUPERBLOCK.pack(), **change))


@pytest.mark.parametrize("change", [
    {"at_10_H": 1}, {"at_16_16s": bytes(16)}, {"at_48_16s": bytes(16)}, {"at_48_16s": ID_B}, {"at_72_Q": 0}, {"at_80_I": 1},
    {"at_84_I": 1},
])
def test_an_undo_header_with_a_field_out_of_range_is_damaged_although_its_checksum_is_right(change):
    with pytest.raises(disk.RecordDamaged, match="out of range"):
        disk.UndoHeader.unpack(reseal(UNDO_HEADER.pack(), **change))


@pytest.mark.parametrize("change", [
    {"at_10_H": 1}, {"at_16_16s": bytes(16)}, {"at_72_Q": 2 * GIB}, {"at_80_I": 3}, {"at_84_I": 3}, {"at_88_Q": 127},
    {"at_88_Q": 2**64 - 1}, {"at_160_Q": 1}, {"at_216_Q": 1},
])
def test_a_map_header_with_a_field_out_of_range_is_damaged_although_its_checksum_is_right(change):
    with pytest.raises(disk.RecordDamaged, match="out of range"):
        unpack_map(reseal(MAP_HEADER.pack(), **change))


@pytest.mark.parametrize("file_size", [0, 256, MAP_SIZE - 1, MAP_SIZE + 1, 2**63])
def test_a_map_file_of_another_size_is_damaged(file_size):
    with pytest.raises(disk.RecordDamaged):
        disk.MapHeader.unpack(MAP_HEADER.pack(), file_size)


@pytest.mark.parametrize("change", [
    {"volume_id": bytes(16)}, {"volume_id": b"short"}, {"size": 1000}, {"leaf_size": 5000}, {"role": 0}, {"open_kind": 3},
    {"open_kind": disk.OPEN_NONE}, {"open_new_id": bytes(16)}, {"history": (ID_A,) * 13}, {"history": (bytes(16),)},
])
def test_a_superblock_that_no_reader_would_take_is_not_packed(change):
    with pytest.raises(ValueError):
        SUPERBLOCK.replace(**change).pack()


@given(geometries, ids, ids, st.integers(1, 2), st.integers(0, 2), numbers, st.lists(ids, max_size=12), st.lists(numbers, min_size=3, max_size=3))
def test_superblocks_round_trip(geometry, volume_id, new_id, role, open_kind, attempt, history, counts):
    opened = {"open_new_id": new_id, "open_attempt": attempt} if open_kind else {}
    block = disk.Superblock(
        **geometry, volume_id=volume_id, role=role, open_kind=open_kind, **opened, committed_id=ID_A, sequence=counts[0],
        committed_counter=counts[1], max_epoch=counts[2], history=tuple(history))
    assert disk.Superblock.unpack(block.pack()) == block


@given(geometries, ids, numbers, st.binary(min_size=32, max_size=32))
def test_map_headers_round_trip(geometry, volume_id, counter, root):
    granules = -(-geometry["size"] // geometry["granule_size"])
    header = disk.MapHeader(**geometry, volume_id=volume_id, tag=ID_A, counter=counter, granules=granules, root=root)
    assert disk.MapHeader.unpack(header.pack(), disk.map_size(granules)) == header


# ---- two slots ----

NEWER = SUPERBLOCK.replace(sequence=42, max_epoch=10)


def test_the_valid_slot_with_the_higher_sequence_is_chosen():
    assert disk.choose_superblock(SUPERBLOCK.pack(), NEWER.pack()) == (NEWER, 1)
    assert disk.choose_superblock(NEWER.pack(), SUPERBLOCK.pack()) == (NEWER, 0)
    assert disk.choose_superblock(NEWER.pack(), NEWER.pack()) == (NEWER, 0)


@pytest.mark.parametrize("torn", [bytes(512), b"\xff" * 512, NEWER.pack()[:256] + bytes(256), reseal(NEWER.pack(), at_10_B=7)])
def test_a_torn_slot_leaves_the_older_one(torn):
    assert disk.choose_superblock(SUPERBLOCK.pack(), torn) == (SUPERBLOCK, 0)
    assert disk.choose_superblock(torn, SUPERBLOCK.pack()) == (SUPERBLOCK, 1)


def test_two_damaged_slots_are_damage_whatever_sequence_they_claim():
    damaged = bytearray(NEWER.pack())
    damaged[16] ^= 1
    with pytest.raises(disk.RecordDamaged, match="slot A: .*checksum.*slot B: .*magic"):
        disk.choose_superblock(damaged, bytes(512))


def test_slots_that_contradict_each_other_are_damage():
    with pytest.raises(disk.RecordDamaged, match="both slots have sequence 41"):
        disk.choose_superblock(SUPERBLOCK.pack(), SUPERBLOCK.replace(max_epoch=10).pack())
    with pytest.raises(disk.RecordDamaged, match="volume"):
        disk.choose_superblock(SUPERBLOCK.pack(), NEWER.replace(volume_id=ID_B).pack())


def test_a_slot_of_a_later_version_is_hands_off_although_the_other_one_is_readable():
    with pytest.raises(disk.RecordNewer):
        disk.choose_superblock(SUPERBLOCK.pack(), reseal(NEWER.pack(), at_8_H=2))


# ---- map ----

def test_a_map_body_is_checked_whole():
    states = bytes([0, 0x21, 2, 0x22, 0x71])
    values = blake3.blake3(b"values").digest(length=5 * 32)
    digest = disk.map_digest(states, values)
    assert digest == blake3.blake3(states + bytes(27) + values).digest()
    header = disk.MapHeader(volume_id=ID_A, size=40 * MIB, granules=5, digest=digest)
    header.check_body(states, values)
    for bit in range(40):
        flipped = bytearray(states)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(disk.RecordDamaged):
            header.check_body(flipped, values)
    with pytest.raises(disk.RecordDamaged):
        header.check_body(states, values[:-1] + b"\0")
    for sizes in ((4, 160), (5, 159), (5, 192), (0, 0)):
        with pytest.raises(ValueError, match="granules need"):
            header.check_body(bytes(sizes[0]), bytes(sizes[1]))


@pytest.mark.parametrize("state", [0x03, 0x01, 0x20, 0x25, 0x80, 0x29])
def test_a_state_that_makes_no_sense_is_damage_although_the_digest_is_right(state):
    states, values = bytes([state] + [0] * 4), bytes(160)
    header = disk.MapHeader(volume_id=ID_A, size=40 * MIB, granules=5, digest=disk.map_digest(states, values))
    with pytest.raises(disk.RecordDamaged):
        header.check_body(states, values)


def test_records_have_not_changed_since_version_1():
    check_golden("superblock-v1.bin", SUPERBLOCK.pack())
    check_golden("undo-header-v1.bin", UNDO_HEADER.pack())
    check_golden("map-header-v1.bin", MAP_HEADER.pack())
