"""U1: a differential run, 1 % of the leaves changed at random, with before-images kept against the same without."""

import contextlib
import os
import subprocess

from content import change_leaves, same_content
from lane_pair import open_undo, replicate
from measure import DEVICE_SIZE, MIB, make_loop

from qrep._native.wire import Geometry

GEOMETRY = Geometry(DEVICE_SIZE, 4096, 8 * MIB)


def test_a_differential_run_with_before_images(compare, memory_device, open_direct, huge_tmpfs, tmp_path):
    source, target = memory_device(), memory_device(fill="zero")
    source_fd, target_fd = open_direct(source), open_direct(target)
    leaves = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("source-leaves", "target-leaves")]
    options = {"source_options": {"leaves_fd": leaves[0]}, "target_options": {"leaves_fd": leaves[1]}, "connections": 1}
    run, _, _ = replicate(GEOMETRY, source_fd, target_fd, **options)
    state = {"map": (bytes(run.fresh_states), bytes(run.fresh_values)), "seed": 100}
    plain = os.open(source, os.O_RDWR)

    def change():
        state["seed"] += 1
        state["changed"] = change_leaves(plain, 0.01, state["seed"]) * 4096

    def differential(undo_fd=-1):
        run, far, seconds = replicate(GEOMETRY, source_fd, target_fd, base=state["map"], undo_fd=undo_fd, **options)
        state["map"] = (bytes(run.fresh_states), bytes(run.fresh_values))
        assert (far.counters()["undo"] >= state["changed"]) == (undo_fd >= 0)
        return DEVICE_SIZE / seconds

    def without():
        change()
        return differential()

    with contextlib.ExitStack() as stack:
        # The undo store lies on a file system of its own, as fast as the target: what is measured is the order of flushes, not a disk.
        store = make_loop(stack, huge_tmpfs, max(DEVICE_SIZE, 512 * MIB), None)
        subprocess.run(["mkfs.ext4", "-q", "-F", store], check=True)
        point = tmp_path / "store"
        point.mkdir()
        subprocess.run(["mount", store, point], check=True)
        stack.callback(subprocess.run, ["umount", point], check=True)

        def with_undo():
            with contextlib.ExitStack() as files:
                return differential(open_undo(files, point))

        compare("U1", "1 % changed, before-images kept / not kept", with_undo, without, setup=change, first=0.7, goal=0.9)
    for descriptor in (*leaves, plain):
        os.close(descriptor)
    assert same_content(source, target)
