"""One state that a crash left: put down, opened by the shipping TargetVolume, and judged by what can be read afterwards without it."""

import contextlib
import os
from pathlib import Path

import oracle
import plainblake3
from flow.harness import VOLUME

from crash import undofile
from crash.scenes import GRANULE, NO_ID, SIZE
from qrep import device
from qrep.target.volume import TargetVolume

FOLDERS = ("target", "target/map", "target/undo")
UNKNOWN, HASHED, ZERO, MASK, HAS_VALUE = 0, 1, 2, 0x03, 0x20


class Lie(AssertionError):
    """After a crash a volume is not what it must be."""


class Ground:
    """A directory in which states are put down, one after the other. contents: states.Contents."""

    def __init__(self, directory, contents):
        self.directory, self.contents = Path(directory), contents
        self.paths = {}
        self.made = set()
        for name in FOLDERS:
            (self.directory / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lay("device", ((), SIZE))
        self.info = device.inspect(self.directory / "device")
        self.descriptor = -1

    def lay(self, name, content):
        pieces, size = content
        path = self.paths.get(name)
        if path is None:
            path = self.paths[name] = os.path.join(self.directory, name)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for offset, data in pieces:
            os.pwrite(descriptor, data, offset)
        os.ftruncate(descriptor, size)
        os.close(descriptor)

    def put(self, files):
        """files: {path: content id}."""
        for folder in FOLDERS:
            path = os.path.join(self.directory, folder)
            for entry in os.scandir(path):
                if f"{folder}/{entry.name}" not in files and entry.is_file():
                    os.unlink(entry.path)
        for name, number in files.items():
            self.lay(name, self.contents.all[number])

    def read(self, name):
        """(pieces, size) of a file, None if there is none."""
        try:
            descriptor = os.open(os.path.join(self.directory, name), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            size, offset, pieces = os.fstat(descriptor).st_size, 0, []
            while offset < size:
                try:
                    offset = os.lseek(descriptor, offset, os.SEEK_DATA)
                except OSError:  # none behind this
                    break
                end = os.lseek(descriptor, offset, os.SEEK_HOLE)
                pieces.append((offset, os.pread(descriptor, end - offset, offset)))
                offset = end
            return tuple(pieces), size
        finally:
            os.close(descriptor)

    def names(self, folder):
        return os.listdir(os.path.join(self.directory, folder))


def joined(content):
    pieces, size = content
    data = bytearray(size)
    for offset, piece in pieces:
        data[offset : offset + len(piece)] = piece
    return bytes(data)


class Truth:
    """What is known of the generations of one scene: their bytes, and what a map may say of them."""

    def __init__(self, images):
        self.images, self._values, self._ways = images, {}, {}

    def values(self, image):
        """[(whether it is zero, chaining value)] of the granules."""
        found = self._values.get(image)
        if found is None:
            parts = [image[start : start + GRANULE] for start in range(0, SIZE, GRANULE)]
            found = self._values[image] = [(not any(part), plainblake3.subtree(part, at * GRANULE)) for at, part in enumerate(parts)]
        return found

    def way_back(self, content):
        found = self._ways.get(content)
        if found is None:
            found = self._ways[content] = undofile.way_back(*content)
        return found


class Trials:
    """The states of one scene, tried on a Ground. open_with: what is given to TargetVolume beside what every volume is given."""

    def __init__(self, ground, scene):
        self.ground, self.scene, self.truth = ground, scene, Truth(scene.images)
        self._superblocks = {}
        self.recovered = 0  # how often an open generation was taken back
        self.moment = lambda: None  # called when a state was put down, and when it was recovered

    def says(self, content):
        """The superblock that such a file holds, None without one."""
        found = self._superblocks.get(content, 0)
        if found == 0:
            found = self._superblocks[content] = oracle.superblock_in(joined(content), "superblock") if content is not None else None
        return found

    def volume(self):
        descriptor = os.open(os.path.join(self.ground.directory, "device"), os.O_RDWR | os.O_DIRECT)
        return TargetVolume(self.ground.info, os.path.join(self.ground.directory, "target"), volume_id=VOLUME, claimed=descriptor, **self.scene.options)

    def run(self, files, step):
        """Put a state down, recover it, and judge. Raises Lie."""
        number = files.get("target/superblock")
        before = self.says(self.ground.contents.all[number]) if number is not None else None
        committed = before.committed_id if before is not None else NO_ID
        if committed not in step.committed:
            raise Lie(f"the superblock says {committed.hex()}, which cannot be: {[one.hex() for one in step.committed]}")
        self.ground.put(files)
        with contextlib.closing(self.volume()) as volume:
            self.moment()
            volume.open()
            self.moment()
            self.judge(volume, committed, step)
            self.recovered += volume.recovered

    def judge(self, volume, committed, step):
        if volume.damaged is not None or volume.machine.phase == "faulted":
            raise Lie(f"it is out of service: {volume.damaged}")
        after = self.says(self.ground.read("target/superblock"))
        if after.committed_id != committed or volume.machine.record.committed_id != committed:
            raise Lie(f"generation {committed.hex()} was committed, and afterwards {after.committed_id.hex()} is")
        data = joined(self.ground.read("device"))
        if committed == NO_ID:
            return self.judge_first(volume, after, data)
        image = self.scene.images[committed]
        if data != image:
            raise Lie(f"it says that it holds {committed.hex()}: {oracle.first_difference(image, data)}")
        if after.open_kind or volume.machine.phase != "idle":
            raise Lie(f"something is open still: {after.open_kind}, {volume.machine.phase}")
        self.judge_points(volume, committed, step.points, image)
        digest_map = volume.digest_map
        if digest_map.tag == committed:
            self.judge_map(digest_map.states, digest_map.values, image, digest_map.root_value)

    def judge_first(self, volume, after, data):
        """Nothing was committed: what a checkpoint says was applied is what the device holds."""
        attempt = volume.attempt
        if (after.open_kind != 0) != (volume.machine.phase == "open") or (attempt is not None) != (volume.machine.phase == "open"):
            raise Lie(f"open is {after.open_kind}, and the volume is {volume.machine.phase}")
        if any(volume.digest_map.states):
            raise Lie("nothing was committed, and a map says what the device holds")
        if attempt is not None:
            self.judge_map(attempt.states, attempt.values, data, None)

    def judge_map(self, states, values, image, root):
        if root is not None and root != oracle.blake3.blake3(image).digest():
            raise Lie("a map has another root than the generation")
        for at, (is_zero, value) in enumerate(self.truth.values(image)):
            state = states[at]
            if state & MASK == ZERO and not is_zero:
                raise Lie(f"a map calls granule {at} zero")
            if (state & MASK == HASHED or state & HAS_VALUE) and bytes(values[32 * at : 32 * at + 32]) != value:
                raise Lie(f"a map lies of granule {at}")

    def judge_points(self, volume, committed, wanted, image):
        """Every generation that the undo files lead to is what it was, and those are there that nobody gave up."""
        found, current, names = [committed], image, set(self.ground.names("target/undo"))
        while f"{found[-1].hex()}.undo" in names:
            names.discard(f"{found[-1].hex()}.undo")
            try:
                base, new, extents = self.truth.way_back(self.ground.read(f"target/undo/{found[-1].hex()}.undo"))
            except undofile.Broken as err:
                raise Lie(f"the way back from {found[-1].hex()}: {err}") from err
            if new != found[-1]:
                raise Lie(f"an undo file is called {found[-1].hex()} and is of {new.hex()}")
            content = bytearray(current)
            for offset, data in extents:
                content[offset : offset + len(data)] = data
            current = bytes(content)
            if current != self.scene.images.get(base):
                raise Lie(f"sync point {base.hex()} is not what it was")
            found.append(base)
        if not wanted <= set(found):
            raise Lie(f"{len(wanted - set(found))} sync points are gone that nobody gave up")
        if names:
            raise Lie(f"undo files that lead nowhere were left: {sorted(names)}")
        if volume.machine.chain != tuple(found):
            raise Lie(f"it believes in {len(volume.machine.chain)} generations within reach, and {len(found)} are")
