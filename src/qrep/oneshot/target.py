"""The target end of a one-shot copy: its state, found by the identity of the device; the questions asked before it is written."""

import json
import os
import shutil
from datetime import UTC, datetime

import blake3

from qrep import config, device, devicesafety, sealed, signature, store
from qrep.errors import DamagedError, QrepError, Refused
from qrep.oneshot import stamp

RECORD, RECORD_MAX = "copy.json", 1 << 16


def key_of(info):
    """16 bytes that name a device or file, the same at every copy, whatever its path is called then."""
    fields = device.identity(info)
    if set(fields) <= {"kind", "size", "logical_sector_size"}:
        fields["path"] = info.real_path  # a disk without a serial number
    return blake3.blake3(b"qrep copy\0" + json.dumps(fields, sort_keys=True).encode()).digest(16)


def job_of(source_name, volume_id):
    """16 bytes that name the copy from one source to one target."""
    return blake3.blake3(b"qrep copy job\0" + source_name.encode() + b"\0" + volume_id).digest(16)


class CopyTarget:
    """path: a device or file. size: bytes of the source. source: a name of the source for people and for comparing.
    mark: signature.mark() of the source. source_info: DeviceInfo of a source on this host. Nothing is written before open()."""

    def __init__(self, path, *, size, source, state_dir, config_dir, mark="", leaf_size=4096, granule_size=8 << 20, overwrite=False, source_info=None):
        self.path, self.size, self.source, self.source_info = path, size, source, source_info
        self._mark = mark
        self._state_dir, self._config_dir = state_dir, config_dir
        self._shape, self._overwrite = (leaf_size, granule_size), overwrite
        self.volume = None

    def check(self):
        """Raise Refused, or whatever else keeps it from being written. Returns facts: exists, known, written, notes."""
        self.exists = os.path.lexists(self.path)
        if not self.exists:
            self._check_can_be_made()
            return {"exists": False, "known": False, "compare": False, "notes": []}
        self.info = device.inspect(self.path)
        self.volume_id = key_of(self.info)
        self._check_not_an_agents()
        notes = devicesafety.check_target(  # overwrite: what it carries is judged below
            self.info, source=self.source_info, size_needed=self.size, overwrite=True, leaf_size=self._shape[0], wait_seconds=devicesafety.DRAIN_S,
        )
        self._judge()
        return {"exists": True, "known": self.known, "compare": self.compare, "notes": notes}

    def _judge(self):
        """Whether the last copy is there as it was left. Raises Refused if what is there may not be overwritten unasked."""
        record = self._record()
        self.known = known = record is not None
        seen = stamp.compare((record or {}).get("stamp"), stamp.take(self.info))
        # Without a stamp the last copy was cut off, and who had the device since then nobody knows: that is UNKNOWN, too.
        self.compare = known and seen != stamp.SAME
        if self._overwrite:
            return
        if not known:
            devicesafety.check_signature(self.info)
            return
        if record["source"] != self.source:
            raise Refused(
                f"target {self.path} is the copy of {record['source']}, not of {self.source}",
                hint="give -y if it may become the copy of this source, or name another target", code="signature",
            )  # fmt: skip
        if seen == stamp.WRITTEN:
            raise Refused(
                f"target {self.path} was written by someone else since the last copy to it ended ({record['ended']})",
                hint="give -y if what was written may be overwritten, or name another target", code="signature",
            )  # fmt: skip
        if self.compare:
            self._check_signature()

    def _check_can_be_made(self):
        directory = os.path.realpath(os.path.dirname(os.path.abspath(self.path)))
        if not os.path.isdir(directory):
            raise Refused(f"target {self.path}: there is no directory {directory}", hint="make it first", code="no-such-directory")
        if f"{directory}/".startswith("/dev/") and not f"{directory}/".startswith("/dev/shm/"):
            raise Refused(f"target {self.path}: no such device", hint="lsblk shows those there are", code="no-such-device")

    def _check_signature(self):
        """It may have served someone else since: what it carries is overwritten unasked only if it is what the source carries."""
        try:
            found = signature.probe(self.info.real_path)
            ours = bool(found) and bool(self._mark) and signature.mark(self.info.real_path) == self._mark
        except signature.CannotProbe as err:
            raise Refused(
                f"cannot tell what is on target {self.path}: {err}", code="signature-unknown",
                hint="install util-linux, or give -y if its content may be overwritten",
            ) from err
        if found and not ours:
            raise Refused(
                f"target {self.path} carries {found}, which is not the source's, and who has written it since the last copy to it cannot be told",
                hint="give -y if its content may be overwritten, or name another target", code="signature",
            )  # fmt: skip

    def _check_not_an_agents(self):
        """What an agent keeps as a replica is its own, also while that agent does not run (R1 covers the other case)."""
        if os.geteuid() != 0:
            return  # who cannot read the agent's configuration cannot open its devices
        settings = config.Config(self._config_dir)
        for name in settings.names("volumes"):
            volume = settings.load("volumes", name)
            replica = os.path.isdir(os.path.join(self._state_dir, "targets", volume.id))
            if replica and not device.same_identity(volume.identity, device.identity(self.info)):
                raise Refused(
                    f"target {self.path} is volume {name} of the agent here, a replica",
                    hint=f"name another target; or delete its job and qrep volume remove {name}", code="target-is-volume",
                )  # fmt: skip

    def _directory(self):
        return os.path.join(self._state_dir, "copies", "targets", self.volume_id.hex())

    def _drop(self):
        if os.path.isdir(self._directory()):
            shutil.rmtree(self._directory())

    def _record(self):
        if not os.path.isdir(self._directory()):
            return None
        with store.Directory(self._directory()) as directory:
            try:
                record = sealed.read(directory, RECORD, RECORD_MAX)
            except DamagedError as err:
                raise DamagedError(err.message, hint="remove that directory; the next copy is a full one") from err
        if record is None:
            return None
        try:
            return {name: record[name] for name in ("source", "ended", "stamp")}
        except (KeyError, TypeError) as err:
            raise DamagedError(f"{self._directory()}/{RECORD}: {err}", hint="remove that directory; the next copy is a full one") from err

    def _save(self, ended):
        fields = {"source": self.source, "path": self.info.real_path, "ended": ended, "stamp": stamp.take(self.info) if ended else None}
        with store.Directory(self._directory()) as directory:
            sealed.write(directory, RECORD, fields)

    def open(self):
        """check(), make a missing file, claim the device and recover it. Returns the TargetVolume; close() it."""
        from qrep.target.volume import TargetVolume

        self.check()
        if not self.exists:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, self.size)
            finally:
                os.close(descriptor)
            self.volume_id = key_of(device.inspect(self.path))
            self._drop()  # of a file that is gone, whose inode this one has
            self.check()
        leaf_size, granule_size = self._shape
        volume = TargetVolume(
            self.info, self._directory(), volume_id=self.volume_id, leaf_size=leaf_size, granule_size=granule_size, sync_points=0,
            overwrite=True, source=self.source_info, claimed=devicesafety.claim(self.info),
        )  # fmt: skip
        try:
            self._judge()  # again: from now on nobody else has it, and somebody may have had it while it was waited for
            if self.compare or not self.known:
                self._drop()  # what it says of the device, or what is left of that, is not so any more, undo included
            volume.open()
            if volume.damaged:
                raise DamagedError(f"{self.path}: {volume.damaged}", hint=f"remove {self._directory()}; the next copy is a full one")
            self._save(None)
        except BaseException:  # and without a stamp: how it was left is what was noted before
            volume.close()
            raise
        self.volume = volume
        return volume

    def close(self):
        """Give the device back and note how it was left."""
        if self.volume is not None:
            self.volume.close()
            self._save(datetime.now(UTC).isoformat(timespec="seconds"))
            self.volume = None
