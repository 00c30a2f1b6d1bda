"""Pairs: which job of which peer may write to which volume here. Default deny; the administrator of this host says so."""

import contextlib

from qrep import __version__, config, units
from qrep.daemon import asks
from qrep.daemon.once import Once
from qrep.errors import NotFound, ProtocolError, Refused, UsageError
from qrep.protocol.messages import is_too_fine
from qrep.retention import POINTS_MAX, Policy, parse_grid

SYNC_POINTS = POINTS_MAX  # of a replica whose pair is gone: nothing goes


class Pairs:
    """node: the Node. Answers what other agents ask; sessions on a pair are served by sessions.py."""

    def __init__(self, node):
        self.node = node
        self.once = Once(node)

    def answer(self, question, peer):
        """peer: the name of the host that asks, as this node knows it. Raises QrepError, which is what it is told."""
        if isinstance(question, asks.Hail):
            return {"name": self.node.name, "version": __version__, "trusted": self.node.peers.trusted(peer)}
        if isinstance(question, asks.CreatePair):
            return self.create(question, peer)
        if isinstance(question, asks.ChangePair):
            return self.change(question, peer)
        if isinstance(question, asks.DeletePair):
            return self.delete(question.job_id, peer)
        if isinstance(question, asks.GiveBack):
            return self.once.give_back(question.job_id, peer)
        if isinstance(question, asks.CommitGroup):
            return self.node.group_target.commit(question, peer)
        return self.node.roles.answer(question, peer)

    def create(self, question, peer, source=None):
        """Let a job write to a volume here, if this host's administrator said so (`accept`) and the device may be written.

        peer: name, or None for a job of this node. source: DeviceInfo of a local source.
        """
        _check(question)
        volume = self._volume(question, peer)
        where = f"{self.node.name}:{volume.name}" if peer else volume.name
        self._check_free(volume, where, question, peer)
        self._open(volume)
        notes = volume.check_target(
            source=source, size=question.size, leaf=question.leaf, overwrite=question.overwrite, known=False
        )
        self._check_shape(volume, where, question)
        if question.once:
            self.once.check(volume, where)
        if not question.check_only:
            wanted = wanted_of(question)
            volume.open_target(wanted=wanted, overwrite=True, source=source)
            volume.set_wanted(wanted)
            if question.once:
                self.once.begin(question.job_id, peer, volume, where)
            self.note(question, peer)
            self.node.events.add(
                "pair-created", f"job {question.job} of {peer or 'this host'} writes here", volume=volume.name, job=question.job
            )
        return {"volume_id": volume.settings.id, "size": volume.inspect().size, "notes": notes}

    def offered(self, question, peer):
        """The volume that a peer offers its job as its clone, if it may: everything that needs no look at the device."""
        _check(question)
        volume = self._volume(question, peer)
        self._check_free(volume, f"{self.node.name}:{volume.name}" if peer else volume.name, question, peer)
        return volume

    def check_known(self, peer):
        """The fingerprint of a peer's pinned key, "" for this host itself (None). Raises Refused if the peer was removed while it was connected."""
        fingerprint = self.node.peers.fingerprint(peer) if peer else ""
        if peer and not fingerprint:
            raise Refused(f"{self.node.name} does not know this host any more", hint=f"on {self.node.name}: qrep peer add", code="not-pinned")
        return fingerprint

    def note(self, question, peer):
        """Write the pair down, in place of those whose peer is not the host any more that made them. Raises Refused if that is this one by now."""
        fingerprint = self.check_known(peer)
        for pair in self.node.grants.pairs(question.volume):
            if not self.lives(pair):
                self.node.grants.drop_pair(pair["job_id"])
        if not question.once:
            self.node.grants.drop_once(question.job_id)
        self.node.grants.add_pair(
            question.job_id, peer=peer or "", fingerprint=fingerprint, job=question.job, source=question.source, volume=question.volume,
            size=question.size, sync_points=question.sync_points, keep=question.keep,
        )  # fmt: skip

    def lives(self, pair):
        """Whether a pair is still anybody's: the key that made it is the one that is pinned for its peer now. A name alone is worth nothing."""
        return not pair["peer"] or pair["fingerprint"] == self.node.peers.fingerprint(pair["peer"])

    def of_volume(self, volume):
        return [pair for pair in self.node.grants.pairs(volume) if self.lives(pair)]

    def _volume(self, question, peer):
        """The volume that was named. A peer that is not accepted learns nothing else of what is here."""
        try:
            volume = self.node.volumes.get(question.volume)
        except NotFound as error:
            raise NotFound(
                f"{self.node.name + ':' if peer else ''}{question.volume}: there is no such volume",
                hint=f"on {self.node.name}: qrep volume add {question.volume} DEVICE" + (f" --accept {peer}" if peer else ""),
                code="no-such-volume",
            ) from error
        self.check_accepted(volume, peer)
        return volume

    def check_accepted(self, volume, peer):
        """Raise Refused if this host's administrator does not let a peer write to a volume. peer: None for this host."""
        if peer is not None and peer not in volume.settings.accept:
            raise Refused(
                f"{self.node.name}:{volume.name} does not accept replication from this host",
                hint=f"on {self.node.name}: qrep volume set {volume.name} --accept {peer}",
                code="not-accepted",
            )

    def _check_free(self, volume, where, question, peer):
        for row in (self.node.grants.pair(question.job_id), self.node.grants.once(question.job_id)):
            if row is not None and row["peer"] != (peer or "") and self.lives(row):  # noting it would take the pair away from that one
                raise Refused(f"{where}: another host has a job of this id here", hint="delete the job and create it again", code="job-id-taken")
        taken = [pair for pair in self.of_volume(volume.name) if pair["job_id"] != question.job_id]
        if taken:
            raise Refused(
                f"{where} is the target of job {taken[0]['job']} of {taken[0]['peer'] or 'this host'} already",
                hint="a volume takes one source; delete that job first",
                code="target-taken",
            )
        attached = self.node.attachments.of_volume(volume.name)
        if attached:  # the checks that follow let go of the device for a moment
            raise Refused(f"{where}: {attached[0]} is attached", hint=f"there: qrep detach {attached[0]}", code="attached")
        if volume.role() == "primary":
            raise Refused(
                f"{where} is primary: its host writes it since it was promoted", code="primary",
                hint=f"there: qrep volume remove {volume.name}, and add it again; what it holds is then overwritten by the first run",
            )  # fmt: skip
        if volume.name in self.node.jobs.sources():
            raise Refused(
                f"{where} is itself the source of a job",
                hint="cascading is not possible; choose another target volume",
                code="cascading",
            )

    def _open(self, volume):
        """What a replica holds whose device was away, or busy, when it was wanted last is not known before it is open. Raises what keeps it from that."""
        if volume.target is None and volume.is_replica():
            volume.open_target(wanted=self.policy_of(volume.name), claim_wait=0)

    @staticmethod
    def _check_shape(volume, where, question):
        """A volume with sync points keeps the shape they were made in."""
        if volume.target is None:
            return
        status = volume.target.status()
        wanted = {"size": question.size, "leaf_size": question.leaf, "granule_size": question.granule}
        different = [f"{key.replace('_', ' ')} {status[key]} there, {value} here" for key, value in wanted.items() if status[key] != value]
        if status["committed_id"] and different:
            raise Refused(
                f"{where} has sync points of a source of another shape: {', '.join(different)}",
                hint=f"there: qrep volume remove {volume.name}, and add it again; its sync points are lost then",
                code="other-shape",
            )

    def change(self, question, peer):
        pair = self._pair(question.job_id, peer)
        volume = self.node.volumes.get(pair["volume"])
        self.check_accepted(volume, peer)
        volume.set_wanted(wanted_of(question))
        self.node.grants.set_pair_retention(question.job_id, question.sync_points, question.keep)
        return {}

    def delete(self, job_id, peer):
        """The volume stays claimed and keeps its sync points until it is removed, or a new job takes it."""
        self.once.forget(job_id, peer)
        pair = self._pair(job_id, peer)
        self.node.grants.drop_pair(job_id)
        self.node.roles.restoring.unpin(job_id)
        self.node.events.add(
            "pair-deleted", f"job {pair['job']} of {pair['peer'] or 'this host'}", volume=pair["volume"], job=pair["job"]
        )
        with contextlib.suppress(NotFound):  # the volume is gone as well
            self.node.volumes.abandon(self.node.volumes.get(pair["volume"]), f"job {pair['job']} was deleted")
        return {}

    def _pair(self, job_id, peer):
        pair = self.node.grants.pair(job_id)
        if pair is None or pair["peer"] != (peer or "") or not self.lives(pair):
            raise NotFound("no such pair here", code="no-such-pair")
        return pair

    def policy_of(self, volume):
        """The retention.Policy that the source of a volume's pair asks for; without a pair nothing is given up, by a rollback for one."""
        pairs = self.node.grants.pairs(volume)
        return Policy(pairs[0]["sync_points"], parse_grid(pairs[0]["keep"])) if pairs else Policy(SYNC_POINTS)


