"""The volumes of this node: their settings, their devices, and the target end of those that are replicas."""

import os
import threading

from qrep import device, devicesafety, units
from qrep.config import Volume, check_path
from qrep.errors import ConfigError, DamagedError, NotFound, QrepError, Refused, UsageError
from qrep.volumes import registry

LEAF_MIN, LEAF_MAX = 4 << 10, 1 << 20
GRANULE_MAX = 64 << 20


def shape(settings):
    """(leaf size, granule size) in bytes of a volume's settings. Raises UsageError."""
    leaf, granule = units.parse_size(settings.leaf), units.parse_size(settings.granule)
    for name, value, low, high in (("leaf", leaf, LEAF_MIN, LEAF_MAX), ("granule", granule, 2 * leaf, GRANULE_MAX)):
        if value & (value - 1) or not low <= value <= high:
            raise UsageError(
                f"{name} {units.exact_size(value)}: not a power of two from {units.exact_size(low)} to {units.exact_size(high)}",
                hint=f"leave --{name} out, or choose one of these",
            )
    return leaf, granule


class ManagedVolume:
    """One volume. `target`: its TargetVolume while this node holds the claim on the device, else None."""

    def __init__(self, name, settings, state, sync_points):
        self.name, self.settings, self._state, self._sync_points = name, settings, state, sync_points
        self.target = None
        self.error = None  # QrepError that keeps it out of service
        self.lock = threading.Lock()

    def inspect(self):
        """The device as it is now, surely the one that was added. Raises NotFound, Refused (wrong-device)."""
        info = device.inspect(self.settings.device)
        devicesafety.check_still_the_volume(self.name, self.settings.identity, info)
        return info

    @property
    def directory_name(self):
        return self.settings.id

    def is_replica(self):
        with self._state.sub("targets") as targets:
            return self.directory_name in targets.names()

    def open_target(self, *, sync_points, overwrite=False, source=None, size=0):
        """Claim the device and recover it: from now on nobody else writes to it (R1). Returns the TargetVolume."""
        from qrep.target.volume import TargetVolume

        with self.lock:
            if self.target is not None:
                return self.target
            info = self.inspect()
            leaf, granule = shape(self.settings)
            devicesafety.check_target(
                info,
                source=source,
                size_needed=size or info.size,
                overwrite=overwrite,
                known=self.is_replica(),
                leaf_size=leaf,
            )
            target = TargetVolume(
                info,
                os.path.join(self._state.path, "targets", self.directory_name),
                volume_id=bytes.fromhex(self.settings.id),
                leaf_size=leaf,
                granule_size=granule,
                undo_directory=self.settings.undo or None,
                undo_limit=units.parse_space(self.settings.undo_space, info.size),
                sync_points=sync_points,
            )
            try:
                target.open()
            except QrepError as error:
                self.error = error
                raise
            self.error, self.target = None, target
            return target

    def close_target(self):
        with self.lock:
            if self.target is not None:
                self.target.close()
                self.target = None

    def replica(self):
        """The open target end. Raises Refused if this volume is none, or whatever keeps it out of service."""
        if self.target is None:
            if self.error is not None:
                raise self.error
            raise Refused(
                f"{self.name} is not a replica",
                hint="it becomes one when a job names it as its target",
                code="not-a-replica",
            )
        return self.target

    def as_dict(self, jobs):
        settings = self.settings
        value = {
            "name": self.name,
            "id": settings.id,
            "device": settings.device,
            "accept": settings.accept,
            "jobs": jobs,
            "identity": settings.identity,
            "size": settings.identity.get("size"),
            "sector_size": None,
            "role": None,
            "problem": None,
            "snapshots": {"backend": settings.snapshots, "fuzzy": False, "reason": ""},
        }
        try:
            info = self.inspect()
            choice = registry.choose(settings.snapshots, info)
            value["size"], value["sector_size"] = info.size, info.logical_sector_size
            value["snapshots"] = {
                "backend": choice.backend.name,
                "fuzzy": choice.backend.name == "none",
                "reason": choice.reason,
            }
        except QrepError as error:
            value["problem"] = error.as_dict()
        if self.target is not None:
            status = self.target.status()
            value["role"] = status["role"]
            value["undo"] = {"used": status["undo_used"], "limit": status["undo_limit"]}
            value["sync_points"] = status["sync_points"]
        elif self.error is not None:
            value["problem"] = self.error.as_dict()
        return value


