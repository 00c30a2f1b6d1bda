"""Devices that are not what they were, or the same as another: exit 5, and nothing is written."""

import pytest
from agents import MIB, b3sum
from machine import partitioned, run

pytestmark = pytest.mark.root
SIZE = 8 * MIB


def assert_refused(error, code):
    assert (error["code"], error["exit"]) == (code, 5), error
    assert error["hint"]


def test_source_and_target_that_are_the_same_storage(agents, loop_device, memory_dir, fill):
    a = agents.agent("site-a")
    source = loop_device(SIZE)
    fill(source, SIZE)
    before = b3sum(source)
    link = memory_dir / "link"
    link.symlink_to(source.path)
    a.qrep("volume", "add", "db", source)
    assert_refused(a.refused("volume", "add", "same", link), "device-known")
    for name, device in (("image", source.backing), ("upper", loop_device(backing=source.backing))):
        a.qrep("volume", "add", name, device)
        assert_refused(a.refused("job", "create", "j", "--source", "db", "--target", name, "-y"), "same-device")
    a.qrep("volume", "add", "onto", loop_device(SIZE))
    assert_refused(a.refused("job", "create", "j", "--source", "db", "--target", "db", "-y"), "same-device")
    assert b3sum(source) == before


def test_a_partition_of_the_source_as_its_target(agents, loop_device):
    a = agents.agent("site-a")
    disk = partitioned(loop_device(64 * MIB, partscan=True))
    before = b3sum(disk)
    a.qrep("volume", "add", "one", f"{disk}p1")
    a.qrep("volume", "add", "disk", disk)
    assert_refused(a.refused("job", "create", "j", "--source", "one", "--target", "disk", "-y"), "same-device")
    assert b3sum(disk) == before


@pytest.mark.alone  # another test may be given the number that it lets go of
def test_a_source_and_a_target_whose_backing_was_exchanged(agents, loop_device, memory_dir, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    fill(source, SIZE)
    a, b = agents.replica(source, target)
    a.run()
    other = memory_dir / "other.img"
    other.write_bytes(b"o" * SIZE)

    for agent in (a, b):
        agent.terminate()
    for device in (source, target):  # the same /dev/loopN, of the same size, over another file
        run("losetup", "--detach", device.path)
        run("losetup", "--direct-io=on", device.path, other if device is target else memory_dir / "disk2.img")
    before = b3sum(other)
    for agent in (a, b):
        agent.start()
    error = a.refused("start", "db", "--wait")
    assert_refused(error, "wrong-device")
    assert "is not the device of volume db" in error["message"]
    shown = b.qrep("volume", "show", "db")
    assert shown["problem"]["code"] == "wrong-device"
    assert b.job()["state"] == "failed" and b.job()["problem"]["action"]
    assert b.events("volume-missing")[0]["data"]["reason"] == "wrong-device"
    assert b3sum(other) == before

    code, _out, _err = a.run_command("status", "--check")
    assert code == 3


def test_a_source_of_another_size(agents, loop_device, fill):
    source, target = loop_device(SIZE), loop_device(2 * SIZE)
    fill(source, SIZE)
    a, _b = agents.replica(source, target)
    root = a.run()["root"]
    with open(source.backing, "r+b") as file:
        file.truncate(SIZE + MIB)
    run("losetup", "--set-capacity", source)
    assert_refused(a.refused("start", "db", "--wait"), "wrong-device")
    assert b3sum(target, SIZE) == root


def test_a_replica_that_was_mounted_when_its_agent_started_serves_once_it_is_unmounted(agents, loop_device, mount, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    run("mkfs.ext4", "-q", source.path)
    a, b = agents.replica(source, target)
    root = a.run()["root"]
    b.terminate()
    point = mount(target, "ro,noload")
    b.start()
    assert_refused(a.refused("start", "db", "--wait"), "target-mounted")
    assert b.job()["problem"]["code"] == "target-mounted" and "umount" in b.job()["problem"]["action"]
    run("umount", point)
    assert b.job()["problem"] is None and b.job()["root"] == root, "the action was enough"
    fill(source, MIB, offset=4 * MIB)
    assert a.run()["root"] == b3sum(target) == b3sum(source)
