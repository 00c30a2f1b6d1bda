"""Jobs of real agents, driven through the command line.

P1: a run from `qrep start --wait` to its prompt / the bare lanes. P2: what two agents take of memory beyond their buffers. P3: `qrep status`.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents import Agents, b3sum
from content import change_leaves
from lane_pair import replicate, scan_rate, socket_pairs, whole_map
from measure import DEVICE_SIZE, FULL, GIB, KIB, MIB, add_row, figure_row, fill_file, make_room, rate

from qrep._native.wire import Geometry

LEAF, GRANULE, CONNECTIONS = 4 * KIB, 8 * MIB, 2
SOURCE_SLOTS, TARGET_SLOTS, FRAME = 2, 4, 2 * MIB  # what a run takes by itself: RunRequest, TargetRun


def job_size():
    """Large enough that starting a command is a small part of it, small enough for two of them in memory."""
    if not FULL:
        return DEVICE_SIZE
    make_room()
    free = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return max(DEVICE_SIZE, min(3 * GIB, free * KIB // 3 // GIB * GIB))


@pytest.fixture
def agents(tmp_path):
    with Agents(tmp_path) as agents:
        yield agents


def test_runs_through_the_command_line_against_bare_lanes(compare, memory_device, open_direct, agents):
    size = job_size()
    geometry = Geometry(size, LEAF, GRANULE)
    source, target = memory_device(size), memory_device(size, fill=None)
    source_fd = open_direct(source, os.O_RDONLY)
    agent = agents.agent("one")
    agent.qrep("volume", "add", "here", source, "--snapshots", "none")

    def new_job():
        """The first run of a job is a full one."""
        if "db" in {job["name"] for job in agent.qrep("job")}:
            agent.qrep("job", "delete", "db", "-y")
            agent.qrep("volume", "remove", "there", "-y")
        agent.qrep("volume", "add", "there", target, "--snapshots", "none")
        agent.qrep("job", "create", "db", "--source", "here", "--target", "there", "-y")

    def bare_copy():
        with open(target, "r+b", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_DIRECT)) as there:
            return size / replicate(geometry, source_fd, there.fileno(), pairs=socket_pairs, flush=True, connections=CONNECTIONS)[2]

    bare_copy()  # the target's memory is there
    known = whole_map(geometry, source_fd)
    gib = size / GIB
    compare("P1", f"full run of {gib:g} GiB, start --wait / bare lanes", lambda: rate(agent.run, size=size), bare_copy, setup=new_job,
            first=0.85, goal=0.97)  # fmt: skip
    compare("P1", f"unchanged run of {gib:g} GiB, start --wait / bare scan", lambda: rate(agent.run, size=size),
            lambda: scan_rate(geometry, source_fd, known, CONNECTIONS), first=0.85, goal=0.97)  # fmt: skip


def peak_memory(agent):
    """Bytes, the most the process ever had resident."""
    lines = Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * KIB for line in lines if line.startswith("VmHWM"))


def sparse_and_dense(path, size, dense):
    """Data at the beginning, in the middle and at the end, `dense` bytes in all; the rest are holes."""
    part = dense // 4 // GRANULE * GRANULE
    for number, start in enumerate((0, size // 3 // GRANULE * GRANULE, size // 2, size - part)):
        fill_file(path, part, number, start)


def test_memory_of_two_agents(benchmark, huge_tmpfs, memory_device, agents):
    size, dense = (10 * GIB, GIB) if FULL else (4 * DEVICE_SIZE, DEVICE_SIZE)
    source, target = memory_device(size, fill=None), memory_device(size, fill=None)
    sparse_and_dense(source, size, dense)
    near, far = agents.replica(source, target, connections=CONNECTIONS, source_volume=("--snapshots", "none"))
    started = time.perf_counter()
    benchmark.pedantic(near.run, rounds=1)
    seconds = time.perf_counter() - started
    with open(source, "r+b", buffering=0) as plain:
        change_leaves(plain.fileno(), 0.01, 1, size=dense // 4)
    report = near.run()
    buffers = {near: CONNECTIONS * SOURCE_SLOTS * GRANULE, far: CONNECTIONS * TARGET_SLOTS * 2 * FRAME}
    for agent, end in ((near, "source"), (far, "target")):
        beyond, peak = (peak_memory(agent) - buffers[agent]) / MIB, peak_memory(agent) / MIB
        note = f"peak {peak:.0f} MiB; {dense // MIB} MiB of data in {seconds:.1f} s over TLS"
        add_row(figure_row("P2", f"memory of the {end} beyond its buffers, {size / GIB:g} GiB", [beyond], first=192, goal=64, unit="MiB", note=note))
        assert peak - buffers[agent] / MIB < 256
    if not FULL:
        assert b3sum(target) == report["root"]


def milliseconds(command, environment=None):
    started = time.perf_counter()
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return 1000 * (time.perf_counter() - started)


def test_status_of_a_running_agent(benchmark, agents):
    agent = agents.agent("one")
    rounds = 15 if FULL else 2
    command = [sys.executable, "-c", "from qrep.cli.main import main; main()", "status"]
    milliseconds(command, agent.environment)  # warm
    figures = []
    benchmark.pedantic(lambda: figures.append(milliseconds(command, agent.environment)), rounds=rounds, iterations=1)
    bare = sorted(milliseconds([sys.executable, "-c", "pass"]) for _ in range(rounds))[rounds // 2]
    add_row(figure_row("P3", "qrep status, warm", figures, first=200, goal=100, unit="ms", note=f"python -c pass: {bare:.0f} ms"), benchmark)
