"""Full copies, verified: from device to device over TCP and on one host, of data, of half zeroes, of a sparse image.

C1: over TCP / nbdcopy to qemu-nbd. C2: / dd through socat. C4: / nbdcopy to nbdkit. C5: disk to memory / the slower of fio's two sides. C7: on one host
/ qemu-img convert. (C3, against what the cores allow: bench_bound.py.)
"""

import contextlib
import itertools
import os

import pytest
from content import same_content, zero_every_other
from lane_pair import rate_of, replicate, socket_pairs, tcp_pairs
from measure import FULL, GIB, MIB, Against, fill_file, fio, rate, tool
from rivals import Rivals

from peers import Program
from peers.ceilings import IPERF3, iperf3
from qrep._native.wire import Geometry
from qrep.copy import copy_local

LEAF, GRANULE = 4096, 8 * MIB
SIZE = GIB if FULL else 32 * MIB
GEOMETRY = Geometry(SIZE, LEAF, GRANULE)
# Required of ours against a peer: id, first, goal.
REQUIRED = {
    "nbdcopy to qemu-nbd": ("C1", 1.6, 2.4), "dd | socat | dd": ("C2", 2.5, 3.3), "nbdcopy to nbdkit": ("C4", None, None),
    "qemu-img convert": ("C7", 0.6, 0.9),
}  # fmt: skip


def copy_rate(source_fd, target_fd, pairs=tcp_pairs):
    """Bytes per second of a verified full copy, the device flushed at its end."""
    _, target, seconds = replicate(GEOMETRY, source_fd, target_fd, pairs=pairs, flush=True)
    assert target.counters()["hashed"] + target.counters()["zero"] == SIZE
    return rate_of(seconds, SIZE)


@pytest.fixture
def stack(memory_device):
    """Ended before the devices are given back."""
    with contextlib.ExitStack() as stack:
        yield stack


def against(rivals, judged=True):
    return {name: Against(run, *(REQUIRED.get(name, ()) if judged else ())) for name, run in rivals.items()}


def first_of(rivals, name):
    """The rival that a case is judged by. Skips without it."""
    if name not in rivals:
        pytest.skip(f"not compared: {name}, see bench_peers.py for what is missing")
    return rivals.pop(name)


def compare_copies(compare, stack, memory_device, open_direct, directory, *, kind, over, judged_by, prepare=None, bounds=None, without=()):
    """Ours and every peer that can, over TCP or on one host. prepare: what is done to the random data of a source; then nothing is required.
    without: peers that the case says nothing new of."""
    source, target = memory_device(SIZE), memory_device(SIZE, "zero")
    if prepare is not None:
        prepare(source, SIZE)
    source_fd, target_fd = open_direct(source, os.O_RDONLY), open_direct(target)
    rivals = Rivals(memory_device, directory, stack).copying(source, SIZE, over, prepare or (lambda path, size: None), without)
    judge = first_of(rivals, judged_by)
    id, first, goal = REQUIRED[judged_by] if prepare is None else ("", None, None)
    also = against(rivals, judged=prepare is None) | (bounds or {})
    where = "over TCP" if over else "on one host"
    compare(id, f"{kind}, {where} / {judged_by}", lambda: copy_rate(source_fd, target_fd, tcp_pairs if over else socket_pairs), judge,
            first=first, goal=goal, family=f"full copy {where}", peer=judged_by, also=also)  # fmt: skip
    assert same_content(source, target)


def test_a_full_copy_over_tcp(compare, stack, memory_device, open_direct, tmp_path):
    bounds = {}
    if not IPERF3.missing():
        carry = stack.enter_context(iperf3())
        bounds["iperf3, 2 connections"] = Against(lambda: carry(SIZE, 2), bound=True)
    compare_copies(compare, stack, memory_device, open_direct, tmp_path, kind="dense", over="tcp", judged_by="nbdcopy to qemu-nbd", bounds=bounds)


def test_a_full_copy_over_tcp_of_half_zeroes(compare, stack, memory_device, open_direct, tmp_path):
    compare_copies(compare, stack, memory_device, open_direct, tmp_path, kind="half zero", over="tcp", judged_by="nbdcopy to qemu-nbd",
                   prepare=zero_every_other, without=("nbdcopy to qemu-nbd, cubic", "nbdcopy to nbdkit", "dd | socat | dd"))  # fmt: skip


def test_a_full_copy_on_one_host(compare, stack, memory_device, open_direct, tmp_path):
    compare_copies(compare, stack, memory_device, open_direct, tmp_path, kind="dense", over="", judged_by="qemu-img convert")


def test_a_copy_from_disk_to_memory(compare, disk_device, memory_device, open_direct):
    source, target = disk_device(SIZE), memory_device(SIZE, "zero")
    source_fd, target_fd = open_direct(source, os.O_RDONLY), open_direct(target)
    compare("C5", "D to M over TCP / min(fio read, fio write)", lambda: copy_rate(source_fd, target_fd, tcp_pairs),
            lambda: min(fio(source, "read", 8 * MIB, 2, SIZE, passes=1), fio(target, "write", 8 * MIB, 2, SIZE, passes=1)), first=0.85, goal=0.95)  # fmt: skip
    assert same_content(source, target)


SPARSE_SIZE, PIECES = (4 * GIB, 64) if FULL else (256 * MIB, 8)


def test_a_copy_of_a_sparse_image(compare, huge_tmpfs, tmp_path):
    """Holes are not read. Images, because a device does not tell of its holes; the whole engine, because it is the one that asks for them."""
    qemu_img = Program("qemu-img", "qemu-utils")
    if qemu_img.missing():
        pytest.skip(qemu_img.missing())
    source, target, other = (huge_tmpfs / f"sparse-{name}.img" for name in ("source", "target", "other"))
    for path in (source, target, other):
        path.touch()
        os.truncate(path, SPARSE_SIZE)
    for number in range(PIECES):
        fill_file(source, MIB, number, SPARSE_SIZE // PIECES * number)
    runs = itertools.count()

    def ours():
        os.truncate(target, 0)
        os.truncate(target, SPARSE_SIZE)
        return rate(copy_local, str(source), str(target), str(tmp_path / f"state-{next(runs)}"), size=SPARSE_SIZE)

    def convert():
        command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-T", "none", "-t", "none", source, other]
        return tool(command).sample(SPARSE_SIZE)

    def nbdcopy():
        os.truncate(other, 0)
        os.truncate(other, SPARSE_SIZE)
        return tool(["nbdcopy", "--flush", source, other]).sample(SPARSE_SIZE)

    also = {} if Program("nbdcopy").missing() else {"nbdcopy": nbdcopy}
    compare("", f"{SPARSE_SIZE // GIB or 0.25:g} GiB, {PIECES} MiB of data / qemu-img convert", ours, convert, family="sparse image", peer="qemu-img convert",
            also=also, note="ours says the root of all of it, for which zeroes are hashed, too")  # fmt: skip
    for path in (source, target, other):
        os.unlink(path)
