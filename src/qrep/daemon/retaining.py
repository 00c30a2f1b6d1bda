"""What this node does about how many sync points there are: taken out by hand, given up by policy, made with a name."""

import logging
import threading

from qrep.daemon.snapshots import Restoring, find
from qrep.errors import QrepError, Refused, UsageError
from qrep.settings import is_label

log = logging.getLogger("qrep.agent")


def plan_delete(node, _task, name, point):
    """What deleting it would mean: bytes of undo that are read and written, 0 for the oldest, whose file just goes."""
    target, found, _points = _earlier(node, name, point)
    size, merged = target.cost_of_deleting(found.id)
    return {"point": str(found.counter), "bytes": size, "merged": merged}


def delete_point(node, task, name, point):
    target, found, _points = _earlier(node, name, point)
    size, _merged = target.cost_of_deleting(found.id)
    progress = Restoring(size, "merging")
    task.progress = progress.shown
    freed = target.delete_point(found.id, lambda done, _total: progress(done))
    node.events.add("snapshot-deleted", f"{name}@{found.counter}", volume=name, counter=found.counter)
    return {"deleted": [str(found.counter)], "freed": max(0, freed)}


def _earlier(node, name, point):
    target, found, points = find(node, name, point)
    if found.current:
        raise Refused(
            f"{name}@{point} is what the volume holds now", hint="only earlier sync points can be deleted", code="current-point"
        )
    return target, found, points


def plan_thin(node, _task, name):
    """Counters of what the policy of now keeps, and of what it gives up."""
    target = node.volumes.get(name).replica()
    counters = {point.id: str(point.counter) for point in target.sync_points()}
    plan = target.retention()
    return {"keep": [counters[new] for new in plan.keep], "gone": [counters[new] for new in counters if new in {*plan.cut, *plan.merge}]}


def thin(node, task, name):
    would = plan_thin(node, task, name)
    gone = node.volumes.get(name).replica().thin()
    _tell(node, name, gone)
    return would


def _tell(node, name, gone):
    if gone:
        node.events.add("snapshots-thinned", f"{gone} sync points that nobody asks for any more are gone", volume=name, count=gone)


def create(node, volume, label="", dry_run=False):
    """A sync point of a source volume now: a run of each of its jobs, whose sync point bears the name. Returns {job: Task as a dict}."""
    node.volumes.get(volume)
    if label and not is_label(label):
        raise UsageError(
            f"{label!r} cannot name a sync point", hint="use letters, digits, '.', '_' and '-', at most 63, not digits alone, and no generation id"
        )
    jobs = [name for name, runner in node.jobs.active() if runner.settings.source == volume and runner.settings.has_target]
    if not jobs:
        raise Refused(
            f"{volume} is the source of no job that could make a sync point of it", code="no-jobs",
            hint="sync points of a target volume are made by the runs of its job, on the host of its source",
        )  # fmt: skip
    if dry_run:
        return {"jobs": jobs}
    return {name: task.as_dict() for name, task in node.jobs.starting.start(jobs, f"for sync point {label}" if label else "", label).items()}


class Retaining:
    """Gives up, in the background, what the policies of the volumes do not want. node: the Node."""

    def __init__(self, node):
        self.node = node
        self._seen = {}  # name -> for what it was looked at last: again only after a commit, or when what is wanted has changed
        self._going = set()
        self._lock = threading.Lock()

    def look(self):
        """Now and then, in a thread that may wait for nothing: what there is to do is done in another one."""
        for volume in self.node.volumes.all():
            target = volume.target
            if target is not None and target.time_to_note():
                threading.Thread(target=target.note_time, name=f"time of {volume.name}", daemon=True).start()
            state = target.retention_state() if target is not None and not target.damaged else None
            if state is None or self._seen.get(volume.name) == state:
                continue
            with self._lock:
                if volume.name in self._going:
                    continue
                self._going.add(volume.name)
            self._seen[volume.name] = state
            threading.Thread(target=self._thin, args=(volume.name, target), name=f"retention of {volume.name}", daemon=True).start()

    def _thin(self, name, target):
        try:
            _tell(self.node, name, target.thin(stopped=lambda: target.machine.phase != "idle"))
        except (QrepError, OSError) as error:
            if isinstance(error, QrepError) and error.code == "busy":  # a run has come: when it has ended
                log.info("%s: %s", name, error)
                self._seen.pop(name, None)
            else:
                self.node.events.add("retention-failed", str(error), volume=name)
        finally:
            with self._lock:
                self._going.discard(name)
