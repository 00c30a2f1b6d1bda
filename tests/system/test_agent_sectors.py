"""Devices of 512 and of 4096 byte sectors, both ways."""

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 8 * MIB


@pytest.mark.parametrize("source_sector, target_sector", [(512, 4096), (4096, 512), (4096, 4096)])
def test_the_bytes_are_the_same_whatever_the_sectors(agents, loop_device, fill, source_sector, target_sector):
    source, target = loop_device(SIZE, source_sector), loop_device(SIZE, target_sector)
    fill(source, 3 * MIB)
    a, b = agents.replica(source, target)
    first = a.run()["root"]
    assert first == b3sum(target) == b3sum(source)
    fill(source, 100_000, offset=5 * MIB + 512)
    assert a.run()["root"] == b3sum(target) == b3sum(source)
    assert a.qrep("verify", "db", "--independent")["equal"]
    b.qrep("snapshot", "rollback", "db@1", "-y")
    assert b3sum(target) == first
