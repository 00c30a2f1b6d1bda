"""Leaves that are equal travel once in a frame: what a source lane makes of them, and that the volume comes out right."""

import os
import socket

import pytest
from source_peer import ATTEMPT, KEY, SESSION, Peer, map_of, receive_all

from qrep._native import wire
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep._native.wire import HEADER_SIZE, RUN_SIZE, Geometry

LEAF, GRANULE = 4096, 256 << 10
LEAVES = GRANULE // LEAF
SIZE = 3 * GRANULE + 5 * LEAF + 512  # the last granule is short, and so is its last leaf
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)
FEATURES = ("copies",)


@pytest.fixture
def send(memory_dir, backend):
    """send(data, base=None, frame_size=GRANULE, features=FEATURES) -> (counters, peer) of a lane over a volume of these bytes. base: what the target holds
    and the map knows; None: nothing is known. The peer rebuilds the volume."""

    def run(data, base=None, *, frame_size=GRANULE, features=FEATURES, peer_options=None, **options):
        device, leaves = memory_dir / "device", memory_dir / "leaves"
        device.write_bytes(data)
        states, values, pages = map_of(base, GEOMETRY) if base is not None else (bytes(GEOMETRY.granules), bytes(32 * GEOMETRY.granules), b"")
        leaves.write_bytes(pages)
        device_fd, leaves_fd = os.open(device, os.O_RDONLY), os.open(leaves, os.O_RDWR)
        source = SourceRun(
            GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512, base_states=states, base_values=values, leaves_fd=leaves_fd,
            ring_backend=backend, frame_size=frame_size, features=features, **options,
        )  # fmt: skip
        ours, theirs = socket.socketpair()
        with ours, theirs:
            peer = Peer(GEOMETRY, bytearray(base or os.urandom(SIZE)), receive_all(theirs), theirs.sendall, features=features, **peer_options or {})
            rc = source.lane(device_fd, Connection.socket(ours.fileno(), 0))
            ours.shutdown(socket.SHUT_RDWR)
            peer.close()
        os.close(device_fd)
        os.close(leaves_fd)
        assert (rc, source.failure()) == (0, None)
        assert peer.image == data
        counters = source.counters()
        assert counters["sent"] == peer.bytes and counters["copies"] == peer.copies * LEAF
        return counters, peer

    return run


