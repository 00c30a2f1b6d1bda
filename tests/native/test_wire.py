"""The frame codec against a second description of it: struct and the packaged blake3."""

import struct

import blake3
import pytest
from golden import check_golden
from hypothesis import given
from hypothesis import strategies as st

from qrep._native import wire

KIB, MIB = 1 << 10, 1 << 20
KEY = bytes(range(32))
VALUE = bytes(range(100, 132))
DIGEST = bytes(range(200, 232))
# 20 granules of 64 KiB (16 leaves) and a last one of 3 whole leaves and a short one of 1 KiB
GEOMETRY = wire.Geometry(20 * 64 * KIB + 13 * KIB, 4 * KIB, 64 * KIB)
FIELDS = {  # name: (offset, struct format), as docs/PROTOCOL.md has them
    "magic": (0, "<I"), "version": (4, "<H"), "kind": (6, "<H"), "flags": (8, "<I"), "run_count": (12, "<I"),
    "granule": (16, "<Q"), "attempt": (24, "<Q"), "session": (32, "<Q"), "sequence": (40, "<Q"), "data_size": (48, "<I"),
    "first_leaf": (52, "<I"), "digest": (56, "32s"), "granule_value": (88, "32s"), "span": (120, "<I"),
    "connection": (124, "<I"),
}


def writer(geometry=GEOMETRY, attempt=7, session=3, connection=1, key=KEY, features=()):
    return wire.FrameWriter(geometry, attempt, session, connection, key, features)


def reader(geometry=GEOMETRY, attempt=7, session=3, connection=1, key=KEY, features=()):
    return wire.FrameReader(geometry, attempt, session, connection, key, features)


def forge(**fields):
    """A header with a right tag and any fields, made without the codec."""
    header = bytearray(128)
    for name, value in {"magic": 0x50455251, "version": 1, "attempt": 7, "session": 3, "connection": 1, **fields}.items():
        offset, layout = FIELDS[name]
        struct.pack_into(layout, header, offset, value)
    return bytes(header) + blake3.blake3(bytes(header), key=KEY).digest()


def table(*runs):
    return b"".join(struct.pack("<II", first, count | (zero << 31)) for first, count, zero in runs)


def test_header_bytes_are_those_of_the_second_description():
    expected = forge(kind=wire.FULL, flags=3, granule=4, first_leaf=8, data_size=16 * KIB, digest=DIGEST, granule_value=VALUE)
    assert writer().full(4, 8, 16 * KIB, DIGEST, wire.LAST, VALUE) == expected


def test_every_kind_of_frame_arrives_as_it_was_sent():
    out, back = writer(), reader()
    full = back.header(out.full(20, 0, 13 * KIB, DIGEST, wire.LAST))
    assert full == (wire.FULL, wire.LAST, 20, 0, 0, 13 * KIB, 0, DIGEST, None, 0, 0)
    runs = [(0, 2, False), (2, 1, True), (3, 1, False), (9, 7, True)]
    sent = out.runs(2, runs, 12 * KIB, DIGEST, 0, VALUE)
    header = back.header(sent[: wire.HEADER_SIZE])
    assert header == (wire.RUNS, wire.VALUE, 2, 0, 4, 12 * KIB, 0, DIGEST, VALUE, 1, 0)
    assert back.runs(header, sent[wire.HEADER_SIZE :]) == [wire.Run(*run) for run in runs]
    assert back.header(out.zero(1, 20, wire.LAST)) == (wire.ZERO, wire.LAST, 1, 0, 0, 0, 20, bytes(32), None, 2, 0)
    assert back.header(out.end()) == (wire.END, 0, 0, 0, 0, 0, 0, bytes(32), None, 3, 0)


def test_every_flipped_bit_of_a_header_is_caught():
    header = writer().full(4, 8, 16 * KIB, DIGEST, wire.LAST, VALUE)
    for bit in range(len(header) * 8):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(wire.FrameDamaged):
            reader().header(flipped)
    reader().header(header)


@pytest.mark.parametrize("other", [{"attempt": 8}, {"session": 2}, {"session": 4}, {"connection": 0}, {"sequence": 1}])
def test_a_sound_frame_of_another_stream_is_stale(other):
    with pytest.raises(wire.FrameStale):
        reader().header(forge(kind=wire.END, **other))


def test_a_frame_sealed_with_another_key_is_damaged():
    with pytest.raises(wire.FrameDamaged):
        reader().header(writer(key=bytes(32)).end())


