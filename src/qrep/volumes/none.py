"""No snapshot: the live device is read, and the sync point is marked fuzzy."""

import time

from qrep.extents import is_all_hole
from qrep.volumes.base import FUZZY, Capability, Frozen, SnapshotBackend, check_name


class Live(SnapshotBackend):
    """Reads the device itself. Right for a source nobody writes; for any other it is fuzzy, and says so."""

    name = "none"

    def probe(self, device):
        return Capability(True, "live: a source that is written meanwhile gives a fuzzy sync point")

    def freeze(self, device, name, *, quieted=""):
        check_name(name)
        return Frozen(device.real_path, device.size, True, time.time_ns(), f"{self.name}:{device.real_path}", FUZZY)

    def find(self, token):
        """Always None: a live device has moved on, so a resumed run has to scan it again."""
        return None

    def release(self, token):
        """Nothing to give back."""

    def stale(self, device, keep=()):
        return []

    def never_written(self, device):
        path = device.real_path if device.kind == "file" else device.backing_file
        if not path or device.backing_offset or device.partition_start:
            return False
        try:
            return is_all_hole(path, device.size)
        except OSError:  # of another mount namespace
            return False
