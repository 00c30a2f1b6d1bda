"""Defects that the trials must notice: in what is written (the recorded log is changed) and in recovery (the shipping code is).

One is noticed when a state breaks the promise that the defect is about; a patch that fits the code no more breaks none. control() tries the states of a
scene without any defect, and nothing may be noticed then.
"""

import logging
import os
import threading
from typing import NamedTuple

from crash import recorder as log
from crash import scenes, undofile
from crash.harness import RUNS, Bench, Counts, Failure
from crash.model import World
from crash.trial import COMMITTED, CONTENT, MAPS, POINTS, QUIET, RECORDS, SERVICE
from qrep.protocol import actions as do
from qrep.protocol.target_machine import TargetMachine
from qrep.source.flow import Run
from qrep.target import undoplaces
from qrep.target.driver import TargetDriver
from qrep.target.groupcommit import GroupCommits
from qrep.target.undostore import UndoStore

NOTHING = log.Record(log.MARK, names=("nothing",))
LIMIT, RECOVERIES = 60, 40


class NotCaught(AssertionError):
    """A defect was not noticed, or something else went wrong in its place."""


def any_record(record):
    return True


def durable_record(record):
    return record.durable


class Canary(NamedTuple):
    """scene: in which it shows. breaks: promises (trial.Lie), one of which it breaks. edit: function of (records, paths) that returns other records, or None.
    patch: function of a MonkeyPatch, or None. doubles: whether it takes a crash of recovery to see it, and then only: of which records recovery is looked
    at. runs: the share of states on which a run follows."""

    scene: str
    breaks: tuple
    edit: object = None
    patch: object = None
    doubles: bool = False
    only: object = any_record
    runs: float = RUNS

    @property
    def control(self):
        """What control() takes: equal for those that are tried on the same states."""
        return self.scene, self.doubles, self.only, self.runs


def paths_of(records):
    """What each record is about: the path its file had then, or the directory's."""
    world, found = World(), []
    for record in records:
        if record.kind in (log.WRITE, log.ZERO, log.SIZE, log.SYNC):
            found.append(world.paths().get(record.node, ""))
        elif record.kind == log.MARK:
            found.append("")
        else:
            found.append(world.folders[record.node if record.kind == log.SYNC_DIRECTORY else record.directory].path)
        if record.kind:
            world.apply(record)
    return found


def without(kind, fits):
    """Records of a kind are left out, where fits(path, record, the ones before it)."""

    def edit(records, paths):
        begin = next(at for at, each in enumerate(records) if each.names == ("start",))
        found = [at for at in range(begin, len(records)) if records[at].kind == kind and fits(paths[at], records[at], records[:at])]
        return [NOTHING if at in found else each for at, each in enumerate(records)]

    return edit


def is_undo(path, *_others):
    return path.endswith(".undo")


def is_device(path, *_others):
    return path == "device"


def follows(offset):
    """The last write to the same file was at this offset."""

    def fits(path, record, before):
        last = last_write(record, before)
        return is_undo(path) and last is not None and last.offset == offset

    return fits


def last_write(record, before):
    return next((each for each in reversed(before) if each.kind == log.WRITE and each.node == record.node), None)


def follows_a_batch(path, record, before):
    last = last_write(record, before)
    return last is not None and last.offset >= undofile.SEGMENT


def moved(pick, before):
    """The first record that `pick` finds from the start on goes in front of the last one before it, or behind the first one after it, that `before` finds.
    Both: of (path, record)."""

    def edit(records, paths):
        begin = next(at for at, each in enumerate(records) if each.names == ("start",))
        for at in range(begin, len(records)):
            if pick(paths[at], records[at]):
                to = next((other for other in range(at - 1, begin, -1) if before(paths[other], records[other])), None)
                if to is not None:
                    return [*records[:to], records[at], *records[to:at], *records[at + 1 :]]
        raise ValueError("there is nothing to be moved")

    return edit


def gathered(pick, fits):
    """What `pick` finds until the device is flushed for the first time comes before the first record that fits. Both: of (path, record)."""

    def edit(records, paths):
        begin = next(at for at, each in enumerate(records) if each.names == ("start",))
        end = next(at for at in range(begin, len(records)) if is_device(paths[at]) and records[at].kind == log.SYNC)
        to = next(at for at in range(begin, end) if fits(paths[at], records[at], records[:at]))
        picked = [at for at in range(to, end) if pick(paths[at], records[at])]
        return [*records[:to], *(records[at] for at in picked), *(each for at, each in enumerate(records[to:], to) if at not in picked)]

    return edit


