"""What every bench uses: fixtures for devices and comparisons, and one table at the end of the session (helpers: measure.py, rows.py, cost.py).

    QREP_BENCH=full pytest bench       full sizes (2 GiB devices, 5 rounds); a row below its `first` figure fails the session
    pytest bench                       smoke: does it run, is the ratio plausible; small and noisy, nothing is judged by it

A bench measures nothing alone. `compare` runs its ceiling before each of its rounds, so that both meet the same weather:

    def test_read(compare, memory_device):
        device = memory_device(fill="random")
        compare("S0", "read, M / fio", lambda: rate(...), lambda: fio(device, "read", 8 * MIB, 2), first=0.9, goal=1.0)

Both callables return a figure where more is better, as a rule bytes per second. With it they may carry what it cost, and the rows then say so:

    def ours():
        report, cost = cpu_of(copy)                 # cost.own: this process; cost.of[pid]: agents, servers; cost.machine: kernel threads, too
        return Sample(SIZE / cost.seconds, cpu_source=..., cpu_target=..., wire=report.sent / changed)        # rows.FIGURES has the names

    def rsync():
        return tool(["rsync", ...]).sample(SIZE, wire=...)       # runs it: rate, CPU with children, peak memory

Further peers and bounds meet the same rounds, so that ours is measured once for all of them, and each has a row of its own:

    compare("C1", "dense / nbdcopy", ours, nbdcopy, family="full copy", peer="nbdcopy", first=1.6, goal=2.4,
            also={"rsync": rsync, "qemu-img": Against(convert, id="C7", first=0.6, goal=0.9), "fio": Against(top, bound=True)})

`family` names the picture in which the row is drawn (bench/pictures/full-copy.svg), what stands before " / " in the case its group of bars there, `peer` the
program that `ceiling` is; without it, it is a bound, named by what stands after " / ". Rows of one family have one unit. `add_chart(Chart(...))` draws lines.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import keep
import pytest
import results
from comparison import Comparison
from devices import POOLS, reserve_huge_pages
from measure import CHARTS, DEVICE_SIZE, FULL, MIB, PREFIX, ROUNDS, ROWS, SPENT, Pool, sweep, waited_s

BUDGET_MIN = 15


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.alone)


def pytest_configure(config):
    # The table of ratios says it all; the plug-in's own, of seconds, is for whoever asks for it (-v).
    if hasattr(config.option, "benchmark_quiet"):
        config.option.benchmark_quiet = True
    # Ended by a signal, a bench takes its devices and mounts down all the same.
    if FULL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(2 * BUDGET_MIN * 60)  # so does one that hangs


@pytest.fixture
def compare(benchmark):
    return Comparison(benchmark)


ITEMS, SECONDS, SKIPPED = [], {}, {}


def pytest_collection_finish(session):
    ITEMS.extend(session.items)


def pytest_runtest_logreport(report):
    bench = Path(report.nodeid.split("::", 1)[0]).stem.removeprefix("bench_")
    SECONDS[bench] = SECONDS.get(bench, 0.0) + report.duration
    if report.failed:
        SKIPPED[bench, f"{report.nodeid.rpartition('::')[2]} failed"] = None
    if report.skipped and isinstance(report.longrepr, tuple):
        SKIPPED[bench, report.longrepr[2].removeprefix("Skipped: ")] = None


def below_first():
    return [row for row in ROWS if FULL and row.verdict == "below first"]


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and below_first():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    size = f"{DEVICE_SIZE // MIB} MiB devices, {ROUNDS} rounds"
    terminalreporter.section(f"ratios to ceilings of the same run ({'full' if FULL else 'smoke: not for judging'}; {size})")
    lines = [results.HEAD, *(results.cells(row) for row in ROWS)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(results.HEAD))]
    for line in lines:
        terminalreporter.write_line("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    whole = FULL and results.is_whole(ITEMS, ROWS)
    written = keep.keep(ROWS, CHARTS, SECONDS, list(SKIPPED), whole)
    if not FULL:
        return
    spent, minutes = sorted(SECONDS.items(), key=lambda item: -item[1]), sum(SECONDS.values()) / 60
    terminalreporter.write_line("seconds: " + ", ".join(f"{bench} {seconds:.0f}" for bench, seconds in spent))
    longest = sorted(SPENT.items(), key=lambda item: -item[1])[:20]
    terminalreporter.write_line("of them: " + ", ".join(f"{bench} {name} {seconds:.0f}" for (bench, name), seconds in longest))
    terminalreporter.write_line(f"{minutes:.1f} minutes of {BUDGET_MIN}; {waited_s():.0f} s of them waited for other load to end", red=minutes > BUDGET_MIN)
    for row in below_first():
        terminalreporter.write_line(f"below first: {row.id} {row.case}: {row.ratio:.3f}", red=True)
    if not whole:
        asked = ", ".join(results.missing(ROWS)) or "every required row is there, but not all benches ran"
        terminalreporter.write_line(f"not whole, so bench/RESULTS.md stays as it is; not measured: {asked}", yellow=True)
    terminalreporter.write_line("written: " + " ".join(os.path.relpath(path) for path in written))


@pytest.fixture(scope="session")
def huge_tmpfs():
    """A directory on a tmpfs of our own, backed by huge pages: +16 % read and +40 % write against /dev/shm."""
    if os.geteuid() != 0:
        pytest.skip("needs root (mount, loop devices)")
    sweep()
    point = tempfile.mkdtemp(prefix=PREFIX)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=always,size=90%", "tmpfs", point], check=False)
    if mounted.returncode:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%", "tmpfs", point], check=True)
    yield Path(point)
    subprocess.run(["umount", "--lazy", point], check=True)
    os.rmdir(point)


@contextlib.contextmanager
def pool_of(directory):
    pool = Pool(directory)
    POOLS.append(pool)
    yield pool
    POOLS.remove(pool)
    pool.drop()


@pytest.fixture(scope="session")
def memory_pool(huge_tmpfs):
    with reserve_huge_pages(), pool_of(huge_tmpfs) as pool:
        yield pool


@pytest.fixture(scope="session")
def disk_pool():
    directory = tempfile.mkdtemp(prefix=PREFIX, dir=os.environ.get("QREP_BENCH_DIR", "/var/tmp"))
    with pool_of(directory) as pool:
        yield pool
    os.rmdir(directory)


def lend(request, name):
    if os.geteuid() != 0 or shutil.which("fio") is None:
        pytest.skip("needs root (loop devices) and fio, the ceiling")
    pool = request.getfixturevalue(name)
    with contextlib.ExitStack() as stack:

        def make(size=DEVICE_SIZE, fill="random"):
            path = pool.lend(size, fill)
            stack.callback(pool.give_back, path)
            return path

        yield make


@pytest.fixture
def memory_device(request):
    """memory_device(size=DEVICE_SIZE, fill="random") -> path of a loop device over memory, "M" in the design's tables.

    It is this bench's until it ends; the next one gets it as it is asked for, so nothing of a bench may still have it open then.
    """
    yield from lend(request, "memory_pool")


@pytest.fixture
def disk_device(request):
    """The same over a file on this machine's disk (QREP_BENCH_DIR, else /var/tmp), "D" in the tables."""
    yield from lend(request, "disk_pool")


@pytest.fixture
def open_direct():
    """open_direct(path, flags=O_RDWR) -> O_DIRECT descriptor, closed after the bench."""
    with contextlib.ExitStack() as stack:

        def make(path, flags=os.O_RDWR):
            descriptor = os.open(path, flags | os.O_DIRECT)
            stack.callback(os.close, descriptor)
            return descriptor

        yield make
