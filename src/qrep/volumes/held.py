"""No snapshot is needed: this process holds the device, and nobody writes it."""

import secrets
import time

from qrep.volumes.base import CRASH, Capability, Frozen, SnapshotBackend, check_name

_PROCESS = secrets.token_hex(8)  # a claim ends with its process, and with it the promise that nothing was written


class Held(SnapshotBackend):
    """Of a device that this agent has claimed with O_EXCL for as long as it is read: what is read is one moment."""

    name = "held"

    def probe(self, device):
        return Capability(True, "the device is claimed, nobody writes it")

    def freeze(self, device, name, *, quieted=""):
        check_name(name)
        return Frozen(device.real_path, device.size, False, time.time_ns(), f"{self.name}:{_PROCESS}:{device.real_path}@{name}", quieted or CRASH)

    def find(self, token):
        """The same again, as long as this process lives: it has held the device all the time."""
        name, process, rest = token.split(":", 2)
        if (name, process) != (self.name, _PROCESS):
            return None
        path = rest.rpartition("@")[0]
        from qrep import device

        return Frozen(path, device.inspect(path).size, False, time.time_ns(), token, CRASH)

    def release(self, token):
        """Nothing to give back."""

    def stale(self, device, keep=()):
        return []
