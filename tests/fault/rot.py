"""What qrep keeps on disk, rotting: one record at a time is corrupted, and a volume that is opened then tells the truth or says that it cannot.

    rot = Rot(directory, seed)     # makes a small replica: generations with sync points, one of them stopped in its middle, one whose acknowledgement was lost
    rot.trial(number)              # corrupts one place of one scene, opens, looks; raises Lie, or whatever qrep should not have raised

What is made, what is corrupted and how are the same for a seed and a number. `python -m fault.rot DIRECTORY SEED` is a run of its own process, to be
killed at QREP_CRASH.
"""

import contextlib
import functools
import mmap
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import blake3
import oracle
import overheard
import plainblake3
from flow.harness import JOB, Site, write_at

from qrep._native import disk
from qrep.errors import DamagedError, QrepError
from qrep.target.superblock import SLOT_DISTANCE, SLOT_SIZE
from qrep.target.view import PointView

KIB = 1 << 10
LEAF, GRANULE, SIZE = 4 * KIB, 32 * KIB, 256 * KIB
OPTIONS = {"leaf_size": LEAF, "granule_size": GRANULE, "sync_points": 3}
RUN = {"connections": 1, "slots": 1, "frame_limit": 64 * KIB}  # one lane, one read at a time: what it writes is the same each time
PAGE, SECTOR = 4 * KIB, 512
GENERATIONS = 4
# What ends a run, and what is to be opened afterwards.
SCENES = {"committed": "", "open": "target-end:1", "lost-ack": "superblock-write-durable:3"}
COMMITTED = {"committed": GENERATIONS, "open": GENERATIONS - 1, "lost-ack": GENERATIONS}
KINDS = ("flip", "flip", "zero", "swap", "older", "cut")
PARTS = ("target/superblock", "target/undo", "target/map", "target/points.json", "sources")
# A copy is made where nobody else writes, which takes 0.1 s to find out.
FINISHED_ONE_IN, ROLLED_BACK_ONE_IN, COPIED_ONE_IN, SHOWN_ONE_IN = 8, 8, 32, 4


@functools.lru_cache(4096)
def value(part, offset):
    """The map's value of a granule, by no code of qrep."""
    return plainblake3.subtree(part, offset)


def part(name):
    """Which of PARTS a record belongs to."""
    return next(each for each in PARTS if name.startswith(each))


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


def arrange(path, chance):
    """Let the batches of an undo file lie in the order of what they cover, and say by chance how far those before them were flushed: both were as the
    kernel's timing had it."""
    with open(path, "r+b") as file:
        batches = sorted((batch.extents, os.pread(file.fileno(), batch.size, place)) for place, batch in oracle.undo_batches(path, SIZE).items())
        position, ends, told = oracle.SEGMENT, [0], 0
        for sequence, (extents, data) in enumerate(batches):
            told = max(told, chance.choice(ends))
            head = data[:40] + struct.pack("<QQ", sequence, position) + data[56:64] + struct.pack("<Q", told) + data[72:112]
            rest = data[oracle.BATCH :]
            os.pwrite(file.fileno(), head + blake3.blake3(head + rest[: 16 * len(extents)]).digest() + rest, position)
            position += len(data)
            ends.append(position)


