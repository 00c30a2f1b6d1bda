"""What a source lane sends: driven over a socket pair against a peer that checks all of it and rebuilds the volume."""

import array
import errno
import os
import signal
import socket
import subprocess
import sys

import blake3
import pytest
from source_peer import ATTEMPT, KEY, SESSION, STATE_HASHED, STATE_PAGE, STATE_SLOT, STATE_VALUE, STATE_ZERO, Peer, map_of, receive_all

from qrep._native import hasher, wire
from qrep._native.connection import Connection
from qrep._native.source_lane import WORK_HOLE, WORK_UNKNOWN, SourceRun
from qrep._native.wire import Geometry

LEAF, GRANULE, FRAME = 4096, 64 << 10, 16 << 10
WHOLE = 9
SIZE = WHOLE * GRANULE + 5 * LEAF + 512  # the last granule is short, and so is its last leaf
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)
GRANULES = GEOMETRY.granules


class Volume:
    """A device of random bytes, a map that knows what it held when it was made, and one way to run lanes over it."""

    def __init__(self, directory, random_source, backend):
        self.path, self.leaves_path, self.backend = directory / "device", directory / "leaves", backend
        self.data = bytearray(random_source.randbytes(SIZE))
        self.image = bytearray(self.data)  # what the target holds
        self.remember()

    def remember(self):
        self.states, self.values, pages = map_of(self.data, GEOMETRY)
        self.leaves_path.write_bytes(pages)

    def forget(self):
        self.states, self.values = bytearray(GRANULES), bytearray(32 * GRANULES)
        self.image = bytearray(os.urandom(SIZE))

    def change(self, granule, leaf, data=None):
        start = granule * GRANULE + leaf * LEAF
        size = min(LEAF, SIZE - start)
        self.data[start : start + size] = os.urandom(size) if data is None else data[:size]

    def make_run(self, **options):
        self.path.write_bytes(self.data)
        self.device = os.open(self.path, os.O_RDONLY)
        self.leaves = os.open(self.leaves_path, os.O_RDWR)
        options = {"leaves_fd": self.leaves, "frame_size": FRAME} | options
        return SourceRun(
            GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512,
            base_states=self.states, base_values=self.values, ring_backend=self.backend, **options,
        )  # fmt: skip

    def close(self):
        os.close(self.device)
        os.close(self.leaves)

    def send(self, **options):
        """One lane over a socket pair. Returns (run, peer) after both ended well."""
        run = self.make_run(**options)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            peer = Peer(GEOMETRY, self.image, receive_all(theirs), theirs.sendall)
            rc = run.lane(self.device, Connection.socket(ours.fileno(), 0))
            ours.shutdown(socket.SHUT_RDWR)
            peer.close()
        self.close()
        assert (rc, run.failure()) == (0, None)
        assert run.counters()["sent"] == peer.bytes
        return run, peer

    def scan(self, **options):
        run = self.make_run(**options)
        assert run.lane(self.device, Connection.none()) == 0
        self.close()
        return run


@pytest.fixture
def volume(memory_dir, random_source, backend):
    return Volume(memory_dir, random_source, backend)


def data_frames(peer):
    return [frame for frame in peer.frames if frame.kind != wire.END]


def true_values(data):
    return bytes(map_of(data, GEOMETRY)[1])


def test_an_unchanged_volume_sends_nothing_but_the_end(volume):
    run, peer = volume.send()
    assert [frame.kind for frame in peer.frames] == [wire.END]
    assert (run.fresh_states, run.fresh_values, run.marked) == (volume.states, volume.values, bytes(GRANULES))
    assert run.counters()["changed"] == 0 and run.counters()["read"] == run.counters()["hashed"] == SIZE


def test_an_unknown_volume_is_sent_whole_and_its_values_make_the_plain_hash_of_the_device(volume):
    volume.forget()
    run, peer = volume.send()
    assert volume.image == volume.data
    assert {frame.kind for frame in data_frames(peer)} == {wire.FULL}
    assert bytes(run.marked) == b"\2" * GRANULES
    assert hasher.root(SIZE, GRANULE, run.fresh_values) == blake3.blake3(volume.data).digest()
    assert peer.last == {g: bytes(run.fresh_values[32 * g : 32 * g + 32]) for g in range(GRANULES)}


def test_a_lane_may_send_over_one_socket_and_be_answered_over_another(volume):
    volume.forget()
    run = volume.make_run()
    (ours, theirs), (answers, answer) = socket.socketpair(), socket.socketpair()
    with ours, theirs, answers, answer:
        peer = Peer(GEOMETRY, volume.image, receive_all(theirs), answer.sendall)
        rc = run.lane(volume.device, Connection.socket(answers.fileno(), 0, send_fd=ours.fileno()))
        ours.shutdown(socket.SHUT_RDWR)
        peer.close()
    volume.close()
    assert (rc, run.failure()) == (0, None)
    assert volume.image == volume.data


