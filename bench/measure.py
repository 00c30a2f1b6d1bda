"""Measuring for the benches: sizes by mode, ceilings, devices; with what rows.py and cost.py have, so that a bench imports from one place."""

import json
import os
import subprocess
import time

from cost import Cost, Ran, busy_seconds, cpu_of, process_cpu, process_peak, tool  # noqa: F401
from devices import PREFIX, Pool, fill_file, huge_pages, make_loop, make_room, sweep  # noqa: F401
from rows import CHARTS, ROWS, SPENT, Against, Chart, Row, Sample, add_chart, add_row, figure_row, median_figures, timed  # noqa: F401

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
FULL = os.environ.get("QREP_BENCH", "smoke") == "full"
DEVICE_SIZE = 2 * GIB if FULL else 64 * MIB
ROUNDS = 5 if FULL else 1
# fio and small devices: enough bytes that one measurement takes tens of milliseconds.
MEASURED_BYTES = 2 * GIB if FULL else 256 * MIB


def rate(function, *arguments, size=None):
    """Bytes per second of one call: of `size` bytes, or of as many as the call returns."""
    started = time.perf_counter()
    moved = function(*arguments)
    return (size or moved) / (time.perf_counter() - started)


def fio(device, direction, block_size, depth, size=None, huge=False, passes=None):
    """Bytes per second of fio with io_uring, fixed buffers and O_DIRECT over the first `size` bytes of the device.

    passes over them: as many as MEASURED_BYTES take. huge: buffers of huge pages, as the engine has, instead of 4 KiB ones, as fio has by
    itself; only where huge_pages() has some.
    """
    size = size or min(DEVICE_SIZE, MEASURED_BYTES)
    command = [
        "fio", "--name=ceiling", f"--filename={os.fspath(device)}", f"--rw={direction}", f"--bs={block_size}", f"--iodepth={depth}",
        "--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1", "--direct=1", f"--size={size}", f"--mem={'mmaphuge' if huge else 'malloc'}",
        f"--loops={passes or max(1, MEASURED_BYTES // size)}", "--end_fsync=1", "--refill_buffers=0", "--output-format=json",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(result.stdout[result.stdout.index("{") :])
    return report["jobs"][0][direction]["bw_bytes"]


FIO_HUGE = "fio, huge pages"  # the bar beside "fio 8M q2", which the goals of the design were set against


def fio_huge(device, direction, block_size, depth, **options):
    """{FIO_HUGE: ...} for `also` of a comparison: the higher ceiling, beside fio as it comes; {} where this machine has no huge pages for it."""
    return {FIO_HUGE: Against(lambda: fio(device, direction, block_size, depth, huge=True, **options), bound=True)} if huge_pages() else {}


QUIET, QUIET_WAIT_S = 0.10, 3.0
PATIENCE_S = 30.0  # that a session waits in all: a machine that is never quiet must not make it endless
QUIET_HOLDS_S = 2.0  # a look at the machine takes a tenth of a second, and a session has hundreds of rounds
_waited_s, _last_look = [0.0], [-QUIET_HOLDS_S, 0.0]


def waited_s():
    """Seconds that this session has waited for a quiet machine."""
    return _waited_s[0]


def wait_quiet():
    """Wait for a moment in which nothing else runs, a few seconds at most: other load hits the two sides of a ratio differently.

    Returns the share of the CPUs that was busy at the end of the wait, or a moment ago. Does not wait at smoke size.
    """
    began = time.monotonic()
    if began < _last_look[0] + QUIET_HOLDS_S and _last_look[1] <= QUIET:
        return _last_look[1]
    wait = min(QUIET_WAIT_S, PATIENCE_S - _waited_s[0])
    while FULL:
        busy, start = busy_seconds(), time.monotonic()
        time.sleep(0.1)
        now = time.monotonic()
        share = min(1.0, (busy_seconds() - busy) / (now - start) / os.cpu_count())
        if share <= QUIET or now > began + wait:
            _waited_s[0] += now - began
            _last_look[:] = now, share
            return share
    return 0.0