class Rot:
    """images: content of every generation by its counter. ids: theirs, {scene: {counter: id}}. trees: {scene: [Tree after each generation, and at its
    end]}."""

    def __init__(self, directory, seed):
        self.directory, self.seed = Path(directory), seed
        self.images, self.ids, self.trees = {}, {}, {}
        self.refused = self.healed = self.finished = self.rolled_back = self.copied = self.shown = 0
        self.undecidable = 0  # trials in which before-images were missing and nothing says that they were ever flushed; docs/FAILURES.md says so
        for scene, crash in SCENES.items():
            self._make(scene, crash)
        self.trees["open"][-1].restore()
        self._open_batches = oracle.undo_batches(self.directory / self._open_undo, SIZE)

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
        trees, ids, known = [], {}, set()
        for counter in range(1, GENERATIONS + 1):
            self._change(chance, counter)
            seed = f"{self.seed}:{scene}:{counter}"
            if crash and counter == GENERATIONS:
                self._die(crash, seed)
            else:
                one_run(self.directory, seed)
            for path in set(self.directory.glob("target/undo/*.undo")) - known:
                arrange(path, random.Random(seed))
                known.add(path)
                if scene == "open" and counter == GENERATIONS:
                    self._draw_writes(path, random.Random(seed))
            trees.append(Tree(self.directory))
            block = oracle.superblock(self.directory / "target")
            ids[block.counter] = block.committed_id
        assert block.counter == COMMITTED[scene] and bool(block.open_kind) == (scene == "open"), f"{scene}: {block}"
        self.trees[scene], self.ids[scene] = trees, ids

    def _draw_writes(self, path, chance):
        """Let the writes that the batches of an attempt cover have landed, or not, or in part, by chance."""
        old, new = self.images[GENERATIONS - 1], self.images[GENERATIONS]
        self._holds(new, "when all was written, the device")
        device = bytearray(new)
        for _place, batch in sorted(oracle.undo_batches(path, SIZE).items()):
            landed = chance.choice((0, 0.5, 1, 1))
            for offset, size in batch.extents:
                for start in range(offset, offset + size, SECTOR):
                    if chance.random() >= landed:
                        device[start : start + SECTOR] = old[start : start + SECTOR]
        write_at(self.directory / "device", 0, device)

    def _change(self, chance, counter):
        image = bytearray(self.images.get(counter - 1, bytes(SIZE)))
        if counter not in self.images:
            for leaf in chance.sample(range(SIZE // LEAF), 40 if counter == 1 else 20):
                image[leaf * LEAF : (leaf + 1) * LEAF] = chance.randbytes(LEAF)
            zeroed = chance.randrange(SIZE // GRANULE)
            image[zeroed * GRANULE : (zeroed + 1) * GRANULE] = bytes(GRANULE)
            self.images[counter] = bytes(image)
        write_at(self.directory / "source", 0, self.images[counter])

    def _die(self, crash, seed):
        environment = {**os.environ, "QREP_CRASH": crash, "PYTHONPATH": os.pathsep.join(sys.path)}
        result = subprocess.run([sys.executable, "-m", "fault.rot", self.directory, seed], env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == -9, f"it was to die at {crash}: {result.returncode} {result.stderr}"

    # ---- one trial ----

    def trial(self, number, scenes=tuple(sorted(SCENES)), parts=PARTS):
        """Corrupt one place of one of these parts, open, and look. Returns what was done, in words."""
        chance = random.Random(f"{self.seed}:{number}")
        scene = chance.choice(scenes)
        self.trees[scene][-1].restore()
        touched, what = self._corrupt(chance, scene, parts)
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

    def _corrupt(self, chance, scene, parts):
        """(names of the files that are touched, what was done to them)."""
        tree, kind = self.trees[scene][-1], chance.choice(KINDS)
        name = chance.choice([each for each in self.records(tree) if part(each) in parts])
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
        try:
            with overheard.repeatable(f"{self.seed}:{done}"), overheard.everything() as told:
                self._opened(chance, done, scene, touched)
            oracle.nothing_forbidden(told.getvalue())
        except Lie:
            raise
        except Exception as err:
            raise Lie(f"{done}: {type(err).__name__}: {err}, which nobody understands") from err

    def _opened(self, chance, done, scene, touched):
        before, site, forgotten = self._device(), self.site(), self._points_rotted()
        untold = self._untold() if scene == "open" and self._open_undo in touched else set()
        with contextlib.closing(site):
            try:
                self._open(site)
            except QrepError as err:
                return self._refused(done, err, touched, before)
            volume, status = site.volume, site.volume.status()
            if volume.damaged or status["phase"] == "faulted":
                return self._refused(done, DamagedError(volume.damaged or ""), touched, before)
            counter = self._generation(site, done, scene, touched)
            if not self._holds_it(f"{done}: it says that generation {counter} is committed, and the device", counter, untold):
                self.undecidable += 1
                return None
            self._maps_are_true(site, done)
            points = self._points_are_true(site, done, scene, counter, forgotten)
            if chance.random() < 1 / SHOWN_ONE_IN:
                self._show(site, points, done, touched)
            if points[1:] and chance.random() < 1 / COPIED_ONE_IN:
                self._copy_out(site, chance.choice(points[1:]), done, touched)
            if points[1:] and chance.random() < 1 / ROLLED_BACK_ONE_IN:
                counter = self._roll_back(site, chance.choice(points[1:]), done, touched, counter)
            if chance.random() < 1 / FINISHED_ONE_IN:
                self._finish(site, done, counter)
            self.healed += 1

    def _open(self, site):
        site.open(claimed=os.open(self.directory / "device", os.O_RDWR | os.O_DIRECT))  # looking for who else uses it takes long

    def _refused(self, done, err, touched, before):
        """It is out of service because of what it depends on, says so, and has left the device alone."""
        self._may_refuse(done, err, touched, "target/superblock", "target/undo")
        self._holds(before, f"{done}: it refuses, and the device")
        self.refused += 1

    def _may_refuse(self, done, err, touched, *parts):
        if err.code == "internal" or "internal" in err.message or not err.message:
            raise Lie(f"{done}: a bug: {err.code}: {err.message!r}")
        if not {part(name) for name in touched} & set(parts):
            raise Lie(f"{done}: nothing that this depends on was touched: {err.code}: {err.message}")

    def _generation(self, site, done, scene, touched):
        """The counter of the generation that it says is committed: the last one, or the one before where the newest slot rotted, and that is told."""
        record, wanted = site.volume.machine.record, COMMITTED[scene]
        counter = record.committed_counter
        if self.ids[scene].get(counter) != record.committed_id:
            raise Lie(f"{done}: it says that generation {counter} is committed, with the id {record.committed_id.hex()}")
        if counter == wanted:
            return counter
        if counter != wanted - 1 or "target/superblock" not in touched:
            raise Lie(f"{done}: generation {wanted} was committed, and it is back at {counter}")
        if not site.volume.recovered:
            raise Lie(f"{done}: generation {wanted} was committed, it is back at {counter}, and that is not told")
        return counter

    def _holds_it(self, what, counter, untold):
        """False: it does not, and cannot know: what differs is `untold`, and holds what the attempt was writing. Raises Lie if it differs
        elsewhere."""
        found, image, attempted = self._device(), self.images[counter], self.images[GENERATIONS]
        differ = [start for start in range(0, SIZE, SECTOR) if found[start : start + SECTOR] != image[start : start + SECTOR]]
        if any(start not in untold or found[start : start + SECTOR] != attempted[start : start + SECTOR] for start in differ):
            raise Lie(f"{what} holds something else: {oracle.first_difference(image, found)}")
        return not differ

    def _untold(self):
        """Offsets of the sectors whose before-images are missing now, of which nobody can miss any: like batches that were never flushed, which
        covered no write."""
        try:
            now = oracle.undo_batches(self.directory / self._open_undo, SIZE)
        except oracle.Wrong:
            return set()
        if not oracle.lost_untold(self._open_batches, now):
            return set()
        missing = (batch for place, batch in self._open_batches.items() if now.get(place) != batch)
        return {start for batch in missing for offset, size in batch.extents for start in range(offset, offset + size, SECTOR)}

    def _device(self):
        return oracle.read_direct(self.directory / "device")

    def _holds(self, image, what):
        found = self._device()
        if found != image:
            raise Lie(f"{what} holds something else: {oracle.first_difference(image, found)}")

    def _maps_are_true(self, site, done):
        data, committed = self._device(), site.volume.machine.record.committed_id
        source_map = site.source_map(SIZE) if (self.directory / "sources" / JOB.hex() / "map").is_dir() else None
        try:
            for digest_map in filter(None, (site.volume.digest_map, source_map)):
                if digest_map.tag != committed:
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

    def _points_are_true(self, site, done, scene, counter, forgotten):
        """All earlier generations are within reach, or it is told which is the last that is. forgotten: what was noted of them rotted. Returns the
        SyncPoints."""
        points, wanted = site.volume.sync_points(), [(self.ids[scene][each], each) for each in range(counter, 0, -1)]
        if not points or [(point.id, point.counter) for point in points] != wanted[: len(points)]:
            raise Lie(f"{done}: it lists the sync points {[(point.id.hex(), point.counter) for point in points]}")
        if any(point.fuzzy is False for point in points):
            raise Lie(f"{done}: the source was read live, and it calls a sync point frozen")
        if forgotten and not site.volume.points.damage:
            raise Lie(f"{done}: what was noted of sync points is lost, and that is not told")
        if len(points) < len(wanted) and not site.volume.status()["out_of_reach"]:
            raise Lie(f"{done}: sync points up to {wanted[len(points)][1]} are not there any more, and that is not told")
        return points

    def _points_rotted(self):
        """Whether points.json does not end in the BLAKE3 of what comes before it."""
        data = (self.directory / "target/points.json").read_bytes()
        return data[-66:] != b"\n%s\n" % blake3.blake3(data[:-66]).hexdigest().encode()

    def _show(self, site, points, done, touched):
        """Every point as an attachment would show it."""
        for point in points:
            found = mmap.mmap(-1, SIZE)
            try:
                with PointView(site.volume, point.id) as view:
                    view.read_into(found, 0)
            except QrepError as err:
                self._may_refuse(done, err, touched, "target/undo")
                continue
            self.shown += 1
            if found[:] != self.images[point.counter]:
                raise Lie(f"{done}: the view of sync point {point.counter} shows something else")

    def _copy_out(self, site, point, done, touched):
        copy = self.directory / "copy"
        try:
            site.volume.copy_out(point.id, str(copy))
            if copy.read_bytes() != self.images[point.counter]:
                raise Lie(f"{done}: a copy of sync point {point.counter} holds something else")
            self.copied += 1
        except QrepError as err:
            self._may_refuse(done, err, touched, "target/undo")
        finally:
            copy.unlink(missing_ok=True)

    def _roll_back(self, site, point, done, touched, counter):
        """Returns the counter of the generation that is committed now, whose content is images' then."""
        try:
            site.volume.rollback(point.id)
        except QrepError as err:
            self._may_refuse(done, err, touched, "target/undo")
            if site.volume.damaged:
                raise Lie(f"{done}: a rollback could not be done, nor undone: {site.volume.damaged}") from err
            self._holds(self.images[counter], f"{done}: a rollback was refused, and the device")
            return counter
        self.rolled_back += 1
        self._holds(self.images[point.counter], f"{done}: rolled back to {point.counter}, and the device")
        return counter + 1

    def _finish(self, site, done, counter):
        """The next run brings what the source holds, whatever it believed of what the target holds, and a fresh start finds it so."""
        image = (self.directory / "source").read_bytes()
        report = site.run(**RUN)
        self._holds(image, f"{done}: a run committed, and the device")
        if report.root != blake3.blake3(image).hexdigest() or report.counter < counter:
            raise Lie(f"{done}: a run committed, and says that its root is {report.root}, of generation {report.counter}")
        site.close()
        self._open(site)
        if site.volume.damaged or site.volume.recovered or site.volume.machine.record.committed_counter != report.counter:
            raise Lie(f"{done}: generation {report.counter} was committed, and a fresh start says {site.volume.status()}")
        self._holds(image, f"{done}: after a fresh start the device")
        self.finished += 1


def one_run(directory, seed):
    with overheard.repeatable(seed), Site(directory, directory / "source", directory / "device", **OPTIONS) as site:
        site.run(**RUN)


if __name__ == "__main__":
    one_run(Path(sys.argv[1]), sys.argv[2])
