"""Source lanes to target lanes over real sockets: the image, the maps and the root are the same at both ends."""

import os
import random
import socket
import threading
import time

import blake3
import pytest
from machine import MIB

from qrep._native import hasher, undo, wire
from qrep._native.bucket import Bucket
from qrep._native.connection import Connection
from qrep._native.disk import UndoHeader
from qrep._native.source_lane import SourceRun
from qrep._native.target_lane import TargetRun
from qrep._native.wire import Geometry

LEAF, GRANULE = 4096, MIB
KEY, BASE_ID = bytes(range(32)), b"b" * 16


def content_of(random_source, size):
    """Data with zero leaves and whole zero granules in it."""
    content = bytearray(random_source.randbytes(size))
    for start in range(0, size, LEAF):
        if random_source.random() < 0.1:
            content[start:start + LEAF] = bytes(len(content[start:start + LEAF]))
    for start in range(2 * GRANULE, min(5 * GRANULE, size), GRANULE):
        content[start:start + GRANULE] = bytes(len(content[start:start + GRANULE]))
    return content


class Ends:
    """Two image files and what each end keeps of them between runs."""

    def __init__(self, directory, undo_after, content, old, backend):
        self.geometry = Geometry(len(content), LEAF, GRANULE)
        self.paths = {end: directory / f"{end}.img" for end in ("source", "target")}
        self.paths["source"].write_bytes(content)
        self.paths["target"].write_bytes(old)
        self.undo_path, self.backend, self.attempt = directory / "undo", backend, 0
        self.fds = {}
        for name, path, flags in (
            ("source", self.paths["source"], os.O_DIRECT), ("target", self.paths["target"], os.O_DIRECT), ("undo", self.undo_path, os.O_DIRECT),
            ("source-leaves", directory / "sl", 0), ("target-leaves", directory / "tl", 0),
        ):  # fmt: skip
            self.fds[name] = os.open(path, os.O_RDWR | os.O_CREAT | flags)
            undo_after.callback(os.close, self.fds[name])
        self.base = bytes(self.geometry.granules), bytes(32 * self.geometry.granules)

    def start(self, connections, *, keep_undo=False, bucket=None, **target_options):
        """Start one attempt; a list of (thread, source socket, target socket), and the runs on self."""
        self.attempt += 1
        os.ftruncate(self.fds["undo"], 0)
        identity = {"attempt": self.attempt, "session": 1, "key": KEY, "sector_size": 512, "base_states": self.base[0],
                    "base_values": self.base[1], "ring_backend": self.backend}  # fmt: skip
        self.source = SourceRun(self.geometry, leaves_fd=self.fds["source-leaves"], frame_size=512 << 10, **identity)
        self.target = TargetRun(
            self.geometry, leaves_fd=self.fds["target-leaves"], undo_fd=self.fds["undo"] if keep_undo else -1, undo_limit=1 << 40,
            base_id=BASE_ID, is_file=True, slots=2, **identity, **target_options,
        )  # fmt: skip
        self.results, self.sockets, self.threads = {}, [], []
        for index in range(connections):
            ours, theirs = socket.socketpair()
            self.sockets.append((ours, theirs))
            for name, run, end in (("target", self.target, theirs), ("source", self.source, ours)):
                connection = Connection.socket(end.fileno(), index, bucket=bucket if name == "source" else None)

                def work(key=(name, index), run=run, connection=connection):
                    self.results[key] = run.lane(self.fds[key[0]], connection, key[1])

                self.threads.append(threading.Thread(target=work))
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a lane does not return"
        for pair in self.sockets:
            for end in pair:
                end.close()
        return self.results

    def run(self, connections, **options):
        self.start(connections, **options)
        return self.join()

    def commit(self):
        """What both ends say is what the image is; it becomes the base of the next run."""
        image = self.paths["source"].read_bytes()
        assert self.paths["target"].read_bytes() == image
        assert wire.manifest(self.source.marked, self.source.fresh_states, self.source.fresh_values) == \
            wire.manifest(self.target.marked, self.target.fresh_states, self.target.fresh_values)
        values = b""
        for granule in range(self.geometry.granules):
            start, size = granule * GRANULE, self.geometry.granule_bytes(granule)
            for run in (self.source, self.target):
                if run.fresh_states[granule] & 0x20:
                    assert run.fresh_values[32 * granule:32 * granule + 32] == hasher.subtree(image[start:start + size], start, LEAF)
                else:
                    assert run.fresh_states[granule] & 3 == 2 and not any(image[start:start + size])
            values += hasher.subtree(image[start:start + size], start, LEAF)
        assert hasher.root(len(image), GRANULE, values) == blake3.blake3(image).digest()
        self.base = bytes(self.source.fresh_states), bytes(self.source.fresh_values)


