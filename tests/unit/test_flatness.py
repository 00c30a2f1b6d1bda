"""A process that grows is told from one that does not."""

import subprocess
import sys
from pathlib import Path

import flatness
import pytest


def held_before_and_after(kind):
    """Samples of a process that takes one more of this kind in between."""
    with subprocess.Popen(
        [sys.executable, "-m", "flatness", kind], cwd=Path(flatness.__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        first = flatness.sample(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "taken\n"
        last = flatness.sample(process.pid)
        process.stdin.close()
    return first, last


@pytest.mark.parametrize("kind", flatness.KINDS)
def test_one_more_is_seen(kind):
    assert kind in flatness.grown(*held_before_and_after(kind))


def test_who_takes_nothing_has_not_grown():
    assert not flatness.grown(*held_before_and_after("nothing"))
