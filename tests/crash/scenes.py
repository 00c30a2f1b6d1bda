"""Small lives of a volume, recorded: at most three changed leaves in a generation, what runs, sync points, rollbacks and interruptions write.

What happens between two moments at which it is known what the volume holds is a step; Step says what a crash in it may leave.
"""

import contextlib
import os
import random
import secrets
import threading
import time
from typing import NamedTuple

import pytest
from flow.harness import Site, write_at
from machine import run as run_tool

from crash import recorder as log
from crash.recorder import Recorder
from qrep.errors import Interrupted
from qrep.source import flow
from qrep.store import Directory
from qrep.target.groupcommit import GroupCommits

KIB = 1 << 10
LEAF, GRANULE, SIZE = 4 * KIB, 16 * KIB, 64 * KIB
OPTIONS = {"leaf_size": LEAF, "granule_size": GRANULE}
NO_ID = bytes(16)


class Step(NamedTuple):
    """What a crash may leave: one of `committed`, ids; and of the sync points at least `points`, if there are any."""

    committed: frozenset
    points: frozenset


class Scene(NamedTuple):
    """name. records: of the whole log. steps: Step for each record. images: content by generation id. options: of the volume. first: number of the first
    record after which a crash is looked at."""

    name: str
    records: list
    steps: list
    images: dict
    options: dict
    first: int
    grouped: bool = False  # its commits go through the record of a group


