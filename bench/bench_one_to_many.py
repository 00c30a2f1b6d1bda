"""Several targets of one source: bytes read of it, and CPU, of runs that share a pass and of runs that read by themselves.

Bytes are exact whatever else the machine does; times are not.
"""

import os
import random
import resource
import socket
import sys
import tempfile
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from source_peer import ATTEMPT, KEY, SESSION, map_of, receive_all  # noqa: E402

from measure import add_row, figure_row  # noqa: E402

from qrep._native import wire  # noqa: E402
from qrep._native.connection import Connection  # noqa: E402
from qrep._native.source_lane import SharedScan, SourceRun  # noqa: E402

MIB = 1 << 20
FULL = os.environ.get("QREP_BENCH") == "full"
SIZE, GRANULE, LEAF = (256 if FULL else 16) * MIB, (8 if FULL else 1) * MIB, 4096
GEOMETRY = wire.Geometry(SIZE, LEAF, GRANULE)
TARGETS = 8


def drain(stream, writer):
    """The other end: takes everything, answers END, checks nothing (the tests do)."""
    receive, ended = receive_all(stream), False
    reader = wire.FrameReader(GEOMETRY, ATTEMPT, SESSION, 0, KEY)
    while not ended:
        frame = reader.header(receive(wire.HEADER_SIZE))
        if frame.kind == wire.RUNS:
            reader.runs(frame, receive(frame.run_count * 8))
        receive(frame.data_size)
        ended = frame.kind == wire.END
    stream.sendall(writer.end())


def one(device, leaves, states, values, shared, counters):
    run = SourceRun(
        GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512, base_states=states, base_values=values, leaves_fd=leaves, frame_size=2 * MIB,
    )  # fmt: skip
    if shared is not None:
        run.share(shared)
    ready.wait()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = wire.FrameWriter(GEOMETRY, ATTEMPT, SESSION, wire.ANSWER, KEY)
        other = threading.Thread(target=drain, args=(theirs, writer))
        other.start()
        assert run.lane(device, Connection.socket(ours.fileno(), 0)) == 0
        other.join()
    run.leave()
    counters.append(run.counters())


ready = threading.Barrier(1)


def measure(path, pages, states, values, directory, count, share):
    """(bytes read in all, processor seconds)."""
    global ready
    ready = threading.Barrier(count)
    shared, counters, threads, files = SharedScan(GEOMETRY, max(4, 128 * MIB // GRANULE), 5.0) if share else None, [], [], []
    for number in range(count):
        leaves_path = directory / f"leaves{number}"
        leaves_path.write_bytes(pages)
        files += [os.open(path, os.O_RDONLY), os.open(leaves_path, os.O_RDWR)]
        threads.append(threading.Thread(target=one, args=(files[-2], files[-1], states, values, shared, counters)))
    before = resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = resource.getrusage(resource.RUSAGE_SELF)
    for file in files:
        os.close(file)
    return sum(each["read"] for each in counters), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture
def memory_dir():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.mark.alone
@pytest.mark.parametrize("changed", ["nothing", "5 % in runs of 1 MiB", "5 % in single leaves"])
def test_bytes_read_of_a_source_with_eight_targets(memory_dir, changed):
    random_source = random.Random(1)
    data = bytearray(b"".join(random_source.randbytes(MIB) for _ in range(SIZE // MIB)))
    states, values, pages = map_of(data, GEOMETRY)
    step = {"nothing": 0, "5 % in runs of 1 MiB": min(MIB, GRANULE), "5 % in single leaves": LEAF}[changed]
    for start in random_source.sample(range(0, SIZE, step), SIZE // 20 // step) if step else ():
        data[start : start + step] = random_source.randbytes(step)
    path = memory_dir / "source"
    path.write_bytes(data)
    for count, share in ((1, False), (TARGETS, False), (TARGETS, True)):
        read, cpu_s = measure(path, pages, states, values, memory_dir, count, share)
        who = f"{count} target{'s' if count > 1 else ''}{' that share' if share else ' by themselves' if count > 1 else ''}"
        note = f"{cpu_s:.2f} CPU s of lanes and of the peers in this process"
        add_row(figure_row("", f"{changed}, {who}: read / size of the source", [read / SIZE], note=note))
        assert read == SIZE * (1 if share else count)
