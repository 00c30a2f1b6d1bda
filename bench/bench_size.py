"""What the size of a volume costs: sparse image files of 1 GiB to 16 TiB on XFS, all of them with the same 64 MiB of data in 64 places.

Two real agents per size, driven as a person drives them: first run, unchanged run with change hints and without them, `qrep status`, the start of the
target's agent, and the most that each of the two ever had resident. The commit, from the last answer of the lanes to the folded map, is timed in
this process. What the figures grow with is 33 bytes per granule of 8 MiB: 4 MiB per TiB, of which only what has a value takes room.
"""

import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agents import Agents
from flow.harness import JOB, VOLUME
from measure import FULL, GIB, MIB, Chart, add_chart, add_row, figure_row, process_peak

from qrep import device
from qrep.copy import LocalTarget, local_request
from qrep.digesttree import ZERO_FILL_LIMIT
from qrep.source.flow import Run
from qrep.target.volume import TargetVolume
from qrep.volumes.reflink import Reflink

SIZES = [GIB, 64 * GIB, 1024 * GIB, 16384 * GIB] if FULL else [16384 * GIB]
DATA, PLACES = (64 * MIB, 64) if FULL else (4 * MIB, 4)
ROUNDS = 3 if FULL else 1
FAMILY = "size"
STATUS = [sys.executable, "-c", "from qrep.cli.main import main; main()", "status"]
LINES = {  # what is drawn: in seconds, and the memory in MiB
    "first": "first run", "hinted": "unchanged run, with hints", "scanned": "unchanged run, without", "commit": "commit", "status": "qrep status", "start": "start of the target's agent",
}  # fmt: skip


@pytest.fixture
def xfs(huge_tmpfs):
    """A filesystem for sparse images: a file of it may be larger than it."""
    backing, point = huge_tmpfs / "size.xfs", huge_tmpfs / "size"
    backing.touch()
    os.truncate(backing, 64 * GIB)
    point.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", backing], check=True)
    subprocess.run(["mount", "-o", "loop", backing, point], check=True)
    yield Path(point)
    subprocess.run(["umount", point], check=True)
    backing.unlink()
    point.rmdir()


def sparse(path, size, data=0):
    """An image of `size` bytes with `data` bytes in PLACES of it."""
    path.touch()
    os.truncate(path, size)
    drawn, piece = random.Random(1), data // PLACES
    with open(path, "r+b", buffering=0) as image:
        for place in drawn.sample(range(size // MIB), PLACES) if data else ():
            image.seek(place * MIB)
            image.write(drawn.randbytes(piece))
    return path


def seconds(function, *arguments):
    """(what it returned, how long it took)."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - started


def with_agents(directory, source, target):
    """{figure: [seconds]} of two agents, and the peak memory of both in MiB."""
    found = {}
    with Agents(directory) as agents:
        near, far = agents.replica(source, target, source_volume=("--snapshots", "reflink"), volume=("--snapshots", "none"))
        report, found["first"] = seconds(near.run)
        assert report["changed"] and not report["clean"]
        found["hinted"] = [seconds(near.run)[1] for _ in range(ROUNDS)]
        near.qrep("job", "set", "db", "--hints", "off")
        found["scanned"] = [seconds(near.run)[1] for _ in range(ROUNDS)]
        found["status"] = [seconds(lambda: subprocess.run(STATUS, env=near.environment, stdout=subprocess.DEVNULL, check=True))[1] for _ in range(ROUNDS)]
        peaks = [process_peak(agent.process.pid) / MIB for agent in (near, far)]
        far.terminate()
        found["start"] = far.start()
    return {name: value if isinstance(value, list) else [value] for name, value in found.items()}, peaks


class TimedRun(Run):
    """Notes when all was sent."""

    sent_at = None

    def _lanes_ended(self):
        self.sent_at = time.perf_counter()
        super()._lanes_ended()


def commits(directory, source, target):
    """Seconds from the end of the lanes to the end of the run: manifests, both maps durable, the superblock, both maps folded."""
    found = []
    with TargetVolume(device.inspect(str(target)), directory / "target", volume_id=VOLUME) as volume:
        local = LocalTarget(volume)
        for _ in range(1 + ROUNDS):  # the first run is another matter: everything is new
            request = local_request(str(source), directory, job_id=JOB, volume_id=VOLUME, leaf_size=4096, granule_size=8 * MIB, backend=Reflink(), hints=True)
            run = TimedRun(request, local.dial, local.connect)
            run.run()
            found.append(time.perf_counter() - run.sent_at)
            with open(source, "r+b", buffering=0) as image:
                image.write(os.urandom(4096))
    local.join()
    return found[1:]


def label(size):
    return f"{size // GIB // 1024} TiB" if size >= 1024 * GIB else f"{size // GIB} GiB"


def test_what_the_size_of_a_volume_costs(benchmark, xfs, tmp_path):
    figures, peaks = {name: {} for name in LINES}, {}
    for size in SIZES:
        source, target, other = sparse(xfs / "source", size, DATA), sparse(xfs / "target", size), sparse(xfs / "other", size)
        found, peaks[size] = with_agents(tmp_path / str(size), source, target)
        found["commit"] = commits(tmp_path / f"{size}-commit", source, other)
        for name, values in found.items():
            figures[name][size] = values
        for image in (source, target, other):
            image.unlink()
    for name, text in LINES.items():
        for size, values in figures[name].items():
            hashed = name == "first" and size <= ZERO_FILL_LIMIT
            note = f"of it hashing {label(size)} of zeroes, once, so that there is a root; beyond {label(ZERO_FILL_LIMIT)} there is none" if hashed else ""
            add_row(figure_row("", f"{text}, {label(size)}", values, unit="s", note=note))
    for size, (near, far) in peaks.items():
        add_row(figure_row("", f"peak memory of the source's agent, {label(size)}", [near], unit="MiB"))
        add_row(figure_row("", f"peak memory of the target's agent, {label(size)}", [far], unit="MiB"))
    lines = {text: [(size, statistics.median(values)) for size, values in figures[name].items()] for name, text in LINES.items()}
    add_chart(Chart(FAMILY, f"Sparse images, {DATA // MIB} MiB of data (to {label(ZERO_FILL_LIMIT)} a first run hashes zeroes)", "size of the volume", "time", lines=lines, x_unit="bytes", y_unit="s"))
    add_chart(Chart(f"{FAMILY}, memory", "Peak memory of both agents", "size of the volume", "memory", x_unit="bytes", y_unit="MiB",
                    lines={end: [(size, pair[place]) for size, pair in peaks.items()] for place, end in enumerate(("source", "target"))}))  # fmt: skip
    benchmark(lambda: None)
