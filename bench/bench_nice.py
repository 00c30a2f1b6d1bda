"""What a run costs those who use its source meanwhile: fio's throughput and p99 latency alone, beside a run as ever, and beside a nice one.

N1: throughput kept. N2: p99 against alone. Both for random reads that take all they can get (4 KiB, depth 8) and for what a database asks for (4000 requests
a second, 7 of 10 of them reads, depth 4). Alone against alone is the noise of all that. The run is an unchanged scan: reading and hashing, over and over.
"""

import array
import contextlib
import json
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from lane_pair import LANES, scan, whole_map
from measure import FULL, GIB, MIB, ROUNDS, Row, add_row, figure_row, rate, wait_quiet

from qrep import device as devices
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep._native.wire import Geometry
from qrep.source.limiter import Reading

SIZE = GIB if FULL else 64 * MIB
GEOMETRY = Geometry(SIZE, 4096, 8 * MIB)
PASSES = 400
# Seconds that fio runs before it counts, in which the run beside it begins, and that it counts.
ALONE, BESIDE, BESIDE_NICE = ((0.15, 0.4), (0.15, 0.25), (0.35, 0.5)) if FULL else ((0.1, 0.1), (0.1, 0.1), (0.1, 0.2))
KINDS = {
    "random reads at depth 8": ["--rw=randread", "--iodepth=8"],
    "4000 requests a second": ["--rw=randrw", "--rwmixread=70", "--iodepth=4", "--rate_iops=2800,1200"],
}


@dataclass
class Foreground:
    """iops; p99: seconds, of reads; read: bytes per second that the run beside it read."""

    iops: float
    p99: float
    read: float = 0.0


def foreground(path, kind, seconds, beside=None):
    """Run fio over the device, and beside(), a context that yields its SourceRun, from the moment at which fio has begun."""
    command = [
        "fio", "--name=foreground", f"--filename={path}", "--bs=4k", "--ioengine=io_uring", "--direct=1", f"--size={SIZE}", "--time_based",
        f"--ramp_time={round(seconds[0] * 1000)}ms", f"--runtime={round(seconds[1] * 1000)}ms", "--lat_percentiles=1", "--clat_percentiles=0",
        "--thread", "--disk_util=0", "--output-format=json", *KINDS[kind],
    ]  # fmt: skip
    before = completed(path)
    fio = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while completed(path) < before + 8 and fio.poll() is None:
        time.sleep(0.005)
    read = 0.0
    with beside() if beside else contextlib.nullcontext() as run:
        started = time.monotonic()
        output = fio.communicate()[0]
        if run is not None:
            read = run.counters()["read"] / (time.monotonic() - started)
    assert fio.returncode == 0, output
    job = json.loads(output[output.index("{") :])["jobs"][0]
    # On a machine that is busy enough nothing may complete in so short a time: then it took at least that long.
    p99 = job["read"]["lat_ns"].get("percentile", {}).get("99.000000") or seconds[1] * 1e9
    return Foreground(max(1.0, job["read"]["iops"] + job["write"]["iops"]), p99 / 1e9, read)


def completed(path):
    """Requests that the device has completed since boot."""
    words = Path("/sys/class/block", Path(path).name, "stat").read_text().split()
    return int(words[0]) + int(words[4])


class Runs:
    """Runs over a device that has not changed."""

    def __init__(self, path, descriptor):
        self.path, self.descriptor, self.known = path, descriptor, whole_map(GEOMETRY, descriptor)

    @contextlib.contextmanager
    def going(self, nice):
        reading = Reading(devices.inspect(self.path), nice)
        run = SourceRun(
            GEOMETRY, attempt=1, session=1, key=bytes(32), sector_size=512, base_states=self.known[0], base_values=self.known[1],
            work=array.array("Q", list(range(GEOMETRY.granules)) * PASSES), nice=reading.limit(self.descriptor),
        )  # fmt: skip
        lanes = [threading.Thread(target=run.lane, args=(self.descriptor, Connection.none(), index)) for index in range(LANES)]
        for lane in lanes:
            lane.start()
        try:
            yield run
            deadline = time.monotonic() + 60
            while not run.counters()["read"]:  # however little it may read, it is not kept from it
                assert time.monotonic() < deadline and run.failure() is None
                time.sleep(0.01)
        finally:
            run.stop()
            for lane in lanes:
                lane.join()
            reading.end()

    def pass_over(self, nice, passes):
        """Bytes per second of whole runs with nobody beside them, the first look around included."""
        reading = Reading(devices.inspect(self.path), nice)

        def go():
            for _ in range(passes):
                scan(GEOMETRY, self.descriptor, self.known, lanes=LANES, nice=reading.limit(self.descriptor))

        try:
            return rate(go, size=passes * SIZE)
        finally:
            reading.end()


