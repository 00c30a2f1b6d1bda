"""What the local API does with sync points of a target volume here."""

import blake3

from qrep import device, settings
from qrep.errors import DamagedError, NotFound, Refused
from qrep.jobs.shown import iso

READ_SIZE = 4 << 20


def find(node, name, point):
    """(TargetVolume, SyncPoint, all SyncPoints) of VOLUME@POINT: its counter, its generation id, or the name it was given, of which the newest
    counts. Raises NotFound."""
    target = node.volumes.get(name).replica()
    points = target.sync_points()
    for found in points:
        if point and point in (str(found.counter), found.id.hex(), found.name):  # most have no name
            return target, found, points
    raise NotFound(f"{name}@{point}: no such sync point", hint=f"qrep snapshot {name} lists them", code="no-such-point")


def _time(point):
    return iso(point.frozen_at_ns or point.committed_at_ns)


def list_points(node, name):
    return [
        {
            "point": str(point.counter),
            "counter": point.counter,
            "id": point.id.hex(),
            "time": _time(point),
            "name": point.name,
            "fuzzy": point.fuzzy,
            "consistency": point.consistency or None,
            "undo_bytes": point.undo_bytes,
            "current": point.current,
            "root": node.db.root(point.id.hex()),
        }
        for point in node.volumes.get(name).replica().sync_points()
    ]


def _earlier(node, name, point):
    target, found, points = find(node, name, point)
    if found.current and not target.has_open_generation():
        raise Refused(f"{name} is at {point} already", hint=f"qrep snapshot {name}", code="already-there")
    return target, found, points


def plan_rollback(node, _task, name, point):
    _target, found, points = _earlier(node, name, point)
    newer = points[: points.index(found)]
    total = sum(each.undo_bytes for each in newer)
    if _target.has_open_generation():  # is given up first
        total += _target.undo.size(_target.machine.record.open_new_id)
    return {"point": point, "time": _time(found), "bytes": total, "fuzzy": found.fuzzy}


class Restoring:
    """Progress of bytes put somewhere, as the API shows it."""

    def __init__(self, total, phase="restoring"):
        self.total, self.done, self.phase = max(total, 1), 0, phase

    def __call__(self, done):
        self.done = done

    def shown(self):
        return {"phase": self.phase, "percent": round(100 * min(1.0, self.done / self.total), 1), "written": self.done}


def roll_back(node, task, name, point):
    target, found, _points = _earlier(node, name, point)
    progress = Restoring(plan_rollback(node, task, name, point)["bytes"])
    task.progress = progress.shown
    if target.abandon(f"rolled back to {name}@{point} by hand") and found.current:
        node.events.add("rolled-back", f"to generation {found.counter}, from an open one", volume=name, counter=found.counter)
        return {"point": point, "counter": found.counter, "time": _time(found), "root": node.db.root(found.id.hex())}
    root = node.db.root(found.id.hex())  # the content is that generation's, whatever number it bears afterwards
    after = target.rollback(found.id, progress)
    if root:
        node.db.add_root(target.volume_id.hex(), after.id.hex(), root)
    node.events.add(
        "rolled-back", f"to generation {found.counter}, now generation {after.counter}", volume=name, counter=after.counter
    )
    return {"point": point, "counter": after.counter, "time": _time(found), "root": root}


def copy_out(node, task, name, point, target, overwrite=False):
    """Write a sync point to a device, or to a file that is made when it is missing; then read it back."""
    settings.check_path(target, "target of the copy")
    volume, found, _points = find(node, name, point)
    size = volume.machine.record.size
    progress = Restoring(2 * size)
    task.progress = progress.shown
    volume.copy_out(found.id, target, overwrite=overwrite, progress=progress)
    root = _root_of(target, size, lambda done: progress(size + done))
    expected = node.db.root(found.id.hex())
    if expected is not None and root != expected:
        raise DamagedError(
            f"the copy of {name}@{point} has the root {root}, the sync point had {expected}",
            hint=f"do not use {target}; run qrep verify on the job of {name}",
        )
    node.events.add("snapshot-copied", f"{name}@{point} to {target}", volume=name, root=root)
    return {"point": point, "target": target, "size": size, "root": root, "checked": expected is not None}


def _root_of(path, size, progress):
    """The BLAKE3 of the first `size` bytes by the packaged blake3, past the page cache."""
    import mmap
    import os

    digest = blake3.blake3(max_threads=blake3.blake3.AUTO)
    fd = device.open_source(device.inspect(path))
    try:
        buffer = memoryview(mmap.mmap(-1, READ_SIZE))
        done = 0
        while done < size:
            got = os.preadv(fd, [buffer], done)
            if not got:
                raise DamagedError(f"{path} ended at {done} while it was read back")
            digest.update(buffer[: min(got, size - done)])
            done += got
            progress(done)
    finally:
        os.close(fd)
    return digest.hexdigest()
