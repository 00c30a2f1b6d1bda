"""A source lane that packs: what arrives is the volume, whatever of it travelled packed; and when it does is decided by what it is and what it brings."""

import errno
import os
import socket
import time

import pytest
from source_peer import ATTEMPT, CONNECTION_KINDS, KEY, SESSION, Peer, Transport, map_of, receive_all

from qrep._native import wire
from qrep._native.bucket import Bucket
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep._native.wire import Geometry

KIB, MIB = 1 << 10, 1 << 20
LEAF, GRANULE = 4 * KIB, 1 * MIB
GEOMETRY = Geometry(8 * GRANULE + 5 * LEAF + 512, LEAF, GRANULE)  # the last granule is short, and so is its last leaf
TEXT = b"".join(b"entry %d of a log in which most lines look alike\n" % i for i in range(20000))[:GRANULE]
ZSTD = ("zstd",)


def volume_of(random_source):
    """Text, random bytes and zeroes, leaf by leaf and granule by granule."""
    data = bytearray()
    for granule in range(9):
        for leaf in range(GRANULE // LEAF):
            kind = "trzmmtrtt"[granule]
            kind = random_source.choice("ttrz") if kind == "m" else kind
            text = TEXT[leaf * LEAF : (leaf + 1) * LEAF]
            data += {"t": text, "r": random_source.randbytes(LEAF), "z": bytes(LEAF)}[kind]
    return data[: GEOMETRY.size]


class Sender:
    """A device with `data`, and lanes that send it to peers which hold `old` (all of it UNKNOWN if that is None)."""

    def __init__(self, directory, backend, undo_after, data, old=None, **options):
        self.data, self.image = data, bytearray(old or bytes(len(data)))
        path = directory / "device"
        path.write_bytes(data)
        self.device = os.open(path, os.O_RDONLY)
        undo_after.callback(os.close, self.device)
        states, values, pages = map_of(old, GEOMETRY) if old else (bytes(GEOMETRY.granules), bytes(32 * GEOMETRY.granules), b"")
        (directory / "leaves").write_bytes(pages)
        leaves = os.open(directory / "leaves", os.O_RDWR)
        undo_after.callback(os.close, leaves)
        self.run = SourceRun(
            GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512, base_states=bytes(states), base_values=bytes(values), leaves_fd=leaves,
            ring_backend=backend, **{"features": ZSTD, "packing": "on"} | options,
        )  # fmt: skip

    def send(self, transport, features=ZSTD):
        peer = Peer(GEOMETRY, self.image, transport.receive, transport.send, features=features)
        rc = self.run.lane(self.device, transport.connection)
        transport.cut()
        peer.close()
        assert (rc, self.run.failure()) == (0, None)
        assert self.image == self.data
        self.counters = self.run.counters()
        assert self.counters["sent"] == peer.bytes
        packed = [frame for frame in peer.frames if frame.flags & wire.PACKED]
        assert self.counters["packed"] == sum(frame.span for frame in packed)
        assert self.counters["packed_sent"] == sum(frame.data_size for frame in packed)
        assert all(frame.data_size <= frame.span * 0.95 for frame in packed)
        return packed, peer


@pytest.fixture
def sender(memory_dir, backend, undo_after):
    return lambda data, old=None, **options: Sender(memory_dir, backend, undo_after, data, old, **options)


@pytest.mark.parametrize(("kind", "slots"), [*((kind, 2) for kind in CONNECTION_KINDS), ("socketpair", 1), ("zero copy", 5)])
def test_a_volume_of_all_kinds_arrives_packed_over_every_kind_of_connection(sender, undo_after, random_source, kind, slots):
    data = volume_of(random_source)
    sending = sender(data, slots=slots)
    packed, peer = sending.send(Transport(kind, 0, undo_after))
    assert {frame.kind for frame in packed} == {wire.FULL, wire.RUNS}
    assert 1 not in {frame.granule for frame in packed} and {0, 5, 7} <= {frame.granule for frame in packed}
    assert peer.bytes < 4.5 * MIB  # 4 MiB of text and what is short of a ninth, at least 1.3 MiB of random bytes
    assert bytes(sending.run.marked) == b"\2" * 9


@pytest.mark.parametrize("frame_size", [LEAF, 64 * KIB, 4 * MIB])
def test_single_leaves_that_changed_travel_packed_together(sender, undo_after, random_source, frame_size):
    old = bytearray(random_source.randbytes(GEOMETRY.size))
    data = bytearray(old)
    for leaf in range(0, GEOMETRY.size // LEAF, 3):
        data[leaf * LEAF : (leaf + 1) * LEAF] = TEXT[:LEAF]
    data[-512:] = b"s" * 512  # the short leaf
    packed, _ = sender(data, old, frame_size=frame_size).send(Transport("socketpair", 0, undo_after))
    assert {frame.kind for frame in packed} <= {wire.FULL, wire.RUNS} and {frame.granule for frame in packed} == set(range(9))
    assert max(frame.span for frame in packed) <= min(frame_size, 256 * KIB)


@pytest.mark.parametrize(("packing", "frame_size"), [("on", 64 * KIB), ("auto", 64 * KIB), ("off", LEAF)])
def test_no_zeroes_come_between_the_frames_of_a_granule(sender, undo_after, random_source, packing, frame_size):
    """Where its frames are made one by one, or are more than one send carries. The peer takes one granule after the other, as targets do."""
    data = bytearray(GEOMETRY.size)
    for granule in range(0, 9, 2):
        data[granule * GRANULE : (granule + 1) * GRANULE] = TEXT if granule % 4 else random_source.randbytes(GRANULE)
    sender(data[: GEOMETRY.size], packing=packing, frame_size=frame_size, slots=5).send(Transport("socketpair", 0, undo_after))


def test_random_bytes_travel_plain_and_in_the_frames_of_ever(sender, undo_after, random_source):
    data = random_source.randbytes(GEOMETRY.size)
    packed, peer = sender(data, frame_size=1 * MIB).send(Transport("socketpair", 0, undo_after))
    assert packed == [] and {frame.data_size for frame in peer.frames if frame.kind == wire.FULL and frame.granule < 8} == {1 * MIB}


def test_on_packs_what_repeats_nothing_and_uses_few_byte_values(sender, undo_after, random_source):
    data = random_source.randbytes(GEOMETRY.size).hex().encode()[: GEOMETRY.size]  # 4 of 8 bits
    packed, peer = sender(data).send(Transport("socketpair", 0, undo_after))
    assert {frame.granule for frame in packed} == set(range(9)) and peer.bytes < 0.6 * GEOMETRY.size


@pytest.mark.parametrize("change", [{"packing": "off"}, {"features": ()}])
def test_nothing_is_packed_unless_it_was_agreed_on_and_is_wanted(sender, undo_after, random_source, change):
    packed, _ = sender(volume_of(random_source), **change).send(Transport("socketpair", 0, undo_after), change.get("features", ZSTD))
    assert packed == []


def test_auto_packs_where_a_rate_holds_the_connection_back(sender, undo_after):
    data = (TEXT * 9)[: GEOMETRY.size]
    packed, peer = sender(data, packing="auto").send(Transport("socketpair", 0, undo_after, bucket=Bucket(4 * MIB)))
    assert len({frame.granule for frame in packed}) >= 6  # the first one or two are what the rate is measured by
    assert peer.bytes < 4 * MIB


def test_auto_packs_where_the_peer_takes_little_at_a_time(sender, undo_after):
    data = (TEXT * 9)[: GEOMETRY.size]
    transport = Transport("socketpair", 0, undo_after)
    receive = transport.receive

    def dawdle(size):
        time.sleep(size / (8 * MIB))
        return receive(size)

    transport.receive = dawdle
    packed, peer = sender(data, packing="auto").send(transport)
    # plain for 0.25 s or so at 8 MiB/s; the rest is a tenth of itself
    assert len({frame.granule for frame in packed}) >= 3 and peer.bytes < 7 * MIB


def test_a_lane_that_is_told_to_stop_while_it_packs_ends(memory_dir, backend, undo_after, random_source):
    sending = Sender(memory_dir, backend, undo_after, (TEXT * 9)[: GEOMETRY.size])
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def stop(frame):
            sending.run.stop()

        peer = Peer(GEOMETRY, sending.image, receive_all(theirs), theirs.sendall, features=ZSTD, on_frame=stop)
        rc = sending.run.lane(sending.device, Connection.socket(ours.fileno(), 0, bucket=Bucket(128 * KIB)))
        ours.shutdown(socket.SHUT_RDWR)
        peer.join(30)
    assert rc == errno.ECANCELED and sending.run.failure() is None
    assert 2 not in sending.run.marked[2:]


def test_a_packing_that_is_none_is_an_error():
    with pytest.raises(ValueError, match="packing"):
        SourceRun(GEOMETRY, attempt=1, session=1, key=KEY, sector_size=512, base_states=bytes(9), base_values=bytes(288), packing="maybe")
