"""Batches of before-images, and what a segment of them says after a crash."""

import struct

import blake3
import pytest
from golden import check_golden
from hypothesis import given
from hypothesis import strategies as st

from qrep._native import disk

KIB, MIB = 1 << 10, 1 << 20
SEGMENT = disk.UNDO_SEGMENT_SIZE
ID_A, ID_B, ID_C = (bytes([letter]) * 16 for letter in b"abc")
numbers = st.integers(0, 2**64 - 1)


def batch_at(position, sequence=1, flushed=0, size=8 * KIB, **fields):
    extents = ((64 * KIB, 4 * KIB, disk.UNDO_ZERO), (128 * KIB, size, disk.UNDO_DATA), (4 * KIB, 512, disk.UNDO_DATA))
    payload = blake3.blake3(sequence.to_bytes(8, "little")).digest(length=size + 512)
    return disk.UndoBatch(**{"base_id": ID_A, "attempt": 7, "sequence": sequence, "position": position, "flushed": flushed,
                             "extents": extents, "payload": payload, **fields})


def scan(segment, position=SEGMENT):
    return disk.scan_undo_segment(bytes(segment), position, MIB, ID_A, 7)


def fill(*batches, start=SEGMENT):
    """A segment with these batches at their positions."""
    end = max(batch.position + len(batch.pack(MIB)) for batch in batches)
    segment = bytearray(end - start)
    for batch in batches:
        packed = batch.pack(MIB)
        segment[batch.position - start : batch.position - start + len(packed)] = packed
    return segment


# one page of header and extents, 8.5 KiB of payload padded to 12: a batch is 16 KiB
STEP = 16 * KIB
P0, P1, P2 = SEGMENT, SEGMENT + STEP, SEGMENT + 2 * STEP


def test_undo_batches_come_back_as_they_were_packed():
    batch = batch_at(P1, sequence=5, flushed=P1)
    packed = batch.pack(MIB)
    assert len(packed) == STEP
    assert disk.UndoBatch.unpack(packed, MIB, base_id=ID_A, attempt=7, position=P1) == batch


def test_every_flipped_bit_of_an_undo_batch_is_caught():
    packed = batch_at(P0, size=512).pack(MIB)
    used = [*range(144 + 3 * 16), *range(4096, 4096 + 1024)]
    for place in used:
        for bit in range(8):
            flipped = bytearray(packed)
            flipped[place] ^= 1 << bit
            assert scan(flipped).batches == [], place


@pytest.mark.parametrize("change", [
    {"extents": ()}, {"extents": ((0, 0, 2),)}, {"extents": ((0, 100, 2),)}, {"extents": ((100, 512, 2),)}, {"payload": b""},
    {"extents": ((MIB, 512, 2),)}, {"extents": ((MIB - 512, 1024, 2),)}, {"extents": ((2**64 - 512, 512, 2),)},
    {"extents": ((0, 512, 0),)}, {"extents": ((0, 512, 3),)}, {"extents": ((0, 512, 2),) * 16385}, {"position": P0 + 512},
    {"position": 2 * SEGMENT - 12 * KIB}, {"flushed": P0 + 4096}, {"payload": bytes(1000)}, {"base_id": b"short"},
])
def test_an_undo_batch_that_no_reader_would_take_is_not_packed(change):
    batch_at(P0).pack(MIB)
    if change.get("extents"):  # all of kind ZERO
        change = {"payload": b"", **change}
    with pytest.raises(ValueError, match="undo batch"):
        batch_at(**{"position": P0, **change}).pack(MIB)


def forge_batch(**fields):
    """A batch whose checksum is right over any fields of its header and first extents."""
    packed = bytearray(batch_at(P0).pack(MIB))
    for place, value in fields.items():
        _, offset, layout = place.split("_")
        struct.pack_into("<" + layout, packed, int(offset), value)
    packed[112:144] = blake3.blake3(bytes(packed[:112]) + bytes(packed[144 : 144 + 3 * 16])).digest()
    return packed


@pytest.mark.parametrize("change", [
    {"at_8_I": 2}, {"at_12_I": 0}, {"at_12_I": 16385}, {"at_12_I": 2**32 - 1}, {"at_16_16s": ID_B}, {"at_32_Q": 8}, {"at_48_Q": P1},
    {"at_56_Q": 0}, {"at_56_Q": 2**64 - 512}, {"at_56_Q": SEGMENT}, {"at_64_Q": P1}, {"at_72_Q": 1}, {"at_144_Q": MIB},
    {"at_144_Q": 2**64 - 512}, {"at_152_I": 0}, {"at_152_I": 2**32 - 512}, {"at_156_I": 0}, {"at_156_I": 3},
])
def test_an_undo_batch_with_a_field_out_of_range_is_no_batch_although_its_checksum_is_right(change):
    assert len(scan(forge_batch()).batches) == 1
    assert scan(forge_batch(**change)).batches == []


