"""What a session of benches has found: rows of the table, and lines of charts. conftest.py says how they are made."""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# What a row may say beside its ratio, of ours and of each peer. CPU: core-seconds per GiB of the volume (`cpu`: both sides, where they cannot be told
# apart); rss: peak MiB; wire and read: bytes per byte changed; p99: latency of a foreground program / the same alone.
FIGURES = ("cpu_source", "cpu_target", "cpu", "rss", "wire", "read", "p99")


class Sample(float):
    """A figure of one round, as `ours` or a ceiling returns it, that carries others: Sample(rate, cpu_source=0.4, wire=1.004)."""

    def __new__(cls, value, **figures):
        if wrong := set(figures) - set(FIGURES):
            raise TypeError(f"no such figures: {wrong}; there are {FIGURES}")
        sample = super().__new__(cls, value)
        sample.figures = {name: float(figure) for name, figure in figures.items() if figure is not None}
        return sample


def median_figures(samples):
    """{name: median} of what the samples carry."""
    carried = [getattr(sample, "figures", {}) for sample in samples]
    return {name: statistics.median(each[name] for each in carried if name in each) for name in FIGURES if any(name in each for each in carried)}


@dataclasses.dataclass
class Row:
    """One line of the table. ours, ceiling: medians; ratio: median of the rounds' own ratios; at_most: less is better.

    ceiling None: the figure itself is judged, and stands in `ratio`.
    """

    id: str
    case: str
    ours: float
    ceiling: float | None
    ratio: float
    spread: tuple
    first: float | None = None
    goal: float | None = None
    at_most: bool = False
    unit: str = "GB/s"
    note: str = ""
    section: str = ""  # of RESULTS.md: the bench that measured it
    busy: float = 0.0  # share of the CPUs that something else took before the rounds: median
    family: str = ""  # the picture it is drawn in; "": in none
    peer: str = ""  # what `ceiling` is the figure of, if that is another program that does our job; "": it is a bound
    who: str = "qrep"  # the name of ours among the bars
    group: str = ""  # of bars in the picture; "": what the case says before " / "
    figures: dict = dataclasses.field(default_factory=dict)  # of ours, named by FIGURES
    peer_figures: dict = dataclasses.field(default_factory=dict)
    range_ours: tuple = ()  # (least, most) of the rounds
    range_ceiling: tuple = ()

    @property
    def verdict(self):
        """"goal", "first", "below first", or "" where nothing is required."""
        first = self.goal if self.first is None else self.first
        if first is None:
            return ""
        met = (lambda wanted: self.ratio <= wanted) if self.at_most else (lambda wanted: self.ratio >= wanted)
        return "goal" if self.goal is not None and met(self.goal) else "first" if met(first) else "below first"

    @property
    def bars(self):
        """(the group of bars that it belongs to, the name of its ceiling) in a picture."""
        before, _, after = self.case.partition(" / ")
        return self.group or before, self.peer or after


@dataclasses.dataclass
class Chart:
    """A chart of lines, both axes logarithmic. lines: {name: [(x, y)]}; bounds: {name: y}; units: "bytes", "s", "%", or any word."""

    family: str
    title: str
    x: str
    y: str
    lines: dict
    x_unit: str = "bytes"
    y_unit: str = "s"
    bounds: dict = dataclasses.field(default_factory=dict)
    section: str = ""


@dataclasses.dataclass(frozen=True)
class Against:
    """A further peer of a comparison. call: returns a figure; bound: what cannot be passed, rather than a program that does our job."""

    call: Callable
    id: str = ""
    first: float | None = None
    goal: float | None = None
    bound: bool = False
    note: str = ""


ROWS, CHARTS = [], []
SPENT = {}  # seconds by (bench, what ran): where a session's time goes


def timed(name, function):
    """function(), its time added to SPENT."""
    started = time.perf_counter()
    try:
        return function()
    finally:
        key = running_bench(), name
        SPENT[key] = SPENT.get(key, 0.0) + time.perf_counter() - started


def running_bench():
    """The bench that runs now: bench/bench_read.py::test_... (call) is "read"."""
    return Path(os.environ.get("PYTEST_CURRENT_TEST", "").split("::", 1)[0]).stem.removeprefix("bench_")


def figure_row(id, case, figures, *, first=None, goal=None, at_most=True, unit="", note="", **named):
    """A row of figures that are judged as they are: milliseconds, MiB, an error. named: other fields of Row, as family."""
    median = statistics.median(figures)
    named.setdefault("figures", median_figures(figures))
    spread = (min(figures), max(figures))
    return Row(id, case, float(median), None, float(median), spread, first, goal, at_most, unit, note, range_ours=spread, **named)


def add_row(row, benchmark=None):
    """Put a row into the table. At full size a row below `first` fails the session, at its end: what comes after it is measured, too."""
    row.section = row.section or running_bench()
    ROWS.append(row)
    if benchmark is not None:
        benchmark.extra_info.update({"id": row.id, "case": row.case, "ours": row.ours, "ceiling": row.ceiling, "ratio": row.ratio})
    return row


def add_chart(chart):
    """Draw these lines as bench/pictures/<family>.svg at the end of the session."""
    chart.section = chart.section or running_bench()
    CHARTS.append(chart)
    return chart