def test_a_frame_cannot_be_replayed_or_left_out():
    out, back = writer(), reader()
    first, second, third = out.zero(0, 1), out.zero(1, 1), out.zero(2, 1)
    back.header(first)
    for wrong in (first, third):
        with pytest.raises(wire.FrameStale, match="its next is 1"):
            back.header(wrong)
    back.header(second)


FULL = {"kind": wire.FULL, "granule": 4, "first_leaf": 8, "data_size": 16 * KIB}
RUNS = {"kind": wire.RUNS, "granule": 4, "run_count": 2, "data_size": 16 * KIB}
ZERO = {"kind": wire.ZERO, "granule": 4, "span": 2}
REFUSED = [
    (FULL, {"kind": 0}), (FULL, {"kind": 5}), (FULL, {"flags": 4}), (FULL, {"flags": 1 << 31}), (FULL, {"granule_value": VALUE}),
    (FULL, {"granule": 21}), (FULL, {"granule": 2**64 - 1}), (FULL, {"run_count": 1}), (FULL, {"span": 1}),
    (FULL, {"data_size": 0}), (FULL, {"data_size": 4 * MIB + 1}), (FULL, {"data_size": 2**32 - 1}),
    (FULL, {"data_size": 12 * KIB}), (FULL, {"data_size": 16 * KIB - 1}), (FULL, {"first_leaf": 9}), (FULL, {"first_leaf": 16}),
    (FULL, {"first_leaf": 2**32 - 1}), (FULL, {"data_size": 32 * KIB, "first_leaf": 4}), (FULL, {"data_size": 128 * KIB, "first_leaf": 0}),
    (FULL, {"granule": 20, "first_leaf": 0, "data_size": 12 * KIB}), (FULL, {"granule": 20, "first_leaf": 1, "data_size": 9 * KIB}),
    (FULL, {"granule": 20, "first_leaf": 0, "data_size": 16 * KIB}),
    (RUNS, {"run_count": 0}), (RUNS, {"run_count": 17}), (RUNS, {"run_count": 2**32 - 1}), (RUNS, {"first_leaf": 1}),
    (RUNS, {"span": 1}), (RUNS, {"granule": 21}), (RUNS, {"data_size": 64 * KIB + 1}), (RUNS, {"data_size": 2**32 - 1}),
    (ZERO, {"span": 0}), (ZERO, {"span": 18}), (ZERO, {"span": 2**32 - 1}), (ZERO, {"granule": 21}), (ZERO, {"run_count": 1}),
    (ZERO, {"granule": 2**64 - 1}), (ZERO, {"data_size": 1}), (ZERO, {"digest": DIGEST}), (ZERO, {"first_leaf": 1}),
    (ZERO, {"flags": 2, "granule_value": VALUE}), (ZERO, {"flags": 5}), (FULL, {"flags": 7}), (FULL, {"flags": 6}), (FULL, {"flags": 8}),
    ({"kind": wire.END}, {"granule": 1}), ({"kind": wire.END}, {"flags": 1}), ({"kind": wire.END}, {"data_size": 1}),
    ({"kind": wire.END}, {"digest": DIGEST}), ({"kind": wire.END}, {"span": 1}), ({"kind": wire.END}, {"run_count": 1}),
]


@pytest.mark.parametrize(("sound", "change"), REFUSED)
def test_a_field_out_of_range_is_refused_although_its_tag_is_right(sound, change):
    reader().header(forge(**sound))
    with pytest.raises(wire.FrameInvalid):
        reader().header(forge(**{**sound, **change}))


@pytest.mark.parametrize("granule", [0, 19, 20])
def test_the_data_of_a_full_frame_is_a_node_of_the_tree_and_nothing_else(granule):
    size = GEOMETRY.granule_bytes(granule)
    nodes = set()
    for leaves in (1, 2, 4, 8, 16):
        for first in range(0, 16, leaves):
            if first * 4 * KIB < size:
                nodes.add((first, min(leaves * 4 * KIB, size - first * 4 * KIB)))
    taken = set()
    for first in range(18):
        for data_size in range(0, 68 * KIB, 512):
            try:
                reader().header(forge(kind=wire.FULL, granule=granule, first_leaf=first, data_size=data_size))
            except wire.FrameInvalid:
                continue
            taken.add((first, data_size))
    assert taken == nodes


