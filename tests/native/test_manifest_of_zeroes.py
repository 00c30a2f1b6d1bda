"""R7 where a granule is zero: whatever the base knew of its value, both ends say the same of it."""

import array
import os
import socket

import pytest
from target_rig import ATTEMPT, HAS_VALUE, IS_ZERO, KEY, LEAF, SESSION, Target, mixed_content

from qrep._native import hasher, wire
from qrep._native.connection import Connection
from qrep._native.source_lane import WORK_HOLE, WORK_UNKNOWN, SourceRun

GRANULE = 4 * LEAF
SIZE = 4 * GRANULE


@pytest.mark.parametrize("hole", [0, WORK_HOLE], ids=["read", "hole"])
def test_a_granule_in_parts_that_is_zero_as_in_the_base_counts_the_same_on_both_ends(memory_dir, backend, undo_after, hole):
    content = mixed_content(40, SIZE)
    content[GRANULE:2 * GRANULE] = bytes(GRANULE)
    states = bytes([0, IS_ZERO | HAS_VALUE, 0, 0])
    values = bytes(32) + hasher.zero_subtree(GRANULE, GRANULE, LEAF) + bytes(64)
    path, device = memory_dir / "source", memory_dir / "device"
    path.write_bytes(content)
    device.touch()
    target = Target(memory_dir, device, mixed_content(41, SIZE), granule_size=GRANULE, ring_backend=backend, base_states=states,
                    base_values=values)
    undo_after.callback(target.close)
    source_fd = os.open(path, os.O_RDONLY)
    undo_after.callback(os.close, source_fd)
    work = array.array("Q", [0, 1 | WORK_UNKNOWN | hole, 2, 3])  # an earlier session has written parts of granule 1
    run = SourceRun(
        target.geometry, attempt=ATTEMPT, session=SESSION, key=KEY, sector_size=512, base_states=states, base_values=values, work=work,
        ring_backend=backend,
    )  # fmt: skip
    session = target.serve(content)
    ours = socket.socket(fileno=os.dup(session.ours.fileno()))
    with ours:
        assert run.lane(source_fd, Connection.socket(ours.fileno(), 0)) == 0
    assert session.result() == 0
    assert target.device == content
    assert (wire.manifest(run.marked, run.fresh_states, run.fresh_values) ==
            wire.manifest(target.run.marked, target.run.fresh_states, target.run.fresh_values))
