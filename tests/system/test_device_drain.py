"""The claim is the recovery barrier (rule R1): writes of a killed process still land, and a claim waits for them."""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from machine import need_tool

import qrep
from qrep import device, devicesafety
from qrep.errors import Refused

pytestmark = pytest.mark.root
WRITE_TAKES_S = 2

WRITER = """
import sys
from qrep import device, devicesafety
from qrep._native.buffers import BufferPool
from qrep._native.ring import Ring
fd = devicesafety.claim(device.inspect(sys.argv[1]))
slot = BufferPool(65536, 1).lease_nowait()
with memoryview(slot) as view:
    view[:4096] = b"Z" * 4096
    ring = Ring("uring", 4)
    ring.register_files([fd])
    ring.start_write(0, view[:4096], 0, 1)
    ring.submit()
    print("submitted", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def slow_file(memory_dir, undo_after):
    """A file of 1 MiB whose every write takes WRITE_TAKES_S: nbdkit's delay filter through FUSE."""
    for tool in ("nbdkit", "nbdfuse", "fusermount3"):
        need_tool(tool)
    path, pidfile = memory_dir / "slow", memory_dir / "pid"
    path.touch()
    server = ["nbdkit", "--exit-with-parent", "-s", "--filter=delay", "memory", "1M", f"delay-write={WRITE_TAKES_S}"]
    fuse = subprocess.Popen(["nbdfuse", "--pidfile", pidfile, path, "--command", *server], stderr=subprocess.PIPE)
    undo_after.callback(fuse.stderr.close)
    undo_after.callback(fuse.wait, 10)
    undo_after.callback(subprocess.run, ["fusermount3", "-u", "-z", path], check=True)
    deadline = time.monotonic() + 10
    while not (pidfile.exists() and pidfile.read_text()):
        assert fuse.poll() is None, fuse.stderr.read().decode()
        assert time.monotonic() < deadline, "nbdfuse did not come up in 10 s"
        time.sleep(0.01)
    return path


def kill_with_a_write_under_way(path):
    """Start a writer that claims `path` and submits one block of Z, kill it by -9 and reap it."""
    environment = os.environ | {"PYTHONPATH": str(Path(qrep.__file__).parents[1])}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, path], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with writer:
        assert writer.stdout.readline().startswith(b"submitted")
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(10) == -signal.SIGKILL


def first_block(fd):
    buffer = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [buffer], 0) == 4096
    return bytes(buffer)


@pytest.mark.parametrize("kind", ["block", "file"])
def test_a_claim_after_a_kill_is_granted_only_when_the_dead_process_has_no_write_under_way(
    slow_file, loop_device, kind
):
    path = loop_device(backing=slow_file).path if kind == "block" else str(slow_file)
    info = device.inspect(path)
    kill_with_a_write_under_way(path)
    os.close(device.open_source(info))  # reaped, so whoever does not ask for the claim is let in at once
    with pytest.raises(Refused) as caught:
        devicesafety.claim(info, wait_seconds=0)
    assert caught.value.code == "target-in-use"
    assert "seen" in caught.value.message  # no process holds it any more, only the kernel
    begin = time.monotonic()
    fd = devicesafety.claim(info, wait_seconds=30)
    try:
        assert time.monotonic() - begin > 0.2
        begin = time.monotonic()
        assert first_block(fd) == b"Z" * 4096
        assert time.monotonic() - begin < WRITE_TAKES_S / 2  # it had landed; reading did not have to wait for it
    finally:
        os.close(fd)
