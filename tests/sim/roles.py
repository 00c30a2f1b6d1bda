"""A target volume that takes over and gives up again: its host writes the device meanwhile, and the agent may die at any step."""

import contextlib

from qrep._native import disk as records
from qrep._native import hasher
from qrep.protocol import actions as do
from qrep.protocol.messages import NO_ID, PRIMARY

HASHED, ZERO = records.STATE_HASHED | records.STATE_VALUE, records.STATE_ZERO
LEAF = 4096


class Roles:
    """Mixin of Target. host_may_write: the claim is not held, and the role is primary: whoever mounts the device writes it."""

    host_may_write = has_taken_over = gives_up = False
    claims = True  # a defect does without: the host goes on while the device is mapped

    def settle_role(self):
        """At a start, and after every change: who has the device."""
        record = self.machine.record
        self.host_may_write = self.has_taken_over = record is not None and record.role == PRIMARY
        self.gives_up = False

    def host_writes_here(self, offset, data):
        """Not logged, not flushed: what a mounted filesystem does. The host lives on while the agent is dead."""
        if self.host_may_write:
            with contextlib.suppress(OSError):  # its filesystem is told
                self.device.submit(offset, data)

    def is_primary(self):
        return self.ready and self.machine.phase == "primary"

    def take_over(self, new):
        if self.ready:
            self.post(lambda: self.machine.take_over(new) if self.machine.phase == "idle" and self.machine.record.committed_id != NO_ID else [])

    def give_up(self, new):
        """Claim the device, which waits for what its host has under way (R1), then ask the machine. Not before taking over has ended, at which the
        host gets the device: one lock is around each, also of two that give up: what fails of the one gives the host its device back."""
        if self.is_primary() and self.has_taken_over and not self.gives_up:
            self.gives_up = True
            self.host_may_write = self.host_may_write and not self.claims
            self.spawn(self._give_up(new))

    def _give_up(self, new):
        if self.claims:
            yield from self.device.drained()
        self.post(lambda: self.machine.give_up(new, 0) if self.machine.phase == "primary" else [])

    def _map_device(self, action):
        states, values, step = bytearray(), bytearray(), self.geometry.granule_size
        content = bytearray()
        for granule in range(self.geometry.granules):
            part = self.device.read(granule * step, self.geometry.granule_bytes(granule))
            content += part
            states.append(HASHED if any(part) else ZERO)
            values += hasher.subtree(part, granule * step, self.geometry.leaf_size) if any(part) else bytes(32)
            yield self.world.delay(0.002)
        self.oracle.announce(action.new, bytes(content))
        yield from self.store.write("pending", self.map_bytes(action.new, NO_ID, 0, states, values))
        return self.machine.device_mapped()

    def _given_up(self, action):
        yield 0
        self.settle_role()

    role_performers = {do.MapDevice: _map_device, do.GivenUp: _given_up}
