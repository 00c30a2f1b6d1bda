"""Ratios that survive a noisy machine: both sides alternate in one process, and the median of the ratios counts.

`QREP_BENCH=full` measures at full size; otherwise everything runs once at smoke size, to prove that it runs.
"""

import mmap
import os
import random
import statistics
import time
from dataclasses import dataclass

FULL = os.environ.get("QREP_BENCH") == "full"
ROUNDS = 9 if FULL else 1


@dataclass(frozen=True)
class Ratio:
    """value: rate of ours / rate of the reference, median of the rounds. Rates in GB/s (1e9 bytes)."""

    value: float
    ours: float
    reference: float

    def __str__(self):
        return f"{self.value:.2f} ({self.ours:.2f} / {self.reference:.2f} GB/s)"


def measure_ratio(ours, reference, size, rounds=ROUNDS, clock=time.perf_counter):
    """Run the two callables in turn, each moving `size` bytes, in swapped order every other round.

    clock: time.thread_time where both sides are one thread that never waits; what else runs then counts for neither.
    """
    ratios, our_seconds, reference_seconds = [], [], []
    for number in range(rounds):
        elapsed = {}
        for side in (ours, reference) if number % 2 else (reference, ours):
            start = clock()
            side()
            elapsed[side] = clock() - start
        ratios.append(elapsed[reference] / elapsed[ours])
        our_seconds.append(elapsed[ours])
        reference_seconds.append(elapsed[reference])
    our_rate, reference_rate = (size / statistics.median(seconds) / 1e9 for seconds in (our_seconds, reference_seconds))
    return Ratio(statistics.median(ratios), our_rate, reference_rate)


def report(benchmark, ident, ratio, against):
    """Put one row into the benchmark's record and on the terminal (pytest -s)."""
    benchmark.extra_info.update(id=ident, ratio=round(ratio.value, 3), ours_gb_per_s=round(ratio.ours, 3), against=against)
    print(f"\n{ident}: {ratio} of {against}")


def huge_memory(size, fill=None):
    """`size` bytes of huge-page memory, faulted in: random, or filled with one byte."""
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    piece = random.Random(7).randbytes(1 << 20) if fill is None else bytes([fill]) * (1 << 20)
    for at in range(0, size, len(piece)):
        view[at:at + len(piece)] = piece[:size - at]
    return view
