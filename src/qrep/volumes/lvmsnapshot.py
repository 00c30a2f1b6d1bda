"""What the two kinds of LVM snapshots have in common: how they are made, known as ours, found and removed.

    vg0/db    vg0/db.qrep.RANDOM    tags: qrep, qrep.name=NAME, qrep.time=NANOSECONDS, qrep.consistency=application|crash

Its token is KIND:VG/LV@NAME~MARKRANDOM. Tags are written with the volume itself, in one change of the metadata, so a crash leaves all of it or
nothing. Only a volume with our tags is ever removed.

A filesystem mounted straight on the volume is frozen by the kernel for the moment in which the snapshot comes into being: the
device-mapper does so before it suspends a device, and older kernels (before 6.8) refuse where somebody else has frozen it already.
"""

import os
import re
import time
from abc import abstractmethod

from qrep.crashpoint import crashpoint
from qrep.errors import Refused
from qrep.volumes import lvmtools
from qrep.volumes.base import Capability, Frozen, SnapshotBackend, SnapshotError, check_name, consistency_of, mark_of
from qrep.volumes.quiet import quiet
from qrep.volumes.spacewatch import SpaceWatch

TAG = "qrep"
TOKEN = re.compile(r"([A-Za-z0-9+_.-]+)/([A-Za-z0-9+_.-]+)@([A-Za-z0-9._:+-]+)~([ac][0-9a-f]{8})", re.ASCII)


class LvmSnapshots(SnapshotBackend):
    watched = True

    def __init__(self, options=None):
        super().__init__(options)
        self._watch = SpaceWatch()

    @abstractmethod
    def suits(self, volume, device):
        """The reason why this LogicalVolume can be frozen, in words. Raises SnapshotError why not."""

    @abstractmethod
    def creation(self, volume):
        """What lvcreate is told besides the names."""

    @abstractmethod
    def spaces(self, volume):
        """(what, used, total) of each space that a snapshot of ours (LogicalVolume) may fill, bytes. Raises SnapshotError when it is lost."""

    def activate(self, volume):
        """Bring a snapshot of ours (LogicalVolume) into service again."""
        lvmtools.call("lvchange", "--config", lvmtools.SETTINGS, "--activate", "y", "--ignoreactivationskip", volume.full_name)

    # ---- of every backend ----

    def probe(self, device):
        try:
            return Capability(True, self.suits(lvmtools.of_device(device), device))
        except SnapshotError as err:
            return Capability(False, err.message)

    def freeze(self, device, name, *, quieted=""):
        check_name(name)
        volume = lvmtools.of_device(device)
        if not quieted:  # others wait, frozen; and who froze them has asked
            self.suits(volume, device)
        random, made = os.urandom(4).hex(), ""
        try:
            with quiet(device, self.options, quieted, left=device.device_number) as consistency:
                mark = mark_of(consistency)
                made = f"{volume.name[:60]}.qrep.{mark}{random}"
                time_ns = time.time_ns()
                tags = {"qrep.name": name, "qrep.time": time_ns, "qrep.consistency": consistency}
                words = [word for key, value in tags.items() for word in ("--addtag", f"{key}={value}")]
                lvmtools.call(
                    "lvcreate", "--config", lvmtools.SETTINGS, "--yes", "--quiet", "--snapshot", "--permission", "r", "--name", made, "--addtag", TAG,
                    *words, *self.creation(volume), volume.full_name,
                )  # fmt: skip
                crashpoint("snapshot-named")
        except BaseException as err:
            if made:
                self._take_back(volume.vg, made)
            if isinstance(err, SnapshotError) and err.code.startswith("lvm"):
                raise SnapshotError(f"{device.path}: {err.message}", code=err.code, hint=err.hint or _way_out(err.message)) from err
            raise
        token = f"{self.name}:{volume.vg}/{made}@{name}~{mark}{random}"
        return Frozen(lvmtools.path_of(volume.vg, made), volume.size, False, time_ns, token, consistency)

    def find(self, token):
        volume = self._ours(token)
        if volume is None:
            return None
        try:
            if not volume.active:  # after a restart of the machine
                self.activate(volume)
            self.spaces(volume)
        except SnapshotError as err:
            if err.code == "snapshot-full":
                return None
            raise
        return Frozen(volume.path, volume.origin_size or volume.size, False, int(volume.tag("qrep.time")), token, consistency_of(token))

    def check(self, token):
        volume = self._ours(token)
        if volume is None:
            raise SnapshotError(f"the snapshot {token.partition(':')[2].partition('@')[0]} was removed", code="snapshot-gone", hint="start the run again")
        self._watch.look(volume.full_name, self.spaces(volume), self.way_out)

    way_out = ""

    def release(self, token):
        volume = self._ours(token)
        if volume is not None:
            self._remove(volume)

    def stale(self, device, keep=()):
        origin = lvmtools.of_device(device)
        found = lvmtools.report(f'vg_uuid="{origin.vg_uuid}" && origin_uuid="{origin.uuid}" && lv_tags="{TAG}"')
        tokens = [token for volume in sorted(found) if (token := self._token(volume))]
        return [token for token in tokens if token not in keep]

    # ---- parts ----

    def _token(self, volume):
        """The token of a volume of ours; None of one that is not."""
        name, random = volume.tag("qrep.name"), volume.name.rpartition(".qrep.")[2]
        token = f"{self.name}:{volume.full_name}@{name}~{random}"
        return token if TOKEN.fullmatch(token.partition(":")[2]) and volume.tag("qrep.time").isdigit() else None

    def _ours(self, token):
        """The LogicalVolume of a token, None if it is not there. Whatever the token says: one without our tags is not looked at."""
        kind, _, rest = token.partition(":")
        match = TOKEN.fullmatch(rest)
        if kind != self.name or match is None or not match[2].endswith(f".qrep.{match[4]}"):
            raise SnapshotError(f"{token!r} is not a {self.name} snapshot", code="snapshot-token")
        found = lvmtools.report(f'vg_name="{match[1]}" && lv_name="{match[2]}"')
        if not found:
            return None
        if len(found) != 1 or TAG not in found[0].tags or self._token(found[0]) != token:
            raise Refused(f"{match[1]}/{match[2]} is not a snapshot of qrep's", hint="nothing was changed", code="snapshot-token")
        return found[0]

    def _remove(self, volume):
        lvmtools.call("lvremove", "--config", lvmtools.SETTINGS, "--yes", "--quiet", "--force", volume.full_name)

    def _take_back(self, vg, name):
        """What a freeze that failed may have left. What it leaves now, the next run finds."""
        try:
            for volume in lvmtools.report(f'vg_name="{vg}" && lv_name="{name}"'):
                self._remove(volume)
        except SnapshotError:
            return


def _way_out(message):
    if "resource busy" in message.lower():
        return "is the filesystem on it frozen by somebody else? kernels before 6.8 cannot freeze it twice"
    if "not detected in your kernel" in message:
        return "modprobe -a dm-snapshot dm-thin-pool"
    return "see lvs -a -o +devices,tags"
