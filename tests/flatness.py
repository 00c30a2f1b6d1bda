"""What a process and its children hold, looked at when nothing is going on: descriptors, threads and memory must not grow from one such moment to the next.

    first = sample(pid)
    ...
    assert not grown(first, sample(pid))

`python -m flatness KIND` is a process that does grow, for the tests of this: by a line on its stdin it takes one more of KIND and keeps it.
"""

import dataclasses
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import oracle

RSS_GROWTH = 8 << 20  # bytes that Python's allocators and the pages of a new peak may take in one process
KINDS = ("descriptor", "thread", "memory")


@dataclasses.dataclass(frozen=True)
class Held:
    """Of a process and all its children: descriptors {what they lead to: how many}, threads, bytes in memory, processes."""

    descriptors: dict
    threads: int
    resident: int
    processes: int


def family(pid):
    """A process and the children of its threads, theirs, and so on."""
    found = [pid]
    for each in found:
        for thread in Path(f"/proc/{each}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def sample(pid):
    processes = family(pid)
    descriptors = Counter()
    for each in processes:
        descriptors.update(oracle.held(each))
    return Held(dict(descriptors), sum(map(oracle.threads, processes)), sum(map(oracle.resident, processes)), len(processes))


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
    if last.resident > first.resident + RSS_GROWTH * first.processes:
        found.append(f"memory: {first.resident >> 20} to {last.resident >> 20} MiB")
    return "; ".join(found)


def grow(kind):
    """Take one more of this kind by every line of stdin, and answer with a line."""
    kept = []
    take = {
        "descriptor": lambda: tempfile.TemporaryFile(),
        "thread": lambda: threading.Thread(target=threading.Event().wait, daemon=True).start(),
        "memory": lambda: bytearray(b"x") * (2 * RSS_GROWTH),
        "nothing": lambda: None,
    }[kind]
    print("ready", flush=True)
    for _line in sys.stdin:
        kept.append(take())
        print("taken", flush=True)


if __name__ == "__main__":
    grow(sys.argv[1])
