"""Sync points as devices and exports, between two hosts, while runs go on underneath."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from agents import MIB, b3sum, wait_until
from cables import Cables
from machine import need_tool, run
from system.hosts import two_hosts
from system.test_agent_api_shape import matches

pytestmark = pytest.mark.root
SIZE = 32 * MIB


@pytest.fixture
def hosts(agents, loop_device, fill):
    """(site-a, site-b, source, target, image of generation 1): job db with two generations."""
    need_tool("nbdcopy")
    with contextlib.ExitStack() as stack:
        try:
            cables = stack.enter_context(Cables([0]))
        except RuntimeError as err:
            pytest.skip(f"no network namespaces here: {err}")
        a, b = two_hosts(agents, cables)
        source, target = loop_device(SIZE), loop_device(SIZE)
        a.qrep("volume", "add", "db", source)
        b.qrep("volume", "add", "db", target, "--accept", "site-a", "--undo-space", "8x")
        a.qrep("job", "create", "db", "--source", "db", "--target", "site-b:db")
        fill(source, 8 * MIB)
        a.run()
        image = Path(source.backing).read_bytes()
        fill(source, 4 * MIB, offset=2 * MIB)
        a.run()
        yield a, b, source, target, image
        for each in b.qrep("attach") if b.process.poll() is None else []:
            b.call("detach", each["name"], "-y")


def read_export(attached, memory_dir):
    """All of it, by a client that is not ours."""
    out = memory_dir / "out.img"
    run("nbdcopy", f"nbd+unix:///?socket={attached['socket']}", out)
    return out.read_bytes()


def check_refusals(a, b):
    """What cannot be attached is refused with a reason; here rather than in a scene of its own, which costs seconds."""
    assert a.refused("attach", "db")["code"] == "not-a-replica"
    assert b.refused("attach", "db@77", "--read-only")["code"] == "no-such-point"
    assert b.refused("attach", "db@77", "-n")["code"] == "no-such-point"
    assert b.refused("attach", "other")["exit"] == 7
    assert b.refused("attach", "db", "--nbd", "nowhere")["exit"] == 2
    assert b.refused("attach", "db", "--nbd", "10.99.99.99:10809")["code"] == "address"
    assert b.refused("attach", "db", "--space", "much")["exit"] == 2
    assert b.refused("attach", "--read-only")["exit"] == 2
    assert b.qrep("attach") == []


def test_an_export_of_an_older_point_is_right_while_runs_commit_and_older_points_go(hosts, fill, memory_dir):
    a, b, source, target, image = hosts
    would = b.qrep("attach", "db@1", "--read-only", "-n")
    assert would["would_attach"] == "db@1" and b.qrep("attach") == []
    attached = b.qrep("attach", "db@1", "--read-only", "--nbd")
    assert os.stat(attached["socket"]).st_mode & 0o777 == 0o600 and attached["device"] is None
    assert read_export(attached, memory_dir) == image
    a.qrep("job", "set", "db", "--sync-points", "1")  # nothing older than one is kept, but what is attached is
    for _ in range(2):
        fill(source, 6 * MIB, offset=MIB)
        a.qrep("start", "db")
        assert read_export(attached, memory_dir) == image, "while the run writes"
        wait_until(lambda: a.job()["progress"] is None)
    a.run()
    assert read_export(attached, memory_dir) == image
    assert b3sum(target) == b3sum(source)
    points = [point["point"] for point in b.qrep("snapshot", "db")]
    assert "1" in points
    assert b.refused("snapshot", "delete", "db@1", "-y")["exit"] == 5
    assert b.refused("attach", "db@1")["code"] == "attached"
    wait_until(lambda: b.qrep("attach")[0]["read"] >= 3 * SIZE)
    shown = b.qrep("attach")[0]
    assert shown["name"] == "db@1" and shown["error"] == ""
    assert 'qrep_volume_attached{volume="db"} 1' in b.text("metrics")[0]
    assert b.refused("volume", "remove", "db", "-y")["code"] == "volume-in-use"
    assert b.refused("job", "promote", "db", "-y")["exit"] == 5
    identity = shown["id"]  # as good a name as its number
    assert b.qrep("attach", f"db@{identity}", "-n")["would_attach"] == "db@1" and b.qrep("detach", f"db@{identity}", "-n")["would_detach"] == ["db@1"]
    assert b.refused("detach", "db@99", "-n")["code"] == "not-attached"
    assert b.qrep("detach", f"db@{identity}")["detached"] == "db@1" and b.qrep("attach") == []
    assert not os.path.exists(attached["socket"])
    assert b.refused("detach", "db@1")["code"] == "not-attached"
    a.run()
    assert "1" not in [point["point"] for point in b.qrep("snapshot", "db")], "it is pinned no more"
    assert [code for code in b.codes() if code in ("attached", "detached")] == ["attached", "detached"]


def test_what_is_written_goes_to_an_overlay_with_a_limit_and_never_to_the_replica(hosts, memory_dir):
    need_tool("qemu-io")
    a, b, source, target, image = hosts
    check_refusals(a, b)
    attached = b.qrep("attach", "db", "--nbd", "127.0.0.1:10809", "--space", "1M")
    assert attached["point"] == "2" and attached["addresses"] == ["127.0.0.1:10809"] and attached["space"]["limit"] == MIB
    matches(attached, "ATTACHMENT")
    inside = b.prefix  # the port is in its namespace
    done = run(*inside, "qemu-io", "-f", "raw", "nbd://127.0.0.1:10809", "-c", "write -f -P 9 0 512k", "-c", "read -P 9 0 512k")
    assert "failed" not in done
    full = subprocess.run(
        [*inside, "qemu-io", "-f", "raw", "nbd://127.0.0.1:10809", "-c", "write -P 9 1M 1M"], capture_output=True, text=True, check=False
    )
    assert "No space left" in full.stdout + full.stderr
    wait_until(lambda: b.events("attach-full"))
    assert read_export(attached, memory_dir)[: 512 << 10] == b"\x09" * (512 << 10)
    assert b3sum(target) == b3sum(source)
    wait_until(lambda: b.qrep("attach")[0]["space"]["used"] == 512 << 10)
    a.run()
    said, _code = b.text("attach", "db@1", "--read-only", "--nbd", "127.0.0.1:10810")
    assert "nbd://127.0.0.1:10810" in said and "NBD is plain" in said
    assert b.refused("detach", "db", "-y")["exit"] == 2, "which of the two?"
    b.qrep("detach", "db@1")
    said, _code = b.text("attach")
    assert "512 KiB written of 1 MiB" in said and "not in use" in said
    assert b.refused("detach", "db@2")["code"] == "needs-confirmation"
    assert b.qrep("detach", "db@2", "-n") == {"would_detach": ["db@2"], "written": 512 << 10} and len(b.qrep("attach")) == 1
    assert b.qrep("detach", "db@2", "-y")["written"] == 512 << 10


def test_the_server_has_no_rights_and_when_it_is_killed_that_is_told_and_the_engine_goes_on(hosts, fill, memory_dir):
    a, b, source, _target, _image = hosts
    attached = b.qrep("attach", "db@1", "--nbd")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{attached['pid']}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split()[1] != "0" and int(status["CapEff"], 16) == 0 and status["Seccomp"] == "2" and status["NoNewPrivs"] == "1"
    os.kill(attached["pid"], 9)
    wait_until(lambda: b.events("attach-ended"))
    assert "signal 9" in b.qrep("attach")[0]["error"]
    out, _code = b.text("attach")
    assert "action: qrep detach db@1" in out
    fill(source, MIB)
    assert a.run()["root"] == b3sum(source)
    b.qrep("detach", "db@1")
    assert read_export(b.qrep("attach", "db@1", "--nbd"), memory_dir), "it can be attached again"


@pytest.mark.slow
def test_a_rollback_underneath_changes_nothing_of_what_is_attached(hosts, memory_dir):
    a, b, source, target, image = hosts
    present = Path(target.backing).read_bytes()
    older, newer = b.qrep("attach", "db@1", "--read-only", "--nbd"), b.qrep("attach", "db@2", "--read-only", "--nbd")
    b.qrep("snapshot", "rollback", "db@1", "-y")
    assert Path(target.backing).read_bytes() == image
    assert read_export(older, memory_dir) == image and read_export(newer, memory_dir) == present
    b.qrep("snapshot", "rollback", "db@2", "-y")
    assert read_export(older, memory_dir) == image and read_export(newer, memory_dir) == present


@pytest.mark.slow
def test_after_the_agent_was_killed_nothing_is_attached_and_it_says_so(hosts):
    _a, b, *_rest = hosts
    attached = b.qrep("attach", "db@1", "--nbd")
    b.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{attached['pid']}") or "State:\tZ" in Path(f"/proc/{attached['pid']}/status").read_text())
    b.start()
    assert b.qrep("attach") == []
    assert b.qrep("attach", "db@1", "--nbd")["socket"] == attached["socket"]


@pytest.mark.slow
def test_a_before_image_that_rotted_is_an_error_and_never_data_and_is_told(hosts, memory_dir):
    _a, b, *_rest = hosts
    attached = b.qrep("attach", "db@1", "--read-only", "--nbd")
    (undo,) = Path(b.state).glob("targets/*/undo/*.undo")
    with open(undo, "r+b") as file:  # in the payload of the first batch, of 4 MiB
        file.seek((16 << 20) + (64 << 10))
        file.write(b"rot" * 100)
    with pytest.raises(RuntimeError, match="nbdcopy"):
        read_export(attached, memory_dir)
    wait_until(lambda: b.events("attach-ended"))
    assert "cannot be believed" in b.qrep("attach")[0]["error"]
    assert read_export(b.qrep("attach", "db@2", "--read-only", "--nbd"), memory_dir)
