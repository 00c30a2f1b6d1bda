"""What qrep keeps on disk, rotting: one record at a time is corrupted, and a volume that is opened then tells the truth or says that it cannot.

    rot = Rot(directory, seed)     # makes a small replica: generations with sync points, one of them stopped in its middle, one whose acknowledgement was lost
    rot.trial(number)              # corrupts one place of one scene, opens, looks; raises Lie, or whatever qrep should not have raised

`python -m fault.rot DIRECTORY` is a run of its own process, to be killed at QREP_CRASH.
"""

import contextlib
import functools
import logging
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import oracle
import plainblake3
from flow.harness import JOB, Site, write_at

from qrep._native import disk
from qrep.errors import QrepError
from qrep.target.superblock import SLOT_DISTANCE, SLOT_SIZE
from qrep.target.view import PointView

KIB = 1 << 10
LEAF, GRANULE, SIZE = 4 * KIB, 32 * KIB, 256 * KIB
OPTIONS = {"leaf_size": LEAF, "granule_size": GRANULE, "sync_points": 3}
PAGE = 4 * KIB
GENERATIONS = 4
# What ends a run, and what is to be opened afterwards.
SCENES = {"committed": "", "open": "target-write-done:2", "lost-ack": "superblock-write-durable:2"}
KINDS = ("flip", "flip", "zero", "swap", "older", "cut")
FINISHED_ONE_IN, ROLLED_BACK_ONE_IN, SHOWN_ONE_IN = 8, 8, 4


@functools.lru_cache(4096)
def value(part, offset):
    """The map's value of a granule, by no code of qrep."""
    return plainblake3.subtree(part, offset)


class Lie(AssertionError):
    """qrep says of a volume what is not so."""


