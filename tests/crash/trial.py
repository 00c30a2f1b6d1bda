"""One state that a crash left: put down, opened by the shipping TargetVolume, and judged by what can be read afterwards without it."""

import contextlib
import json
import os
from pathlib import Path

import oracle
import plainblake3
from flow.harness import JOB, VOLUME

from crash import undofile
from crash.model import SMALL
from crash.scenes import GRANULE, NO_ID, SIZE
from qrep import device
from qrep.copy import LocalTarget, local_request
from qrep.source.flow import Run
from qrep.store import Directory
from qrep.target.groupcommit import GroupCommits
from qrep.target.volume import TargetVolume

SOURCES = f"sources/{JOB.hex()}"
FOLDERS = ("target", "target/map", "target/undo", "groups", SOURCES, f"{SOURCES}/map")
UNKNOWN, HASHED, ZERO, MASK, HAS_VALUE = 0, 1, 2, 0x03, 0x20


KNOWN_MAX = 2000
CHANGING = ("device",)
RUN, ROLL_BACK = "run", "rollback"


class Lie(AssertionError):
    """After a crash a volume is not what it must be."""


class Ground:
    """A directory in which states are put down, one after the other. contents: states.Contents."""

    def __init__(self, directory, contents):
        self.directory, self.contents = str(directory), contents
        self.paths = {}
        self._used = {}  # {folder: whether something was put there}
        self._known = {}  # {content id: what is read of it}, of what many states have in common
        for name in FOLDERS:
            Path(self.directory, name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lay("device", ((), SIZE))
        self.info = device.inspect(f"{self.directory}/device")
        self.descriptor = -1

    def lay(self, name, content):
        pieces, size = content
        path = self.paths.get(name)
        if path is None:
            path = self.paths[name] = f"{self.directory}/{name}"
        small = size <= SMALL  # written over what there was, which costs less than to make it anew
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | (0 if small else os.O_TRUNC), 0o600)
        if small:
            os.pwrite(descriptor, joined(content), 0)
        else:
            for offset, data in pieces:
                os.pwrite(descriptor, data, offset)
        os.ftruncate(descriptor, size)
        os.close(descriptor)

    def put(self, files):
        """files: {path: content id}."""
        for folder in FOLDERS:
            if not folder.startswith("target") and not self._used.get(folder):
                continue
            for name in os.listdir(f"{self.directory}/{folder}"):
                path = f"{folder}/{name}"
                if path not in files and path not in FOLDERS:
                    os.unlink(f"{self.directory}/{path}")
            self._used[folder] = False
        for name, number in files.items():
            self._used[name.rpartition("/")[0]] = True
            content = self._known.get(number)
            if content is None:
                content = self.contents.read(number)
                if name not in CHANGING and len(self._known) < KNOWN_MAX:
                    self._known[number] = content
            self.lay(name, content)

    def read(self, name):
        """(pieces, size) of a file, None if there is none."""
        try:
            descriptor = os.open(f"{self.directory}/{name}", os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            size, offset, pieces = os.fstat(descriptor).st_size, 0, []
            if size <= SMALL:
                return ((0, os.pread(descriptor, size, 0)),), size
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
        return os.listdir(f"{self.directory}/{folder}")


def joined(content):
    pieces, size = content
    if len(pieces) == 1 and len(pieces[0][1]) == size:
        return pieces[0][1]
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
        self.finished = self.rolled_back = 0  # what was done with volumes afterwards
        self.moment = lambda: None  # called when a state was put down, and when it was recovered

    def says(self, content):
        """The superblock that such a file holds, None without one."""
        found = self._superblocks.get(content, 0)
        if found == 0:
            found = self._superblocks[content] = oracle.superblock_in(joined(content), "superblock") if content is not None else None
        return found

    def committed(self, files):
        """The generation that a volume must hold: the superblock names it, or the record of a group does."""
        for path, number in files.items():
            if path.startswith("groups/") and not path.endswith(".tmp"):
                head, _, body = joined(self.ground.contents.read(number)).partition(b"\n")
                if head != b"qrep group commit 1 " + oracle.blake3.blake3(body).hexdigest().encode():
                    raise Lie(f"{path}: a record of a group that cannot be believed")
                return bytes.fromhex(json.loads(body)["members"][0]["new"])
        number = files.get("target/superblock")
        block = self.says(self.ground.contents.read(number)) if number is not None else None
        return block.committed_id if block is not None else NO_ID

    @contextlib.contextmanager
    def groups(self):
        if not self.scene.grouped:
            yield None
            return
        with Directory(f"{self.ground.directory}/groups") as directory:
            yield GroupCommits(directory)

    def volume(self, groups):
        descriptor = os.open(f"{self.ground.directory}/device", os.O_RDWR | os.O_DIRECT)
        return TargetVolume(self.ground.info, f"{self.ground.directory}/target", volume_id=VOLUME, claimed=descriptor, groups=groups, **self.scene.options)

    def run(self, files, step, after=None):
        """Put a state down, recover it, and judge. after: RUN or ROLL_BACK, and of which generation. Raises Lie."""
        committed = self.committed(files)
        if committed not in step.committed:
            raise Lie(f"the superblock says {committed.hex()}, which cannot be: {[one.hex() for one in step.committed]}")
        self.ground.put(files)
        with contextlib.ExitStack() as ends:
            self.moment()
            volume = ends.enter_context(contextlib.closing(self.volume(ends.enter_context(self.groups()))))
            volume.open()
            self.moment()
            self.judge(volume, committed, step)
            self.recovered += volume.recovered
            if after is not None:
                self.go_on(volume, *after)

    def go_on(self, volume, what, generation):
        """What comes next finds a volume in order: a run brings what its source holds, whatever its maps believe; a sync point can be put back."""
        if what == ROLL_BACK:
            if generation not in volume.machine.chain[1:]:
                return
            volume.rollback(generation)
            self.rolled_back += 1
        elif volume.groups is None:
            self.ground.lay("source", (((0, self.scene.images[generation]),), SIZE))
            local = LocalTarget(volume)
            request = local_request(
                f"{self.ground.directory}/source", self.ground.directory, job_id=JOB, volume_id=VOLUME, connections=1,
                leaf_size=volume.geometry.leaf_size, granule_size=volume.geometry.granule_size,
            )  # fmt: skip
            Run(request, local.dial, local.connect).run()
            local.join()
            self.finished += 1
        else:
            return
        if joined(self.ground.read("device")) != self.scene.images[generation]:
            raise Lie(f"{what} of {generation.hex()} after it, and the device holds something else")

    def judge(self, volume, committed, step):
        if volume.damaged is not None or volume.machine.phase == "faulted":
            raise Lie(f"it is out of service: {volume.damaged}")
        after = self.says(self.ground.read("target/superblock"))
        if after.committed_id != committed or volume.machine.record.committed_id != committed:
            raise Lie(f"generation {committed.hex()} was committed, and afterwards {after.committed_id.hex()} is")
        data = joined(self.ground.read("device"))
        if committed == NO_ID:
            return self.judge_first(volume, after, data)
        if self.scene.grouped and self.ground.names("groups"):
            raise Lie("the record of a group is left, and every volume is where it says")
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