@pytest.mark.parametrize("change", [{"magic": 0}, {"version": 0}, {"version": 2}])
def test_another_magic_or_version_is_damage(change):
    with pytest.raises(wire.FrameDamaged):
        reader().header(forge(kind=wire.END, **change))


@pytest.mark.parametrize(
    ("runs", "data_size"),
    [
        ([(0, 0, False)], 0), ([(16, 1, False)], 4 * KIB), ([(15, 2, False)], 8 * KIB), ([(0, 2**31 - 1, False)], 64 * KIB),
        ([(2**32 - 1, 1, True)], 0), ([(15, 2, True)], 0), ([(0, 2, False), (1, 1, True)], 8 * KIB), ([(4, 1, False), (0, 1, False)], 8 * KIB),
        ([(0, 1, False), (1, 1, False)], 8 * KIB), ([(0, 1, True), (1, 1, True)], 0), ([(0, 1, False)], 8 * KIB),
        ([(0, 1, True)], 4 * KIB), ([(0, 2, False)], 4 * KIB),
    ],
)
def test_a_run_table_that_does_not_fit_is_refused(runs, data_size):
    back = reader()
    frame = back.header(forge(kind=wire.RUNS, granule=4, run_count=len(runs), data_size=data_size))
    with pytest.raises(wire.FrameInvalid):
        back.runs(frame, table(*runs))
    with pytest.raises(wire.FrameInvalid):
        writer().runs(4, runs, data_size, DIGEST)


def test_a_run_that_ends_in_the_short_leaf_carries_its_short_bytes():
    # 3 whole leaves of 4 KiB and one of 1 KiB in the last granule; the run starts at leaf 2
    out, back = writer(), reader()
    sent = out.runs(20, [(2, 2, False)], 5 * KIB, DIGEST)
    assert back.runs(back.header(sent[:160]), sent[160:]) == [wire.Run(2, 2, False)]
    with pytest.raises(wire.FrameInvalid):
        out.runs(20, [(2, 2, False)], 8 * KIB, DIGEST)


@st.composite
def run_tables(draw):
    runs, leaf = [], draw(st.integers(0, 3))
    while leaf < 16:
        count, zero = draw(st.integers(1, 16 - leaf)), draw(st.booleans())
        if runs and runs[-1][2] == zero and sum(runs[-1][:2]) == leaf:
            leaf += 1
            continue
        runs.append((leaf, count, zero))
        leaf += count + draw(st.integers(0, 3))
    return runs or [(0, 1, False)]


@given(run_tables(), st.binary(min_size=32, max_size=32), st.none() | st.binary(min_size=32, max_size=32))
def test_run_tables_round_trip(runs, digest, value):
    data_size = sum(count * 4 * KIB for _, count, zero in runs if not zero)
    sent = writer().runs(5, runs, data_size, digest, wire.LAST, value)
    back = reader()
    frame = back.header(sent[:160])
    assert (frame.digest, frame.value, frame.data_size) == (digest, value, data_size)
    assert back.runs(frame, sent[160:]) == [wire.Run(*run) for run in runs]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 255), st.binary(min_size=32, max_size=32)), max_size=900))
def test_manifest_is_blake3_of_its_records(entries):
    marked = bytes(mark for mark, _, _ in entries)
    states = bytes(state for _, state, _ in entries)
    records = b"".join(
        struct.pack("<QQ", granule, state & 3) + (value if state & 0x20 else bytes(32))
        for granule, (mark, state, value) in enumerate(entries)
        if mark
    )
    expected = (sum(marked), blake3.blake3(records).digest())
    assert wire.manifest(marked, states, b"".join(value for _, _, value in entries)) == expected


@pytest.mark.parametrize("count", [341, 342, 683, 1024, 1366, 2731, 5000])
def test_manifest_of_many_pieces_is_blake3_of_its_records(count):
    # a record is 48 bytes, a piece of the streaming hash 16 KiB: 341.3 records
    values = blake3.blake3(b"values").digest(length=count * 32)
    records = b"".join(struct.pack("<QQ", i, 1) + values[i * 32 : i * 32 + 32] for i in range(count))
    assert wire.manifest(b"\1" * count, b"\x21" * count, values) == (count, blake3.blake3(records).digest())


