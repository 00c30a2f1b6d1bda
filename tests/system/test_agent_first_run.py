"""Two agents over TLS: the first run, a differential one, and one with nothing to do."""

import os
import random

import pytest
from agents import MIB, b3sum

pytestmark = pytest.mark.root
SIZE = 48 * MIB


def test_a_full_run_then_a_differential_one_then_one_that_sends_nothing(agents, loop_device, random_source):
    source, target = loop_device(SIZE), loop_device(SIZE)
    with open(source, "r+b") as device:
        device.write(random_source.randbytes(20 * MIB))
        device.seek(40 * MIB)
        device.write(random_source.randbytes(MIB))
        os.fsync(device.fileno())
    a, b = agents.replica(source, target)

    first = a.run()
    assert first["root"] == b3sum(target) == b3sum(source)
    assert first["counter"] == 1 and first["fuzzy"]
    assert 21 * MIB <= first["sent"] < 21 * MIB * 1.01  # frame headers are less than one per cent

    with open(source, "r+b") as device:
        for leaf in random.Random(1).sample(range(SIZE // 4096), 50):
            device.seek(leaf * 4096)
            device.write(random_source.randbytes(4096))
        os.fsync(device.fileno())
    second = a.run()
    assert second["root"] == b3sum(target) == b3sum(source)
    assert second["counter"] == 2 and 50 * 4096 <= second["sent"] < 60 * 4096

    third = a.run()
    assert third["changed"] == 0 and third["sent"] < 1024 and third["counter"] == 3  # END frames only
    assert third["root"] == second["root"] == b3sum(target)

    job, received = a.job(), b.job()
    assert job["state"] == received["state"] == "idle"
    assert job["counter"] == received["counter"] == 3
    assert job["root"] == received["root"] == third["root"]
    assert job["generation"] == received["generation"] == third["generation"]
    assert job["last_sync_point"] == received["last_sync_point"] and job["lag_seconds"] <= 60
    assert job["fuzzy"] and received["fuzzy"], "a live source is marked at both ends"