@given(st.lists(st.tuples(st.integers(0, 2040), st.integers(1, 8), st.sampled_from([1, 2])), min_size=1, max_size=600), numbers, numbers)
def test_undo_batches_round_trip(sectors, attempt, sequence):
    extents = tuple((offset * 512, size * 512, kind) for offset, size, kind in sectors)
    payload = blake3.blake3(b"payload").digest(length=sum(size for _, size, kind in extents if kind == disk.UNDO_DATA))
    batch = disk.UndoBatch(base_id=ID_C, attempt=attempt, sequence=sequence, position=P1, flushed=P0, extents=extents, payload=payload)
    assert disk.UndoBatch.unpack(batch.pack(MIB), MIB, base_id=ID_C, attempt=attempt, position=P1) == batch


def test_a_segment_gives_its_batches_in_file_order_with_where_their_payload_lies():
    found = scan(fill(batch_at(P0, 4), batch_at(P1, 9, flushed=P0), batch_at(P2, 6, flushed=P1)))
    assert [(b.position, b.sequence, b.flushed, b.payload_position, b.payload_size) for b in found.batches] == [
        (P0, 4, 0, P0 + 4096, 8704), (P1, 9, P0, P1 + 4096, 8704), (P2, 6, P1, P2 + 4096, 8704)]
    assert found.batches[0].extents == [(64 * KIB, 4 * KIB, disk.UNDO_ZERO), (128 * KIB, 8 * KIB, disk.UNDO_DATA), (4 * KIB, 512, disk.UNDO_DATA)]
    assert (found.gap, found.damaged) == (None, None)


def test_an_empty_segment_is_an_unwritten_tail():
    assert scan(bytes(64 * KIB)) == ([], SEGMENT, None)
    assert scan(b"") == ([], None, None)
    assert scan(bytes(100)) == ([], None, None)


@pytest.mark.parametrize("place", [0, 100, 150, 4096, 12 * KIB])
def test_a_torn_batch_that_nobody_says_was_flushed_is_the_tail(place):
    segment = fill(batch_at(P0), batch_at(P1, 2, flushed=P1), batch_at(P2, 3, flushed=P1))
    segment[STEP + place] ^= 1
    found = scan(segment)
    assert [b.position for b in found.batches] == [P0, P2]  # P2 outlived P1 in the cache; nothing it covers was written yet
    assert (found.gap, found.damaged) == (P1, None)


@pytest.mark.parametrize("place", [0, 100, 150, 4096, 12 * KIB])
def test_a_broken_batch_that_a_later_one_says_was_flushed_is_damage_and_is_named(place):
    segment = fill(batch_at(P0), batch_at(P1, 2, flushed=P1), batch_at(P2, 3, flushed=P2))
    segment[STEP + place] ^= 1
    found = scan(segment)
    assert [b.position for b in found.batches] == [P0, P2]
    assert (found.gap, found.damaged) == (P1, P1)


def test_damage_is_seen_behind_a_later_tear_too():
    far = P2 + STEP
    segment = fill(batch_at(P0), batch_at(P1, 2), batch_at(P2, 3), batch_at(far, 4, flushed=P1))
    segment[:4096] = bytes(4096)
    segment[STEP : STEP + 4096] = bytes(4096)
    assert scan(segment).damaged == P0


def test_batches_of_another_attempt_base_or_place_are_not_ours():
    segment = fill(batch_at(P0), batch_at(P1, attempt=8), batch_at(P2, base_id=ID_B))
    assert [b.position for b in scan(segment).batches] == [P0]
    assert scan(fill(batch_at(P0)), position=2 * SEGMENT).batches == []


def test_a_batch_cut_by_the_end_of_the_file_is_the_tail():
    segment = fill(batch_at(P0), batch_at(P1, 2))
    found = scan(segment[:-4096])
    assert ([b.position for b in found.batches], found.gap, found.damaged) == ([P0], P1, None)


def test_a_buffer_that_is_no_segment_is_refused():
    for buffer, position in ((bytes(SEGMENT + 4096), SEGMENT), (bytes(8192), 2 * SEGMENT - 4096), (bytes(4096), 100)):
        with pytest.raises(ValueError):
            disk.scan_undo_segment(buffer, position, MIB, ID_A, 7)


def test_batches_have_not_changed_since_version_1():
    check_golden("undo-batch-v1.bin", batch_at(P1, 5, flushed=P1, size=512).pack(MIB))
