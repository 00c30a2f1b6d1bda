"""What something costs: seconds, CPU, memory, of another program with all its children, of this process, of the whole machine."""

import contextlib
import dataclasses
import os
import subprocess
import threading
import time
from pathlib import Path

from rows import Sample

MIB, GIB = 1 << 20, 1 << 30
TICKS = os.sysconf("SC_CLK_TCK")
POLL_S = 0.05  # between two looks at a program's memory; its high-water mark only rises, so what is missed is its last moment


def busy_seconds():
    """Core-seconds this machine was busy since it started, kernel threads and softirq included (/proc/stat)."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICKS


def tree(pid):
    """A process and all below it that live now."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError):
                    found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


def process_cpu(pid):
    """CPU seconds of a running process, of those below it, and of those that it has waited for. What has ended counts for nothing."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))  # utime, stime, and those of children waited for
    return total / TICKS


def process_peak(pid):
    """Most bytes that a running process and those below it have had resident, each at its own time; what they share counts for each."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return total


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a program took. cpu: core-seconds, children included; rss: peak bytes, children included; output: bytes, if asked for."""

    seconds: float
    cpu: float
    rss: int
    output: bytes | None = None

    def sample(self, size, **figures):
        """Its rate over `size` bytes, with what it cost. figures: others to carry; cpu_source or cpu_target if it was one side only."""
        if not {"cpu", "cpu_source", "cpu_target"} & set(figures):
            figures["cpu"] = self.cpu / (size / GIB)
        return Sample(size / self.seconds, **{"rss": self.rss / MIB, **figures})


def tool(argv, *, keep_output=False, check=True, **options):
    """Run a program to its end; Ran. A pipeline is one program: ["sh", "-c", "dd ... | socat ..."]. options: of subprocess.Popen.

    The memory is looked at from outside, because what the kernel reports of a child begins with what this process had when it forked.
    Raises CalledProcessError if it fails and `check` is set.
    """
    argv = [os.fspath(word) for word in argv]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE if keep_output else subprocess.DEVNULL, **options}
    peak, ended = [0], threading.Event()
    started = time.perf_counter()
    process = subprocess.Popen(argv, **options)

    def watch():
        while not ended.is_set():
            peak[0] = max(peak[0], process_peak(process.pid))
            ended.wait(POLL_S)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        output = process.stdout.read() if keep_output else None
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        ended.set()
        watcher.join()
        if keep_output:
            process.stdout.close()
        if process.returncode is None:
            process.kill()
            process.wait()
    if check and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv, output)
    return Ran(seconds, usage.ru_utime + usage.ru_stime, peak[0], output)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one call. own: CPU seconds of this process and of children that it waited for; machine: of everything, kernel threads included.

    of: {pid: CPU seconds} of the processes that were asked for, those below them included.
    """

    seconds: float
    own: float
    machine: float
    of: dict


def cpu_of(function, *pids):
    """(what function() returns, its Cost). pids: running processes that work for it, as agents or servers."""
    def look():
        times = os.times()
        return time.perf_counter(), sum(times[:4]), busy_seconds(), [process_cpu(pid) for pid in pids]

    before = look()
    result = function()
    after = look()
    each = {pid: late - early for pid, early, late in zip(pids, before[3], after[3], strict=True)}
    return result, Cost(after[0] - before[0], after[1] - before[1], after[2] - before[2], each)
