"""Pairs: which job of which peer may write to which volume here. Default deny; the administrator of this host says so."""

from qrep import __version__, config, devicesafety
from qrep.daemon import asks
from qrep.errors import NotFound, ProtocolError, QrepError, Refused
from qrep.protocol import transport

SYNC_POINTS = 7  # of a replica whose pair is gone


class Pairs:
    """node: the Node. Serves the three purposes of peer connections, each in the thread of its connection."""

    def __init__(self, node):
        self.node = node

    def serve_ask(self, stream, peer):
        asks.answer(stream, lambda question: self._answer(question, peer))

    def _answer(self, question, peer):
        if isinstance(question, asks.Hail):
            return {"name": self.node.name, "version": __version__}
        if isinstance(question, asks.CreatePair):
            return self.create(question, peer)
        if isinstance(question, asks.DeletePair):
            return self.delete(question.job_id, peer)
        raise ProtocolError(f"unknown question {question!r}")

    def create(self, question, peer, source=None):
        """Let a job write to a volume here, if this host's administrator said so (`accept`) and the device may be written.

        peer: name, or None for a job of this node. source: DeviceInfo of a local source.
        """
        config.check_name("volumes", question.volume)
        config.check_name("jobs", question.job)
        volume = self.node.volumes.get(question.volume)
        where = f"{self.node.name}:{volume.name}" if peer else volume.name
        if peer is not None and peer not in volume.settings.accept:
            raise Refused(
                f"{where} does not accept replication from this host",
                hint=f"on {self.node.name}: qrep volume set {volume.name} --accept {peer}",
                code="not-accepted",
            )
        taken = [pair for pair in self.node.db.pairs(volume.name) if pair["job_id"] != question.job_id]
        if taken:
            raise Refused(
                f"{where} is the target of job {taken[0]['job']} of {taken[0]['peer'] or 'this host'} already",
                hint="a volume takes one source; delete that job first",
                code="target-taken",
            )
        if any(runner.settings.source == volume.name for runner in self.node.jobs.runners.values()):
            raise Refused(
                f"{where} is itself the source of a job",
                hint="cascading is not possible; choose another target volume",
                code="cascading",
            )
        info = volume.inspect()
        notes = devicesafety.check_target(
            info,
            source=source,
            size_needed=question.size,
            overwrite=question.overwrite,
            known=volume.is_replica(),
            leaf_size=question.leaf,
        )
        if not question.check_only:
            target = volume.open_target(
                sync_points=question.sync_points, overwrite=True, source=source, size=question.size
            )
            target.set_sync_points(question.sync_points)
            self.node.db.add_pair(
                question.job_id,
                peer=peer or "",
                fingerprint=self.node.peers.all()[peer].fingerprint if peer else "",
                job=question.job,
                source=question.source,
                volume=volume.name,
                size=question.size,
                sync_points=question.sync_points,
            )
            self.node.events.add(
                "pair-created",
                f"job {question.job} of {peer or 'this host'} writes here",
                volume=volume.name,
                job=question.job,
            )
        return {"volume_id": volume.settings.id, "size": info.size, "notes": notes}

    def delete(self, job_id, peer):
        pair = self.node.db.pair(job_id)
        if pair is None or pair["peer"] != (peer or ""):
            raise NotFound("no such pair here", code="no-such-pair")
        self.node.db.drop_pair(job_id)
        self.node.events.add(
            "pair-deleted",
            f"job {pair['job']} of {pair['peer'] or 'this host'}",
            volume=pair["volume"],
            job=pair["job"],
        )
        return {}

    def sync_points_of(self, volume):
        pairs = self.node.db.pairs(volume)
        return pairs[0]["sync_points"] if pairs else SYNC_POINTS

    def serve_control(self, stream, peer):
        channel = transport.Channel(stream, "source")
        try:
            hello = transport.admit(channel)
            pair = self.node.db.pair(hello.job_id.hex()) if hasattr(hello, "job_id") else None
            if pair is None or pair["peer"] != peer or pair["fingerprint"] != self.node.peers.all()[peer].fingerprint:
                raise Refused(
                    f"{self.node.name} has no pair for this job",
                    hint="delete the job and create it again",
                    code="not-paired",
                )
            volume = self.node.volumes.get(pair["volume"])
            if volume.settings.id != hello.volume_id.hex():
                raise Refused(
                    f"{self.node.name}:{volume.name} is not the volume of this job any more",
                    hint="delete the job and create it again",
                    code="wrong-volume",
                )
            target = volume.replica()
        except QrepError as error:
            transport.refuse(channel, error)
            raise
        self.serve_target(target, channel, hello, pair["volume"], pair["job"])

    def serve_target(self, target, channel, hello, volume, job):
        try:
            target.serve(channel, self.node.rendezvous, hello)
        except transport.Disconnected:
            pass  # the ordinary end of a session; an open generation is kept for resume
        except QrepError as error:
            self.node.events.add("session-ended", error.message, volume=volume, job=job, reason=error.code)

    def serve_data(self, stream, peer):
        from qrep._native.connection import Connection

        channel = transport.Channel(stream, "source")
        join = transport.admit(channel)
        if not hasattr(join, "token"):
            raise ProtocolError("a data connection begins with Join")
        if (
            self.node.rendezvous.deliver(
                join.token, lambda index: Connection.stream(transport.welcome(channel, index), index)
            )
            is None
        ):
            raise ProtocolError("nobody waits for this data connection")
