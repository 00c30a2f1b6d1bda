"""Two callables over the same memory, in turn, by wall clock or by the thread's own CPU time; rows go into measure.py's table."""

import mmap
import random
import statistics
import time
from dataclasses import dataclass

from measure import FULL, Row, add_row, wait_quiet

ROUNDS = 9 if FULL else 1


@dataclass(frozen=True)
class Ratio:
    """value: rate of ours / rate of the reference, median of the rounds; spread: least and most. Rates in bytes per second."""

    value: float
    ours: float
    reference: float
    spread: tuple


def measure_ratio(ours, reference, size, rounds=ROUNDS, clock=time.perf_counter):
    """Run the two callables in turn, each moving `size` bytes, in swapped order every other round.

    clock: time.thread_time where both sides are one thread that never waits; what else runs then counts for neither.
    """
    ratios, our_seconds, reference_seconds = [], [], []
    wait_quiet()
    for number in range(rounds):
        elapsed = {}
        for side in (ours, reference) if number % 2 else (reference, ours):
            start = clock()
            side()
            elapsed[side] = clock() - start
        ratios.append(elapsed[reference] / elapsed[ours])
        our_seconds.append(elapsed[ours])
        reference_seconds.append(elapsed[reference])
    our_rate, reference_rate = (size / statistics.median(seconds) for seconds in (our_seconds, reference_seconds))
    return Ratio(statistics.median(ratios), our_rate, reference_rate, (min(ratios), max(ratios)))


def report(benchmark, ident, case, ratio, first=None, goal=None, note="", **named):
    """One row of the table; at full size a ratio below `first` fails the bench. named: other fields of Row, as family."""
    add_row(Row(ident, case, ratio.ours, ratio.reference, ratio.value, ratio.spread, first, goal, note=note, **named), benchmark)


def huge_memory(size, fill=None):
    """`size` bytes of huge-page memory, faulted in: random, or filled with one byte."""
    memory = mmap.mmap(-1, size)
    memory.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(memory)
    piece = random.Random(7).randbytes(1 << 20) if fill is None else bytes([fill]) * (1 << 20)
    for at in range(0, size, len(piece)):
        view[at:at + len(piece)] = piece[:size - at]
    return view
