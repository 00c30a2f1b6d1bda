"""One volume of this node: its settings, its device, and the target end while it is a replica."""

import dataclasses
import logging
import os
import shutil
import threading

from qrep import device, devicesafety, units
from qrep.errors import DamagedError, QrepError, Refused
from qrep.retention import Policy
from qrep.settings import parse_keep_for
from qrep.store import Directory
from qrep.target.rolechange import durable_role
from qrep.target.superblock import NAME as SUPERBLOCK
from qrep.target.undostore import SLACK
from qrep.volumes import registry


log = logging.getLogger("qrep.agent")
FREE_S = 3.0


def shape(settings):
    """(leaf size, granule size) in bytes of a volume's settings, which config has checked."""
    return units.parse_size(settings.leaf), units.parse_size(settings.granule)


def undo_limit(settings, size):
    """Bytes the undo of a volume of `size` bytes may take. "2x" counts before-images; the lanes' unfinished segments come on top."""
    limit = units.parse_space(settings.undo_space, size)
    return limit + SLACK if settings.undo_space.strip().endswith("x") else limit


class ManagedVolume:
    """`target`: its TargetVolume while this node holds the claim on the device, else None. `error`: what keeps it out of service. `unsettled`: what keeps
    its last change of role from being finished (rolesteps.py), a QrepError or None. committed: told the TargetVolume of each commit, and when it is open."""

    def __init__(self, name, settings, state_path, groups=None, committed=lambda target: None):
        self.name, self.settings, self._groups, self._committed = name, settings, groups, committed
        self.target = self.error = self.unsettled = None
        self._wanted = Policy()  # what the source of its pair asks for
        self.lock = threading.RLock()
        self._state_path = state_path

    @property
    def directory(self):
        """Of its state as a target."""
        return os.path.join(self._state_path, "targets", self.settings.id)

    def inspect(self):
        """The device as it is now, surely the one that was added. Raises NotFound, Refused (wrong-device)."""
        info = device.inspect(self.settings.device)
        devicesafety.check_still_the_volume(self.name, self.settings.identity, info)
        return info

    def is_replica(self):
        """Whether others write to it. The superblock is written after every check, so its directory alone says nothing."""
        return self.role() == "replica"

    def role(self):
        """What its superblock says: replica, primary, or "" for a volume that never was a target."""
        return durable_role(self.directory)[0]

    def check_target(self, *, source, size, leaf, overwrite, known, wait_seconds=0):
        """devicesafety.check_target, also while this node holds the device; the claim is given up for that long. Returns notes."""
        with self.lock:
            held, info = self.target is not None, self.inspect()
            wanted = self._wanted
            self.close_target()
            try:
                return devicesafety.check_target(
                    info, source=source, size_needed=size, overwrite=overwrite, known=known, leaf_size=leaf, wait_seconds=wait_seconds
                )
            finally:
                if held:
                    self.open_target(wanted=wanted)

    def open_target(self, *, wanted, overwrite=False, source=None, claim_wait=30, on_claimed=None, primary=False, claimed=-1):
        """Claim the device and recover it: from now on nobody else writes to it (R1). Returns the TargetVolume.

        wanted: retention.Policy of the source's part; the floor is this volume's own. claim_wait: seconds to wait for a dead predecessor's writes.
        on_claimed(): called when the device is claimed, before anything is put back; `target` is set then. primary: to give up its role, or to be
        read while nobody writes it. claimed: the exclusive descriptor, if somebody has it already; taken over whatever happens. Raises DamagedError when qrep's own records of it are damaged; it is then held, and out of service.
        """
        from qrep.target.volume import TargetVolume

        with self.lock:
            if self.target is not None:
                assert claimed < 0, "nobody else can have claimed it"
                return self.target
            target, self._wanted = None, wanted
            try:
                info = self.inspect()
                leaf, granule = shape(self.settings)
                target = TargetVolume(
                    info, self.directory, volume_id=bytes.fromhex(self.settings.id), leaf_size=leaf, granule_size=granule,
                    undo_directory=self.settings.undo or None, undo_limit=undo_limit(self.settings, info.size),
                    sync_points=self.policy(), overwrite=overwrite, source=source, claim_wait=claim_wait,
                    groups=self._groups, primary=primary, claimed=claimed,
                )  # fmt: skip

                def ready():
                    self.target = target
                    if on_claimed is not None:
                        on_claimed()

                target.on_commit = self._committed
                target.open(ready)
                if target.damaged:
                    raise DamagedError(f"{self.name} is out of service: {target.damaged}", hint=self.way_out())
                self._committed(target)
            except (OSError, QrepError) as error:
                if not primary:  # else it serves its host as before
                    self.error = error if isinstance(error, QrepError) else QrepError(f"{self.name}: {error}")
                self.target = None
                if target is not None:
                    target.close()
                elif claimed >= 0:
                    os.close(claimed)
                raise
            self.error, self.target = None, target
            return target

    def way_out(self):
        return f"qrep volume remove {self.name}, add it again, and create its job again: the first run compares and sends what differs"

    def policy(self):
        """The retention.Policy: what the source asks for above the floor that only this host's administrator sets."""
        floor = {"floor_points": self.settings.keep_points, "floor_seconds": parse_keep_for(self.settings.keep_for)}
        return dataclasses.replace(self._wanted, **floor)

    def set_wanted(self, wanted):
        """wanted: retention.Policy of the source's part."""
        with self.lock:
            self._wanted = wanted
            self.replica().set_policy(self.policy())

    def settings_changed(self, size):
        """What an open target end takes over at once. size: bytes of the device."""
        target = self.target
        if target is not None:
            target.set_undo_limit(undo_limit(self.settings, size))
            target.set_policy(self.policy())

    def close_target(self):
        with self.lock:
            target, self.target = self.target, None
            if target is not None:
                target.close()

    def forget_target(self):
        """It is no replica any more: the device is given back, and what was kept of it as a target is gone; the superblock goes first."""
        with self.lock:
            was_held = self.target is not None
            self.close_target()
            self.error = None
            with Directory(self.directory) as directory:
                directory.remove(SUPERBLOCK)
            for path in (self.directory, self.settings.undo and os.path.join(self.settings.undo, self.settings.id)):
                if path and os.path.isdir(path):
                    shutil.rmtree(path)
            if was_held:
                self._wait_until_free()

    def _wait_until_free(self):
        """A ring that was closed holds its files a moment longer, by a thread of the kernel: whoever mounts the device now shall not meet that."""
        try:
            os.close(devicesafety.claim(self.inspect(), wait_seconds=FREE_S))
        except (OSError, QrepError) as error:  # somebody else has it already, or it is gone
            log.info("%s: %s", self.name, error)

    def replica(self):
        """The open target end. Raises Refused if this volume is none, or whatever keeps it out of service."""
        target = self.target
        if target is not None:
            if target.damaged:
                raise DamagedError(f"{self.name} is out of service: {target.damaged}", hint=self.way_out())
            return target
        if self.error is not None:
            return self._tried_again()
        if self.role() == "primary":
            raise Refused(f"{self.name} is primary: its host writes it", hint="it has no sync points to show; qrep job lists whose source it is", code="primary")
        raise Refused(
            f"{self.name} is not a replica", hint="it becomes one when a job names it as its target", code="not-a-replica"
        )

    def _tried_again(self):
        """What kept it out of service may have been put right: the device is back, or unmounted. Damaged records are for a person."""
        if isinstance(self.error, DamagedError) or not self.is_replica() or not self.lock.acquire(blocking=False):
            raise self.error
        try:
            return self.open_target(wanted=self._wanted, claim_wait=0)
        finally:
            self.lock.release()

    def as_dict(self, jobs):
        settings = self.settings
        value = {
            "name": self.name, "id": settings.id, "device": settings.device, "accept": settings.accept, "jobs": jobs,
            "identity": settings.identity, "size": settings.identity.get("size"), "sector_size": None, "role": None, "problem": None,
            "open_generation": settings.open_generation, "keep_points": settings.keep_points, "keep_for": settings.keep_for, "undo": None, "sync_points": 0, "out_of_reach": None,
            "snapshots": {"backend": settings.snapshots, "fuzzy": False, "reason": ""},
        }  # fmt: skip
        try:
            info = self.inspect()
            value["size"], value["sector_size"] = info.size, info.logical_sector_size
            choice = registry.of_volume(settings, info)
            fuzzy = choice.backend.name == "none"
            value["snapshots"] = {"backend": choice.backend.name, "fuzzy": fuzzy, "reason": choice.reason}
            value["role"] = self.role() or None
            if self.target is not None or self.error is not None:
                status = self.replica().status()
                value["role"], value["sync_points"], value["out_of_reach"] = status["role"], status["sync_points"], status["out_of_reach"]
                value["undo"] = {"used": status["undo_used"], "limit": status["undo_limit"]}
        except QrepError as error:
            value["problem"] = error.as_dict()
        if self.unsettled is not None:
            value["problem"] = self.unsettled.as_dict()
        return value
