"""Consistency groups at their target: who may have which volumes committed, then target/groupcommit.py."""

from qrep.errors import ProtocolError, Refused
from qrep.target.groupcommit import GroupCommits


class GroupTarget:
    """node: the Node. commits: GroupCommits, before any volume is recovered."""

    def __init__(self, node):
        self.node = node
        self.commits = GroupCommits(node.state.sub("groups"))

    def commit(self, question, peer):
        """Commit all members that a peer names, or None of this host. Raises QrepError, and then nothing has happened."""
        members = [self._member(member, peer) for member in question.members]
        self.commits.commit(_id(question.id), question.group, members)
        for member in question.members:
            pair = self.node.grants.pair(member.job_id)
            self.node.events.add("group-committed", f"group {question.group} of {peer or 'this host'}", volume=pair["volume"], job=pair["job"])
        return {}

    def _member(self, member, peer):
        """(TargetVolume, attempt, new, epoch), if this peer's job may write there: as at the begin of a session."""
        fingerprint, pair = self.node.pairs.check_known(peer), self.node.grants.pair(member.job_id)
        if pair is None or pair["peer"] != (peer or "") or (peer and pair["fingerprint"] != fingerprint):
            raise Refused(f"{self.node.name} has no pair for a member of this group", hint="delete the job and create it again", code="not-paired")
        volume = self.node.volumes.get(pair["volume"])
        if volume.settings.id != member.volume_id or (peer and peer not in volume.settings.accept):
            raise Refused(f"{self.node.name}:{volume.name} is not, or is not any more, for this job", code="not-accepted")
        if not (0 < member.attempt < 1 << 64 and 0 < member.epoch < 1 << 64):
            raise ProtocolError("a member of a group has an impossible number")
        return volume.replica(), member.attempt, _id(member.new), member.epoch

    def tell_unsettled(self):
        """At start: what a crash left of group commits."""
        names = {volume.settings.id: volume.name for volume in self.node.volumes.all()}
        if self.commits.damaged:
            self.node.events.add("group-damaged", self.commits.damaged)
        for group, volumes in self.commits.unsettled():
            text = ", ".join(names.get(volume.hex(), volume.hex()) for volume in volumes)
            self.node.events.add("group-unsettled", f"group {group} was committed; not brought forward yet: {text}")

    def close(self):
        self.commits.close()


def _id(text):
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 16 or not any(value):
        raise ProtocolError("an id is 32 hexadecimal digits")
    return value


