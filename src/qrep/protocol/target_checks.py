"""Verify at the target: the device is read beside everything else, and what was read counts only if it was the committed generation throughout."""

import itertools

from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol import messages as say
from qrep.protocol.messages import NO_ID


class TargetChecks:
    """Mixin of TargetMachine. A reader works without the volume's lock, so a run may begin under it: everything that it reads carries the mark
    of when it began to, and a mark that is not the present one any more is the end of it."""

    def mark(self):
        """Equal before and after some time if and only if the device held the committed generation, the same one, all of that time."""
        return self.record.committed_id, self._departures if self.phase == "idle" else None

    def checked(self, handle, mark, message):
        """A piece was read and compared, or the whole: message is what is to be said of it. If a generation was opened meanwhile, nothing is
        said but that. In any phase."""
        if handle != self.session:
            return []
        if mark[1] is None or mark != self.mark():
            return self._reply(handle, self._moved_on(mark[0]))
        return self._reply(handle, message)

    def _moved_on(self, generation):
        code = "base" if generation != self.record.committed_id else "busy"
        return say.Nak(0, code, say.NAK_CODES[code])

    def _may_compare(self, generation):
        """A Nak if the device does not hold exactly this generation, else None."""
        if self.record.role != say.REPLICA:  # its host writes to it
            return say.Nak(0, "role", say.NAK_CODES["role"])
        if self.phase != "idle" or generation != self.record.committed_id or generation == NO_ID:
            return self._moved_on(generation)
        return None

    def _on_check(self, handle, message):
        refusal = self._may_compare(message.generation)
        if refusal is not None:
            return self._reply(handle, refusal)
        granules = -(-self.record.size // self.record.granule_size)
        if message.first > granules:
            raise ProtocolError(f"a check from granule {message.first} of {granules} on")
        again = tuple(message.again)
        if any(one >= other for one, other in itertools.pairwise((*again, message.first))):
            raise ProtocolError("granules that are to be read again come in order, before the first of the others")
        return [do.StartCheck(handle, message.first, message.rate, again, self.mark())]

    def _on_get_nodes(self, handle, message):
        refusal = self._may_compare(message.generation)
        if refusal is not None:
            return self._reply(handle, refusal)
        record, level = self.record, message.level
        if max(message.indexes) >= -(-self._leaves() >> level):
            raise ProtocolError(f"node {max(message.indexes)} of level {level} was asked for, and there is none")
        if any(one >= other for one, other in itertools.pairwise(message.indexes)):
            # A node far up is the hash of all that the map says of its granules: each of them once is the whole map at most.
            raise ProtocolError("nodes are asked for in order, each once")
        granule_level = (record.granule_size // record.leaf_size).bit_length() - 1
        if level < granule_level:
            granules = {index >> (granule_level - level) for index in message.indexes}
            if len(granules) > say.NODE_GRANULES_MAX:
                raise ProtocolError(f"nodes of {len(granules)} granules were asked for at once")
        return [do.SendNodes(handle, level, tuple(message.indexes), self.mark())]

    def _on_repair(self, handle, message):
        refusal = self._may_compare(message.generation)
        if refusal is not None:
            return self._reply(handle, refusal)
        record = self.record
        if message.leaf >= self._leaves():
            raise ProtocolError(f"leaf {message.leaf} of {self._leaves()} was sent")
        size = min(record.leaf_size, record.size - message.leaf * record.leaf_size)
        if len(message.data) != size:
            raise ProtocolError(f"leaf {message.leaf} has {size} bytes, and {len(message.data)} were sent")
        return [do.RepairLeaf(handle, message.leaf, message.data)]

    def _leaves(self):
        return -(-self.record.size // self.record.leaf_size)
