"""Holes of a source whose base already has some of them as zero: every other one is announced, and none is lost on the way."""

import array
import os
import time

import pytest
from source_peer import ATTEMPT, CONNECTION_KINDS, KEY, LEAF, SESSION, STATE_ZERO, Peer, Transport

from qrep._native import wire
from qrep._native.source_lane import WORK_HOLE, SourceRun

GEOMETRY = wire.Geometry(512 * 2 * LEAF, LEAF, 2 * LEAF)
GRANULES = GEOMETRY.granules


@pytest.fixture
def hollow(undo_after):
    """A file that is one hole."""
    descriptor = os.memfd_create("hollow")
    undo_after.callback(os.close, descriptor)
    os.ftruncate(descriptor, GEOMETRY.size)
    return descriptor


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kind", CONNECTION_KINDS)
def test_holes_between_granules_that_are_zero_already_are_all_announced(hollow, backend, undo_after, kind, slots):
    states = bytes(STATE_ZERO if granule % 2 else 0 for granule in range(GRANULES))
    work = array.array("Q", [granule | WORK_HOLE for granule in range(GRANULES)])
    run = SourceRun(
        GEOMETRY, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512, base_states=states, base_values=bytes(32 * GRANULES),
        work=work, slots=slots, ring_backend=backend,
    )  # fmt: skip
    transport = Transport(kind, 0, undo_after)
    peer = Peer(GEOMETRY, bytearray(GEOMETRY.size), transport.receive, transport.send)
    started = time.monotonic()
    rc = run.lane(hollow, transport.connection)
    took = time.monotonic() - started
    if rc:
        transport.hang_up()
    peer.close()
    assert (rc, run.failure()) == (0, None)
    assert sorted(peer.last) == list(range(0, GRANULES, 2))
    assert bytes(run.marked) == bytes([2, 0]) * (GRANULES // 2)
    assert bytes(run.fresh_states) == bytes([STATE_ZERO]) * GRANULES
    # A lane that paused each time its list of zero runs was full would take 0.1 s for every ten of 256 runs.
    assert took < 1.5
