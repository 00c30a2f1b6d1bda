"""Duplicate leaves: what they save on the wire, and what looking for them costs where there are none; full copies over TCP, with copies and without."""

import os

import pytest
from content import LEAF, same_content
from lane_pair import rate_of, replicate
from measure import FULL, GIB, MIB

from qrep._native.wire import Geometry

SIZE = GIB if FULL else 32 * MIB
GEOMETRY = Geometry(SIZE, LEAF, 8 * MIB)
WITH, WITHOUT = ({"features": features} for features in (("copies",), ()))


def copy(source, target, options):
    source_run, _, seconds = replicate(GEOMETRY, source, target, source_options=options, target_options=options)
    counters = source_run.counters()
    return rate_of(seconds, SIZE, wire=counters["sent"] / counters["changed"])


def repeat_every_other(path):
    """Every second leaf becomes that before it, or one of those of the MiB before: half of what travels is there already."""
    with open(path, "r+b", buffering=0) as device:
        for start in range(0, SIZE, MIB):
            piece = bytearray(os.pread(device.fileno(), MIB, start))
            for number, leaf in enumerate(range(LEAF, MIB, 2 * LEAF)):
                kept = 2 * LEAF * (number * 7 % (number + 1))
                piece[leaf : leaf + LEAF] = piece[kept : kept + LEAF]
            os.pwrite(device.fileno(), piece, start)
        os.fsync(device.fileno())


@pytest.mark.parametrize(("case", "prepare", "wire", "first", "goal"), [
    ("unique data", None, 1.01, 0.97, 0.99),
    ("half of the leaves twice", repeat_every_other, 0.52, 0.9, 1.0),
], ids=["unique", "half"])  # fmt: skip
def test_a_full_copy_that_looks_for_duplicates(compare, memory_device, open_direct, case, prepare, wire, first, goal):
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    if prepare:
        prepare(source)
    source_fd, target_fd = open_direct(source, os.O_RDONLY), open_direct(target)
    row = compare(
        "", f"{case} / without looking", lambda: copy(source_fd, target_fd, WITH), lambda: copy(source_fd, target_fd, WITHOUT),
        first=first, goal=goal, family="duplicates",
    )  # fmt: skip
    row.note = f"bytes on the wire / bytes changed: at most {wire}"
    assert row.figures["wire"] <= wire
    assert same_content(source, target)