class Volumes:
    """All volumes of this node, by name. Thread-safe."""

    def __init__(self, config, state, events):
        self.config, self.state, self.events = config, state, events
        self._lock = threading.RLock()
        self._volumes = {}
        for name, settings in config.load_all("volumes").items():
            self._volumes[name] = ManagedVolume(name, settings, state, 7)

    def get(self, name):
        with self._lock:
            if name in self._volumes:
                return self._volumes[name]
        self.config.load("volumes", name)  # raises the NotFound that names what was probably meant
        raise NotFound(
            f"volume {name} was added while the agent runs",
            hint="restart the agent, or use qrep volume add",
            code="no-such-volume",
        )

    def all(self):
        with self._lock:
            return [self._volumes[name] for name in sorted(self._volumes)]

    def by_id(self, volume_id):
        with self._lock:
            for volume in self._volumes.values():
                if volume.settings.id == volume_id:
                    return volume
        return None

    def recover(self, sync_points_of):
        """At start: claim and recover every replica. One that fails stays out of service and says why; the others serve."""
        for volume in self.all():
            if not volume.is_replica():
                continue
            try:
                target = volume.open_target(sync_points=sync_points_of(volume.name))
            except QrepError as error:
                volume.error = error
                self.events.add(
                    "volume-damaged" if isinstance(error, DamagedError) else "volume-missing",
                    error.message,
                    volume=volume.name,
                )
                continue
            if target.recovered:
                self.events.add(
                    "volume-recovered",
                    "an unfinished generation was taken back; it holds its last sync point",
                    volume=volume.name,
                )

    def add(self, name, settings):
        """settings: dict of config.Volume's fields but id and identity. Returns the ManagedVolume."""
        import msgspec

        with self._lock:
            if name in self.config.names("volumes"):
                raise Refused(
                    f"there is a volume called {name} already", hint=f"qrep volume show {name}", code="name-taken"
                )
            check_path(settings["device"], "device")
            info = device.inspect(settings["device"])
            for other in self.all():
                if not device.same_identity(
                    other.settings.identity, info
                ) and other.settings.identity == device.identity(info):
                    raise Refused(
                        f"{info.path} is volume {other.name} already",
                        hint=f"qrep volume show {other.name}",
                        code="device-known",
                    )
            fields = settings | {"id": os.urandom(16).hex(), "identity": device.identity(info)}
            volume = self._checked(fields, info, msgspec)
            self.config.save("volumes", name, volume)
            self._volumes[name] = ManagedVolume(name, volume, self.state, 7)
        self.events.add("volume-added", f"{info.path}, {units.format_size(info.size)}", volume=name)
        return self._volumes[name]

    def change(self, name, settings):
        import msgspec

        with self._lock:
            volume = self.get(name)
            info = volume.inspect()
            if settings.get("undo", volume.settings.undo) != volume.settings.undo and volume.is_replica():
                raise Refused(
                    f"{name} has undo in {volume.settings.undo or 'the state directory'}",
                    hint="remove and add the volume to move it",
                )
            changed = self._checked(msgspec.to_builtins(volume.settings) | settings, info, msgspec)
            self.config.save("volumes", name, changed)
            volume.settings = changed
            if volume.target is not None:
                volume.target.set_undo_limit(units.parse_space(changed.undo_space, info.size))
        return volume

    def _checked(self, fields, info, msgspec):
        try:
            volume = msgspec.convert(fields, Volume)
        except msgspec.ValidationError as err:
            raise ConfigError(str(err)) from err
        leaf, _granule = shape(volume)
        if info.size < 2 * leaf:
            raise Refused(
                f"{info.path} has {units.format_size(info.size)}, less than two leaves",
                hint="a smaller --leaf, or a larger device",
            )
        units.parse_space(volume.undo_space, info.size)
        registry.choose(volume.snapshots, info)
        for peer in volume.accept:
            self.config.load("peers", peer)
        return volume

    def remove(self, name):
        """Forget a volume and everything qrep keeps of it. The caller has made sure that no job uses it."""
        import shutil

        with self._lock:
            volume = self.get(name)
            volume.close_target()
            path = os.path.join(self.state.path, "targets", volume.directory_name)
            if os.path.isdir(path):
                shutil.rmtree(path)
            if volume.settings.undo:
                from qrep.target.undostore import remove_store

                remove_store(volume.settings.undo, bytes.fromhex(volume.settings.id))
            self.config.remove("volumes", name)
            del self._volumes[name]
        self.events.add("volume-removed", volume.settings.device, volume=name)