class Tree:
    """The files below a directory, with what they hold: {relative path: (size, [(offset, bytes)])}."""

    def __init__(self, root):
        self.root, self.files = Path(root), {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file():
                self.files[str(path.relative_to(self.root))] = (path.stat().st_size, extents(path))

    def restore(self):
        """Make the directory what it was."""
        for path in self.root.rglob("*"):
            if path.is_file() and str(path.relative_to(self.root)) not in self.files:
                path.unlink()
        for name, (size, pieces) in self.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.truncate(size)
                for offset, data in pieces:
                    os.pwrite(file.fileno(), data, offset)

    def read(self, name, offset, size):
        """What a file held; None where there is no such file or place."""
        if name not in self.files or offset + size > self.files[name][0]:
            return None
        data = bytearray(size)
        for start, piece in self.files[name][1]:
            first, last = max(offset, start), min(offset + size, start + len(piece))
            if first < last:
                data[first - offset : last - offset] = piece[first - start : last - start]
        return bytes(data)


def extents(path):
    """What a sparse file holds."""
    pieces, offset = [], 0
    with open(path, "rb") as file:
        while True:
            try:
                start = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:  # none behind this
                return pieces
            offset = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            pieces.append((start, os.pread(file.fileno(), offset - start, start)))


class Rot:
    """images: content of every generation by its counter. trees: {scene: [Tree after each generation, and at its end]}."""

    def __init__(self, directory, seed):
        self.directory, self.seed = Path(directory), seed
        self.images, self.trees = {}, {}
        self.refused = self.healed = self.finished = self.rolled_back = self.shown = 0
        self.undecidable = 0  # trials in which before-images were missing and nothing says that they were ever flushed; docs/FAILURES.md says so
        logging.disable(logging.CRITICAL)  # each damage is told
        for scene, crash in SCENES.items():
            self._make(scene, crash)
        self.trees["open"][-1].restore()
        self._open_batches = oracle.undo_batches(self.directory / self._open_undo, SIZE)

    def close(self):
        logging.disable(logging.NOTSET)

    def site(self):
        return Site(self.directory, self.directory / "source", self.directory / "device", **OPTIONS)

    def _make(self, scene, crash):
        chance = random.Random(self.seed)  # the same content in every scene
        for path in list(self.directory.rglob("*")):
            if path.is_file():
                path.unlink()
        for name in ("source", "device"):
            with open(self.directory / name, "wb") as file:
                file.truncate(SIZE)
        trees = []
        for counter in range(1, GENERATIONS + 1):
            self._change(chance, counter)
            if crash and counter == GENERATIONS:
                self._die(crash)
            else:
                with self.site() as site:
                    site.run()
            trees.append(Tree(self.directory))
        self.trees[scene] = trees

    def _change(self, chance, counter):
        image = bytearray(self.images.get(counter - 1, bytes(SIZE)))
        if counter not in self.images:
            for leaf in chance.sample(range(SIZE // LEAF), 40 if counter == 1 else 20):
                image[leaf * LEAF : (leaf + 1) * LEAF] = chance.randbytes(LEAF)
            zeroed = chance.randrange(SIZE // GRANULE)
            image[zeroed * GRANULE : (zeroed + 1) * GRANULE] = bytes(GRANULE)
            self.images[counter] = bytes(image)
        write_at(self.directory / "source", 0, self.images[counter])

    def _die(self, crash):
        environment = {**os.environ, "QREP_CRASH": crash, "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run([sys.executable, "-m", "fault.rot", self.directory], env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == -9, f"it was to die at {crash}: {result.returncode} {result.stderr}"

    # ---- one trial ----

    def trial(self, number):
        """Corrupt one place, open, and look. Returns what was done, in words."""
        chance = random.Random(f"{self.seed}:{number}")
        scene = chance.choice(sorted(SCENES))
        self.trees[scene][-1].restore()
        touched, what = self._corrupt(chance, scene)
        done = f"{scene}: {what}"
        self._look(chance, done, scene, touched)
        return done

    def superblock_bit(self, scene, byte, bit):
        """As trial(), for one bit of the superblock. byte: of its two slots, one after the other."""
        self.trees[scene][-1].restore()
        name, offset = "target/superblock", byte // SLOT_SIZE * SLOT_DISTANCE + byte % SLOT_SIZE
        self._flip(name, offset, 1 << bit)
        self._look(random.Random(f"{self.seed}:{byte}:{bit}"), f"{scene}: {name}, bit {bit} of byte {offset}", scene, {name})

    @property
    def _open_undo(self):
        """Name of the undo file of the attempt that was cut off."""
        before, now = (set(tree.files) for tree in self.trees["open"][-2:])
        (name,) = (each for each in now - before if each.endswith(".undo"))
        return name

    def records(self, tree):
        """Names of the files that are records: everything but the two devices."""
        return [name for name, (size, pieces) in tree.files.items() if name not in ("source", "device") and pieces]

    def _corrupt(self, chance, scene):
        """(names of the files that are touched, what was done to them)."""
        tree, kind = self.trees[scene][-1], chance.choice(KINDS)
        name = chance.choice(self.records(tree))
        size, pieces = tree.files[name]
        start, data = chance.choice(pieces)
        if kind == "flip":
            offset, bit = start + chance.randrange(len(data)), chance.randrange(8)
            self._flip(name, offset, 1 << bit)
            return {name}, f"bit {bit} of byte {offset} of {name}"
        if kind == "zero":
            offset = start + chance.randrange(len(data)) // 512 * 512
            self._put(name, offset, bytes(min(512, size - offset)))
            return {name}, f"sector at {offset} of {name} is zero"
        if kind == "cut":
            cut = start + chance.randrange(len(data))
            os.truncate(self.directory / name, cut)
            return {name}, f"{name} is cut off at {cut}"
        if kind == "older":
            older = chance.choice(self.trees[scene][:-1])
            if chance.random() < 0.5:
                offset = start + chance.randrange(len(data)) // PAGE * PAGE
                page = older.read(name, offset, min(PAGE, size - offset))
                if page is not None:
                    self._put(name, offset, page)
                return {name}, f"an older page at {offset} of {name}"
            if name in older.files:
                self._put_file(name, *older.files[name])
            return {name}, f"an older {name}"
        other = chance.choice([each for each in self.records(tree) if Path(each).parent == Path(name).parent])
        here, there = start + chance.randrange(len(data)) // PAGE * PAGE, chance.choice(tree.files[other][1])[0]
        one, two = (tree.read(each, at, min(PAGE, tree.files[each][0] - at)) for each, at in ((name, here), (other, there)))
        self._put(name, here, two[: len(one)])
        self._put(other, there, one[: len(two)])
        return {name, other}, f"page {here} of {name} and page {there} of {other} are exchanged"

    def _flip(self, name, offset, mask):
        with open(self.directory / name, "r+b") as file:
            byte = os.pread(file.fileno(), 1, offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ mask]), offset)

    def _put(self, name, offset, data):
        with open(self.directory / name, "r+b") as file:
            os.pwrite(file.fileno(), data, offset)

    def _put_file(self, name, size, pieces):
        with open(self.directory / name, "wb") as file:
            file.truncate(size)
            for offset, data in pieces:
                os.pwrite(file.fileno(), data, offset)

    # ---- the oracle: it reads the device by itself ----

    def _look(self, chance, done, scene, touched):
        site, untold = self.site(), scene == "open" and self._open_undo in touched and self._is_untold()
        try:
            with contextlib.closing(site):
                try:
                    site.open(claimed=os.open(self.directory / "device", os.O_RDWR | os.O_DIRECT))  # looking for who else uses it takes long
                except QrepError:
                    self.refused += 1
                    return
                if site.volume.damaged or site.volume.status()["phase"] == "faulted":
                    self.refused += 1
                    return
                counter = site.volume.machine.record.committed_counter
                try:
                    self._holds(self.images[counter] if counter else None, f"{done}: it says that generation {counter} is committed, and the device")
                except Lie:
                    if not untold:
                        raise
                    self.undecidable += 1
                    return
                self._maps_are_true(site, done)
                if chance.random() < 1 / SHOWN_ONE_IN:
                    self._show(site, done)
                if chance.random() < 1 / ROLLED_BACK_ONE_IN:
                    self._roll_back(site, chance, done)
                if chance.random() < 1 / FINISHED_ONE_IN:
                    self._finish(site, done)
                self.healed += 1
        except (Lie, QrepError, AssertionError):
            raise
        except Exception as err:
            raise Lie(f"{done}: {type(err).__name__}: {err}, which nobody understands") from err

    def _is_untold(self):
        """Whether the attempt's before-images that are missing now are those that nobody can miss: like batches that were never flushed, which covered no write."""
        path = self.directory / self._open_undo
        try:
            return oracle.lost_untold(self._open_batches, oracle.undo_batches(path, SIZE))
        except oracle.Wrong:
            return False

    def _device(self):
        return oracle.read_direct(self.directory / "device")

    def _holds(self, image, what):
        if image is not None and self._device() != image:
            raise Lie(f"{what} holds something else")

    def _maps_are_true(self, site, done):
        data, committed = self._device(), site.volume.machine.record.committed_id
        source_map = site.source_map(SIZE) if (self.directory / "sources" / JOB.hex() / "map").is_dir() else None
        try:
            for digest_map in filter(None, (site.volume.digest_map, source_map)):
                if digest_map.tag != committed or not any(committed):
                    continue
                for granule, state in enumerate(digest_map.states):
                    part, kind = data[granule * GRANULE : (granule + 1) * GRANULE], state & disk.STATE_MASK
                    if kind == disk.STATE_ZERO and any(part):
                        raise Lie(f"{done}: a map calls granule {granule} zero")
                    if kind == disk.STATE_HASHED and digest_map.value(granule) != value(part, granule * GRANULE):
                        raise Lie(f"{done}: a map lies of granule {granule}")
        finally:
            if source_map is not None:
                source_map.close()

    def _show(self, site, done):
        """Every point as an attachment would show it."""
        for point in site.volume.sync_points():
            found = mmap.mmap(-1, SIZE)
            try:
                with PointView(site.volume, point.id) as view:
                    view.read_into(found, 0)
            except QrepError:
                continue
            self.shown += 1
            if found[:] != self.images[point.counter]:
                raise Lie(f"{done}: the view of sync point {point.counter} shows something else")

    def _roll_back(self, site, chance, done):
        points = site.volume.sync_points()[1:]
        if not points:
            return
        point = chance.choice(points)
        before = site.volume.machine.record.committed_counter
        try:
            site.volume.rollback(point.id)
        except QrepError:
            return self._holds(self.images[before] if not site.volume.damaged else None, f"{done}: a rollback was refused, and the device")
        self.rolled_back += 1
        self._holds(self.images[point.counter], f"{done}: rolled back to {point.counter}, and the device")

    def _finish(self, site, done):
        """The next run brings what the source holds, whatever it believed of what the target holds."""
        try:
            site.run()
        except QrepError:
            self.refused += 1
            return
        self.finished += 1
        self._holds((self.directory / "source").read_bytes(), f"{done}: a run committed, and the device")


def main():
    directory = Path(sys.argv[1])
    with Site(directory, directory / "source", directory / "device", **OPTIONS) as site:
        site.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
