"""Lanes of a bandwidth test: all of a run but the devices, until they are told to finish."""

import os
import socket
import struct
import threading

import pytest
from machine import MIB

from qrep._native import hasher
from qrep._native.bucket import Bucket
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep._native.target_lane import TargetRun
from qrep._native.wire import HEADER_SIZE, LAST, RUN_ZERO, FrameWriter, Geometry

GEOMETRY = Geometry(64 * MIB, 4096, MIB)
KEY = bytes(range(32))


@pytest.fixture
def nothing(memory_dir, undo_after):
    """A file that lanes are given as their device, and that stays empty."""
    path = memory_dir / "nothing"
    path.touch()
    descriptor = os.open(path, os.O_RDWR)
    undo_after.callback(os.close, descriptor)
    yield descriptor
    assert path.stat().st_size == 0


def make_runs(backend, **changed):
    common = {
        "attempt": 7, "session": 1, "key": KEY, "sector_size": 4096, "base_states": bytes(GEOMETRY.granules),
        "base_values": bytes(32 * GEOMETRY.granules), "ring_backend": backend,
    }  # fmt: skip
    source = SourceRun(GEOMETRY, frame_size=MIB, rehearsal=True, **common)
    return source, TargetRun(GEOMETRY, frame_limit=MIB, slots=2, rehearsal=True, **common | changed)


def start(run, descriptor, end, index, results, bucket=None):
    connection = Connection.socket(end.fileno(), index, bucket=bucket)
    lane = threading.Thread(target=lambda: results.append(run.lane(descriptor, connection, index)))
    lane.start()
    return connection, lane


@pytest.mark.parametrize("count", [1, 3])
def test_it_goes_round_until_it_is_told_to_finish_and_what_was_sent_has_arrived(backend, count, nothing, tcp_pairs):
    source, target = make_runs(backend)
    results, lanes = [], []
    for index, (ours, theirs) in enumerate(tcp_pairs(count)):
        lanes += [start(target, nothing, theirs, index, results), start(source, nothing, ours, index, results)]
    while target.counters()["received"] < 200 * MIB:  # three times around
        assert not results, (source.failure(), target.failure())
    for connection, _lane in lanes[1::2]:
        connection.finish()
    for _connection, lane in lanes:
        lane.join(30)
    assert results == [0] * 2 * count
    sent, received = source.counters(), target.counters()
    assert sent["sent"] == received["received"] >= 200 * MIB
    assert sent["read"] == 0 and received["written"] == 0 and sent["sent"] == sent["hashed"] + sent["frames"] * HEADER_SIZE
    assert received["hashed"] == sent["hashed"], "what arrives is checked as in a run"


def test_a_rate_holds_as_in_a_run(backend, nothing, tcp_pairs):
    source, target = make_runs(backend)
    results, bucket = [], Bucket(20 * MIB, 64 << 10)
    ((ours, theirs),) = tcp_pairs(1)
    lanes = [start(target, nothing, theirs, 0, results), start(source, nothing, ours, 0, results, bucket)]
    while target.counters()["received"] < 8 * MIB:
        assert not results
    lanes[1][0].finish()
    for _connection, lane in lanes:
        lane.join(30)
    assert results == [0, 0] and bucket.taken == source.counters()["sent"] and source.counters()["wait_limit_ns"] > 0


def test_frames_that_no_tester_sends_are_verified_and_dropped_as_well(backend, nothing, tcp_pairs):
    """Zeroes of the whole volume and run tables: nothing is read, written or kept for them."""
    _source, target = make_runs(backend)
    results = []
    ((ours, theirs),) = tcp_pairs(1)
    _connection, lane = start(target, nothing, theirs, 0, results)
    writer, data = FrameWriter(GEOMETRY, 7, 1, 0, KEY), bytes(range(256)) * 16
    table = struct.pack("<4I", 0, 1, 1, 3 | RUN_ZERO)
    leaf = hasher.subtree(data, MIB, 4096)
    ours.sendall(writer.zero(0, GEOMETRY.granules, LAST))
    ours.sendall(writer.runs(1, [(0, 1, False), (1, 3, True)], 4096, hasher.hash(table + leaf), LAST) + data)
    ours.sendall(writer.end())
    lane.join(30)
    assert (results, target.failure()) == ([0], None) and target.counters()["written"] == target.counters()["read"] == 0


def test_frames_of_another_key_end_it(backend, nothing, tcp_pairs):
    source, target = make_runs(backend, key=bytes(32))
    results = []
    ((ours, theirs),) = tcp_pairs(1)
    lanes = [start(target, nothing, theirs, 0, results), start(source, nothing, ours, 0, results)]
    lanes[0][1].join(30)
    lanes[1][1].join(30)
    assert target.failure()[0] == "frame" and source.failure()[0] == "connection"


@pytest.fixture
def tcp_pairs(undo_after):
    """tcp_pairs(count): connected sockets (source end, target end)."""

    def make(count):
        pairs = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            for _ in range(count):
                ours = socket.create_connection(server.getsockname())
                theirs, _ = server.accept()
                for end in (ours, theirs):
                    undo_after.callback(end.close)
                pairs.append((ours, theirs))
        return pairs

    return make
