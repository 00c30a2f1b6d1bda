"""Source to target, both ends in this process, over loopback TCP.

C1: full copy / nbdcopy to qemu-nbd. C5: disk to memory / the slower of fio's two sides. D1: 1 % changed / own unchanged scan.
"""

import contextlib
import os
import random
import shutil
import subprocess
import time

import pytest
from lane_pair import replicate, scan_rate
from measure import DEVICE_SIZE, FULL, MIB, fio

from qrep._native.wire import Geometry

LEAF, GRANULE = 4096, 8 * MIB
GEOMETRY = Geometry(DEVICE_SIZE, LEAF, GRANULE)


def copy_rate(source_fd, target_fd, **options):
    """Bytes per second of a verified full copy, the device flushed at its end."""
    started = time.perf_counter()
    _, target, _ = replicate(GEOMETRY, source_fd, target_fd, **options)
    os.fdatasync(target_fd)
    seconds = time.perf_counter() - started
    assert target.counters()["hashed"] == DEVICE_SIZE
    return DEVICE_SIZE / seconds


@contextlib.contextmanager
def nbd_server(device, port):
    """qemu-nbd exporting the device over TCP, writes straight to it."""
    server = subprocess.Popen([
        "qemu-nbd", "--format=raw", "--cache=none", "--aio=native", "--persistent", "--shared=4", "--bind=127.0.0.1", f"--port={port}", device,
    ])  # fmt: skip
    try:
        deadline = time.monotonic() + 5
        while subprocess.run(["nbdinfo", "--size", f"nbd://127.0.0.1:{port}"], capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "qemu-nbd does not answer"
            time.sleep(0.05)
        yield f"nbd://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def nbdcopy_rate(device, address):
    started = time.perf_counter()
    subprocess.run(["nbdcopy", "--flush", "--allocated", device, address], check=True)
    return DEVICE_SIZE / (time.perf_counter() - started)


def same_content(one, other):
    return subprocess.run(["cmp", one, other], check=False).returncode == 0


def test_a_verified_full_copy_over_tcp(compare, memory_device, open_direct):
    for tool in ("nbdcopy", "qemu-nbd", "nbdinfo"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    source, target, other = memory_device(), memory_device(fill="zero"), memory_device(fill="zero")
    source_fd, target_fd = open_direct(source, os.O_RDONLY), open_direct(target)
    with nbd_server(other, 10900 + os.getpid() % 90) as address:
        compare(
            "C1", "verified full copy over TCP, M -> M / nbdcopy to qemu-nbd",
            lambda: copy_rate(source_fd, target_fd), lambda: nbdcopy_rate(source, address), first=1.6, goal=2.4,
        )  # fmt: skip
    assert same_content(source, target)


def test_a_copy_from_disk_to_memory(compare, disk_device, memory_device, open_direct):
    source, target = disk_device(), memory_device(fill="zero")
    source_fd, target_fd = open_direct(source, os.O_RDONLY), open_direct(target)
    compare(
        "C5", "full copy, D -> M / min(fio read, fio write)",
        lambda: copy_rate(source_fd, target_fd), lambda: min(fio(source, "read", 8 * MIB, 2), fio(target, "write", 8 * MIB, 2)),
        first=0.85, goal=0.95,
    )  # fmt: skip


def change_leaves(descriptor, share, seed, size=DEVICE_SIZE):
    """Overwrite a random share of the leaves of the first `size` bytes with other bytes; how many."""
    source = random.Random(seed)
    leaves = source.sample(range(size // LEAF), int(size // LEAF * share))
    for leaf in leaves:
        os.pwrite(descriptor, source.randbytes(LEAF), leaf * LEAF)
    os.fsync(descriptor)
    return len(leaves)


def test_a_run_of_which_one_percent_changed(compare, memory_device, open_direct, tmp_path):
    source, target = memory_device(), memory_device(fill="zero")
    source_fd, target_fd = open_direct(source), open_direct(target)
    leaves = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("source-leaves", "target-leaves")]
    options = {"source_options": {"leaves_fd": leaves[0]}, "target_options": {"leaves_fd": leaves[1]}, "connections": 1}
    run, _, _ = replicate(GEOMETRY, source_fd, target_fd, **options)
    state = {"map": (bytes(run.fresh_states), bytes(run.fresh_values)), "seed": 0, "wire": []}
    plain = os.open(source, os.O_RDWR)

    def idle_scan():
        return scan_rate(GEOMETRY, source_fd, state["map"])

    def change():
        state["seed"] += 1
        state["changed"] = change_leaves(plain, 0.01, state["seed"]) * LEAF

    def differential():
        run, _, seconds = replicate(GEOMETRY, source_fd, target_fd, base=state["map"], **options)
        state["map"] = (bytes(run.fresh_states), bytes(run.fresh_values))
        state["wire"].append(run.counters()["sent"] / state["changed"])
        return DEVICE_SIZE / seconds

    row = compare("D1", "1 % random 4 KiB changed / own unchanged scan", differential, idle_scan, setup=change, first=0.85, goal=0.95)
    wire = max(state["wire"])
    row.note = f"bytes on the wire / bytes changed {wire:.3f} (<= 1.10, goal 1.03)"
    for descriptor in (*leaves, plain):
        os.close(descriptor)
    assert same_content(source, target)
    assert not FULL or wire <= 1.10
