"""Runs on devices that fail or lie, of the kernel's dm-flakey: run in the guest by campaign/h06_kernel.py. Not collected anywhere else.

Debian's kernel has no dm-dust (CONFIG_DM_DUST is not set): blocks whose reads fail until they are rewritten are dm-flakey's error_reads on just these blocks,
taken away once the blocks below have other content.
"""

import contextlib
import json
import os
import random
import subprocess
import threading
import time
from pathlib import Path

import oracle
import pytest
from fault import scene as scenes
from fault.nest import Nest
from fault.scene import LEAF, MIB, SIZE, Scene, Torn, changed, mixed
from machine import run

from qrep.store import FLUSH_FAILED

pytestmark = pytest.mark.root
SECTOR, SEED = 512, int(os.environ.get("QREP_SEED", "1"))
# How a run may end on a device that fails. Everything else, "internal" above all, is wrong.
ENDS = {"unsynced", "rolled-back", "damaged", "device-write", "device-read", "disconnected", "connection", "undo-space", "faulted", "unreachable"}
BLOCKS = [(MIB + 8192, LEAF), (3 * MIB + 5 * LEAF, 2 * LEAF)]
MOMENTS = 3


@pytest.fixture(autouse=True, scope="session")
def patience():
    scenes.READY_S = 120.0  # an emulated processor
    os.environ["DM_DISABLE_UDEV"] = "1"  # there is none: dmsetup makes the nodes


@pytest.fixture(scope="session")
def nest():
    made = Nest()
    yield made
    made.close()


class Mapped:
    """A device of the device-mapper over another, as good or as bad as a test says from one moment to the next."""

    def __init__(self, name, below, undo_after):
        self.name, self.below, self.path = name, str(below), f"/dev/mapper/{name}"
        self.sectors = int(run("blockdev", "--getsz", self.below))
        run("dmsetup", "create", name, "--table", self._good(0, self.sectors))
        undo_after.callback(run, "dmsetup", "remove", "--retry", name)

    def _good(self, start, end):
        return f"{start} {end - start} linear {self.below} {start}"

    def _bad(self, start, end, features, up, down):
        return f"{start} {end - start} flakey {self.below} {start} {up} {down} {len(features)} {' '.join(features)}".rstrip()

    def _load(self, table):
        subprocess.run(["dmsetup", "load", self.name], input=table, text=True, check=True, capture_output=True)
        run("dmsetup", "resume", "--noflush", "--nolockfs", self.name)

    def heal(self):
        self._load(self._good(0, self.sectors))

    def fail(self, *features, up=0, down=3600, extents=None):
        """features: of dm-flakey. up, down: seconds. extents: only these (offset, size); the others are as they should be."""
        if extents is None:
            return self._load(self._bad(0, self.sectors, features, up, down))
        lines, at = [], 0
        for offset, size in sorted(extents):
            start, end = offset // SECTOR, (offset + size) // SECTOR
            lines += [self._good(at, start)] * (at < start) + [self._bad(start, end, features, up, down)]
            at = end
        return self._load("\n".join(lines + [self._good(at, self.sectors)] * (at < self.sectors)))


class Run:
    """One run of a World: report or error of the source, exit codes of both, what they said on stderr."""

    def __init__(self, world, during=lambda: None, role="source", how=""):
        scene, began = world.scene, time.monotonic()
        target = scene.start("target")
        ready = scene.ready(target)
        assert ready is not None and ready["damaged"] is None, target.errors()
        source = scene.start(role, ready["port"], how=how)
        helper = threading.Thread(target=during)
        helper.start()
        out, self.errors = source.communicate(timeout=240)
        helper.join()
        self.said = json.loads(out) if out.strip() else None
        self.codes = [source.returncode, scene.finish(target)]
        self.errors += target.errors()
        scene.stop_all()
        print(f"{time.monotonic() - began:.1f} s", self.codes, str(self.said)[:300], self.errors[-300:])
        oracle.nothing_forbidden(self.errors)

    @property
    def failed(self):
        """The error that it ended with; None: it committed."""
        if self.codes[0] == 0:
            return None
        if self.codes[0] == FLUSH_FAILED:
            return {"code": "flush-failed"}
        assert self.said and self.said["code"] in ENDS, self.said
        assert self.said["code"] != "unreachable" or self.codes[1] == FLUSH_FAILED, "a target ends early only because of a failed flush"
        return self.said


class World:
    """Two devices that are as they are told to be, one scene over them for all tests: an emulated processor takes long to make another. `state`: of
    its ext4 with the undo store and the records. `counter`: of what is committed; `before`: its image; `after`: the image that is to be committed."""

    def __init__(self, nest, directory, undo_after):
        self.undo_after = undo_after
        self.source, self.target, self.state = (self._mapped(directory, name, size) for name, size in (("source", SIZE), ("target", SIZE), ("state", 96 * MIB)))
        run("mkfs.ext4", "-q", "-F", self.state.path)
        self.place = directory / "mounted"
        self.place.mkdir()
        self.mount()
        undo_after.callback(run, "umount", self.place)
        self.scene = Scene(nest, self.source.path, self.target.path, self.place)
        undo_after.callback(self.scene.stop_all)
        self.scene.maps_are_true = lambda: None  # takes an emulated processor longer than all the rest; verify reads them at the end
        self.counter, self.before, self.after = 0, bytes(SIZE), bytes(SIZE)

    def _mapped(self, directory, name, size):
        with open(directory / name, "wb") as file:
            file.truncate(size)
        loop = run("losetup", "--find", "--show", "--direct-io=on", directory / name)
        self.undo_after.callback(run, "losetup", "--detach", loop)
        return Mapped(f"qrep-{name}", loop, self.undo_after)

    def mount(self):
        run("mount", self.state.path, self.place)

    def changes(self, image):
        """The source holds another image, which the next run is to commit."""
        self.after = bytes(image)
        self.scene.images[self.counter + 1] = self.after
        self.scene.write(self.after)

    def goes_on(self, attempt):
        """Everything is well again: what is committed is on the target, and it is the new generation only if it may be."""
        counter = self.scene.recover()
        assert counter in (self.counter, self.counter + 1)
        assert counter == self.counter + 1 or attempt.failed is not None, "it was told to be committed"
        if counter != self.counter:
            self.counter, self.before = counter, self.after

    def completes(self):
        """The next run commits what the source holds."""
        self.counter, self.before = self.scene.complete(self.after)["counter"], self.after