def test_a_lane_that_fails_ends_both_of_its_sockets(volume):
    volume.forget()
    run = volume.make_run()
    (ours, theirs), (answers, answer) = socket.socketpair(), socket.socketpair()
    with ours, theirs, answers, answer:
        answer.close()  # whoever is to answer is gone
        assert run.lane(volume.device, Connection.socket(answers.fileno(), 0, send_fd=ours.fileno())) != 0
        assert run.failure()[0] == "connection"
        theirs.settimeout(20)
        while theirs.recv(1 << 20):
            pass  # it comes to an end
    volume.close()


@pytest.mark.parametrize("granule, leaf", [(0, 0), (4, 15), (WHOLE, 0), (WHOLE, 5)])
def test_one_changed_leaf_is_one_run_and_its_page_goes_to_the_other_slot(volume, granule, leaf):
    volume.change(granule, leaf)
    run, peer = volume.send()
    assert volume.image == volume.data
    (frame,) = data_frames(peer)
    assert (frame.kind, frame.granule, frame.run_count) == (wire.RUNS, granule, 1)
    assert frame.data_size == min(LEAF, SIZE - granule * GRANULE - leaf * LEAF)
    assert [i for i in range(GRANULES) if run.marked[i]] == [granule]
    assert run.fresh_states[granule] == STATE_HASHED | STATE_VALUE | STATE_PAGE | STATE_SLOT
    # The map as it is now knows the leaves of the new content, and finds the next change by itself.
    volume.states, volume.values = run.fresh_states, run.fresh_values
    volume.change(granule, 3)
    again, peer = volume.send()
    assert (volume.image, data_frames(peer)[0].data_size) == (volume.data, LEAF)
    assert again.fresh_states[granule] == STATE_HASHED | STATE_VALUE | STATE_PAGE


def test_random_changes_rebuild_the_volume_and_the_map(volume, random_source):
    for round_ in range(12):
        volume.remember()
        for _ in range(random_source.choice([1, 5, 40, 200])):
            granule = random_source.randrange(GRANULES)
            leaf = random_source.randrange(GEOMETRY.granule_leaves(granule))
            volume.change(granule, leaf, random_source.choice([None, bytes(LEAF)]))
        options = {"frame_size": random_source.choice([4096, 16384, 1 << 20]), "slots": random_source.choice([1, 2, 3]),
                   "io_size": random_source.choice([0, 4096, 24576])}  # fmt: skip
        print("round", round_, options)
        run, peer = volume.send(**options)
        assert volume.image == volume.data
        assert all(frame.data_size <= options["frame_size"] for frame in peer.frames)
        zeroes = [g for g in range(GRANULES) if run.fresh_states[g] == STATE_ZERO]
        expected = true_values(volume.data)
        assert all(run.fresh_values[32 * g : 32 * g + 32] == expected[32 * g : 32 * g + 32] for g in range(GRANULES) if g not in zeroes)
        volume.leaves_path.unlink()


def test_zero_granules_travel_as_one_frame_and_are_not_hashed(volume):
    volume.forget()
    volume.data[2 * GRANULE : 6 * GRANULE] = bytes(4 * GRANULE)
    volume.data[WHOLE * GRANULE :] = bytes(SIZE - WHOLE * GRANULE)
    run, peer = volume.send(slots=1)  # in order; with more, a late read may end a run early
    assert volume.image == volume.data
    assert [(frame.granule, frame.span) for frame in peer.frames if frame.kind == wire.ZERO] == [(2, 4), (WHOLE, 1)]
    assert [run.fresh_states[g] for g in (2, 5, WHOLE)] == [STATE_ZERO] * 3
    assert run.counters()["zero"] == SIZE - run.counters()["hashed"] == 5 * GRANULE - (GRANULE - 5 * LEAF - 512)


def test_a_zero_granule_that_was_zero_keeps_its_value_and_is_not_sent(volume):
    volume.data[GRANULE : 2 * GRANULE] = volume.image[GRANULE : 2 * GRANULE] = bytes(GRANULE)
    volume.remember()
    volume.states[1] = STATE_ZERO | STATE_VALUE
    run, peer = volume.send()
    assert data_frames(peer) == []
    assert (run.fresh_states, run.fresh_values) == (volume.states, volume.values)


def test_of_a_granule_that_was_zero_only_the_leaves_with_data_are_sent(volume):
    volume.data[GRANULE : 2 * GRANULE] = volume.image[GRANULE : 2 * GRANULE] = bytes(GRANULE)
    volume.remember()
    volume.states[1] = STATE_ZERO
    volume.change(1, 7)
    _, peer = volume.send()
    assert volume.image == volume.data
    assert [(frame.run_count, frame.data_size) for frame in data_frames(peer)] == [(1, LEAF)]


def test_holes_are_announced_without_reading_them(volume):
    volume.forget()
    volume.states[5] = STATE_ZERO
    hole = bytes(2 * GRANULE)
    volume.data[4 * GRANULE : 6 * GRANULE] = hole
    volume.image[5 * GRANULE : 6 * GRANULE] = bytes(GRANULE)
    work = array.array("Q", [g | (WORK_HOLE if g in (4, 5) else 0) for g in range(GRANULES)])
    run, peer = volume.send(work=work)
    assert volume.image == volume.data
    assert [(frame.granule, frame.span) for frame in peer.frames if frame.kind == wire.ZERO] == [(4, 1)]
    assert run.counters()["read"] == SIZE - len(hole)


