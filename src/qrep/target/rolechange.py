"""Changes of role of a target volume, with real files (docs/ROLES.md): taking over, giving up, and the map of what a host has written.

    volume.take_over(new)      # then close() it: the device is free for its host
    volume.give_up(new, ...)   # of one that was opened as primary; the claim is kept
"""

import contextlib
import os
import threading

from qrep import mapcopy, mapvalues
from qrep._native.connection import Connection
from qrep._native.source_lane import SourceRun
from qrep.crashpoint import crashpoint
from qrep.digestmap import NO_ID
from qrep.errors import DamagedError, QrepError, Refused
from qrep.protocol import actions as do
from qrep.protocol.messages import PRIMARY
from qrep.store import Directory
from qrep.target.scan import check_readable
from qrep.target.superblock import NAME as SUPERBLOCK
from qrep.target.superblock import SuperblockFile

LANES = 2
LOOK_S = 0.25
NAMES = {1: "replica", PRIMARY: "primary"}


def durable_role(path):
    """What the superblock in a volume's state directory says: (role, committed id). ("", NO_ID): there is none, it never was a target; one that
    cannot be read counts as a replica's: its device is held, and says why it is out of service."""
    if not os.path.exists(os.path.join(path, SUPERBLOCK)):
        return "", NO_ID
    directory = Directory(path)
    file = SuperblockFile(directory)
    try:
        block = file.load()
        if block is None or (block.role == PRIMARY and block.committed_id == NO_ID):  # opened once to give up, which it did not
            return "", NO_ID
        return NAMES[block.role], block.committed_id
    except DamagedError:
        return "replica", NO_ID
    finally:
        file.close()
        directory.close()


class RoleChanges:
    """Mixed into TargetVolume. changed: bytes that its host changed since the generation of `base`, after give_up(); None: not known."""

    changed = None
    scanning = None  # the SourceRun that reads the device
    _base = None  # a DigestMap to compare with and to take pages from
    _gave_up = None
    lent_to = ""  # why nothing may change the content just now

    @contextlib.contextmanager
    def lent(self, why):
        """While in use, the content stays what it is: no rollback and no change of role. why: in words."""
        with self.lock:
            self._check_idle()
            self.lent_to = why
        try:
            yield
        finally:
            self.lent_to = ""

    @property
    def is_primary(self):
        return self.machine is not None and self.machine.phase in ("primary", "mapping")

    def take_over(self, new):
        """From replica to primary; its earlier sync points are gone. new: 16 fresh random bytes. Raises Refused while a generation is open."""
        with self.lock:
            self._check_idle()
            if self._pins:
                raise Refused(f"{self.name}: a sync point of it is attached or read", code="busy", hint="qrep attach lists what is; qrep detach VOLUME@POINT")
            crashpoint("role-take-over-before")
            self.execute(self.machine.take_over(new))
            crashpoint("role-taken-over")
            if self.damaged:
                raise DamagedError(f"{self.name}: {self.damaged}")

    def give_up(self, new, frozen_at_ns, *, equal=NO_ID, base=None):
        """From primary to replica; what the device holds is generation `new` (16 fresh random bytes). Blocks while the device is read.

        base: DigestMap of this geometry that describes what the device held before, None: the volume's own. equal: the device holds exactly what
        `base` describes, which is tagged so; it is not read then. Raises what kept it from being read; the volume is primary as before.
        """
        with self.lock:
            if not self.is_primary:
                raise Refused(f"{self.name} is not primary", code="not-primary")
            self._base, self._gave_up, self.changed = base or self.digest_map, None, None
            crashpoint("role-give-up-before")
            try:
                self.execute(self.machine.give_up(new, frozen_at_ns, equal))
            finally:
                self._base = None
            crashpoint("role-given-up")
            result = self._gave_up
            if result is None or result.new == NO_ID:
                raise QrepError(f"{self.name} is primary as before: {result.why if result else self.damaged}", code="give-up-failed")
            self.on_commit(self)

    def _map_device(self, action):
        base, current = self._base, self.digest_map
        if action.equal != NO_ID and base.tag != action.equal:
            raise QrepError("the map does not describe the generation that the device is said to hold")
        states, values = mapcopy.content_of(base, current)
        if action.equal == NO_ID:
            states, values = self._read_device(states, values, base.tag != NO_ID)
        else:
            self.changed = 0
        root = base.root_value if action.equal != NO_ID else None
        current.write_pending(action.new, self.machine.record.committed_id, self.machine.record.committed_counter + 1, states, values, root)
        crashpoint("role-mapped")
        return self.machine.device_mapped()

    def _read_device(self, states, values, known):
        run = SourceRun(
            self.geometry, attempt=0, session=0, key=bytes(32), sector_size=self.device.io_alignment, base_states=bytes(states),
            base_values=values, fresh_values=mapvalues.copied(states, values), leaves_fd=self.digest_map.leaves_fd,
        )  # fmt: skip
        self.scanning = run
        try:
            lanes = [threading.Thread(target=run.lane, args=(self.device_fd, Connection.none(), index), daemon=True) for index in range(LANES)]
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
            check_readable(run)
        finally:
            self.scanning = None
        self.changed = run.counters()["changed"] if known else None
        return run.fresh_states, run.fresh_values

    def _note_gave_up(self, action):
        self._gave_up = action

    role_handlers = {do.MapDevice: _map_device, do.GivenUp: _note_gave_up}