@pytest.fixture(scope="session")
def all_of_it(nest, tmp_path_factory):
    with contextlib.ExitStack() as undo_after:
        made = World(nest, tmp_path_factory.mktemp("world"), undo_after)
        made.changes(mixed(4 * MIB, random.Random(SEED)) + bytes(2 * MIB))
        made.completes()
        yield made
        assert made.scene.recover() == made.counter  # after all of it
        made.completes()
        assert Run(made, role="verify", how="look").said["ok"]


@pytest.fixture
def world(all_of_it, random_source):
    """Whose source has changed since the last generation, in BLOCKS as well."""
    image = bytearray(changed(all_of_it.before, random_source))
    for offset, size in BLOCKS:
        image[offset : offset + size] = random_source.randbytes(size)
    all_of_it.changes(image)
    return all_of_it


def holds_but_for(device, image, before, extents):
    """Everything is as in `image`, and these places as in `before`."""
    wanted = bytearray(image)
    for offset, size in extents:
        wanted[offset : offset + size] = before[offset : offset + size]
    assert oracle.read_direct(device) == bytes(wanted), oracle.first_difference(bytes(wanted), oracle.read_direct(device))


# ---- errors ----


def test_a_target_of_which_some_blocks_take_no_write_gets_all_else_and_they_are_named(world):
    world.target.fail("error_writes", extents=BLOCKS)
    run = Run(world)
    assert run.failed["code"] == "unsynced" and run.codes[1] == 0
    for offset, size in BLOCKS:
        assert f"{size} bytes at {offset}" in run.failed["message"]
    holds_but_for(world.target.path, world.after, world.before, BLOCKS)
    world.target.heal()
    world.goes_on(run)


def test_a_target_whose_before_images_cannot_be_read_is_not_overwritten(world):
    world.target.fail("error_reads", extents=BLOCKS)
    run = Run(world)
    assert run.failed
    held = Path(world.target.below).read_bytes()
    for offset, size in BLOCKS:
        assert held[offset : offset + size] == world.before[offset : offset + size], "overwritten without a before-image"
    world.target.heal()
    world.goes_on(run)


def test_a_source_with_blocks_that_cannot_be_read_names_them_until_they_are_rewritten(world, random_source):
    world.source.fail("error_reads", extents=BLOCKS)
    run = Run(world)
    assert run.failed["code"] == "unsynced" and run.codes[1] == 0
    for offset, size in BLOCKS:
        assert f"{size} bytes at {offset}" in run.failed["message"]
    holds_but_for(world.target.path, world.after, world.before, BLOCKS)
    left, image = list(BLOCKS), bytearray(world.after)
    while left:  # as dm-dust does it: what is rewritten can be read again, block by block
        offset, size = left.pop()
        image[offset : offset + size] = random_source.randbytes(size)
        with open(world.source.path, "r+b", buffering=0) as device:
            os.pwrite(device.fileno(), image[offset : offset + size], offset)
            os.fsync(device.fileno())
        if left:
            world.source.fail("error_reads", extents=left)
        else:
            world.source.heal()
        run = Run(world)
        assert (run.failed is None) == (not left), run.said
    world.after = world.scene.images[world.counter + 1] = bytes(image)
    world.goes_on(run)


@pytest.mark.parametrize("feature", ["error_writes", "error_reads"])
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_target_that_fails_from_some_moment_on_is_taken_back_or_has_committed(world, random_source, feature, moment):
    delay = random_source.uniform(0.0, 2.5)
    run = Run(world, during=lambda: (time.sleep(delay), world.target.fail(feature)))
    world.target.heal()
    world.goes_on(run)


def test_a_target_that_fails_now_and_then_is_taken_back_or_has_committed(world):
    world.target.fail("error_writes", up=1, down=1)
    run = Run(world)
    world.target.heal()
    world.goes_on(run)


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_state_device_that_fails_from_some_moment_on_costs_no_committed_generation(world, random_source, moment):
    os.sync()
    delay = random_source.uniform(0.0, 2.0)
    attempt = Run(world, during=lambda: (time.sleep(delay), world.state.fail("error_writes")))
    run("umount", world.place)
    world.state.heal()
    world.mount()
    world.goes_on(attempt)


def test_a_target_that_drops_writes_is_seen_by_the_oracle_and_by_verify_and_is_repaired(world):
    world.target.fail("drop_writes")
    run = Run(world)
    world.target.heal()
    assert run.failed is None, "a device that says that it wrote is believed"
    with pytest.raises(Torn):
        world.scene.holds(world.after)
    looked = Run(world, role="verify", how="look")
    assert not looked.said["ok"] and looked.said["differences"], looked.said
    Run(world, role="verify")
    world.goes_on(run)
