"""A small replica and its past, as trees of files that each point of the sweep begins with; and whole acts of qrep's upon it.

64 leaves in 8 granules. Everything is as in an agent but for the look at who else uses a device, which costs more than all the rest.
"""

import contextlib
import functools
import os
import random
import shutil
from pathlib import Path

from fault.rot import Tree
from flow.harness import JOB, Site
from iofail.records import Records

from qrep import crashpoint, devicesafety, deviceusers, filesystems
from qrep.errors import NotFound, Unsynced
from qrep.source.verify import verify

LEAF, GRANULE, SIZE = 4 << 10, 32 << 10, 256 << 10
OPTIONS = {"leaf_size": LEAF, "granule_size": GRANULE, "sync_points": 2}
RUN = {"connections": 1, "slots": 1, "frame_limit": 64 << 10, "timeout_s": 0.0}  # one lane, one read at a time: the n-th call is the same each time


def drawn(chance, image):
    """A later content: leaves rewritten, a granule zeroed, one that was zero filled."""
    data = bytearray(image)
    for leaf in chance.sample(range(SIZE // LEAF), 40 if not any(image) else 14):
        data[leaf * LEAF : (leaf + 1) * LEAF] = chance.randbytes(LEAF)
    zeroed, filled = chance.sample(range(SIZE // GRANULE), 2)
    data[zeroed * GRANULE : (zeroed + 1) * GRANULE] = bytes(GRANULE)
    data[filled * GRANULE : filled * GRANULE + LEAF] = chance.randbytes(LEAF)
    return bytes(data)


class Replica:
    """images: {counter: content}; images[4] is what the source holds in the trees of the acts. trees: {name: Tree}."""

    def __init__(self, directory, seed):
        self.directory, self.images, self.trees = Path(directory), {0: bytes(SIZE)}, {}
        self.records = Records(self.directory)
        devicesafety.check_target = lambda *arguments, **options: []
        deviceusers.users = lambda info: []
        filesystems.mounts = functools.cache(filesystems.mounts)
        chance = random.Random(seed)
        for counter in range(1, 5):
            self.images[counter] = drawn(chance, self.images[counter - 1])
        self._make()

    @contextlib.contextmanager
    def site(self):
        """Open, and closed whatever happens."""
        with contextlib.closing(Site(self.directory, self.path_of("source"), self.path_of("device"), **OPTIONS)) as site:
            yield site.open()

    def tree(self):
        """All there is now: files that can be put back."""
        return Tree(self.directory)

    def put(self, name, content):
        (self.directory / name).write_bytes(content)

    def path_of(self, name):
        """Of source or device."""
        return self.directory / name

    def clear(self):
        for path in self.directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _make(self):
        self.clear()
        self.put("device", bytes(SIZE))
        self.put("source", self.images[4])
        self.trees["empty"] = self.tree()
        for counter in range(1, 4):
            self.put("source", self.images[counter])
            with self.site() as site:
                site.run(**RUN)
        self.put("source", self.images[4])
        self.trees["changed"] = self.tree()  # three generations are there, the fourth waits
        self._dies(lambda: self._run_once(), "target-flush-before:1")
        self.trees["open"] = self.tree()  # all of the fourth is on the device, nothing of it flushed
        self.trees["changed"].restore()
        self._dies(lambda: self._run_once(), "superblock-write-durable:3")
        self.trees["lost-ack"] = self.tree()
        self.trees["changed"].restore()
        self._run_once()
        self.trees["committed"] = self.tree()
        damaged = bytearray(self.images[4])
        damaged[5 * LEAF : 6 * LEAF] = b"\xaa" * LEAF
        self.damaged = bytes(damaged)
        self.put("device", self.damaged)
        self.trees["rotten"] = self.tree()

        self.trees["committed"].restore()
        self.records.make()
        self.trees["recorded"] = self.tree()

    def _run_once(self):
        with self.site() as site:
            site.run(**RUN)

    @staticmethod
    def _dies(what, at):
        pid = os.fork()
        if not pid:
            crashpoint.arm(at)
            what()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 9, f"it was to die at {at}"

    # ---- acts: what they reached, as {"done": whether, "counter": of the committed generation, ...}; they raise QrepError or OSError ----

    def act_first(self):
        return self._act_run()

    act_second = act_first
    act_settle = act_first

    def _act_run(self):
        with self.site() as site:
            report = site.run(**RUN)
            return {"done": True, "counter": report.counter, "root": report.root}

    def act_recover(self):
        with self.site() as site:
            return {"done": not site.volume.damaged, "counter": 3, "damaged": site.volume.damaged}

    def act_rollback(self):
        with self.site() as site:
            return {"done": True, "counter": site.volume.rollback(self._point(site, 2)).counter}

    def act_merge(self):
        """The point between goes, its undo file becomes part of another."""
        with self.site() as site:
            site.volume.delete_point(self._point(site, 3))
            return {"done": True, "counter": 4}

    def act_verify(self):
        with self.site() as site:
            healed = self.repair(site)
            return {"done": True, "counter": 4, "healed": healed}

    @staticmethod
    def repair(site):
        report = verify(site.make_run_request(), site.local.dial, repair=True)
        return report.as_dict()["repair"]["healed_leaves"]

    def act_records(self):
        self.records.change()
        return {"done": True, "counter": 4}

    def act_copy(self):
        with self.site() as site:
            site.volume.copy_out(self._point(site, 2), str(self.directory / "copy"))
            if (self.directory / "copy").read_bytes() != self.images[2]:
                return {"done": False, "error": "internal", "message": "what was copied out is not that sync point"}
            return {"done": True, "counter": 4}

    @staticmethod
    def _point(site, counter):
        for point in site.volume.sync_points():
            if point.counter == counter:
                return point.id
        raise NotFound(f"sync point {counter} is out of reach")

    def source_map(self):
        return self.directory / "sources" / JOB.hex() / "map"


TREE_OF = {
    "first": "empty", "second": "changed", "settle": "lost-ack", "recover": "open", "rollback": "committed", "merge": "committed", "verify": "rotten",
    "copy": "committed", "records": "recorded",
}  # fmt: skip
# Which generations may be the committed one afterwards, by counter.
ALLOWED = {"first": {0, 1}, "second": {3, 4}, "settle": {4, 5}, "recover": {3}, "rollback": {4, 5}, "merge": {4}, "verify": {4}, "copy": {4}, "records": {4}}


def points_wanted(act, counter):
    """The sync points that must be within reach where `counter` is committed: as many as the volume keeps, but for the one that the act takes away."""
    return {each for each in range(max(1, counter - 2), counter + 1) if not (act == "merge" and each == 3)}


__all__ = ["ALLOWED", "TREE_OF", "Replica", "Unsynced", "points_wanted"]
