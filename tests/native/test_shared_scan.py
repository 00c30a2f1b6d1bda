"""Several runs over one frozen image: each granule is read and hashed once, every target gets what it lacks, and nobody keeps the others for long."""

import os
import socket
import threading
import time

import pytest
from source_peer import ATTEMPT, KEY, SESSION, Peer, map_of, receive_all

from qrep._native.connection import Connection
from qrep._native.source_lane import SharedScan, SourceRun
from qrep._native.wire import Geometry

LEAF, GRANULE = 4096, 64 << 10
SIZE = 24 * GRANULE + 5 * LEAF + 512
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)


class Target:
    """One target of the image: what it holds, its map, and a run to it."""

    def __init__(self, directory, name, held, known=True):
        self.held = bytearray(held)
        self.states, self.values, pages = map_of(self.held, GEOMETRY) if known else (bytearray(GEOMETRY.granules), bytearray(32 * GEOMETRY.granules), b"")
        self.leaves_path = directory / f"leaves-{name}"
        self.leaves_path.write_bytes(pages)
        self.error = None

    def start(self, path, shared, backend, *, lanes=1, slow_s=0.0, share=True):
        self.device, self.leaves = os.open(path, os.O_RDONLY), os.open(self.leaves_path, os.O_RDWR)
        self.run = SourceRun(
            GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512, base_states=self.states, base_values=self.values, leaves_fd=self.leaves,
            frame_size=16 << 10, ring_backend=backend,
        )  # fmt: skip
        if share:
            self.run.share(shared)
        self._slow_s = slow_s
        self.threads = [threading.Thread(target=self._lane, args=(number,)) for number in range(lanes)]
        return self

    def _lane(self, number):
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with ours, theirs:
            receive = receive_all(theirs)

            def slowly(*arguments):
                time.sleep(self._slow_s)
                return receive(*arguments)

            peer = Peer(GEOMETRY, self.held, slowly if self._slow_s else receive, theirs.sendall, *([number] if number else []))
            rc = self.run.lane(self.device, Connection.socket(ours.fileno(), number), number)
            ours.shutdown(socket.SHUT_RDWR)
            if rc == 0:
                peer.close()
            self.error = self.error or rc

    def join(self):
        for thread in self.threads:
            thread.join(60)
        self.run.leave()
        os.close(self.device)
        os.close(self.leaves)
        return self.run.counters()


def go(targets):
    for target in targets:
        for thread in target.threads:
            thread.start()
    return [target.join() for target in targets]


@pytest.fixture
def image(memory_dir, random_source):
    data = bytearray(random_source.randbytes(SIZE))
    data[3 * GRANULE : 5 * GRANULE] = bytes(2 * GRANULE)
    path = memory_dir / "image"
    path.write_bytes(data)
    return path, data


def older(data, random_source, leaves):
    held = bytearray(data)
    for _ in range(leaves):
        leaf = random_source.randrange(SIZE // LEAF)
        held[leaf * LEAF : (leaf + 1) * LEAF] = random_source.randbytes(LEAF)
    return held


def read_once(counters):
    assert sum(each["read"] for each in counters) == sum(each["hashed"] for each in counters) + 2 * GRANULE == SIZE
    assert all(each["read"] + each["read_shared"] == SIZE for each in counters)


def test_eight_targets_that_hold_it_already_are_told_so_by_one_pass(memory_dir, image, backend):
    path, data = image
    shared = SharedScan(GEOMETRY, 16, 60.0)
    targets = [Target(memory_dir, number, data).start(path, shared, backend) for number in range(8)]
    counters = go(targets)
    read_once(counters)
    assert [target.error for target in targets] == [0] * 8
    assert all(target.held == data and each["sent"] < 1000 for target, each in zip(targets, counters, strict=True))


@pytest.mark.parametrize("entries", [1, 2, 64])
def test_each_target_gets_what_it_lacks(memory_dir, image, backend, random_source, entries):
    path, data = image
    shared = SharedScan(GEOMETRY, entries, 60.0)
    held = [older(data, random_source, 0), older(data, random_source, 9), older(data, random_source, 200), bytes(SIZE)]
    targets = [Target(memory_dir, number, one).start(path, shared, backend, lanes=1 + number % 2) for number, one in enumerate(held)]
    targets.append(Target(memory_dir, "unknown", random_source.randbytes(SIZE), known=False).start(path, shared, backend))
    counters = go(targets)
    read_once(counters)
    _states, values, _pages = map_of(data, GEOMETRY)
    values[3 * 32 : 5 * 32] = bytes(2 * 32)  # zeroes have no value
    for target in targets:
        assert target.error == 0 and target.held == data
        assert target.run.fresh_values == values


def test_one_that_takes_nothing_keeps_the_others_for_its_patience_only(memory_dir, image, backend, random_source):
    path, data = image
    shared = SharedScan(GEOMETRY, 2, 0.05)
    fast = [Target(memory_dir, number, data).start(path, shared, backend) for number in range(2)]
    slow = Target(memory_dir, "slow", random_source.randbytes(SIZE)).start(path, shared, backend, slow_s=0.008)
    counters = go([*fast, slow])
    assert all(target.error == 0 and target.held == data for target in [*fast, slow])
    assert counters[2]["read"], "it reads by itself in the end"
    assert all(each["read"] + each["read_shared"] == SIZE for each in counters)


def test_one_that_is_stopped_leaves_the_others_what_it_had_begun(memory_dir, image, backend, random_source):
    path, data = image
    shared = SharedScan(GEOMETRY, 4, 60.0)
    others = [Target(memory_dir, number, older(data, random_source, 20)).start(path, shared, backend) for number in range(2)]
    stopped = Target(memory_dir, "stopped", random_source.randbytes(SIZE)).start(path, shared, backend, slow_s=0.01)
    stopper = threading.Timer(0.05, stopped.run.stop)
    stopper.start()
    for target in [stopped, *others]:
        for thread in target.threads:
            thread.start()
    stopped.join()
    counters = [target.join() for target in others]
    stopper.join()
    assert all(target.error == 0 and target.held == data for target in others)
    assert all(each["read"] + each["read_shared"] == SIZE for each in counters)


def test_one_that_comes_late_reads_what_is_gone_by_itself(memory_dir, image, backend, random_source):
    path, data = image
    shared = SharedScan(GEOMETRY, 64, 60.0)
    first = Target(memory_dir, "first", data).start(path, shared, backend)
    go([first])
    late = Target(memory_dir, "late", older(data, random_source, 9)).start(path, shared, backend)
    [counters] = go([late])
    assert late.error == 0 and late.held == data and counters["read"] == SIZE


def test_another_shape_cannot_share(memory_dir, image, backend):
    path, data = image
    with pytest.raises(ValueError, match="together"):
        Target(memory_dir, "x", data).start(path, SharedScan(Geometry(SIZE - LEAF, LEAF, GRANULE), 4, 1.0), backend)
    for entries, patience in ((0, 1.0), (2000, 1.0), (4, -1.0)):
        with pytest.raises(ValueError):
            SharedScan(GEOMETRY, entries, patience)
