"""Measuring for the benches: sizes by mode, ceilings, devices; with what rows.py and cost.py have, so that a bench imports from one place."""

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from cost import Cost, Ran, busy_seconds, cpu_of, process_cpu, process_peak, tool  # noqa: F401
from rows import CHARTS, ROWS, Against, Chart, Row, Sample, add_chart, add_row, figure_row, median_figures  # noqa: F401

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FULL = os.environ.get("QREP_BENCH", "smoke") == "full"
DEVICE_SIZE = 2 * GIB if FULL else 64 * MIB
ROUNDS = 5 if FULL else 1
# fio and small devices: enough bytes that one measurement takes tens of milliseconds.
MEASURED_BYTES = 2 * GIB if FULL else 256 * MIB


def median_ratio(ours, ceiling, rounds=ROUNDS):
    """Run ceiling() and ours() in turn, `rounds` times. Returns (median of ours, median of ceiling, [ratio of each round])."""
    pairs = []
    for _ in range(rounds):
        top = ceiling()
        pairs.append((ours(), top))
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs), [a / b for a, b in pairs]


def rate(function, *arguments, size=None):
    """Bytes per second of one call: of `size` bytes, or of as many as the call returns."""
    started = time.perf_counter()
    moved = function(*arguments)
    return (size or moved) / (time.perf_counter() - started)


def fio(device, direction, block_size, depth, size=None):
    """Bytes per second of fio with io_uring, fixed buffers and O_DIRECT over the first `size` bytes of the device."""
    size = size or min(DEVICE_SIZE, MEASURED_BYTES)
    command = [
        "fio", "--name=ceiling", f"--filename={os.fspath(device)}", f"--rw={direction}", f"--bs={block_size}", f"--iodepth={depth}",
        "--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--direct=1", f"--size={size}",
        f"--loops={max(1, MEASURED_BYTES // size)}", "--end_fsync=1", "--refill_buffers=0", "--output-format=json",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(result.stdout[result.stdout.index("{") :])
    return report["jobs"][0][direction]["bw_bytes"]


QUIET, QUIET_WAIT_S = 0.10, 5.0
_patience = [60.0]  # seconds that a session waits in all: a machine that is never quiet must not make it endless


def wait_quiet():
    """Wait for a moment in which nothing else runs, a few seconds at most: other load hits the two sides of a ratio differently.

    Returns the share of the CPUs that was busy at the end of the wait. Does not wait at smoke size.
    """
    began = time.monotonic()
    wait = min(QUIET_WAIT_S, _patience[0])
    while FULL:
        busy, start = busy_seconds(), time.monotonic()
        time.sleep(0.1)
        now = time.monotonic()
        share = min(1.0, (busy_seconds() - busy) / (now - start) / os.cpu_count())
        if share <= QUIET or now > began + wait:
            _patience[0] -= now - began
            return share
    return 0.0


def fill_file(path, size, seed, offset=0):
    """Incompressible bytes, the same for the same seed, no block twice."""
    import numpy

    source = numpy.random.default_rng(seed)
    with open(path, "r+b") as image:
        image.seek(offset)
        for start in range(0, size, 64 * MIB):
            image.write(source.bytes(min(64 * MIB, size - start)))


PREFIX = f"qrep-bench-{os.getpid()}-"


def sweep(places=("/tmp", "/var/tmp", os.environ.get("QREP_BENCH_DIR", "/var/tmp"))):
    """Take away what a bench that was killed left: its loop devices, mounts and directories. Their names say whose they are."""
    for found in {path for place in places for path in Path(place).glob("qrep-bench-*-*")}:
        owner = found.name.split("-")[2]
        if not owner.isdigit() or Path("/proc", owner).exists():
            continue
        listed = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, check=True)
        for name, backing in (line.split(None, 1) for line in listed.stdout.splitlines() if " " in line.strip()):
            if backing.startswith(f"{found}/"):
                subprocess.run(["umount", "--quiet", name], check=False)
                subprocess.run(["losetup", "--detach", name], check=False)
        if os.path.ismount(found):
            subprocess.run(["umount", "--lazy", found], check=False)
        shutil.rmtree(found, ignore_errors=True)


def make_loop(stack, directory, size, fill):
    """A loop device with direct I/O over a new file. fill: "random" or "zero" (allocated), or None (a hole)."""
    descriptor, path = tempfile.mkstemp(dir=directory, suffix=".img")
    stack.callback(os.unlink, path)
    os.truncate(descriptor, size)
    if fill == "random":
        fill_file(path, size, seed=len(os.listdir(directory)))
    elif fill == "zero":
        os.posix_fallocate(descriptor, 0, size)
        with open(path, "r+b") as image:
            for _ in range(0, size, MIB):
                image.write(bytes(MIB))
    os.fsync(descriptor)
    os.close(descriptor)
    command = ["losetup", "--find", "--show", "--direct-io=on", path]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
    return device
