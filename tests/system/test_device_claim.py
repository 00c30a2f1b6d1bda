"""Opening a source, and rule R1: the exclusive claim every writer of a device holds."""

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest
from machine import MIB, image, run

from qrep import device, devicesafety
from qrep.errors import NotFound, Refused

pytestmark = pytest.mark.root


def test_a_source_is_read_with_direct_io_while_it_is_mounted(filesystem, loop_device):
    disk = loop_device(64 * MIB)
    filesystem("ext4", device=disk)
    fd = device.open_source(device.inspect(disk))
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        assert flags & os.O_DIRECT and flags & os.O_ACCMODE == os.O_RDONLY
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", ["block", "file"])
def test_a_claim_excludes_a_second_one_until_it_is_closed(loop_device, memory_dir, kind):
    info = device.inspect(loop_device(MIB) if kind == "block" else image(memory_dir))
    first = devicesafety.claim(info, wait_seconds=0)
    assert fcntl.fcntl(first, fcntl.F_GETFL) & os.O_DIRECT
    with pytest.raises(Refused) as caught:
        devicesafety.claim(info, wait_seconds=0.1)
    assert caught.value.code == "target-in-use" and f"pid {os.getpid()}" in caught.value.message
    timer = threading.Timer(0.3, os.close, [first])
    timer.start()
    begin = time.monotonic()
    second = devicesafety.claim(info, wait_seconds=10)  # the barrier: granted when the first one is gone, not before
    assert time.monotonic() - begin >= 0.25
    timer.join()
    os.close(second)


def test_a_claim_keeps_the_device_from_being_mounted(loop_device, mount):
    disk = loop_device(64 * MIB)
    run("mkfs.ext4", "-q", disk)
    fd = devicesafety.claim(device.inspect(disk), wait_seconds=0)
    try:
        with pytest.raises(RuntimeError, match="already mounted|busy"):
            mount(disk)
    finally:
        os.close(fd)


def test_a_claim_dies_with_its_process(loop_device):
    disk = loop_device(MIB)
    script = f"import os, time; os.open({disk.path!r}, os.O_RDWR | os.O_EXCL); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(Refused, match=f"pid {holder.pid}"):
            devicesafety.claim(device.inspect(disk), wait_seconds=0)
        holder.kill()
        os.close(devicesafety.claim(device.inspect(disk), wait_seconds=10))


def test_a_file_that_another_program_locked_by_ranges_cannot_be_claimed(memory_dir):
    path = image(memory_dir)
    script = f"import fcntl, time; f = open({str(path)!r}, 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 100)"
    script += "; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(Refused, match=f"pid {holder.pid}"):
            devicesafety.claim(device.inspect(path), wait_seconds=0)
        holder.kill()


def test_an_image_below_a_loop_device_cannot_be_claimed(loop_device, memory_dir):
    path = image(memory_dir)
    disk = loop_device(backing=path)
    with pytest.raises(Refused, match=disk.path):
        devicesafety.claim(device.inspect(path), wait_seconds=0)
    threading.Timer(0.2, disk.detach).start()
    os.close(devicesafety.claim(device.inspect(path), wait_seconds=10))


def test_a_swap_file_in_use_cannot_be_claimed(ext4, undo_after):
    path = ext4 / "swap"
    path.write_bytes(bytes(MIB))
    path.chmod(0o600)
    run("mkswap", path)
    run("swapon", path)
    undo_after.callback(run, "swapoff", path)
    with pytest.raises(Refused, match="swap") as caught:
        devicesafety.claim(device.inspect(path), wait_seconds=0)
    assert caught.value.code == "target-in-use" and f"swapoff {path}" in caught.value.hint


@pytest.mark.alone  # another test may be given the number that it lets go of
def test_a_device_that_was_exchanged_after_it_was_inspected_is_not_opened(loop_device, memory_dir, xfs):
    disk = loop_device(MIB)
    info = device.inspect(disk)
    number = disk.path
    disk.detach()
    run("losetup", number, image(memory_dir, "other", MIB))
    try:
        with pytest.raises(Refused) as caught:
            devicesafety.claim(info, wait_seconds=0)
        assert caught.value.code == "wrong-device"
        with pytest.raises(Refused):
            device.open_source(info)
    finally:
        run("losetup", "--detach", number)


def test_a_file_that_was_replaced_or_resized_after_it_was_inspected_is_not_claimed(memory_dir):
    path = image(memory_dir)
    info = device.inspect(path)
    os.truncate(path, 4 * MIB)
    with pytest.raises(Refused, match=f"size is {4 * MIB}"):
        devicesafety.claim(info, wait_seconds=0)
    image(memory_dir, "new")
    os.replace(memory_dir / "new", path)
    with pytest.raises(Refused, match="device number"):
        devicesafety.claim(info, wait_seconds=0)
    path.unlink()
    with pytest.raises(NotFound):
        devicesafety.claim(info, wait_seconds=0)


def test_refusals_and_claims_leak_no_descriptor(loop_device):
    disk = loop_device(MIB)
    info = device.inspect(disk)
    before = len(os.listdir("/proc/self/fd"))
    fd = devicesafety.claim(info, wait_seconds=0)
    for _ in range(3):
        with pytest.raises(Refused):
            devicesafety.claim(info, wait_seconds=0)
        with pytest.raises(Refused):
            devicesafety.check_target(info, source=None, size_needed=MIB)
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
