"""A target lane and PACKED frames: unpacked, verified and written as if they had travelled plain; or refused, and nothing is written."""

import errno
import os

import pytest
from target_rig import LEAF, Target, mixed_content

from qrep._native.pack import Packer
from qrep._native.wire import HEADER_SIZE

SMALL = 4 * LEAF  # a granule
SIZE = 5 * SMALL + LEAF + 512
KINDS = ["socket", "stream", "pipes"]
ZSTD = {"features": ("zstd",)}
TEXT = b"".join(b"row %d of a table whose rows are much alike\n" % i for i in range(3000))[:SIZE]


def pack(data):
    return Packer().pack(data)


@pytest.fixture
def make_target(memory_dir, backend, undo_after):
    def make(content, **options):
        device = memory_dir / f"device-{len(os.listdir(memory_dir))}"
        device.touch()
        target = Target(memory_dir, device, content, ring_backend=backend, **{"granule_size": SMALL, **ZSTD} | options)
        undo_after.callback(target.close)
        return target

    return make


@pytest.mark.parametrize("undo", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_and_plain_frames_of_all_kinds_are_applied(make_target, kind, undo):
    old, content = mixed_content(7, SIZE), bytearray(TEXT)
    content[3 * SMALL : 4 * SMALL] = bytes(SMALL)
    content[SMALL + LEAF : SMALL + 2 * LEAF] = old[SMALL + LEAF : SMALL + 2 * LEAF]
    content[SMALL + 3 * LEAF : 2 * SMALL] = old[SMALL + 3 * LEAF : 2 * SMALL]
    target = make_target(old, undo=undo)
    session = target.serve(content, kind=kind, **ZSTD)
    source = session.source
    source.full(0, pack=pack)
    source.runs(1, [(0, 1, False), (2, 1, False)], pack=pack)
    source.full(2, 0, 2, last=False, pack=pack)
    source.full(2, 2, 2)
    source.zero(3)
    source.full(4, 0, 2, last=False)
    source.full(4, 2, 2, pack=pack)
    source.full(5, pack=pack)  # ends in half a sector more than a leaf
    assert session.finish() == 0
    assert target.device == bytes(content)
    assert [target.run.marked[granule] for granule in range(6)] == [2] * 6
    counters = target.run.counters()
    assert counters["hashed"] == SIZE - SMALL - 2 * LEAF and counters["received"] < counters["hashed"]


def test_many_packed_frames_in_flight_do_not_run_into_each_other(make_target, random_source):
    content = bytearray()
    for _ in range(200):  # leaves that differ, and pack to different lengths
        content += (random_source.randbytes(random_source.randrange(20, 3000)) * 300)[:LEAF]
    target = make_target(bytes(len(content)), undo=False)
    session = target.serve(content, **ZSTD)
    for granule in range(50):
        for leaf in range(4):
            session.source.full(granule, leaf, 1, last=leaf == 3, pack=pack if random_source.random() < 0.8 else None)
    assert session.finish() == 0
    assert target.device == bytes(content)


def spoiled(kind):
    """What travels in the place of a packed frame."""

    def make(data):
        packed = Packer().pack(data)
        return {
            "truncated": packed[:-1],
            "garbage behind": packed + b"\0",
            "two frames": Packer().pack(data[: len(data) // 2]) + Packer().pack(data[len(data) // 2 :]),
            "another length": Packer().pack(data[:-512]),
            "longer": Packer().pack(data + bytes(1 << 20)),  # a bomb: it says so itself
            "no frame": bytes(100),
            "damaged": packed[:20] + bytes(len(packed) - 20),
        }[kind]

    return make


@pytest.mark.parametrize("kind", ["truncated", "garbage behind", "two frames", "another length", "longer", "no frame", "damaged"])
def test_what_does_not_unpack_to_what_was_declared_is_refused_and_nothing_is_written(make_target, kind):
    old = mixed_content(8, SIZE)
    for frame in (lambda source: source.full(2, pack=spoiled(kind)), lambda source: source.runs(2, [(0, 2, False), (3, 1, False)], pack=spoiled(kind))):
        target = make_target(old)
        session = target.serve(bytearray(TEXT), **ZSTD)
        frame(session.source)
        session.source.end()
        assert session.result() == errno.EPROTO
        assert target.run.failure() == ("frame", errno.EPROTO, 0, 2)
        assert target.device == bytes(old) and not any(target.run.marked)


def test_other_bytes_of_the_declared_length_are_refused_by_their_digest(make_target):
    old = mixed_content(9, SIZE)
    target = make_target(old)
    session = target.serve(bytearray(TEXT), **ZSTD)
    session.source.full(2, pack=lambda data: Packer().pack(b"!" + data[1:]))
    session.source.end()
    assert session.result() == errno.EILSEQ
    assert target.run.failure()[0] == "digest"
    assert target.device == bytes(old)


def test_packed_frames_are_refused_in_a_session_that_did_not_agree_on_them(make_target):
    old = mixed_content(10, SIZE)
    target = make_target(old, features=())
    session = target.serve(bytearray(TEXT), **ZSTD)
    session.source.full(2, pack=pack)
    session.source.end()
    assert session.result() == errno.EPROTO
    assert target.device == bytes(old)


def test_a_frame_that_unpacks_to_more_than_the_limit_of_this_session_is_refused(make_target):
    target = make_target(mixed_content(11, SIZE), frame_limit=2 * LEAF)
    session = target.serve(bytearray(TEXT), **ZSTD)
    session.source.full(2, 0, 4, pack=pack)  # travels as a few hundred bytes
    assert session.result() == errno.EPROTO


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_frame_that_is_cut_short_is_not_applied(make_target, kind):
    old = mixed_content(12, SIZE)
    sent = []
    target = make_target(old)
    session = target.serve(bytearray(TEXT), kind=kind, **ZSTD)
    send, session.source.send = session.source.send, sent.append
    session.source.full(2, pack=pack)
    session.source.full(4, pack=pack)
    send(sent[0] + sent[1][: HEADER_SIZE + 60])
    session.hang_up()
    assert session.result() == errno.ECONNRESET
    expected = bytearray(old)
    expected[2 * SMALL : 3 * SMALL] = TEXT[2 * SMALL : 3 * SMALL]
    assert target.device == bytes(expected)
    assert bytes(target.run.marked) == bytes([0, 0, 2, 0, 0, 0])