@pytest.fixture(params=["uring", "threads"])
def make_ends(request, memory_dir, undo_after):
    return lambda content, old: Ends(memory_dir, undo_after, content, old, request.param)


@pytest.mark.parametrize("connections", [1, 2, 4])
@pytest.mark.parametrize("tail", [0, 3 * LEAF + 512], ids=["whole", "short-tail"])
def test_a_full_run_and_two_differential_runs_arrive_whole(make_ends, random_source, connections, tail):
    size = 12 * GRANULE + tail
    ends = make_ends(content_of(random_source, size), bytes(random_source.randbytes(size)))
    assert set(ends.run(connections).values()) == {0}
    ends.commit()
    for _ in range(2):
        changed = set()
        with open(ends.paths["source"], "r+b") as image:
            for _ in range(40):
                leaf = random_source.randrange(size // LEAF)
                image.seek(leaf * LEAF)
                image.write(random_source.randbytes(LEAF) if random_source.random() < 0.7 else bytes(LEAF))
                changed.add(leaf)
        before = ends.paths["target"].read_bytes()
        assert set(ends.run(connections, keep_undo=True).values()) == {0}
        ends.commit()
        assert ends.target.counters()["written"] <= len(changed) * LEAF
        check_undo(ends, before)


def check_undo(ends, before):
    """The undo file leads back to `before`; then the target is put where it was."""
    after = ends.paths["target"].read_bytes()
    header = UndoHeader(base_id=BASE_ID, new_id=b"n" * 16, volume_id=b"v" * 16, attempt=ends.attempt, size=ends.geometry.size)
    found = undo.scan(ends.fds["undo"], os.fstat(ends.fds["undo"]).st_size, header)
    undo.restore(ends.fds["target"], ends.fds["undo"], undo.restore_order(found.batches), ends.geometry.size, is_file=True)
    assert ends.paths["target"].read_bytes() == before
    ends.paths["target"].write_bytes(after)


def test_an_unchanged_volume_sends_nothing_but_the_end(make_ends, random_source):
    content = content_of(random_source, 8 * GRANULE)
    ends = make_ends(content, bytes(len(content)))
    assert set(ends.run(2).values()) == {0}
    ends.commit()
    assert set(ends.run(2).values()) == {0}
    assert ends.source.counters()["sent"] == ends.target.counters()["received"] == 2 * wire.HEADER_SIZE
    assert not any(ends.target.marked)


@pytest.mark.parametrize("killed", ["source", "target"])
def test_a_killed_connection_ends_both_sides_and_the_undo_leads_back(make_ends, random_source, killed):
    content = content_of(random_source, 24 * GRANULE)
    old = random.Random(1).randbytes(24 * GRANULE)
    ends = make_ends(content, old)
    ends.start(2, keep_undo=True, bucket=Bucket(8 * MIB))  # 21 MiB of data at 8 MiB/s: not over before it is killed
    deadline = time.monotonic() + 20
    while ends.target.counters()["granules_done"] < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    ends.sockets[1][killed == "target"].shutdown(socket.SHUT_RDWR)
    results = ends.join()
    assert 0 not in results.values()
    assert ends.source.failure()[0] == ends.target.failure()[0] == "connection"
    marks, image = ends.target.marked, ends.paths["target"].read_bytes()
    assert marks.count(2) >= 4
    for granule in range(24):  # what is marked whole is there, what is not marked is untouched
        start = granule * GRANULE
        if marks[granule] == 2:
            assert image[start:start + GRANULE] == content[start:start + GRANULE]
        elif marks[granule] == 0:
            assert image[start:start + GRANULE] == old[start:start + GRANULE]
    check_undo(ends, old)
