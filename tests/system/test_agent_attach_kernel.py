"""Sync points as devices of the kernel's own NBD client: only where its module is loaded (tests/guest runs this in a machine of its own)."""

import os
from pathlib import Path

import pytest
from agents import MIB, PATIENCE, b3sum, wait_until
from machine import run

from qrep.nbd import kernel

pytestmark = [pytest.mark.root, pytest.mark.skipif(not kernel.available(), reason="the kernel's nbd is not loaded (modprobe nbd)")]
SIZE = 16 * MIB


def size_of(path):
    """Sectors; 0 when nothing is connected."""
    return int(Path(f"/sys/block/{os.path.basename(path)}/size").read_text())


def test_a_point_is_read_written_mounted_and_taken_away(agents, loop_device, memory_dir, fill):
    source, target = loop_device(SIZE), loop_device(SIZE)
    run("mkfs.ext4", "-q", "-F", source)
    a = agents.agent("site-a", start=False)
    a.start(seconds=20 * PATIENCE)
    a.qrep("volume", "add", "db", source)
    a.qrep("volume", "add", "copy", target, "--undo-space", "16x")
    a.qrep("job", "create", "db", "--source", "db", "--target", "copy")
    root = a.run()["root"]
    attached = a.qrep("attach", "copy@1")
    assert attached["by"] == "nbd" and attached["device"].startswith("/dev/nbd")
    fill(source, MIB, offset=8 * MIB)
    a.run()
    assert b3sum(attached["device"]) == root != b3sum(target)
    here = memory_dir / "here"
    here.mkdir()
    run("mount", attached["device"], here)
    (here / "test").write_bytes(os.urandom(MIB))
    os.sync()
    assert str(here) in a.refused("detach", "copy@1", "-y")["message"]
    run("umount", here)
    run("e2fsck", "-fn", attached["device"])
    assert b3sum(target) == a.job()["root"]
    a.qrep("detach", "copy@1", "-y")
    wait_until(lambda: size_of(attached["device"]) == 0)

    read_only = a.qrep("attach", "copy@1", "--read-only")
    assert run("blockdev", "--getro", read_only["device"]) == "1" and b3sum(read_only["device"]) == root
    os.kill(read_only["pid"], 9)
    wait_until(lambda: a.events("attach-ended"))
    a.qrep("detach", "copy@1")

    left = a.qrep("attach", "copy@1", "--read-only")
    a.kill()
    a.start(seconds=20 * PATIENCE)
    assert a.qrep("attach") == [] and a.events("attach-ended")[-1]["volume"] == "copy"
    wait_until(lambda: size_of(left["device"]) == 0)
    assert a.codes().count("attached") == 3