def wanted_of(question):
    """The retention.Policy of CreatePair or ChangePair, checked. Raises UsageError."""
    if not 0 <= question.sync_points <= asks.SYNC_POINTS_MAX:
        raise UsageError(f"{question.sync_points} sync points", hint=f"0 to {asks.SYNC_POINTS_MAX}")
    return Policy(question.sync_points, parse_grid(question.keep))


def _check(question):
    """Names that a peer sends are shown to people and become keys here."""
    config.check_name("volumes", question.volume)
    config.check_name("jobs", question.job)
    node, _, source = question.source.rpartition(":")
    config.check_name("volumes", source)
    if node:
        config.check_name("nodes", node)
    if len(question.job_id) != 32 or not set(question.job_id) <= set("0123456789abcdef"):
        raise ProtocolError("a job id is 32 hexadecimal digits")
    wanted_of(question)
    if not 0 < question.size < 1 << 63:
        raise ProtocolError("a pair of an impossible size")
    for value in (question.leaf, question.granule):
        if not 4096 <= value <= 64 << 20 or value & (value - 1):
            raise ProtocolError("a pair of an impossible shape")
    if is_too_fine(question.size, question.granule):
        raise Refused(
            f"{units.format_size(question.size)} in granules of {units.format_size(question.granule)} take too much memory at both ends", code="too-fine",
            hint="qrep volume add --granule 8M, where the source is",
        )  # fmt: skip
