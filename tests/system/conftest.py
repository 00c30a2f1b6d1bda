"""Fixtures of tests that start real agents."""

import os

import pytest
from agents import MIB, Agents
from cables import Cables
from system.rolescene import SIZE, RoleScene


@pytest.fixture
def agents(memory_dir):
    """Agents of this test; ended with it."""
    with Agents(memory_dir) as agents:
        yield agents


@pytest.fixture
def fill(random_source):
    """fill(device, size, offset=0): random bytes on a device, as an application would write them."""

    def write(device, size, offset=0):
        with open(device, "r+b") as file:
            file.seek(offset)
            for start in range(0, size, MIB):
                file.write(random_source.randbytes(min(MIB, size - start)))
            file.flush()
            os.fsync(file.fileno())

    return write


@pytest.fixture
def sites(agents, loop_device, memory_dir, undo_after):
    """A function that makes the RoleScene. larger: by how many bytes the target is."""

    def make(larger=0, **options):
        try:
            cables = undo_after.enter_context(Cables([0]))
        except RuntimeError as err:
            pytest.skip(f"no network namespaces here: {err}")
        return RoleScene(agents, cables, loop_device(SIZE), loop_device(SIZE + larger), memory_dir / "mnt", **options)

    return make
