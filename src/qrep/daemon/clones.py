"""Local clones, and their conversion to replication: a clone is a job of mode clone whose target is on this host.

    create     a job, named like its source; its runs are as those of all jobs: the next one brings what changed
    convert    only while the target holds what the job's map describes. One durable step, the job's file: it is then a job without a target, which
               waits for its disk (`moved`); its map stays, and so every later change is found. The volume is let go afterwards, at the next start
               if a crash comes between.
    rebuild    jobs/rebuild.py and daemon/rebuilds.py

The volume's device is held like that of every replica until convert, or delete, lets it go.
"""

import contextlib

import msgspec

from qrep import config, store
from qrep.crashpoint import crashpoint
from qrep.digestmap import NO_ID, DigestMap
from qrep.digesttree import has_unknown
from qrep.daemon.rebuilds import tidy
from qrep.errors import NotFound, QrepError, Refused
from qrep.jobs.shown import job_dict

SYNC_POINTS = 7  # of the job that a clone becomes


class Clones:
    """node: the Node."""

    def __init__(self, node):
        self.node = node

    def all(self):
        return [runner for _name, runner in self.node.jobs.all() if runner.settings.mode == "clone"]

    def get(self, source):
        """The JobRunner of the clone of a volume. Raises NotFound."""
        for runner in self.all():
            if runner.settings.source == source:
                return runner
        converted = [name for name, runner in self.node.jobs.all() if runner.settings.source == source and runner.settings.moved]
        hint = f"it was converted: qrep job show {converted[0]}" if converted else f"qrep clone create {source} TARGET; qrep clone lists them"
        raise NotFound(f"there is no clone of {source}", hint=hint, code="no-such-clone")

    def create(self, *, source, target, name=None, overwrite=False, dry_run=False):
        if ":" in target:
            raise Refused(
                f"{target} is on another host, and a clone is local",
                hint=f"qrep job create NAME --source {source} --target {target}; a disk that is carried there is a clone of a volume here", code="not-local",
            )  # fmt: skip
        with contextlib.suppress(NotFound):
            known = self.get(source)
            raise Refused(f"{source} has a clone already: {known.settings.target}", hint=f"qrep clone show {source}", code="clone-exists")
        name = name or source
        if name in dict(self.node.jobs.all()):
            raise Refused(
                f"there is a job called {name} already, and a clone is a job too", hint=f"qrep clone create {source} {target} --name JOB", code="name-taken"
            )
        return self.node.jobs.create(
            name=name, source=source, target=target, overwrite=overwrite, dry_run=dry_run, mode="clone", sync_points=0
        )

    def shown(self, runner):
        """As the local API shows it (docs/API.md: CLONE)."""
        job, settings = job_dict(runner), runner.settings
        with contextlib.suppress(QrepError):
            job["device"] = self.node.volumes.get(settings.target).settings.device
        return {
            "source": settings.source, "target": settings.target, "device": job.get("device"), "job": runner.name, "state": job["state"],
            "size": settings.size, "counter": job["counter"], "generation": job["generation"], "time": job["last_sync_point"], "fuzzy": job["fuzzy"],
            "root": job["root"], "progress": job["progress"], "problem": job["problem"], "last_run": job["last_run"],
        }  # fmt: skip

    # ---- to replication ----

    def convert(self, source, dry_run=False):
        """Let the job wait for its disk elsewhere. Raises Refused unless the clone is finished. Returns what there is to say."""
        runner = self.get(source)
        self._check_not_attached(runner.settings.target)
        runner.begin("convert")
        done = False
        try:
            volume, settings = self.node.volumes.get(runner.settings.target), runner.settings
            counter, generation = self._check_finished(runner, volume)
            answer = {"job": runner.name, "source": source, "volume": volume.name, "device": volume.settings.device, "counter": counter, "generation": generation}
            if dry_run:
                return answer
            fields = {"mode": "async", "target": "", "moved": f"the disk of {volume.name} ({volume.settings.device})", "sync_points": SYNC_POINTS}
            changed = msgspec.convert(msgspec.to_builtins(settings) | fields, config.Job)
            crashpoint("clone-convert-before")
            self.node.config.save("jobs", runner.name, changed)
            crashpoint("clone-convert-durable")
            self.node.jobs.become(runner.name, changed)
            done = True
        finally:
            if not done:
                runner.end()
        self._let_go(volume, settings.id)
        self.node.events.add(
            "clone-converted", f"{volume.settings.device} can be moved; changes are tracked from generation {counter} on", job=runner.name,
            volume=volume.name, counter=counter, generation=generation,
        )  # fmt: skip
        return answer

    def _check_not_attached(self, volume):
        attached = self.node.attachments.of_volume(volume)
        if attached:
            raise Refused(f"{attached[0]} is attached", hint=f"qrep detach {attached[0]}", code="volume-in-use")

    def _check_finished(self, runner, volume):
        """(counter, generation) of a clone whose disk holds exactly what this host's map says; its leaf values are durable from now on."""
        status = volume.replica().status()
        request = runner.request()
        digest_map = DigestMap(request.map_directory, request.geometry, request.volume_id)
        try:
            finished = status["committed_id"] and not status["open"] and digest_map.tag.hex() == status["committed_id"] and digest_map.tag != NO_ID
            if not finished or has_unknown(digest_map.states):
                raise Refused(
                    f"the clone of {runner.settings.source} is not finished", hint=f"qrep clone start {runner.settings.source} --wait", code="not-finished"
                )
            store.flush(digest_map.leaves_fd, f"{request.map_directory}/leaves")  # a rebuild finds with them which leaves were changed on the way
        finally:
            digest_map.close()
        return status["committed_counter"], status["committed_id"]

    def _let_go(self, volume, job_id):
        """The superblock goes first, then the pair, so that a crash before the end is seen at the next start."""
        volume.forget_target()
        crashpoint("clone-let-go")
        self.node.grants.drop_pair(job_id)

    def settle(self):
        """At start, before any device is claimed: volumes whose conversion was decided and that were not let go, and rebuilds that were not tidied up."""
        for _name, runner in self.node.jobs.all():
            if runner.settings.has_target:
                tidy(self.node.state.path, runner.settings)
            pair = None if runner.settings.target else self.node.grants.pair(runner.settings.id)
            if pair is None or pair["peer"]:
                continue
            try:
                self._let_go(self.node.volumes.get(pair["volume"]), runner.settings.id)
            except NotFound:  # the volume was removed meanwhile
                self.node.grants.drop_pair(runner.settings.id)

    def delete(self, source):
        """Forget the clone; its device keeps its bytes and is nobody's replica any more."""
        runner = self.get(source)
        target = runner.settings.target
        self._check_not_attached(target)
        self.node.jobs.delete(runner.name)
        with contextlib.suppress(NotFound):
            volume = self.node.volumes.get(target)
            if not self.node.grants.pairs(target):
                volume.forget_target()
        return {"deleted": source, "target": target}
