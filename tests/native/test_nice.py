"""Source lanes obey a read limiter: when they may read, in what pieces, and what they count. What it decides is tests/unit/test_nice.py."""

import array
import os
import threading
import time

import pytest
from source_peer import GEOMETRY, GRANULE, map_of

from qrep._native.connection import Connection
from qrep._native.nice import ReadLimit
from qrep._native.source_lane import WORK_LEAVES

PATIENCE_S = 60


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Lane(threading.Thread):
    def __init__(self, run, device):
        super().__init__()
        self.run_, self.device, self.rc, self.policies = run, device, None, None
        self.start()

    def run(self):
        before = os.sched_getscheduler(0)
        self.rc = self.run_.lane(self.device, Connection.none())
        self.policies = before, os.sched_getscheduler(0)


@pytest.fixture
def volume(source_device):
    return os.pread(source_device, GEOMETRY.size, 0)


@pytest.mark.parametrize("piece", [0, 4096, 64 << 10, 1 << 20], ids=lambda piece: f"pieces of {piece}")
def test_a_granule_is_the_same_in_whatever_pieces_it_is_read(make_run, source_device, volume, piece):
    limit = ReadLimit()
    limit.order(0, piece, False)
    run = make_run(nice=limit)
    assert run.lane(source_device, Connection.none()) == 0
    states, values, _ = map_of(volume, GEOMETRY)
    assert run.fresh_values == values
    counters = limit.counters()
    expected = GEOMETRY.granules if not piece else -(-GEOMETRY.size // piece) if piece < GRANULE else GEOMETRY.granules
    assert (counters["reads"], counters["bytes"], counters["in_flight"]) == (expected, GEOMETRY.size, 0)
    assert run.counters()["read"] == GEOMETRY.size


def test_paused_nothing_is_read_until_it_may_go_on(make_run, source_device):
    limit = ReadLimit()
    limit.order(0, 0, True)
    run = make_run(nice=limit)
    lane = Lane(run, source_device)
    wait_until(lambda: run.counters()["wait_nice_ns"])
    assert limit.counters()["reads"] == 0 and run.counters()["read"] == 0
    limit.order(0, 4096, False)
    lane.join(PATIENCE_S)
    assert lane.rc == 0 and run.counters()["read"] == GEOMETRY.size


def test_a_pause_that_falls_into_a_granule_ends_and_the_order_may_change_at_any_time(make_run, source_device, volume, random_source):
    limit = ReadLimit()
    limit.order(0, 0, True)
    runs = [make_run(nice=limit) for _ in range(3)]
    lanes = [Lane(run, source_device) for run in runs]
    while any(lane.is_alive() for lane in lanes):
        limit.order(random_source.choice((0, 16 << 20)), random_source.choice((0, 4096, 16 << 10)), random_source.random() < 0.5)
        time.sleep(0.002)
    values = map_of(volume, GEOMETRY)[1]
    assert all(run.fresh_values == values for run in runs)
    assert limit.counters()["in_flight"] == 0 and limit.counters()["bytes"] == 3 * GEOMETRY.size


def test_a_rate_holds_all_lanes_together_and_its_end_is_noticed(make_run, source_device):
    limit = ReadLimit()
    limit.order(1, 4096, False)  # a byte a second, and two pieces at first, one more as debt
    lanes = [Lane(make_run(nice=limit), source_device) for _ in range(2)]
    wait_until(lambda: all(lane.run_.counters()["wait_nice_ns"] for lane in lanes))
    assert limit.counters()["bytes"] <= 3 * 4096
    limit.order(0, 0, False)
    for lane in lanes:
        lane.join(PATIENCE_S)
    assert [lane.rc for lane in lanes] == [0, 0]


@pytest.mark.parametrize("order", [(0, 0, True), (1, 4096, False)], ids=["paused", "slow"])
def test_a_stop_is_heard_while_it_may_not_read(make_run, source_device, order):
    limit = ReadLimit()
    limit.order(*order)
    run = make_run(nice=limit)
    lane = Lane(run, source_device)
    wait_until(lambda: run.counters()["wait_nice_ns"])
    run.stop()
    lane.join(PATIENCE_S)
    assert lane.rc != 0 and run.failure() is None and limit.counters()["in_flight"] == 0


def test_of_single_leaves_no_more_is_read_at_once_either(make_run, source_device, volume, tmp_path):
    states, values, pages = map_of(volume, GEOMETRY)
    leaves = tmp_path / "leaves"
    leaves.write_bytes(pages)
    fd = os.open(leaves, os.O_RDWR)
    limit = ReadLimit()
    limit.order(0, 8192, False)
    wanted = array.array("Q", [3, 20, 64 + 1, 1])  # of the first granule 20 leaves, of the second one
    work = array.array("Q", [0 | WORK_LEAVES, 1 | WORK_LEAVES])
    run = make_run(states, values, leaves_fd=fd, work=work, wanted=wanted, nice=limit)
    assert run.lane(source_device, Connection.none()) == 0
    os.close(fd)
    assert limit.counters()["reads"] == 10 + 1 and run.counters()["read"] == 21 * 4096 and run.counters()["changed"] == 0


def test_the_time_of_reads_is_taken_while_the_lane_waits_for_them(make_run, source_device):
    limit = ReadLimit()
    limit.order(0, 4096, False)
    for _ in range(100):  # on a busy machine all reads may be there before the lane comes to wait
        assert make_run(nice=limit).lane(source_device, Connection.none()) == 0
        counters = limit.counters()
        if counters["timed"]:
            break
    assert 0 < counters["timed"] <= counters["reads"] and counters["timed_ns"] > 0


def test_a_lane_leaves_the_cpu_to_others_and_its_thread_is_afterwards_what_it_was(make_run, source_device):
    limit = ReadLimit()
    limit.order(0, 0, True)
    run = make_run(nice=limit)
    lane = Lane(run, source_device)
    wait_until(lambda: os.sched_getscheduler(lane.native_id) == os.SCHED_IDLE or (os.geteuid() and run.counters()["wait_nice_ns"]))
    limit.order(0, 0, False)
    lane.join(PATIENCE_S)
    assert lane.policies[0] == lane.policies[1]


def test_what_cannot_be_read_is_named_in_small_pieces_as_in_large_ones(make_run, memory_dir, random_source):
    path = memory_dir / "shrunk"
    path.write_bytes(random_source.randbytes(GEOMETRY.size - 5000))
    fd = os.open(path, os.O_RDONLY)
    limit = ReadLimit()
    limit.order(0, 8192, False)
    run = make_run(nice=limit)
    assert run.lane(fd, Connection.none()) != 0
    os.close(fd)
    assert run.failure()[0] == "shrunk" and limit.counters()["in_flight"] == 0


def test_python_reads_by_the_same_limit():
    limit = ReadLimit()
    assert limit.take(1 << 20) == 0 and limit.counters()["in_flight"] == 1
    limit.done(1 << 20, 1000)
    assert limit.counters() == {"reads": 1, "bytes": 1 << 20, "in_flight": 0, "timed": 1, "timed_ns": 1000}
    limit.order(0, 0, True)
    assert limit.take(1) > 0 and limit.paused and limit.counters()["in_flight"] == 0


@pytest.mark.parametrize("piece", [1, 2048, 4096 * 3])
def test_an_odd_piece_is_refused(piece):
    with pytest.raises(ValueError, match=f"{piece}"):
        ReadLimit().order(0, piece, False)


