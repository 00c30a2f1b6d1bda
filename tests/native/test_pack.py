"""zstd as frames carry it: what is packed comes back, and what a peer may send in its place is refused before a byte of it is unpacked.

Frames of zstd are put together here by hand (RFC 8878), so that they can say what no compressor would.
"""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrep._native.pack import LEVEL_MAX, LEVEL_MIN, Packer, Unpacker
from qrep._native.wire import DATA_MAX

KIB, MIB = 1 << 10, 1 << 20
MAGIC, SKIPPABLE = 0xFD2FB528, 0x184D2A50
RAW, RLE = 0, 1
TEXT = b"".join(b"line %d of a text that says the same again\n" % i for i in range(2000))[: 64 * KIB]


def block(kind, size, data, last=True):
    return struct.pack("<I", size << 3 | kind << 1 | last)[:3] + data


def zstd_frame(blocks, size, *, window_log=None, descriptor=0, extra=b""):
    """A zstd frame of these blocks with 4 bytes of content size; window_log None: a single segment, whose window is its content."""
    single = window_log is None
    head = struct.pack("<IB", MAGIC, 2 << 6 | single << 5 | descriptor)
    if not single:
        head += bytes([window_log - 10 << 3])
    return head + extra + struct.pack("<I", size) + blocks


@pytest.mark.parametrize("level", [LEVEL_MIN, -5, 1, LEVEL_MAX])
@pytest.mark.parametrize("size", [1 * KIB, 4 * KIB, 60 * KIB + 512, 1 * MIB, DATA_MAX])
def test_what_is_packed_comes_back(level, size):
    data = (TEXT * (size // len(TEXT) + 1))[:size]
    packed = Packer().pack(data, level)
    assert len(packed) < size and Unpacker().unpack(packed, size) == data


def test_a_packer_goes_from_level_to_level_and_an_unpacker_from_frame_to_frame(random_source):
    packer, unpacker = Packer(), Unpacker()
    for _ in range(60):
        data = random_source.randbytes(40) * random_source.randrange(100, 20000)
        packed = packer.pack(data, random_source.choice([-50, -5, 1, 2, 3]))
        assert unpacker.unpack(packed, len(data)) == data


def test_what_does_not_become_shorter_is_not_packed(random_source):
    assert Packer().pack(random_source.randbytes(MIB), 1) is None
    assert Packer().pack(b"x", 1) is None


@given(st.binary(max_size=2000))
def test_bytes_that_are_no_frame_are_refused(data):
    with pytest.raises(ValueError, match="bytes packed"):
        Unpacker().unpack(data, 8 * KIB)


def test_every_shortened_frame_and_every_frame_with_something_behind_it_is_refused():
    data = TEXT[: 8 * KIB]
    packed = Packer().pack(data)
    for end in range(len(packed)):
        with pytest.raises(ValueError, match="bytes packed"):
            Unpacker().unpack(packed[:end], len(data))
    for behind in (b"\0", packed, struct.pack("<II", SKIPPABLE, 0)):
        with pytest.raises(ValueError, match="bytes packed"):
            Unpacker().unpack(packed + behind, len(data))


def test_an_unpacker_goes_on_after_what_it_refused():
    unpacker, packed = Unpacker(), Packer().pack(TEXT)
    damaged = packed[: len(packed) // 2] + bytes(len(packed) - len(packed) // 2)
    with pytest.raises(ValueError, match="bytes packed"):
        unpacker.unpack(damaged, len(TEXT))
    assert unpacker.unpack(packed, len(TEXT)) == TEXT


@pytest.mark.parametrize("size", [len(TEXT) - 1, len(TEXT) + 1, 1, DATA_MAX])
def test_another_length_than_the_one_declared_is_refused(size):
    with pytest.raises(ValueError, match="bytes packed"):
        Unpacker().unpack(Packer().pack(TEXT), size)


def test_a_frame_that_says_less_than_its_blocks_hold_is_refused():
    bomb = b"".join(block(RLE, 128 * KIB, b"A", last=i == 7) for i in range(8))
    assert Unpacker().unpack(zstd_frame(bomb, MIB), MIB) == b"A" * MIB
    for says in (4 * KIB, MIB - 1, MIB + 1):
        with pytest.raises(ValueError, match="bytes packed"):
            Unpacker().unpack(zstd_frame(bomb, says), says)


def test_a_bomb_whose_declared_length_is_beyond_a_frame_is_refused():
    bomb = b"".join(block(RLE, 128 * KIB, b"A", last=i == 511) for i in range(512))
    with pytest.raises(ValueError, match="bytes packed"):
        Unpacker().unpack(zstd_frame(bomb, 64 * MIB), DATA_MAX)


@pytest.mark.parametrize(("window_log", "taken"), [(10, True), (22, True), (23, False), (27, False), (31, False), (41, False)])
def test_a_window_larger_than_a_frame_is_refused(window_log, taken):
    packed = zstd_frame(block(RAW, 1000, b"x" * 1000), 1000, window_log=window_log)
    if taken:
        assert Unpacker().unpack(packed, 1000) == b"x" * 1000
    else:
        with pytest.raises(ValueError, match="bytes packed"):
            Unpacker().unpack(packed, 1000)


@pytest.mark.parametrize(
    "packed",
    [
        zstd_frame(block(RAW, 1000, b"x" * 1000), 1000, descriptor=1, extra=b"\x07"),  # a dictionary
        zstd_frame(block(RAW, 1000, b"x" * 1000), 1000, descriptor=8),  # the reserved bit
        zstd_frame(block(3, 1000, b"x" * 1000), 1000),  # the reserved kind of block
        zstd_frame(block(RAW, 1000, b"x" * 1000, last=False), 1000),  # no last block
        zstd_frame(block(RAW, 1000, b"x" * 1000), 1000, descriptor=4) + bytes(4),  # a wrong checksum
        struct.pack("<IB", MAGIC, 0) + b"\x50" + block(RAW, 1000, b"x" * 1000),  # a length that is not declared
        struct.pack("<II", SKIPPABLE, 1000) + bytes(1000),
        struct.pack("<II", SKIPPABLE, 0) + zstd_frame(block(RAW, 1000, b"x" * 1000), 1000),
    ],
    ids=["dictionary", "reserved", "block", "endless", "checksum", "undeclared", "skippable", "skipped"],
)
def test_other_things_that_zstd_knows_are_refused(packed):
    with pytest.raises(ValueError, match="bytes packed"):
        Unpacker().unpack(packed, 1000)


def test_sizes_out_of_range_are_an_error():
    for size in (0, DATA_MAX + 1):
        with pytest.raises(ValueError, match="not 1 to"):
            Unpacker().unpack(b"", size)
        with pytest.raises(ValueError, match="not 1 to"):
            Packer().pack(bytes(size))
    for level in (LEVEL_MIN - 1, LEVEL_MAX + 1):
        with pytest.raises(ValueError, match="level"):
            Packer().pack(TEXT, level)