def row(id, case, ours, against, first=None, goal=None, at_most=False, unit="k IOPS", note=""):
    """Medians against medians: a single round in which the machine was elsewhere is in neither."""
    ratios = [a / b for a, b in zip(ours, against, strict=True)]
    return add_row(Row(id, case, median(ours), median(against), median(ours) / median(against), (min(ratios), max(ratios)), first, goal, at_most, unit, note))


@pytest.fixture(params=["M", "D"] if FULL else ["M"])
def runs(request, open_direct):
    path = request.getfixturevalue("memory_device" if request.param == "M" else "disk_device")(SIZE)
    return request.param, Runs(path, open_direct(path))


@pytest.mark.parametrize("kind", KINDS if FULL else list(KINDS)[:1])
def test_a_nice_run_leaves_the_foreground_what_it_had(benchmark, runs, kind):
    where, runs = runs
    alone, beside, nice = [], [], []

    def round_of_all():
        wait_quiet()
        alone.append(foreground(runs.path, kind, ALONE))
        beside.append(foreground(runs.path, kind, BESIDE, lambda: runs.going(False)))
        nice.append(foreground(runs.path, kind, BESIDE_NICE, lambda: runs.going(True)))

    benchmark.pedantic(round_of_all, rounds=ROUNDS, iterations=1)
    alone.append(foreground(runs.path, kind, ALONE))
    case = f"{where}, {kind}"

    def throughput(each):
        return [found.iops / 1e3 for found in each]

    def p99(each):
        return [found.p99 * 1e3 for found in each]

    row("N1", f"throughput beside a nice run, {case} / alone", throughput(nice), throughput(alone[1:]), first=0.85, goal=0.9)
    row("N2", f"p99 beside a nice run, {case} / alone", p99(nice), p99(alone[1:]), first=2.0, goal=1.5, at_most=True, unit="ms")
    row("", f"throughput beside a run as ever, {case} / alone", throughput(beside), throughput(alone[:-1]))
    row("", f"p99 beside a run as ever, {case} / alone", p99(beside), p99(alone[:-1]), unit="ms")
    row("", f"throughput alone, {case} / alone a round before", throughput(alone[1:]), throughput(alone[:-1]), note="noise")
    row("", f"p99 alone, {case} / alone a round before", p99(alone[1:]), p99(alone[:-1]), unit="ms", note="noise")
    for who, each in (("alone", alone), ("beside a nice run", nice), ("beside a run as ever", beside)):
        add_row(figure_row("", f"foreground {case}: {who}", throughput(each), at_most=False, unit="k IOPS", family="a good neighbour", group=case, who=who))
    speeds = [found.read / 1e6 for found in nice]
    note = f"a terabyte takes {1e6 / max(0.001, median(speeds)) / 3600:.1f} h meanwhile; beside it as ever {median(found.read for found in beside) / 1e6:.0f} MB/s"
    add_row(figure_row("", f"what a nice run reads beside it, {case}", speeds, at_most=False, unit="MB/s", note=note))


def test_with_nobody_there_a_nice_run_is_as_fast_as_any(compare, memory_device, open_direct):
    path = memory_device(SIZE)
    runs, passes = Runs(path, open_direct(path)), 3
    compare(
        "N3", "nice run with nobody beside it, M / run as ever", lambda: runs.pass_over(True, passes), lambda: runs.pass_over(False, passes), first=0.90, goal=0.95,
    )  # fmt: skip
