"""Sync points as block devices: mounted, written to, taken away, while runs go on underneath. Here by nbdfuse and a loop device."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from agents import MIB, b3sum, wait_until
from machine import need_tool, run

pytestmark = pytest.mark.root


@pytest.fixture
def with_filesystem(agents, loop_device, mount, memory_dir):
    """(agent, source mount, source, target): a local job whose first generation is an ext4 with a file in it."""
    need_tool("nbdfuse")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("needs FUSE")
    source, target = loop_device(48 * MIB), loop_device(48 * MIB)
    run("mkfs.ext4", "-q", "-F", source)
    point = mount(source)
    (point / "letter").write_text("as it was")
    os.sync()
    a = agents.agent("site-a")
    a.qrep("volume", "add", "db", source)
    a.qrep("volume", "add", "copy", target, "--undo-space", "8x")
    a.qrep("job", "create", "db", "--source", "db", "--target", "copy")
    a.run()
    yield a, point, source, target
    for each in a.qrep("attach") if a.process.poll() is None else []:
        with contextlib.suppress(Exception):
            run("umount", "--lazy", each["device"])
        a.call("detach", each["name"], "-y")


def test_a_point_is_mounted_and_written_to_while_runs_go_on_and_detach_waits_for_umount(with_filesystem, memory_dir):
    a, point, source, target = with_filesystem
    attached = a.qrep("attach", "copy@1")
    assert attached["by"] == "nbdfuse" and attached["device"].startswith("/dev/loop") and not attached["read_only"]
    here = memory_dir / "here"
    here.mkdir()
    run("mount", attached["device"], here)
    assert (here / "letter").read_text() == "as it was"
    (point / "letter").write_text("changed since")
    (here / "test").write_bytes(b"x" * MIB)
    a.run()
    os.sync()
    assert (here / "letter").read_text() == "as it was" and (here / "test").stat().st_size == MIB
    assert b3sum(target) == a.job()["root"], "what was written went elsewhere"
    refused = a.refused("detach", "copy@1", "-y")
    assert refused["code"] == "attach-in-use" and str(here) in refused["message"] and "umount" in refused["hint"]
    run("umount", here)
    run("e2fsck", "-fn", attached["device"])
    a.qrep("detach", "copy@1", "-y")
    assert not Path(f"/sys/block/{os.path.basename(attached['device'])}/loop/backing_file").exists()
    assert a.qrep("attach") == [] and "nbdfuse" not in run("cat", "/proc/mounts")
    assert not list((memory_dir / "site-a" / "attached").iterdir())


@pytest.mark.slow
def test_a_read_only_device_takes_no_write(with_filesystem):
    a, *_rest = with_filesystem
    attached = a.qrep("attach", "copy", "--read-only")
    assert run("blockdev", "--getro", attached["device"]) == "1"
    with pytest.raises(OSError, match="not permitted|Permission|Read-only"):
        os.close(os.open(attached["device"], os.O_WRONLY))
        with open(attached["device"], "wb") as file:
            file.write(b"x" * 4096)
    assert b3sum(attached["device"]) == a.job()["root"]
    a.qrep("detach", "copy")


@pytest.mark.slow
def test_a_killed_server_makes_a_mounted_device_fail_and_detach_cleans_up(with_filesystem, memory_dir):
    a, _point, source, target = with_filesystem
    attached = a.qrep("attach", "copy@1", "--read-only")
    here = memory_dir / "here"
    here.mkdir()
    run("mount", "-o", "ro,noload", attached["device"], here)
    os.kill(attached["pid"], 9)
    wait_until(lambda: a.events("attach-ended"))
    assert "mounted" in a.refused("detach", "copy@1")["message"]
    out, _code = a.text("attach")
    assert "umount it" in out
    run("umount", here)
    a.qrep("detach", "copy@1")
    assert a.run()["root"] == b3sum(target)


@pytest.mark.slow
def test_after_the_agent_was_killed_what_is_mounted_is_named_until_it_is_not(with_filesystem, memory_dir):
    a, *_rest = with_filesystem
    mounted, other = a.qrep("attach", "copy@1", "--read-only"), None
    here = memory_dir / "here"
    here.mkdir()
    run("mount", "-o", "ro,noload", mounted["device"], here)
    a.kill()
    a.start()
    left = a.qrep("attach")
    assert [each["name"] for each in left] == ["copy@1"] and str(here) in left[0]["in_use"] and left[0]["error"]
    assert str(here) in a.events("attach-ended")[-1]["text"]
    assert a.refused("attach", "copy@1")["code"] == "attached"
    assert a.refused("detach", "copy@1")["code"] == "attach-in-use"
    run("umount", here)
    a.qrep("detach", "copy@1")
    assert a.qrep("attach") == []
    other = a.qrep("attach", "copy@1", "--read-only")
    assert b3sum(other["device"]) == a.job()["root"]
    a.kill()
    a.start()
    assert a.qrep("attach") == [], "nobody used it: it was taken away at the start"


@pytest.mark.slow
def test_the_agent_ends_in_order_with_a_device_attached(with_filesystem):
    a, *_rest = with_filesystem
    attached = a.qrep("attach", "copy@1")
    code, _seconds = a.terminate(60)
    assert code == 0
    assert not Path(f"/sys/block/{os.path.basename(attached['device'])}/loop/backing_file").exists()
    assert subprocess.run(["pgrep", "-f", f"nbdfuse.*{attached['socket']}"], check=False, capture_output=True).returncode == 1
