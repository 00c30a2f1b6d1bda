"""A mounted filesystem that is written all the time, on a loop device that two agents in network namespaces replicate: frozen, with commands around it."""

import threading

import pytest
from agents import MIB, b3sum, inside
from cables import Cables, addresses
from machine import image, run
from system.test_snapshot_backends import is_writable

pytestmark = pytest.mark.root
SIZE = 64 * MIB


@pytest.fixture
def disk(xfs, loop_device):
    return loop_device(backing=image(xfs, "db.img", SIZE))


@pytest.fixture
def point(disk, filesystem):
    return filesystem("ext4", device=disk)


@pytest.fixture
def sites(agents, point, disk, loop_device, undo_after):
    """The filesystem is mounted before the agents get their view of the mounts."""
    try:
        cables = undo_after.enter_context(Cables([0]))
    except RuntimeError as err:
        pytest.skip(f"no network namespaces here: {err}")
    a, b = (
        agents.agent(name, host="0.0.0.0", port=7414, prefix=inside(space))
        for name, space in zip(("site-a", "site-b"), cables.spaces, strict=True)
    )
    here, there = addresses(0)
    a.qrep("peer", "add", "site-b", f"{there}:7414", "-y")
    b.qrep("peer", "add", "site-a", f"{here}:7414", "-y")
    target = loop_device(SIZE)
    b.qrep("volume", "add", "db", target, "--accept", "site-a")
    return a, b, target


def script(directory, name, text):
    path = directory / name
    path.write_text(f"#!/bin/sh\necho {name} $1 >>{directory}/log\n{text}\n")
    path.chmod(0o755)
    return path


def test_what_arrives_is_a_clean_filesystem_and_the_commands_around_it_are_run_once(sites, disk, point, memory_dir, mount):
    a, _b, target = sites
    before, after = script(memory_dir, "before", f"sync; echo at rest >{point}/state"), script(memory_dir, "after", f"echo busy >{point}/state")
    a.qrep("volume", "add", "db", disk, "--freeze-before", f"{before} 'a volume'", "--freeze-after", after, "--freeze-timeout", "20s")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db")
    ending = threading.Event()

    def write():
        number = 0
        while not ending.wait(0.002):
            number += 1
            (point / f"file-{number % 50}").write_bytes(bytes([number % 256]) * 20000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = a.run()
    finally:
        ending.set()
        writer.join()
    assert not report["fuzzy"] and report["root"] == b3sum(target)
    run("e2fsck", "-f", "-n", target)
    assert (memory_dir / "log").read_text().splitlines() == ["before a volume", "after"]
    copy = memory_dir / "copy.img"
    run("cp", target, copy)
    assert (mount(copy, "ro,loop,noload") / "state").read_text() == "at rest\n"
    assert (point / "state").read_text() == "busy\n"


def test_a_command_that_fails_or_hangs_ends_the_run_and_the_filesystem_goes_on(sites, disk, point, memory_dir):
    a, _b, target = sites
    hanging = script(memory_dir, "hanging", f"fsfreeze -f {point}; sleep 1000")
    a.qrep("volume", "add", "db", disk, "--freeze-before", "/bin/false")
    a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db")
    error = a.refused("start", "db", "--wait")
    assert error["code"] == "freeze-hook" and "/bin/false failed: exit 1" in error["message"] and error["hint"]
    a.qrep("volume", "set", "db", "--freeze-before", hanging, "--freeze-timeout", "1s")
    error = a.refused("start", "db", "--wait")
    assert error["code"] == "freeze-hook" and "killed at its time limit" in error["message"]
    assert is_writable(point)
    a.qrep("volume", "set", "db", "--freeze-before", "")
    assert a.run()["root"] == b3sum(target)
