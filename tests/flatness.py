"""What a process and its children hold, looked at when nothing is going on: descriptors, threads and memory must not grow from one such moment to the next.

    first = sample(pid)
    ...
    assert not grown(first, sample(pid))

    series = [(0, sample(pid).memory)]; ...; series.append((runs, sample(pid).memory))
    assert not leaks(series)              # nothing of each run stays

`python -m flatness KIND` is a process that does grow, for the tests of this: by a line on its stdin it takes one more of KIND and keeps it.
"""

import contextlib
import dataclasses
import itertools
import statistics
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import oracle

KIB = 1 << 10
GROWTH = 4 << 20  # bytes that the pages of a new peak, and what lies between those in use, may take in one process
KEPT_OF_A_RUN = 4 * KIB  # a fit over 80 runs found 0 to 2.4 of an agent after a soak
LEAK = 6 * KIB  # of a run: what the canaries keep
KINDS = ("descriptor", "thread", "memory")


@dataclasses.dataclass(frozen=True)
class Held:
    """Of a process and all its children: descriptors {what they lead to: how many}, threads, bytes of memory that no file backs, processes."""

    descriptors: dict
    threads: int
    memory: int
    processes: int


def family(pid):
    """A process and the children of its threads, theirs, and so on."""
    found = [pid]
    for each in found:
        for thread in Path(f"/proc/{each}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since
                found += map(int, (thread / "children").read_text().split())
    return found


def sample(pid):
    processes = family(pid)
    descriptors = Counter()
    for each in processes:
        descriptors.update(oracle.held(each))
    return Held(dict(descriptors), sum(map(oracle.threads, processes)), sum(map(oracle.anonymous, processes)), len(processes))


def grown(first, last):
    """What `last` holds more of than `first`, in words; empty: nothing."""
    found = []
    leaked = oracle.leaked(first.descriptors, last.descriptors)
    if leaked:
        found.append(f"descriptors: {leaked}")
    if last.threads > first.threads:
        found.append(f"threads: {first.threads} to {last.threads}")
    if last.processes > first.processes:
        found.append(f"processes: {first.processes} to {last.processes}")
    if last.memory > first.memory + GROWTH * first.processes:
        found.append(f"memory: {first.memory >> 20} to {last.memory >> 20} MiB")
    return "; ".join(found)


def slope(series):
    """Bytes that each run keeps: the median of the slopes between all pairs of [(runs so far, bytes)], which no single step moves far (Theil, Sen)."""
    return statistics.median((later - sooner) / (after - before) for (before, sooner), (after, later) in itertools.combinations(series, 2))


def leaks(series):
    """What each run keeps, in words; empty: nothing."""
    kept = slope(series)
    return f"each of {series[-1][0] - series[0][0]} runs keeps {kept / KIB:.1f} KiB" if kept > KEPT_OF_A_RUN else ""


def leaking(series):
    """As it would have been, had every run kept LEAK."""
    return [(runs, memory + runs * LEAK) for runs, memory in series]


def grow(kind):
    """Take one more of this kind by every line of stdin, and answer with a line."""
    kept = []
    take = {
        "descriptor": lambda: tempfile.TemporaryFile(),
        "thread": lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(),
        "memory": lambda: bytearray(b"x") * (2 * GROWTH),
        "leak": lambda: [bytes([number]) * KIB for number in range(LEAK // KIB)],
        "nothing": lambda: None,
    }[kind]
    print("ready", flush=True)
    for _line in sys.stdin:
        kept.append(take())
        print("taken", flush=True)


if __name__ == "__main__":
    grow(sys.argv[1])
