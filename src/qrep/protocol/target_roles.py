"""How a volume changes its role (docs/ROLES.md): it takes over, or gives up. The superblock's sector decides, and the id is new each time (R5).

A primary volume is written by its host: while its machine is in "primary" no session is admitted and no device byte is written by us.
"""

from qrep import states
from qrep.errors import ProtocolError
from qrep.protocol import actions as do
from qrep.protocol.messages import NO_ID

SPLIT_BRAIN = "split-brain"  # what either side of two primaries says to the other


class TargetRoles:
    """Mixin of TargetMachine."""

    _giving = None  # (new, frozen_at_ns, equal) of what is being given up

    def take_over(self, new):
        """From replica to primary at the committed generation. new: fresh random id. Raises ProtocolError where it cannot be.

        Its sync points are gone: from now on the device is written without a log. The map stays what it was, under the old id, so that what
        the host changes can be counted.
        """
        if self.phase != "idle" or self.record.committed_id == NO_ID:
            raise ProtocolError("only a volume at a committed generation takes over")
        self._check_fresh(new)
        self._go("primary")
        self.record = self.record.taken_over(new)
        self.set_chain((new,))
        handle, self.session = self.session, None
        close = [] if handle is None else [do.CloseSession(handle, "the volume is primary now")]
        return [*close, do.WriteSuperblock(self.record), do.PruneUndo(new)]

    def give_up(self, new, frozen_at_ns, equal=NO_ID):
        """From primary to replica; its content becomes generation `new`. The driver holds the claim, so nobody writes any more.

        equal: the generation of the other side that this content is known to be, NO_ID: none; then its map may be taken, else the device is read.
        """
        if self.phase != "primary":
            raise ProtocolError("only a primary volume gives up")
        self._check_fresh(new)
        self._go("mapping")
        self._giving = new, frozen_at_ns
        return [do.MapDevice(new, equal)]

    def device_mapped(self):
        """The map of the device is pending under the new id. What the host wrote is durable before the sector that vouches for it."""
        self._check("device_mapped")
        self._go("idle")
        (new, frozen_at_ns), self._giving = self._giving, None
        self.record = self.record.given_up(new)
        self.set_chain((new,))
        point = do.RecordPoint(new, self.record.committed_counter, False, frozen_at_ns)
        return [do.FlushDevice(), do.WriteSuperblock(self.record), point, *self._tidy(), do.GivenUp(new, "")]

    def _mapping_failed(self, error):
        """Nothing was changed: it is primary as before."""
        self._giving = None
        self._go("primary")
        return [do.GivenUp(NO_ID, str(error))]

    def _check_fresh(self, new):
        if new in self.used_ids():
            raise ProtocolError("a change of role needs a fresh id")

    def _is_primary(self):
        return self.phase in ("primary", "mapping")

    def _refuse_primary(self, handle):
        assert "hello" in states.TARGET[self.phase]
        return self._expel(handle, SPLIT_BRAIN, "this volume is primary itself; nothing was written", "name the side whose changes are given up")
