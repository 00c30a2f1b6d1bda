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
from qrep.errors import QrepError
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
# What is promised of a volume after a crash.
COMMITTED = "a commit is neither lost nor made up"
CONTENT = "the device holds its sync point"
SERVICE = "it comes into service by itself"
POINTS = "its sync points are there"
MAPS = "its maps tell the truth"
RECORDS = "its records can be read"
NEXT = "what follows finds it in order"
QUIET = "nothing is told of a fault"


class Lie(AssertionError):
    """After a crash a volume is not what it must be. promise: which of the above is broken."""

    def __init__(self, promise, text):
        super().__init__(text)
        self.promise = promise


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
    """The states of one scene, tried on a Ground. told: told.Told of this process. truth: Truth of the scene, if it is there already."""

    def __init__(self, ground, scene, told, truth=None):
        self.ground, self.scene, self.told, self.truth = ground, scene, told, truth or Truth(scene.images)
        self._superblocks = {}
        self.recovered = 0  # how often an open generation was taken back
        self.finished = self.rolled_back = 0  # what was done with volumes afterwards
        self.moment = lambda: None  # called when a state was put down, and when it was recovered

    def says(self, content):
        """The superblock that such a file holds, None without one."""
        found = self._superblocks.get(content, 0)
        if found == 0:
            try:
                found = self._superblocks[content] = oracle.superblock_in(joined(content), "superblock") if content is not None else None
            except oracle.Wrong as err:
                raise Lie(RECORDS, str(err)) from err
        return found

    def committed(self, files):
        """The generation that a volume must hold: the superblock names it, or the record of a group does."""
        for path, number in files.items():
            if path.startswith("groups/") and not path.endswith(".tmp"):
                head, _, body = joined(self.ground.contents.read(number)).partition(b"\n")
                if head != b"qrep group commit 1 " + oracle.blake3.blake3(body).hexdigest().encode():
                    raise Lie(RECORDS, f"{path}: a record of a group that cannot be believed")
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
        """Put a state down, recover it, and judge. after: RUN or ROLL_BACK, and of which generation. Returns what it came to: (generation that it holds,
        sync points within reach). Raises Lie."""
        committed = self.committed(files)
        may_be(committed, step)
        self.ground.put(files)
        try:
            points = self.recover(committed, after)
        except Lie as err:
            self.judge_words(str(err), err)
            raise
        self.judge_words()
        wanted_are_there(points, step)
        return committed, points

    def recover(self, committed, after):
        with contextlib.ExitStack() as ends:
            self.moment()
            volume = ends.enter_context(contextlib.closing(self.volume(ends.enter_context(self.groups()))))
            volume.observer = self.told.observe
            try:
                volume.open()
            except QrepError as err:
                raise Lie(SERVICE, f"it cannot be opened: {err}") from err
            self.moment()
            points = self.judge(volume, committed)
            self.recovered += volume.recovered
            if after is not None:
                self.go_on(volume, *after)
        return points

    def judge_words(self, said="", cause=None):
        """A fault of its own that a volume or a run has told weighs more than what it led to. said: what else was said than the log. cause: the Lie, of
        which there may be an event."""
        try:
            self.told.judge(with_events=cause is None)
            oracle.nothing_forbidden(said)
        except oracle.Forbidden as err:
            raise Lie(QUIET, str(err)) from cause or err

    def go_on(self, volume, what, generation):
        """What comes next finds a volume in order: a run brings what its source holds, whatever its maps believe; a sync point can be put back."""
        if what == ROLL_BACK:
            if generation not in volume.machine.chain[1:]:
                return
            self.follow(what, volume.rollback, generation)
            self.rolled_back += 1
        elif volume.groups is None:
            self.ground.lay("source", (((0, self.scene.images[generation]),), SIZE))
            local = LocalTarget(volume)
            request = local_request(
                f"{self.ground.directory}/source", self.ground.directory, job_id=JOB, volume_id=VOLUME, connections=1,
                leaf_size=volume.geometry.leaf_size, granule_size=volume.geometry.granule_size,
            )  # fmt: skip
            self.follow(what, Run(request, local.dial, local.connect).run)
            local.join()
            self.finished += 1
        else:
            return
        if joined(self.ground.read("device")) != self.scene.images[generation]:
            raise Lie(NEXT, f"{what} of {generation.hex()} after it, and the device holds something else")

    @staticmethod
    def follow(what, function, *arguments):
        try:
            function(*arguments)
        except QrepError as err:
            raise Lie(NEXT, f"{what} after it fails: {err}") from err

    def judge(self, volume, committed):
        """The sync points within reach."""
        if volume.damaged is not None or volume.machine.phase == "faulted":
            raise Lie(SERVICE, f"it is out of service: {volume.damaged}")
        after = self.says(self.ground.read("target/superblock"))
        if after is None:
            raise Lie(RECORDS, "it has no superblock")
        if after.committed_id != committed or volume.machine.record.committed_id != committed:
            raise Lie(COMMITTED, f"generation {committed.hex()} was committed, and afterwards {after.committed_id.hex()} is")
        data = joined(self.ground.read("device"))
        if committed == NO_ID:
            self.judge_first(volume, after, data)
            return frozenset()
        if self.scene.grouped and self.ground.names("groups"):
            raise Lie(RECORDS, "the record of a group is left, and every volume is where it says")
        image = self.scene.images[committed]
        if data != image:
            raise Lie(CONTENT, f"it says that it holds {committed.hex()}: {oracle.first_difference(image, data)}")
        if after.open_kind or volume.machine.phase != "idle":
            raise Lie(SERVICE, f"something is open still: {after.open_kind}, {volume.machine.phase}")
        points = self.judge_points(volume, committed, image)
        digest_map = volume.digest_map
        if digest_map.tag == committed:
            self.judge_map(digest_map.states, digest_map.values, image, digest_map.root_value)
        return points

    def judge_first(self, volume, after, data):
        """Nothing was committed: what a checkpoint says was applied is what the device holds."""
        attempt = volume.attempt
        if (after.open_kind != 0) != (volume.machine.phase == "open") or (attempt is not None) != (volume.machine.phase == "open"):
            raise Lie(SERVICE, f"open is {after.open_kind}, and the volume is {volume.machine.phase}")
        if any(volume.digest_map.states):
            raise Lie(MAPS, "nothing was committed, and a map says what the device holds")
        if attempt is not None:
            self.judge_map(attempt.states, attempt.values, data, None)

    def judge_map(self, states, values, image, root):
        if root is not None and root != oracle.blake3.blake3(image).digest():
            raise Lie(MAPS, "a map has another root than the generation")
        for at, (is_zero, value) in enumerate(self.truth.values(image)):
            state = states[at]
            if state & MASK == ZERO and not is_zero:
                raise Lie(MAPS, f"a map calls granule {at} zero")
            if (state & MASK == HASHED or state & HAS_VALUE) and bytes(values[32 * at : 32 * at + 32]) != value:
                raise Lie(MAPS, f"a map lies of granule {at}")

    def judge_points(self, volume, committed, image):
        """Every generation that the undo files lead to is what it was. Returns them."""
        found, current, names = [committed], image, set(self.ground.names("target/undo"))
        while f"{found[-1].hex()}.undo" in names:
            names.discard(f"{found[-1].hex()}.undo")
            try:
                base, new, extents = self.truth.way_back(self.ground.read(f"target/undo/{found[-1].hex()}.undo"))
            except undofile.Broken as err:
                raise Lie(POINTS, f"the way back from {found[-1].hex()}: {err}") from err
            if new != found[-1]:
                raise Lie(POINTS, f"an undo file is called {found[-1].hex()} and is of {new.hex()}")
            content = bytearray(current)
            for offset, data in extents:
                content[offset : offset + len(data)] = data
            current = bytes(content)
            if current != self.scene.images.get(base):
                raise Lie(POINTS, f"sync point {base.hex()} is not what it was")
            found.append(base)
        if names:
            raise Lie(POINTS, f"undo files that lead nowhere were left: {sorted(names)}")
        if volume.machine.chain != tuple(found):
            raise Lie(POINTS, f"it believes in {len(volume.machine.chain)} generations within reach, and {len(found)} are")
        return frozenset(found)


def may_be(committed, step):
    if committed not in step.committed:
        raise Lie(COMMITTED, f"the superblock says {committed.hex()}, which cannot be: {[one.hex() for one in step.committed]}")


def wanted_are_there(points, step):
    if not step.points <= points:
        raise Lie(POINTS, f"{len(step.points - points)} sync points are gone that nobody gave up")


def fits(reached, step):
    """What a state was recovered to before is right of a step of which the same state may be left. Raises Lie."""
    committed, points = reached
    may_be(committed, step)
    wanted_are_there(points, step)
