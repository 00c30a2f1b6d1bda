"""What the local API does with sync points of a target volume here."""

import os

from qrep import device, devicesafety
from qrep.errors import NotFound, Refused
from qrep.jobs.run import iso


def find(node, name, point):
    """(TargetVolume, SyncPoint) of VOLUME@POINT; a point is named by its counter or its generation id. Raises NotFound."""
    target = node.volumes.get(name).replica()
    for found in target.sync_points():
        if point in (str(found.counter), found.id.hex()):
            return target, found
    raise NotFound(f"{name}@{point}: no such sync point", hint=f"qrep snapshot {name} lists them", code="no-such-point")


def list_points(node, name):
    target = node.volumes.get(name).replica()
    return [
        {
            "point": str(point.counter),
            "counter": point.counter,
            "id": point.id.hex(),
            "time": iso(point.frozen_at_ns),
            "fuzzy": point.fuzzy,
            "undo_bytes": point.undo_bytes,
            "current": point.current,
        }
        for point in target.sync_points()
    ]


def plan_rollback(node, _task, name, point):
    target, found = find(node, name, point)
    if found.current:
        raise Refused(f"{name} is at {point} already", hint=f"qrep snapshot {name}", code="already-there")
    return {
        "point": point,
        "time": iso(found.frozen_at_ns),
        "bytes": target.rollback_bytes(found),
        "fuzzy": found.fuzzy,
    }


def roll_back(node, task, name, point):
    target, found = find(node, name, point)
    if found.current:
        raise Refused(f"{name} is at {point} already", hint=f"qrep snapshot {name}", code="already-there")
    task.progress = target.progress
    after = target.rollback(found)
    node.events.add("rolled-back", f"to generation {found.counter}, now generation {after.counter}", volume=name)
    return {"point": point, "counter": after.counter, "time": iso(found.frozen_at_ns), "root": target.root()}


def copy_out(node, task, name, point, target, overwrite=False):
    """Write a sync point to a device, or to a file that is made when it is missing."""
    volume, found = find(node, name, point)
    if not os.path.isabs(target):
        raise Refused(f"{target}: not an absolute path", hint="the agent does not know your directory")
    made = not os.path.exists(target)
    if made:
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, volume.size)
        os.close(descriptor)
    info = device.inspect(target)
    devicesafety.check_target(info, source=volume.device, size_needed=volume.size, overwrite=overwrite or made)
    task.progress = volume.progress
    root = volume.copy_out(found, info)
    node.events.add("snapshot-copied", f"{name}@{point} to {target}", volume=name)
    return {"point": point, "target": target, "size": volume.size, "root": root}


def delete_point(node, name, point):
    target, found = find(node, name, point)
    if found.current:
        raise Refused(
            f"{name}@{point} is what the volume holds now",
            hint="only earlier sync points can be deleted",
            code="current-point",
        )
    dropped = target.delete_point(found)
    node.events.add("snapshot-deleted", f"{name}@{point}", volume=name)
    return {"deleted": [str(gone.counter) for gone in dropped]}
