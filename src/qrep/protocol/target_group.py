"""A target volume as a member of a consistency group: the third part of TargetMachine.

Members are committed all or none. The commit point of all is one durable record (target/groupcommit.py) that names of each volume the attempt and the
new id; it is written while every member is prepared and nothing else may happen to any. The superblocks follow it: now, or, after a crash, at the next
start, where start() is told what the record says. An attempt that a record names is rolled forward and never put back; one that it does not name is
not touched by it; a record that does not fit is an error for a person.
"""

from qrep.errors import Refused
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID
from qrep.protocol.records import OPEN_RUN, Decided


class TargetGroup:
    """Mixin of TargetMachine."""

    def decision(self, attempt, new, epoch):
        """What a record is to say of this volume: a records.Decided. Raises Refused unless exactly this attempt is prepared, in this session.

        epoch: of the session that prepared it. A question that was late finds another one, and decides nothing.
        """
        record = self.record
        if self.phase != "prepared" or (record.open_attempt, record.open_new_id, record.max_epoch) != (attempt, new, epoch):
            raise Refused("it is not prepared, or another session has come", code="not-prepared", hint="the run connects again and says what is there")
        return Decided(record.volume_id, attempt, new, self._point)

    def decided(self):
        """The record that names what decision() said is durable: the commit point was passed."""
        self._check("decided")
        return self._commit(self.session, in_group=True)

    def _commit(self, handle, *, in_group=False):
        """The open generation becomes the committed one. in_group: a durable record says so already; it is done with once the superblock is written."""
        self._go("idle")
        initial = self.record.committed_id == NO_ID
        self._advance()
        self._applied = self._checkpoints = False
        new, counter = self.record.committed_id, self.record.committed_counter
        point, self._point = self._point, None
        return [
            do.WriteSuperblock(self.record),  # R4: the commit point, or that of a group has been passed
            *([do.SettleGroup(new)] if in_group else []),
            *self._reply(handle, say.Committed(new, counter)),
            *([do.ForgetCheckpoint()] if initial else []),
            do.RecordPoint(new, counter, *point),
            *self._tidy(),
            do.Retain(),
        ]

    def _roll_forward(self, decided):
        """Recovery with a record that names this volume: (actions before anything else, whether they are all)."""
        record = self.record
        if record.committed_id == decided.new:  # only the record is left to be done with
            return [do.SettleGroup(decided.new)], False
        if record.open_kind == OPEN_RUN and (record.open_new_id, record.open_attempt) == (decided.new, decided.attempt):
            self._point = decided.point
            return self._commit(None, in_group=True), True
        opened = f"attempt {record.open_attempt:x}" if record.open_attempt else "no open attempt"
        named = f"attempt {decided.attempt:x}, generation {decided.new.hex()}"
        return self._fault(f"a group commit names {named} of this volume, which holds {opened} on generation {record.committed_id.hex()}"), True