class Life:
    """A volume and its source while they are recorded."""

    def __init__(self, recorder, scratch, chance, *, connections=1, grouped=False, block=False, **options):
        self.recorder, self.chance, self.connections = recorder, chance, connections
        self.options = {**OPTIONS, **options}
        self.ends = contextlib.ExitStack()
        self.source, self.device = scratch / "source", recorder.path / "device"
        for path in (self.source, self.device):
            with open(path, "wb") as file:
                file.truncate(SIZE)
                os.fsync(file.fileno())
        folder = os.open(recorder.path, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        self.groups = None
        if grouped:
            self.groups = GroupCommits(self.ends.enter_context(Directory(recorder.path / "groups")))
        self.site = Site(recorder.path, self.source, self._attached() if block else self.device, **self.options, groups=self.groups)
        self.ends.callback(lambda: self.site.close())
        self.image, self.images = bytes(SIZE), {NO_ID: None}
        self.on = []  # leaves that are not zero
        self.recorder.mark(f"end {NO_ID.hex()}")

    def _attached(self):
        """The device as a block device."""
        name = run_tool("losetup", "--find", "--show", "--direct-io=on", self.device)  # "loop5" alone where its node was not there yet
        path = os.path.join("/dev", name)
        self.ends.callback(run_tool, "losetup", "--detach", path)
        return path

    def change(self, data=3, zeroes=0):
        """The source changes: so many leaves get new data, and so many become zero."""
        image = bytearray(self.image)
        filled = [leaf for leaf in range(SIZE // LEAF) if any(image[leaf * LEAF : (leaf + 1) * LEAF])]
        erased = self.chance.sample(filled, zeroes)
        for leaf in erased:
            image[leaf * LEAF : (leaf + 1) * LEAF] = bytes(LEAF)
        for leaf in self.chance.sample([leaf for leaf in range(SIZE // LEAF) if leaf not in erased], data):
            image[leaf * LEAF : (leaf + 1) * LEAF] = self.chance.randbytes(LEAF)
        self.image = bytes(image)
        write_at(self.source, 0, self.image)

    @contextlib.contextmanager
    def step(self, image=None):
        """What is done in it leads to a generation that holds `image`, which is now the source's, or to none."""
        self.recorder.mark("begin")
        yield
        with self.site.volume.lock:  # what follows from a commit is done before its session says anything else
            self._know(image)

    def _know(self, image):
        record, chain = self.site.volume.machine.record, self.site.volume.machine.chain
        self.images.setdefault(record.committed_id, self.image if image is None else image)
        self.recorder.mark(" ".join(["end", record.committed_id.hex(), *(new.hex() for new in chain)]))

    def open(self):
        with self.step():
            self.site.open()

    def run(self, **options):
        with self.step():
            together = Together(self.groups, self.site.volume) if self.groups is not None else None
            self.site.run(connections=self.connections, together=together, **options)

    def interrupted(self, **options):
        """A run that ends when everything was applied, and before it asks for the commit."""
        with self.step(), pytest.MonkeyPatch.context() as patch:
            run = self.site.make_run(connections=1, **options)

            def stop(name):
                if name == "source-lanes-done":
                    run.stop()
                    raise Interrupted("as far as this")

            patch.setattr(flow, "crashpoint", stop)
            with pytest.raises(Interrupted):
                run.run()
            while self.site.volume.machine.session is not None:
                time.sleep(0.001)

    def delete(self, age):
        with self.step():
            self.site.volume.delete_point(self.site.volume.machine.chain[age])

    def rollback(self, age):
        point = self.site.volume.machine.chain[age]
        with self.step(self.images[point]):
            self.site.volume.rollback(point)
        self.image = self.images[point]
        write_at(self.source, 0, self.image)


class Together:
    """A consistency group of one volume, as a run sees it."""

    in_group = True

    def __init__(self, groups, volume):
        self.groups, self.volume = groups, volume

    def freeze(self, token, since, stopped):
        return None

    def share(self, *run):
        pass

    def left(self):
        pass

    def agree(self, action):
        member = self.volume, action.attempt, action.new, action.epoch
        threading.Thread(target=self.groups.commit, args=(secrets.token_bytes(16), "shop", [member])).start()


def runs(life):
    """Two generations on top of the first: three leaves each, some of which were or become zero."""
    life.open()
    life.change(8)
    life.run()
    yield
    life.change(2, 1)
    life.run()
    life.change(2, 1)
    life.run()


def beginning(life):
    """A volume that never was: made, its first copy interrupted with a checkpoint, taken up after a restart, committed."""
    yield
    life.open()
    life.change(3)
    life.interrupted()
    life.site.close()
    life.open()
    life.run()


def cut_short(life):
    """A generation that is interrupted and resumed, and one that is interrupted and given up."""
    life.open()
    life.change(8)
    life.run()
    life.change(1)
    life.run()
    yield
    life.change(2, 1)
    life.interrupted()
    life.run()
    life.change(3)
    life.interrupted()
    with life.step():
        life.site.volume.abandon("the test says so", alone=False)


def pruned(life):
    """One sync point is kept: each commit gives one up."""
    life.open()
    life.change(8)
    life.run()
    life.change(2)
    life.run()
    yield
    life.change(2)
    life.run()
    life.change(1, 1)
    life.run()


def merged(life):
    """Sync points are taken out of the middle, also the one below the present generation, and off the end."""
    life.open()
    for data, zeroes in ((8, 0), (2, 1), (2, 0), (1, 1), (2, 0)):
        life.change(data, zeroes)
        life.run()
    yield
    life.delete(2)
    life.delete(1)
    life.delete(2)


def rolled_back(life):
    """A sync point two generations back is put back, and then a run comes."""
    life.open()
    for data, zeroes in ((8, 0), (2, 1), (2, 0)):
        life.change(data, zeroes)
        life.run()
    yield
    life.rollback(2)
    life.change(1)
    life.run()


# What is done, the volume's options, and how it is recorded.
LIVES = {
    "runs": (runs, {"sync_points": 3}, {}), "beginning": (beginning, {"sync_points": 3}, {}), "cut short": (cut_short, {"sync_points": 3}, {}),
    "pruned": (pruned, {"sync_points": 1}, {}), "merged": (merged, {"sync_points": 7}, {}), "rolled back": (rolled_back, {"sync_points": 7}, {}),
    "in a group": (runs, {"sync_points": 3}, {"grouped": True}), "on a block device": (cut_short, {"sync_points": 3}, {"block": True}),
    "preallocated": (runs, {"sync_points": 3}, {"connections": 2, "preallocates": True}),
}  # fmt: skip


SLOW = ("preallocated",)  # whose undo files are segments of 16 MiB, which recovery reads


def record(name, scratch, program, seed):
    """The Scene of one life."""
    function, options, how = LIVES[name]
    how = dict(how)
    with Recorder(scratch, program, preallocates=how.pop("preallocates", False)) as recorder:
        life = Life(recorder, scratch, random.Random(f"{seed}:{name}"), **options, **how)
        with life.ends:
            for _ in function(life):
                recorder.mark("start")
        records = recorder.records()
    return Scene(name, records, steps(records), life.images, life.options, next(at for at, each in enumerate(records) if each.names == ("start",)), "grouped" in how)


def steps(records):
    """The Step of every record. From when a source has folded its map on, it was told of the commit: the volume may not go back."""
    found, ends = [], [at for at, each in enumerate(records) if each.kind == log.MARK and each.names[0].startswith("end")]
    known = {at: [bytes.fromhex(word) for word in records[at].names[0].split()[1:]] for at in ends}
    folders, told, pending = {}, False, iter(ends)
    before, after = known[ends[0]], known[next(pending)]
    for at, each in enumerate(records):
        if at in known:
            before, after, told = known[at], known[next(pending, ends[-1])], False
            if each.names[0] == records[ends[-1]].names[0] and at == ends[-1]:
                after = before
        elif each.kind == log.MAKE_DIRECTORY:
            folders[each.node] = each.names[0] if each.directory not in folders else f"{folders[each.directory]}/{each.names[0]}"
        elif each.kind == log.RENAME and each.names == ("pending", "root") and folders[each.directory].startswith("sources"):
            told = True
        committed = {after[0]} if told else {before[0], after[0]}
        found.append(Step(frozenset(committed), frozenset(before[1:]) & frozenset(after[1:]) - {NO_ID}))
    return found