@pytest.mark.parametrize(
    ("size", "leaf_size", "granule_size"),
    [
        (MIB, 2 * KIB, 64 * KIB), (MIB, 2 * MIB, 8 * MIB), (MIB, 5 * KIB, 64 * KIB), (MIB, 4 * KIB, 4 * KIB), (MIB, 0, 64 * KIB),
        (MIB, 4 * KIB, 0), (MIB, 4 * KIB, 96 * KIB), (MIB, 4 * KIB, 128 * MIB), (8 * KIB - 512, 4 * KIB, 64 * KIB), (0, 4 * KIB, 64 * KIB),
        (MIB + 1, 4 * KIB, 64 * KIB), (2**63, 4 * KIB, 64 * KIB), (MIB, 8 * KIB, 4 * KIB),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(size, leaf_size, granule_size):
    with pytest.raises(ValueError, match="geometry"):
        wire.Geometry(size, leaf_size, granule_size)


def test_geometry_knows_its_short_end_and_its_limits():
    assert GEOMETRY.granules == 21
    assert [GEOMETRY.granule_bytes(g) for g in (0, 20)] == [64 * KIB, 13 * KIB]
    assert [GEOMETRY.granule_leaves(g) for g in (0, 20)] == [16, 4]
    # 16 leaves * 32 bytes, rounded up to a page; two slots per granule
    assert GEOMETRY.leaf_page_size == 4096
    assert [GEOMETRY.leaf_page_offset(3, slot) for slot in (0, 1)] == [6 * 4096, 7 * 4096]
    for call in (GEOMETRY.granule_bytes, GEOMETRY.granule_leaves):
        with pytest.raises(ValueError, match="granule"):
            call(21)
    largest = wire.Geometry(2**63 - 512, 4 * KIB, 8 * KIB)
    assert largest.granules == 2**50 and largest.granule_bytes(2**50 - 1) == 8 * KIB - 512
    assert wire.Geometry(8 * KIB, 4 * KIB, 64 * MIB).granule_leaves(0) == 2


def test_frames_have_not_changed_since_version_1():
    out = writer()
    check_golden("frames-v1.bin", out.full(4, 8, 16 * KIB, DIGEST, wire.LAST, VALUE)
                 + out.runs(20, [(0, 1, True), (2, 2, False)], 5 * KIB, DIGEST) + out.zero(1, 20, wire.LAST) + out.end())


# ---- PACKED ----

PACKED_FULL = {"kind": wire.FULL, "flags": wire.PACKED, "granule": 4, "first_leaf": 8, "data_size": 5000, "span": 16 * KIB}
PACKED_RUNS = {"kind": wire.RUNS, "flags": wire.PACKED, "granule": 4, "run_count": 2, "data_size": 5000, "span": 16 * KIB}
ZSTD = {"features": ("zstd",)}


def test_a_packed_frame_says_how_much_travels_and_how_much_it_is():
    out, back = writer(**ZSTD), reader(**ZSTD)
    sent = out.full(4, 8, 16 * KIB, DIGEST, wire.LAST, VALUE, packed=5000)
    flags = wire.LAST | wire.VALUE | wire.PACKED
    assert sent == forge(**PACKED_FULL | {"flags": flags, "digest": DIGEST, "granule_value": VALUE})
    assert back.header(sent) == (wire.FULL, flags, 4, 8, 0, 5000, 16 * KIB, DIGEST, VALUE, 0, 0)
    runs = [(0, 2, False), (2, 1, True), (3, 1, False)]
    sent = out.runs(2, runs, 12 * KIB, DIGEST, packed=12 * KIB - 1)
    frame = back.header(sent[:160])
    assert (frame.flags, frame.data_size, frame.span) == (wire.PACKED, 12 * KIB - 1, 12 * KIB)
    assert back.runs(frame, sent[160:]) == [wire.Run(*run) for run in runs]


@pytest.mark.parametrize("sound", [PACKED_FULL, PACKED_RUNS])
def test_a_packed_frame_is_refused_where_that_was_not_agreed(sound):
    reader(**ZSTD).header(forge(**sound))
    with pytest.raises(wire.FrameInvalid):
        reader().header(forge(**sound))


@pytest.mark.parametrize(
    ("sound", "change"),
    [
        (PACKED_FULL, {"data_size": 0}), (PACKED_FULL, {"data_size": 16 * KIB}), (PACKED_FULL, {"data_size": 2**32 - 1}), (PACKED_FULL, {"span": 0}),
        (PACKED_FULL, {"span": 4999}), (PACKED_FULL, {"span": 16 * KIB - 512}), (PACKED_FULL, {"span": 12 * KIB}), (PACKED_FULL, {"span": 64 * KIB}),
        (PACKED_FULL, {"span": 2**32 - 1}), (PACKED_FULL, {"first_leaf": 6}), (PACKED_FULL, {"flags": 0}), (PACKED_FULL, {"kind": wire.ZERO}),
        (PACKED_FULL, {"kind": wire.END, "granule": 0, "first_leaf": 0}), (PACKED_RUNS, {"data_size": 0}), (PACKED_RUNS, {"data_size": 16 * KIB}),
        (PACKED_RUNS, {"span": 64 * KIB + 512}), (PACKED_RUNS, {"span": 4 * MIB + 1}), (PACKED_RUNS, {"span": 0}), (PACKED_RUNS, {"flags": 0}),
        (PACKED_RUNS, {"flags": wire.PACKED | 16}), ({"kind": wire.ZERO, "granule": 4, "span": 2}, {"flags": wire.PACKED}),
        ({"kind": wire.ZERO, "granule": 4, "span": 2}, {"flags": wire.PACKED, "data_size": 1}),
    ],
)  # fmt: skip
def test_a_packed_frame_that_promises_what_cannot_be_is_refused(sound, change):
    reader(**ZSTD).header(forge(**sound))
    with pytest.raises(wire.FrameInvalid):
        reader(**ZSTD).header(forge(**{**sound, **change}))


def test_the_runs_of_a_packed_frame_add_up_to_what_it_is_once_unpacked():
    runs = [(0, 2, False), (4, 1, False)]
    back = reader(**ZSTD)
    frame = back.header(forge(**PACKED_RUNS | {"span": 12 * KIB}))
    assert back.runs(frame, table(*runs)) == [wire.Run(*run) for run in runs]
    for span in (8 * KIB, 16 * KIB):
        back = reader(**ZSTD)
        with pytest.raises(wire.FrameInvalid):
            back.runs(back.header(forge(**PACKED_RUNS | {"span": span})), table(*runs))


def test_a_feature_that_frames_know_nothing_of_is_an_error():
    with pytest.raises(ValueError, match="brotli"):
        reader(features=("zstd", "brotli"))


def test_packed_frames_have_not_changed_since_they_came():
    out = writer(**ZSTD)
    check_golden("frames-v1-packed.bin", out.full(4, 8, 16 * KIB, DIGEST, wire.LAST, VALUE, packed=5000)
                 + out.runs(20, [(0, 1, True), (2, 2, False)], 5 * KIB, DIGEST, packed=77) + out.end())


COPIES = {"features": ("copies",)}


def test_copies_arrive_as_they_were_sent_also_packed():
    runs = [(0, 4, False), (4, 2, False, 1), (6, 1, True), (7, 1, False, 0)]
    for options, packed in ((COPIES, 0), ({"features": ("copies", "zstd")}, 300)):
        sent = writer(**options).runs(2, runs, 16 * KIB, DIGEST, packed=packed)
        back = reader(**options)
        frame = back.header(sent[: wire.HEADER_SIZE])
        assert (frame.kind, frame.copy_leaves, frame.first_leaf, frame.run_count) == (wire.RUNS, 3, 0, 4)
        assert back.runs(frame, sent[wire.HEADER_SIZE :]) == [wire.Run(*run) for run in runs]
        with pytest.raises(wire.FrameInvalid):
            reader().header(sent[: wire.HEADER_SIZE])


def test_a_copy_run_is_its_leaves_and_the_place_of_the_first_in_one_number():
    sent = writer(**COPIES).runs(2, [(0, 3, False), (5, 2, False, 1)], 12 * KIB, DIGEST)
    header = forge(kind=wire.RUNS, granule=2, run_count=2, data_size=12 * KIB, first_leaf=2, digest=DIGEST)
    assert sent == header + struct.pack("<IIII", 0, 3, 5, 0x40000000 | 1 << 16 | 2)


def test_frames_with_copies_have_not_changed_since_they_came():
    out = writer(**COPIES)
    runs = [(0, 4, False), (4, 2, False, 1), (6, 1, True), (7, 1, False, 0)]
    check_golden("frames-v1-copies.bin", out.runs(2, runs, 16 * KIB, DIGEST) + out.runs(3, [(1, 1, False), (2, 1, False, 1)], 4 * KIB, DIGEST, wire.LAST, VALUE))