def is_batch(path, record):
    return record.kind == log.WRITE and is_undo(path) and record.offset >= undofile.SEGMENT


def not_asked_to_be_durable(records, paths):
    begin = next(at for at, each in enumerate(records) if each.names == ("start",))
    return [*records[:begin], *(each._replace(durable=False) for each in records[begin:])]


def commits(path, record):
    return path == "target/superblock" and record.kind == log.WRITE and not any(record.data[88:104])


# ---- defects of recovery ----


class Instead:
    """A module of which one name is another thing."""

    def __init__(self, module, **others):
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name):
        return getattr(self._module, name)


def skips_the_first_logged(patch):
    patch.setattr(undoplaces, "undo", Instead(undoplaces.undo, restore_order=lambda places: sorted(places, key=lambda one: one.sequence, reverse=True)[:-1]))


def believes_a_torn_batch(patch):
    def restore(self, base, new, attempt, device_fd, **_options):
        buffered = os.open(f"/proc/self/fd/{device_fd}", os.O_RDWR)
        with open(f"{self.directory.path}/{self.name(new)}", "rb") as file:
            data = file.read()
        found = []
        for at in range(undofile.SEGMENT, len(data), undofile.PAGE):
            if data[at : at + 8] == b"QREPBTCH" and data[at + 16 : at + 32] == base:
                count = int.from_bytes(data[at + 12 : at + 16], "little")
                payload = at + -(-(144 + 16 * count) // undofile.PAGE) * undofile.PAGE
                for number in range(min(count, 100)):
                    offset, size, kind = undofile.struct.unpack_from("<QII", data, at + 144 + 16 * number)
                    part = data[payload : payload + size] if kind == undofile.DATA else b""
                    found.append((offset, part.ljust(size, b"\0")))
                    payload += size if kind == undofile.DATA else 0
        for offset, part in reversed(found):
            os.pwrite(buffered, part, offset)
        os.close(buffered)
        return len(found)

    patch.setattr(UndoStore, "restore", restore)


def handles(patch, action, handler):
    patch.setitem(TargetDriver._handlers, action, handler)


def does_not_flush_what_it_put_back(patch):
    handles(patch, do.FlushDevice, lambda self, action: None)


def clears_open_before_the_flush(patch):
    restored = TargetMachine.undo_restored

    def reordered(self):
        flush, *rest = restored(self)
        return [*rest, flush]

    patch.setattr(TargetMachine, "undo_restored", reordered)


def trusts_an_unflushed_superblock(patch):
    handles(patch, do.ConfirmSuperblock, lambda self, action: None)


def takes_any_map(patch):
    def settle(self, action):
        self._end_attempt()
        if self.digest_map.pending is not None:
            self.digest_map.fold(self.digest_map.pending.tag)
        self.digest_map.tag = action.committed

    handles(patch, do.SettleMap, settle)


def goes_forward(patch):
    start = TargetMachine.start

    def started(self, has_checkpoint, decided=None):
        if self.record.open_attempt:
            self.record = self.record.committed()
            return [do.WriteSuperblock(self.record), *start(self, has_checkpoint, decided)]
        return start(self, has_checkpoint, decided)

    patch.setattr(TargetMachine, "start", started)


def forgets_sync_points(patch):
    def prune(self, committed, history=()):
        for name in self.directory.names():
            if name != self.name(committed):
                self.directory.remove(name)
        return self.chain(committed, history)

    patch.setattr(UndoStore, "prune", prune)


def forgets_group_records(patch):
    patch.setattr(GroupCommits, "decided", lambda self, volume_id, is_open: None)


def tells_an_internal_error(patch):
    restore = UndoStore.restore

    def restored(self, *arguments, **options):
        try:
            raise KeyError("swallowed")
        except KeyError:
            logging.getLogger("qrep.target").exception("undo")
        return restore(self, *arguments, **options)

    patch.setattr(UndoStore, "restore", restored)


def loses_a_thread(patch):
    run = Run.run

    def running(self, *arguments, **options):
        thread = threading.Thread(target=int, args=("none",))
        thread.start()
        thread.join()
        return run(self, *arguments, **options)

    patch.setattr(Run, "run", running)


CANARIES = {
    "undo is not flushed": Canary("runs", (SERVICE,), without(log.SYNC, is_undo)),
    "data are written before their before-images": Canary("runs", (CONTENT,), gathered(is_device, lambda path, each, _before: is_batch(path, each))),
    "data are written before the flush of their before-images": Canary(
        "runs", (CONTENT,), gathered(is_device, lambda path, each, before: is_undo(path) and each.kind == log.SYNC and follows_a_batch(path, each, before))
    ),
    "the device is not flushed before the commit": Canary("runs", (CONTENT,), without(log.SYNC, is_device)),
    "the commit is written before the device is flushed": Canary("runs", (CONTENT,), moved(commits, lambda path, each: is_device(path) and each.kind == log.SYNC)),
    "the commit is not flushed": Canary("runs", (COMMITTED,), not_asked_to_be_durable),
    "the name of the undo file is not flushed": Canary("runs", (SERVICE,), without(log.SYNC_DIRECTORY, lambda path, *_: path == "target/undo/")),
    "the number of batches is not flushed": Canary("runs", (POINTS,), without(log.SYNC, follows(undofile.COPY))),
    "a superblock is renamed before it is flushed": Canary("beginning", (RECORDS,), without(log.SYNC, lambda path, *_: path.startswith("target/superblock."))),
    "a checkpoint is saved before the device is flushed": Canary("beginning", (MAPS,), without(log.SYNC, is_device)),
    "what was put back is not flushed before its undo goes": Canary("cut short", (CONTENT,), without(log.SYNC, is_device)),
    "a merged undo file is renamed before it is flushed": Canary("merged", (POINTS,), without(log.SYNC, lambda path, *_: path.endswith(".tmp"))),
    "what was merged goes before what it became is there": Canary("merged", (POINTS,), moved(lambda path, each: each.kind == log.REMOVE, lambda path, each: each.kind == log.RENAME)),
    "a rollback does not flush its undo": Canary("rolled back", (SERVICE,), without(log.SYNC, is_undo)),
    "the record of a group is renamed before it is flushed": Canary("in a group", (RECORDS,), without(log.SYNC, lambda path, *_: path.startswith("groups/"))),
    "recovery forgets the record of a group": Canary("in a group", (COMMITTED,), patch=forgets_group_records),
    "recovery skips the last undo record": Canary("runs", (CONTENT,), patch=skips_the_first_logged),
    "recovery believes a torn record": Canary("runs", (CONTENT,), patch=believes_a_torn_batch),
    "recovery takes what is open for committed": Canary("runs", (COMMITTED,), patch=goes_forward),
    "recovery takes the map of another generation": Canary("runs", (MAPS,), patch=takes_any_map),
    "recovery removes sync points": Canary("rolled back", (POINTS,), patch=forgets_sync_points),
    "recovery does not flush what it put back": Canary("runs", (CONTENT,), patch=does_not_flush_what_it_put_back, doubles=True),
    "recovery clears `open` and drops the undo before its flush": Canary("runs", (CONTENT,), patch=clears_open_before_the_flush, doubles=True),
    "recovery trusts a superblock that is not durable": Canary("runs", (COMMITTED,), patch=trusts_an_unflushed_superblock, doubles=True, only=durable_record),
    "recovery meets a fault of its own and goes on": Canary("runs", (QUIET,), patch=tells_an_internal_error),
    "a thread of a run that follows ends with an exception": Canary("runs", (QUIET,), patch=loses_a_thread, runs=1 / 20),
}  # fmt: skip


def noticed(bench, doubles, only):
    """The Failure, None without one."""
    counts = Counts()
    bench.keeping = False
    try:
        if doubles:
            bench.doubles(counts, RECOVERIES, LIMIT, only=only)
        else:
            bench.singles(counts, LIMIT)
    except Failure as failure:
        return failure
    if not counts.recovered:
        raise NotCaught("no state was tried")
    return None


def control(scene, wanted, directory, program, seed, told):
    """Nothing is noticed in the states of a Scene without a defect. wanted: Canary.control. Raises Failure."""
    _name, doubles, only, runs = wanted
    failure = noticed(Bench(directory, program, scene, seed, told, runs), doubles, only)
    if failure is not None:
        raise failure


def caught(canary, directory, program, scene, seed, told, monkeypatch):
    """What the trials said of a defect. scene: the Scene of canary.scene. Raises NotCaught."""
    if canary.edit is not None:
        records = canary.edit(scene.records, paths_of(scene.records))
        changed = next(at for at, (one, other) in enumerate(zip(records, scene.records, strict=True)) if one != other)
        scene = scene._replace(records=records, steps=scenes.steps(records), first=changed)  # until there it is the log as it was
    with monkeypatch.context() as patch:
        if canary.patch is not None:
            canary.patch(patch)
        failure = noticed(Bench(directory, program, scene, seed, told, canary.runs), canary.doubles, canary.only)
    if failure is None:
        raise NotCaught("nobody noticed")
    if failure.promise not in canary.breaks:
        raise NotCaught(f"something else went wrong than {' or '.join(canary.breaks)}: {failure}")
    return str(failure)
