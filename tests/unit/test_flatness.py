"""A process that grows is told from one that does not."""

import contextlib
import subprocess
import sys
from pathlib import Path

import flatness
import pytest

RUNS, POINTS = 5, 16


@contextlib.contextmanager
def growing(kind):
    """(pid, function that lets the process take one more of this kind)."""
    with subprocess.Popen(
        [sys.executable, "-m", "flatness", kind], cwd=Path(flatness.__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def take():
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "taken\n"

        yield process.pid, take
        process.stdin.close()


def held_before_and_after(kind):
    """Samples of a process that takes one more of this kind in between."""
    with growing(kind) as (pid, take):
        first = flatness.sample(pid)
        take()
        return first, flatness.sample(pid)


def series_of(kind):
    """Of a process that takes one more of this kind every time."""
    with growing(kind) as (pid, take):
        series = [(0, flatness.sample(pid).memory)]
        for number in range(1, POINTS):
            for _each in range(RUNS):
                take()
            series.append((number * RUNS, flatness.sample(pid).memory))
        return series


@pytest.mark.parametrize("kind", flatness.KINDS)
def test_one_more_is_seen(kind):
    assert kind in flatness.grown(*held_before_and_after(kind))


def test_who_takes_nothing_has_not_grown():
    assert not flatness.grown(*held_before_and_after("nothing"))


def test_some_kibibytes_of_every_run_are_seen():
    assert flatness.leaks(series_of("leak"))


def test_who_takes_nothing_leaks_nothing():
    assert not flatness.leaks(series_of("nothing"))


def test_one_step_is_no_leak_and_a_leak_on_top_of_it_is_one():
    step = [(5 * number, (40 << 20) + (200 * flatness.KIB if number > 7 else 0)) for number in range(POINTS)]
    assert not flatness.leaks(step)
    assert flatness.leaks(flatness.leaking(step))
