"""Fixtures of the flow tests: a site of two loop devices, or of two image files."""

import pytest
from flow.harness import MIB, Site


@pytest.fixture
def site(loop_device, memory_dir, random_source, undo_after):
    """Two loop devices of 24 MiB; the source holds 10 MiB of data, a gap of zeroes, and 1 MiB more."""
    source, target = loop_device(24 * MIB), loop_device(24 * MIB)
    with open(source, "r+b") as file:
        file.write(random_source.randbytes(10 * MIB))
        file.seek(20 * MIB)
        file.write(random_source.randbytes(MIB))
    made = Site(memory_dir, source, target)
    undo_after.callback(made.close)
    return made
