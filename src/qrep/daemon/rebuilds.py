"""qrep job rebuild: a job that waits for its disk is given the volume that holds it now. source/rebuild.py has the steps; the last one is here: the
job's file, which names the volume from then on.
"""

import math
import os
import shutil
import threading
import time

import msgspec

from qrep import config, settings
from qrep.crashpoint import crashpoint
from qrep.daemon.jobpairs import check_room
from qrep.daemon.route import Route
from qrep.errors import Interrupted, QrepError, Refused
from qrep.protocol import messages as say
from qrep.protocol import transport
from qrep.store import Directory


def start(node, name, target, dry_run=False):
    """A task. Raises Refused if the job does not wait for a disk."""
    runner = node.jobs.get(name)
    if runner.settings.target or not runner.settings.moved:
        raise Refused(
            f"{name} does not wait for a disk: it replicates to {runner.settings.target}",
            hint="only the job of a converted clone can be rebuilt: qrep clone convert SOURCE", code="not-moved",
        )  # fmt: skip
    peer, colon, volume = target.rpartition(":")
    if colon:
        settings.check_name("peers", peer)
    settings.check_name("volumes", volume)
    check_room(node.settings.limits, [other.settings for _name, other in node.jobs.all() if other is not runner], runner.settings.source, target)
    runner.begin("rebuild")
    try:
        return node.tasks.start("rebuild", name, lambda task: _Rebuilding(node, runner, target, dry_run).run(task))
    except BaseException:
        runner.end()
        raise


class _Rebuilding:
    """What JobRunner follows: stopping it is closing its channel."""

    def __init__(self, node, runner, target, dry_run):
        self.node, self.runner, self.target, self.dry_run = node, runner, target, dry_run
        self._settings = msgspec.convert(msgspec.to_builtins(runner.settings) | {"target": target, "moved": ""}, config.Job)
        self._route = Route(node, runner.name, self._settings)
        self._channel, self._stopped = None, False
        self._engine = None
        self.progress = lambda: self._engine.progress() if self._engine is not None else None

    def stop(self):
        self._stopped = True
        if self._channel is not None:
            self._channel.close()

    def run(self, task):
        name, done = self.runner.name, False
        try:
            self.runner.follow(self)
            task.progress = self.runner.progress
            answer, done = self._run()
            return answer
        except QrepError as error:
            if self.runner.stopping:
                raise Interrupted(f"{name}: the rebuild was stopped; nothing was written to {self.target}") from error
            self.node.events.add("rebuild-refused", error.message, job=name, reason=error.code)
            raise
        finally:
            if not done:
                self.runner.end()

    def _run(self):
        from qrep.source.rebuild import Rebuild

        job, name = self.runner.settings, self.runner.name
        last = self.runner.last_committed() or {}
        offer = say.Offer(
            say.VERSION_MIN, say.VERSION_MAX, bytes.fromhex(job.id), name, job.source, self.target.rpartition(":")[2], job.size, job.leaf,
            job.granule, job.sync_points, job.keep,
        )  # fmt: skip
        self._engine = Rebuild(
            self.runner.request(), offer, self._dial, frozen_at_ns=last.get("frozen_at_ns") or 0, fuzzy=bool(last.get("fuzzy")), where=self.target,
            check_only=self.dry_run,
        )  # fmt: skip
        outcome = self._engine.run()
        answer = self._told(outcome)
        if self.dry_run:
            return answer, False
        changed = msgspec.convert(msgspec.to_builtins(self._settings) | {"target_volume": outcome.volume_id.hex()}, config.Job)
        self.node.config.save("jobs", name, changed)
        crashpoint("rebuild-noted")
        tidy(self.node.state.path, changed)
        if outcome.generation.hex() != last.get("generation"):  # what status tells of the target from now on
            found = {"generation": answer["generation"], "counter": outcome.counter, "root": outcome.root.hex() if outcome.root else None}
            self.node.db.add_run(job.id, time.time(), last | found | dict.fromkeys(("read", "changed", "sent", "seconds"), 0))
        self.node.events.add("job-rebuilt", f"{self.target} is its clone: {answer['text']}", job=name, generation=answer["generation"])
        self.node.jobs.become(name, changed)
        return answer, True

    def _dial(self):
        if self._route.paths is not None:
            self._channel = self._route.paths.dial()
        else:
            self._channel, target_end = transport.local_pair()
            source = self.node.volumes.get(self.runner.settings.source).inspect()
            threading.Thread(target=self._serve_here, args=(target_end, source), name=f"offer to {self.runner.name}", daemon=True).start()
        if self._stopped:
            self._channel.close()
        return self._channel

    def _serve_here(self, channel, source):
        self.node.offers.serve(channel, channel.receive(10.0), None, source)

    def _told(self, outcome):
        verdict = outcome.verdict
        if verdict is None:
            text, differing = "it was taken on before", 0
        elif verdict.exact:
            text, differing = "every byte is as it was", 0
        else:
            differing = verdict.differing_leaves
            text = f"{differing} {'leaf' if differing == 1 else 'leaves'} ({verdict.differing_bytes} bytes) changed on the way"
        return {
            "job": self.runner.name, "target": self.target, "generation": outcome.generation.hex(), "counter": outcome.counter,
            "percent": math.floor(100_000 * verdict.share) / 1000 if verdict else None, "differing_leaves": differing,
            "differing_bytes": verdict.differing_bytes if verdict else 0, "read": verdict.read if verdict else 0, "size": self.runner.settings.size,
            "target_size": outcome.size, "dry_run": self.dry_run, "adopted_before": verdict is None, "text": text,
        }  # fmt: skip


def tidy(state_path, job):
    """Once a job's file names the volume: the map that was made for it becomes the job's; those of the clone, and of volumes that were tried and not
    taken, are of no more use. Again at start, in case of a crash; nothing to do is the rule."""
    directory = os.path.join(state_path, "sources", job.id)
    entries = os.listdir(directory) if os.path.isdir(directory) else ()
    made = f"map-{job.target_volume}"
    for entry in entries:
        if entry.startswith("map-") and entry != made:
            shutil.rmtree(os.path.join(directory, entry))
    if made in entries:
        if "map" in entries:
            shutil.rmtree(os.path.join(directory, "map"))
        with Directory(directory) as sources:
            sources.rename(made, "map")
