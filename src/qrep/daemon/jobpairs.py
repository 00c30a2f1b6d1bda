"""What a job needs besides its file: room within the limits, and its pair at the target, which is here or asked of a peer."""

from qrep.daemon import asks
from qrep.daemon.jobpaths import resolved, ways_of
from qrep.errors import NotFound, Refused, Unreachable


def check_room(limits, jobs, source, target):
    """Refuse a job from `source` to `target` beyond what may be configured. limits: config.LimitsSection; jobs: the config.Jobs that are."""
    remote = ":" in target
    alike = sum((":" in job.target) == remote for job in jobs)
    kind = (limits.pairs_remote, "pairs_remote", "to other hosts") if remote else (limits.pairs_local, "pairs_local", "within this host")
    of_source = sum(job.source == source for job in jobs)
    for count, limit, key, what in ((of_source, limits.pairs_per_source, "pairs_per_source", f"with source {source}"), (alike, *kind)):
        if count >= limit:
            raise Refused(
                f"there are {count} jobs {what}, and no more than {limit} may be configured",
                hint=f"delete one (qrep job lists them), or raise limits.{key} in qrep.toml, then: qrep reload",
                code="too-many-jobs",
            )


class JobPairs:
    """node: the Node. Every method raises the QrepError of the side that refused."""

    def __init__(self, node):
        self.node = node

    def create(self, name, job, info, *, overwrite, check_only):
        """Let the target check itself and, unless check_only, take the job. info: DeviceInfo of the source. Returns what pairs.py answers."""
        peer, _, volume = job.target.rpartition(":")
        question = asks.CreatePair(
            job_id=job.id, job=name, source=f"{self.node.name}:{job.source}" if peer else job.source, volume=volume, size=job.size,
            leaf=job.leaf, granule=job.granule, sync_points=job.sync_points, keep=job.keep, overwrite=overwrite, check_only=check_only,
            once=job.mode == "copy",
        )  # fmt: skip
        return self.node.peers.reach(peer).ask(question, self._way(job)) if peer else self.node.pairs.create(question, None, source=info)

    def _way(self, job):
        """The first path of a job whose paths a person gave, as Reach.connect takes it; None: any."""
        if not job.paths:
            return None
        reach = self.node.peers.reach(job.target.rpartition(":")[0])
        return resolved(reach, ways_of(job.paths[0], reach.peer.addresses)[0])

    def via(self, job):
        """Which way the target was asked, in words; None: it is here."""
        peer, way = job.target.rpartition(":")[0], self._way(job)
        if not peer:
            return None
        reach = self.node.peers.reach(peer)
        source, address = way or (reach.source, reach.address)
        return f"{source or 'auto'} -> {address[0]}"

    def set_retention(self, job):
        peer = job.target.rpartition(":")[0]
        question = asks.ChangePair(job_id=job.id, sync_points=job.sync_points, keep=job.keep)
        self._ask(peer, question) if peer else self.node.pairs.change(question, None)

    def give_back(self, job):
        """Mode copy, once it is committed: the target lets its volume go."""
        peer = job.target.rpartition(":")[0]
        self._ask(peer, asks.GiveBack(job_id=job.id)) if peer else self.node.pairs.once.give_back(job.id, None)

    def delete(self, job):
        """Tell the target. Returns what is left there, in words, when it cannot be told."""
        peer = job.target.rpartition(":")[0]
        try:
            if job.role == "target":
                self.node.pairs.delete(job.id, peer or None)
            elif peer:
                self._ask(peer, asks.DeletePair(job_id=job.id))
            else:
                self.node.pairs.delete(job.id, None)
        except NotFound:
            pass  # the other side forgot it first
        except (Unreachable, Refused) as error:
            return f" ({peer or 'this host'} still has its pair record: {error.message})"
        return ""

    def _ask(self, peer, question):
        return self.node.peers.reach(peer).ask(question)
