"""What every bench uses: fixtures for devices and comparisons, and one table at the end of the session (helpers: measure.py).

    QREP_BENCH=full pytest bench       full sizes (2 GiB devices, 5 rounds); a row below its `first` figure fails
    pytest bench                       smoke: does it run, is the ratio plausible; small and noisy, nothing is judged by it

A bench measures nothing alone. `compare` runs its ceiling before each of its rounds, so that both meet the same weather:

    def test_read(compare, memory_device):
        device = memory_device(fill="random")
        compare("S0", "read, M / fio", lambda: rate(...), lambda: fio(device, "read", 8 * MIB, 2), first=0.9, goal=1.0)

Both callables return a figure where more is better, as a rule bytes per second.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

import pytest
from measure import DEVICE_SIZE, FULL, MIB, ROUNDS, ROWS, Row, add_row, make_loop


@pytest.fixture
def compare(benchmark):
    """compare(id, case, ours, ceiling, *, first, goal, ...) -> Row, also kept for the table.

    ours, ceiling: callables that return a figure. setup: called before every round of ours, not measured.
    """

    def run(id, case, ours, ceiling, *, first=None, goal=None, at_most=False, unit="GB/s", rounds=ROUNDS, setup=None, note=""):
        tops, figures = [], []

        def before():
            tops.append(ceiling())
            if setup is not None:
                setup()

        benchmark.pedantic(lambda: figures.append(ours()), setup=before, rounds=rounds, iterations=1)
        ratios = [figure / top for figure, top in zip(figures, tops, strict=True)]
        row = Row(
            id, case, statistics.median(figures), statistics.median(tops), statistics.median(ratios), (min(ratios), max(ratios)),
            first, goal, at_most, unit, note,
        )
        return add_row(row, benchmark)

    return run


def figure_text(value, unit):
    return f"{value / 1e9:.2f} GB/s" if unit == "GB/s" else f"{value:.4g} {unit}"


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    size = f"{DEVICE_SIZE // MIB} MiB devices, {ROUNDS} rounds"
    terminalreporter.section(f"ratios to ceilings of the same run ({'full' if FULL else 'smoke: not for judging'}; {size})")
    lines = [("id", "case", "ours", "ceiling", "ratio", "min-max", "first", "goal", "")]
    for row in ROWS:
        wanted = ["" if each is None else f"{'<=' if row.at_most else '>='}{each:g}" for each in (row.first, row.goal)]
        verdict = row.verdict if FULL else ""
        lines.append((
            row.id, row.case, figure_text(row.ours, row.unit), figure_text(row.ceiling, row.unit), f"{row.ratio:.3f}",
            f"{row.spread[0]:.2f}-{row.spread[1]:.2f}", *wanted, " ".join(filter(None, (verdict, row.note))),
        ))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@pytest.fixture(scope="session")
def huge_tmpfs():
    """A directory on a tmpfs of our own, backed by huge pages: +16 % read and +40 % write against /dev/shm."""
    if os.geteuid() != 0:
        pytest.skip("needs root (mount, loop devices)")
    point = tempfile.mkdtemp(prefix="qrep-bench-")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=always,size=90%", "tmpfs", point], check=False)
    if mounted.returncode:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%", "tmpfs", point], check=True)
    yield Path(point)
    subprocess.run(["umount", "--lazy", point], check=True)
    os.rmdir(point)


@pytest.fixture
def memory_device(huge_tmpfs):
    """memory_device(size=DEVICE_SIZE, fill="random") -> path of a loop device over memory, "M" in the design's tables."""
    if shutil.which("fio") is None:
        pytest.skip("needs fio, the ceiling")
    with contextlib.ExitStack() as stack:
        yield lambda size=DEVICE_SIZE, fill="random": make_loop(stack, huge_tmpfs, size, fill)


@pytest.fixture
def disk_device():
    """The same over a file on this machine's disk (QREP_BENCH_DIR, else /var/tmp), "D" in the tables."""
    if os.geteuid() != 0 or shutil.which("fio") is None:
        pytest.skip("needs root (loop devices) and fio, the ceiling")
    with contextlib.ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="qrep-bench-", dir=os.environ.get("QREP_BENCH_DIR", "/var/tmp"))
        stack.callback(os.rmdir, directory)
        yield lambda size=DEVICE_SIZE, fill="random": make_loop(stack, directory, size, fill)


@pytest.fixture
def open_direct():
    """open_direct(path, flags=O_RDWR) -> O_DIRECT descriptor, closed after the bench."""
    with contextlib.ExitStack() as stack:

        def make(path, flags=os.O_RDWR):
            descriptor = os.open(path, flags | os.O_DIRECT)
            stack.callback(os.close, descriptor)
            return descriptor

        yield make