def test_an_unknown_work_item_sends_every_leaf_and_zero_leaves_as_runs(volume):
    volume.image[2 * GRANULE : 3 * GRANULE] = os.urandom(GRANULE)  # the target is not what the base says
    volume.change(2, 3, bytes(LEAF))
    volume.remember()
    run, peer = volume.send(work=array.array("Q", [2 | WORK_UNKNOWN]))
    assert volume.image == volume.data
    assert sum(frame.data_size for frame in peer.frames) == GRANULE - LEAF
    assert bytes(run.marked) == b"\0\0\2" + bytes(GRANULES - 3)


@pytest.mark.parametrize("damage", ["stale", "short file"])
def test_a_page_that_is_not_the_granules_costs_bandwidth_and_nothing_else(volume, damage):
    volume.change(3, 1)
    pages = bytearray(volume.leaves_path.read_bytes())
    offset = GEOMETRY.leaf_page_offset(3, 0)
    pages[offset + 40] ^= 1
    volume.leaves_path.write_bytes(pages if damage == "stale" else pages[: offset + 64])
    _, peer = volume.send()
    assert volume.image == volume.data
    assert sum(frame.data_size for frame in data_frames(peer)) == GRANULE


def test_a_value_counts_to_its_last_byte(volume):
    """R11: of another generation, and as good as any other that is not the granule's."""
    volume.values[4 * 32 - 1] ^= 1
    volume.image[3 * GRANULE : 4 * GRANULE] = os.urandom(GRANULE)
    _, peer = volume.send()
    assert volume.image == volume.data
    assert {frame.granule for frame in data_frames(peer)} == {3}
    assert sum(frame.data_size for frame in data_frames(peer)) == GRANULE


def test_a_scan_fills_the_map_and_counts_without_sending(volume):
    volume.change(1, 1)
    volume.change(1, 2)
    run = volume.scan()
    assert (run.counters()["changed"], run.counters()["sent"]) == (2 * LEAF, 0)
    assert bytes(run.fresh_values) == true_values(volume.data)
    assert bytes(run.marked) == bytes(GRANULES)
    assert volume.scan(leaves_fd=-1).fresh_states[1] == STATE_HASHED | STATE_VALUE


def test_a_device_that_ends_early_is_a_failure_that_says_so(volume):
    run = volume.make_run(slots=1)
    os.truncate(volume.path, 3 * GRANULE + 100)
    assert run.lane(volume.device, Connection.none(), 4) == errno.ENODATA
    assert run.failure() == ("shrunk", errno.ENODATA, 4, 3)
    volume.close()


@pytest.mark.root
def test_bad_sectors_are_named_exactly_and_only_their_leaves_are_not_sent(volume, loop_device, open_direct):
    volume.forget()
    device = loop_device(SIZE)
    with open(device, "wb") as plain:
        plain.write(volume.data)
    run = volume.make_run()
    descriptor = open_direct(device, os.O_RDONLY)
    cut = 4 * GRANULE + 3 * LEAF + 512
    os.truncate(device.backing, cut)
    before = bytes(volume.image)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(GEOMETRY, volume.image, receive_all(theirs), theirs.sendall)
        assert run.lane(descriptor, Connection.socket(ours.fileno(), 0)) == 0
        peer.close()
    volume.close()
    assert run.bad_extents() == [(cut, SIZE - cut, errno.EIO)]
    readable = 4 * GRANULE + 3 * LEAF
    assert sorted(peer.last) == [0, 1, 2, 3, 4] and peer.last[4] is None
    assert volume.image[:readable] == volume.data[:readable] and volume.image[readable:] == before[readable:]
    [last] = [frame for frame in peer.frames if frame.granule == 4 and frame.flags & wire.LAST]
    assert last.flags == wire.LAST | wire.PARTS
    assert bytes(run.fresh_states[4:]) == bytes(GRANULES - 4) and bytes(run.marked[3:]) == bytes([2, 1]) + bytes(GRANULES - 5)


CRASHING = """
import os, socket, sys, threading
from qrep._native import wire
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
geometry = wire.Geometry(4 << 20, 4096, 1 << 20)
device, leaves = os.memfd_create("device"), os.memfd_create("leaves")
os.write(device, os.urandom(4 << 20))
ours, theirs = socket.socketpair()
threading.Thread(target=lambda: any(not theirs.recv(1 << 20) for _ in iter(int, 1)), daemon=True).start()
SourceRun(geometry, attempt=1, session=1, key=bytes(32), sector_size=512, base_states=bytes(4), base_values=bytes(128),
          leaves_fd=leaves).lane(device, Connection.socket(ours.fileno(), 0))
"""


@pytest.mark.parametrize("point", ["source-frame-sent", "source-leaf-page", "source-end"])
def test_the_named_crash_points_are_passed(point):
    result = subprocess.run([sys.executable, "-c", CRASHING], env=os.environ | {"QREP_CRASH": f"{point}:1"}, timeout=30, check=False)
    assert result.returncode == -signal.SIGKILL