def leaves_of(pattern, blocks):
    """A volume whose leaf i is blocks[pattern(i)], its short last leaf cut from that."""
    return b"".join(blocks[pattern(i)] for i in range(SIZE // LEAF + 1))[:SIZE]


def frames(peer):
    """Those that carry anything, by place: reads complete in any order."""
    return sorted((frame for frame in peer.frames if frame.kind != wire.END), key=lambda frame: (frame.granule, frame.first_leaf))


def kinds(peer):
    return {frame.kind for frame in frames(peer)}


def test_leaves_that_are_all_equal_travel_once_in_a_frame(send, random_source):
    block = random_source.randbytes(LEAF)
    counters, peer = send(leaves_of(lambda i: 0, [block]))
    # three whole granules of 64 leaves, and five leaves and a short one, which takes no part
    assert peer.copies == 3 * (LEAVES - 1) + 4 and kinds(peer) == {wire.RUNS}
    tables = (3 * LEAVES + 5 + 1) * RUN_SIZE
    assert counters["sent"] == 5 * HEADER_SIZE + tables + 4 * LEAF + 512


def test_two_patterns_in_turn_travel_twice_in_a_frame_and_the_rest_is_one_run_each(send, random_source):
    blocks = [random_source.randbytes(LEAF) for _ in range(2)]
    _, peer = send(leaves_of(lambda i: i % 2, blocks))
    assert peer.copies == 3 * (LEAVES - 2) + 3
    assert [frame.run_count for frame in frames(peer)[:3]] == [1 + (LEAVES - 2) // 2] * 3  # copies of leaves 0 and 1, two at a time


def test_a_stretch_that_occurs_again_is_one_run(send, random_source):
    stretch = random_source.randbytes(20 * LEAF)
    data = bytearray(random_source.randbytes(SIZE))
    data[: 20 * LEAF] = data[30 * LEAF : 50 * LEAF] = stretch
    _, peer = send(bytes(data))
    first, *others = frames(peer)
    assert (first.kind, first.run_count, peer.copies) == (wire.RUNS, 3, 20)
    assert {frame.kind for frame in others} == {wire.FULL}, "where nothing is twice, nothing changes"


def test_unique_leaves_travel_as_they_did(send, random_source):
    data = random_source.randbytes(SIZE)
    with_copies, without = send(data), send(data, features=())
    assert [frame._replace(sequence=0) for frame in frames(with_copies[1])] == [frame._replace(sequence=0) for frame in frames(without[1])]
    assert with_copies[0]["sent"] == without[0]["sent"] and with_copies[0]["copies"] == 0


def test_nothing_is_copied_across_the_bound_of_a_frame(send, random_source):
    data = bytearray(random_source.randbytes(SIZE))
    data[16 * LEAF : 32 * LEAF] = data[: 16 * LEAF]  # frames of 16 leaves: the second frame is the first again
    _, peer = send(bytes(data), frame_size=16 * LEAF)
    assert peer.copies == 0 and kinds(peer) == {wire.FULL}
    _, peer = send(bytes(data), frame_size=32 * LEAF)
    assert peer.copies == 16


def test_leaves_that_differ_where_nobody_samples_are_not_taken_for_equal(send, random_source):
    block = random_source.randbytes(LEAF)
    blocks = [block[:1000] + bytes([i]) + block[1001:] for i in range(LEAVES)]
    data = leaves_of(lambda i: i % LEAVES, blocks)
    _, peer = send(data)
    assert peer.copies == 0


def test_zero_leaves_stay_zero_runs_among_copies(send, random_source):
    blocks = [bytes(LEAF), random_source.randbytes(LEAF), random_source.randbytes(LEAF)]
    data = leaves_of(lambda i: i % 3, blocks)
    counters, peer = send(data)
    whole = [i % 3 for i in range(SIZE // LEAF)]
    granules = [whole[start : start + LEAVES] for start in range(0, len(whole), LEAVES)]
    assert peer.copies == sum(len(kinds_in) - kinds_in.count(0) - 2 for kinds_in in granules)
    assert counters["sent"] < 8 * LEAF + 512 + 4 * 1024, "two leaves of each granule, the short one, tables and headers"


def test_only_what_changed_is_looked_at_and_what_is_in_the_base_alone_is_no_source_of_copies(send, random_source):
    base = bytearray(random_source.randbytes(SIZE))
    data = bytearray(base)
    data[9 * LEAF : 10 * LEAF] = base[:LEAF]  # equal to leaf 0, which does not travel
    data[20 * LEAF : 21 * LEAF] = data[40 * LEAF : 41 * LEAF] = os.urandom(LEAF)
    counters, peer = send(bytes(data), bytes(base))
    assert peer.copies == 1 and counters["sent"] == 2 * HEADER_SIZE + 3 * RUN_SIZE + 2 * LEAF


@pytest.mark.parametrize("frame_leaves", [1, 4, 16, 64])
def test_random_volumes_of_few_patterns_come_out_right_and_smaller(send, random_source, frame_leaves):
    for patterns in (1, 2, 7, 40, 500):
        blocks = [bytes(LEAF), *(random_source.randbytes(LEAF) for _ in range(patterns))]
        data, base = (leaves_of(lambda i: random_source.randrange(len(blocks)), blocks) for _ in range(2))
        options = {"frame_size": frame_leaves * LEAF, "slots": random_source.choice([2, 3])}
        for known in (None, base):
            counters, _ = send(data, known, **options)
            plain, _ = send(data, known, features=(), **options)
            # A copy saves its leaf; at most it costs its run, that of the data behind it and, where there was no table, of the data before it.
            assert plain["sent"] - counters["copies"] <= counters["sent"] <= plain["sent"] - counters["copies"] * (LEAF - 3 * RUN_SIZE) // LEAF


def test_a_lane_that_is_cut_off_in_the_middle_goes_on_with_what_is_missing(send, random_source):
    """What a resumed session does: it is told what is whole, and frames the rest anew."""
    blocks = [random_source.randbytes(LEAF) for _ in range(3)]
    data, held = leaves_of(lambda i: i * 7 % 3, blocks), bytearray(random_source.randbytes(SIZE))
    held[:GRANULE] = data[:GRANULE]  # the first granule had been applied
    _, peer = send(data, bytes(held))
    assert peer.copies and frames(peer)[0].granule == 1


def test_contents_made_to_collide_cost_little_and_are_sent_as_they_are(send, random_source):
    """Leaves that are alike wherever a sample is taken, each pair of them differing at the end of what memcmp reads: after some of them it stops looking."""
    block = bytearray(random_source.randbytes(LEAF))
    blocks = []
    for i in range(LEAVES):
        block[LEAF - 100] = i
        blocks.append(bytes(block))
    counters, peer = send(leaves_of(lambda i: i % LEAVES, blocks))
    assert peer.copies == 0 and kinds(peer) == {wire.FULL}
