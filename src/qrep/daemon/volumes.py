"""The volumes of this node by name: added, changed, removed, and brought back to their last sync points at start."""

import functools
import os
import shutil
import threading
import time

import msgspec

from qrep import device, units
from qrep.config import Volume, check_name, check_path
from qrep.daemon.managed import ManagedVolume, shape
from qrep.errors import ConfigError, DamagedError, NotFound, QrepError, Refused
from qrep.settings import bad_values
from qrep.volumes import registry

FIXED = ("id", "device", "undo", "leaf", "granule", "identity")  # what a volume is; the rest is how it is used


RECOVERY_S = 3.0  # that a start waits for before-images to be put back, before it serves all the same


class Volumes:
    """All volumes of this node, by name. Thread-safe. committed: as ManagedVolume. recovered: told each TargetVolume that is back at its last sync point
    at a start."""

    def __init__(self, config, state, events, groups=None, committed=lambda target: None, recovered=lambda target: None):
        self.config, self.state, self.events, self._groups, self.recovered = config, state, events, groups, recovered
        self._managed = functools.partial(ManagedVolume, state_path=state.path, groups=groups, committed=committed)
        self.accept_changed = lambda: None  # called when other peers may write to a volume than before, without a lock
        self._lock = threading.RLock()
        self._abandoning = set()  # names of volumes whose open generation is being given up
        self._volumes = {name: self._managed(name, settings) for name, settings in config.load_all("volumes").items()}

    def get(self, name):
        with self._lock:
            if name in self._volumes:
                return self._volumes[name]
        self.config.load("volumes", name)  # raises the NotFound that names what was probably meant
        raise NotFound(
            f"volume {name} was added while the agent runs",
            hint="qrep reload reads it; or use qrep volume add",
            code="no-such-volume",
        )

    def all(self):
        with self._lock:
            return [self._volumes[name] for name in sorted(self._volumes)]

    def recover(self, policy_of):
        """At start: claim every replica and bring it back, all at once. Returns when all are claimed or have failed; one that still puts much back
        goes on meanwhile, shows it, and lets sessions wait. One that fails stays out of service and says why; the others serve."""
        recovering = [(volume, threading.Event()) for volume in self.all() if self._is_to_recover(volume)]
        threads = [
            threading.Thread(target=self._recover, args=(volume, policy_of(volume.name), claimed), name=f"recovery of {volume.name}", daemon=True)
            for volume, claimed in recovering
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for _volume, claimed in recovering:
            claimed.wait()
        deadline = time.monotonic() + RECOVERY_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _is_to_recover(self, volume):
        try:
            return volume.is_replica()
        except (QrepError, OSError) as error:
            volume.error = error if isinstance(error, QrepError) else QrepError(f"{volume.name}: its superblock cannot be read: {error}")
            self.events.add("volume-damaged", volume.error.message, volume=volume.name, reason=volume.error.code)
            return False

    def _recover(self, volume, wanted, claimed):
        try:
            target = volume.open_target(wanted=wanted, on_claimed=claimed.set)
        except QrepError as error:
            code = "volume-damaged" if isinstance(error, DamagedError) else "volume-missing"
            self.events.add(code, error.message, volume=volume.name, reason=error.code)
        except OSError as error:
            self.events.add("volume-missing", str(error), volume=volume.name, reason="failed")
        else:
            if target.recovered:
                text = "an unfinished generation was taken back; it holds its last sync point"
                self.events.add("volume-recovered", text, volume=volume.name)
            if target.points.damage:
                self.events.add("points-forgotten", target.points.damage, volume=volume.name)
            if target.out_of_reach:
                self.events.add("points-out-of-reach", target.out_of_reach, volume=volume.name)
            self.recovered(target)
        finally:
            claimed.set()

    def abandon_old(self, default):
        """Give up open generations that nobody has come back for. default: how long one is kept where the volume does not say, as a setting."""
        for volume in self.all():
            target, limit = volume.target, volume.settings.open_generation or default
            alone_s = target.alone_s() if target is not None else None
            if alone_s is not None and alone_s >= units.parse_duration(limit):
                self.abandon(volume, f"no run has come for {limit}")

    def abandon(self, volume, why):
        """Give up a volume's open generation, in a thread of its own: much may have to be put back. volume: ManagedVolume."""
        if volume.target is None or not volume.target.has_open_generation():
            return
        with self._lock:
            if volume.name in self._abandoning:
                return
            self._abandoning.add(volume.name)
        threading.Thread(target=self._abandon, args=(volume, volume.target, why), name=f"rollback of {volume.name}", daemon=True).start()

    def _abandon(self, volume, target, why):
        try:
            target.abandon(why)
            if target.damaged:
                self.events.add("volume-damaged", target.damaged, volume=volume.name)
        except Refused:
            pass  # a run came in the meantime: it goes on with the generation, or gives it up
        finally:
            with self._lock:
                self._abandoning.discard(volume.name)

    # ---- by a reload: the files were changed by somebody else ----

    def adopt(self, name, settings, wanted):
        """Let a volume be what its file says now. Raises Refused if what it is cannot change because it is a replica."""
        with self._lock:
            volume, fresh = self._volumes.get(name), None
            fixed = [field for field in FIXED if volume and getattr(volume.settings, field) != getattr(settings, field)]
            if volume is None:
                self._volumes[name] = fresh = self._managed(name, settings)
            elif fixed and volume.is_replica():
                raise Refused(
                    f"volume {name}: {', '.join(fixed)} cannot change while it is a replica",
                    hint=f"put the old value back; or qrep volume remove {name}, and add it again",
                    code="replica",
                )
            else:
                volume.settings = settings
        self.accept_changed()
        target = volume.target if volume is not None else None
        if target is not None:
            volume.settings_changed(target.device.size)
        if fresh is not None and fresh.is_replica():  # without the lock: much may have to be put back
            self._recover(fresh, wanted, threading.Event())

    def let_go(self, name):
        """The file of a volume is gone: it is not known any more, and its device is free. What qrep keeps of it stays on disk."""
        with self._lock:
            volume = self._volumes.pop(name)
        volume.close_target()

    def close(self, timeout):
        """Let all devices go, at the end. Returns the names of those that were still busy after `timeout` seconds: putting much back,
        or reading a device afresh, which the end of the process ends as a crash would (R1)."""
        closing = {volume.name: threading.Thread(target=volume.close_target, daemon=True) for volume in self.all()}
        for thread in closing.values():
            thread.start()
        deadline = time.monotonic() + timeout
        for thread in closing.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        return [name for name, thread in closing.items() if thread.is_alive()]

    def add(self, name, settings):
        """settings: dict of config.Volume's fields but id and identity. Returns the ManagedVolume."""
        check_name("volumes", name)
        check_path(settings["device"], "device")
        with self._lock:
            if name in self.config.names("volumes"):
                raise Refused(
                    f"there is a volume called {name} already", hint=f"qrep volume show {name}", code="name-taken"
                )
            info = device.inspect(settings["device"])
            self._check_not_known(info)
            fields = settings | {"id": os.urandom(16).hex(), "identity": device.identity(info)}
            volume = self._checked(fields, info)
            self.config.save("volumes", name, volume)
            self._volumes[name] = self._managed(name, volume)
        self.events.add("volume-added", f"{info.path}, {units.format_size(info.size)}", volume=name)
        return self._volumes[name]

    def _check_not_known(self, info):
        """One name for one device. Devices that overlap may be two volumes; they are never source and target of one job."""
        for other in self.all():
            try:
                known = other.inspect()
            except QrepError:
                continue  # its device is not there, so it is not this one
            if known.device_number == info.device_number and known.kind == info.kind:
                raise Refused(
                    f"{info.path} is volume {other.name} already", hint=f"qrep volume show {other.name}", code="device-known"
                )

    def change(self, name, settings):
        with self._lock:
            volume = self.get(name)
            info = volume.inspect()
            if settings.get("undo", volume.settings.undo) != volume.settings.undo and volume.is_replica():
                raise Refused(
                    f"{name} has undo in {volume.settings.undo or 'the state directory'}",
                    hint="remove and add the volume to move it",
                    code="undo-in-use",
                )
            changed = self._checked(msgspec.to_builtins(volume.settings) | settings, info)
            self.config.save("volumes", name, changed)
            volume.settings = changed
        self.accept_changed()
        volume.settings_changed(info.size)
        self.events.add("volume-changed", ", ".join(f"{key} {value}" for key, value in settings.items()), volume=name)
        return volume

    def _checked(self, fields, info):
        try:
            volume = msgspec.convert(fields, Volume)
        except msgspec.ValidationError as err:
            raise ConfigError(str(err)) from err
        for _key, error in bad_values(volume):
            raise error
        leaf, granule = shape(volume)
        if granule < 2 * leaf:
            raise ConfigError(f"granule {volume.granule} is less than two leaves of {volume.leaf}", hint="leave --granule out")
        if info.size < 2 * leaf:
            raise Refused(
                f"{info.path} has {units.format_size(info.size)}, less than two leaves",
                hint="a smaller --leaf, or a larger device",
                code="too-small",
            )
        registry.of_volume(volume, info)
        for peer in volume.accept:
            self.config.load("peers", peer)
        return volume

    def remove(self, name):
        """Forget a volume and everything qrep keeps of it. The caller has made sure that no job uses it."""
        with self._lock:
            volume = self.get(name)
            volume.close_target()
            if self._groups is not None:
                self._groups.forget(bytes.fromhex(volume.settings.id))
            self.config.remove("volumes", name)
            for path in (volume.directory, volume.settings.undo and os.path.join(volume.settings.undo, volume.settings.id)):
                if path and os.path.isdir(path):
                    shutil.rmtree(path)
            del self._volumes[name]
        self.events.add("volume-removed", volume.settings.device, volume=name)
