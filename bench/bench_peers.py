"""Other programs that keep a device like another, on the same devices in the same rounds.

S7: an unchanged run against rsync, and against bdsync where it is; S6: against blocksync-fast with its digest file, where it is.
Directories of programs that are not installed: QREP_BENCH_PEERS, as PATH is written.
"""

import os
import shutil
import subprocess
import time

import pytest
from lane_pair import LANES, scan_rate, whole_map
from measure import DEVICE_SIZE, FULL, MIB

from qrep._native.wire import Geometry

GEOMETRY = Geometry(DEVICE_SIZE, 4096, 8 * MIB)
ROUNDS = 3 if FULL else 1


def program(name):
    """Its path; skips the bench if this machine has none."""
    found = shutil.which(name, path=os.pathsep.join(filter(None, (os.environ.get("QREP_BENCH_PEERS"), os.environ["PATH"]))))
    if found is None:
        pytest.skip(f"needs {name} (QREP_BENCH_PEERS names the directory of a program that is not installed)")
    return found


def seconds(command):
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


@pytest.fixture
def same_devices(memory_device, open_direct):
    """(source, target, descriptor of the source, its map), both devices with the same content."""
    source, target = memory_device(), memory_device(fill=None)
    subprocess.run(["dd", f"if={source}", f"of={target}", "bs=8M", "iflag=direct", "oflag=direct", "status=none"], check=True)
    descriptor = open_direct(source, os.O_RDONLY)
    return source, target, descriptor, whole_map(GEOMETRY, descriptor)


def test_an_unchanged_scan_against_rsync(compare, same_devices):
    rsync = program("rsync")
    if "copy-devices" not in subprocess.run([rsync, "--help"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this rsync cannot read a device (--copy-devices, 3.2.7)")
    source, target, descriptor, known = same_devices
    command = [rsync, "--copy-devices", "--write-devices", "--inplace", "--no-whole-file", "--ignore-times", source, target]
    compare("S7", "unchanged scan / rsync", lambda: scan_rate(GEOMETRY, descriptor, known, LANES), lambda: DEVICE_SIZE / seconds(command),
            first=6, goal=10, rounds=ROUNDS)  # fmt: skip


def test_an_unchanged_scan_against_bdsync(compare, same_devices):
    bdsync = program("bdsync")
    source, target, descriptor, known = same_devices
    command = [bdsync, f"{bdsync} --server", source, target]
    compare("S7", "unchanged scan / bdsync", lambda: scan_rate(GEOMETRY, descriptor, known, LANES), lambda: DEVICE_SIZE / seconds(command),
            first=8, goal=14, rounds=ROUNDS)  # fmt: skip


def test_an_unchanged_scan_against_blocksync_fast(compare, same_devices, tmp_path):
    blocksync = program("blocksync-fast")
    source, target, descriptor, known = same_devices
    command = [blocksync, "--src", source, "--dst", target, "--digest", str(tmp_path / "digests")]
    seconds(command)  # makes the digest file
    compare("S6", "unchanged scan / blocksync-fast with its digest file", lambda: scan_rate(GEOMETRY, descriptor, known, LANES),
            lambda: DEVICE_SIZE / seconds(command), first=1.0, goal=1.4, rounds=ROUNDS)  # fmt: skip
