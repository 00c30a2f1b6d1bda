"""A target volume as a member of a consistency group: what groupcommit.py asks of it."""

from qrep.errors import DamagedError, Refused


class Member:
    """Mixed into TargetVolume, whose lock, machine and name it uses. groups: GroupCommits of this node; None: it is never a member."""

    groups = None

    def group_decision(self, attempt, new, epoch):
        """What the record is to say. The caller holds the lock until group_decided(). Raises Refused (code not-prepared)."""
        if self.device_fd < 0 or self.machine is None or self.machine.phase == "faulted":
            raise Refused(f"{self.name} is not in service", code="not-prepared")
        try:
            return self.machine.decision(attempt, new, epoch)
        except Refused as err:
            raise Refused(f"{self.name}: {err.message}", hint=err.hint, code=err.code) from err

    def group_decided(self):
        """The record is durable: the superblock and all that follows."""
        self.execute(self.machine.decided())

    def _start_machine(self, record, has_checkpoint):
        """The actions of recovery. A record that cannot be read keeps a volume out of service that it may name."""
        try:
            decided = self.groups.decided(self.volume_id, bool(record and record.open_attempt)) if self.groups is not None else None
        except DamagedError as err:
            return self.machine.broken(f"{err.message}; {err.hint}")
        return self.machine.start(has_checkpoint, decided)

    def _settle_group(self, action):
        self.groups.settle(self.volume_id, action.new)
