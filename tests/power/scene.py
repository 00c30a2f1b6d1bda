"""Two hosts whose power can be cut: the target's device, its undo and its state, and the source's state, each on a device of its own.

The state directories are mounted where fault/scene.py's are plain ones, so its processes and runs are used as they are; the judge is oracle.py.
"""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path

import blake3
import oracle
from fault.scene import MIB, SIZE, Scene
from power.device import KINDS, Device, cut
from power.told import Told
from power.writelog import Period

KEEPS = (0, 20, 50, 80, 100)
BUSY_S = 60.0
CLOSED_S = 2.0  # what is still open then stays so
# bytes, how it is made. Lanes take 16 MiB of undo each, three files of it may be there at once, and mkfs.xfs refuses less than 300 MiB.
FILESYSTEMS = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
}
UNDO_SIZE, STATE_SIZE = 320 * MIB, 32 * MIB


class Lost(AssertionError):
    """A commit that the source had been told of is gone."""


class PowerScene(Scene):
    """directory: an existing one on tmpfs. undo_kind: the filesystem of the undo store. Call it in a private mount namespace: a copy of the mounts
    elsewhere would keep a filesystem alive whose power is gone. Close it, or use it in `with`."""

    def __init__(self, nest, directory, undo_kind="ext4"):
        self._undone = contextlib.ExitStack()
        directory = Path(directory)
        source = directory / "source.img"
        source.write_bytes(bytes(SIZE))
        devices = directory / "devices"
        devices.mkdir()
        try:
            self.devices = {
                name: self._undone.enter_context(Device(devices, size, name))
                for name, size in (("data", SIZE), ("undo", UNDO_SIZE), ("state", STATE_SIZE), ("source-state", STATE_SIZE))
            }
            super().__init__(nest, source, self.devices["data"].path, directory / "state")
            self._undone.callback(self.unmount, ("target", "source"))
            self._undone.callback(self.stop_all)
            self.undo = self.state / "target" / "undo"
            # device, where it is mounted: those of a host in the order of mounting.
            self.mounts = {"target": [("state", self.state / "target"), ("undo", self.undo)], "source": [("source-state", self.state / "sources")]}
            for name in ("undo", "state", "source-state"):
                _run(*FILESYSTEMS[undo_kind if name == "undo" else "ext4"], self.devices[name])
            self.mount(("target", "source"))
        except BaseException:
            self._undone.close()
            raise
        self.port = 0  # of the target that came up last
        self.period, self.told = None, Told()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def close(self):
        self.answer_all()
        self._undone.close()

    def answer_all(self):
        """No injection is left: nobody can be ended whose request is not answered."""
        for device in self.devices.values():
            device.lie(False)
            for kind in KINDS:
                device.fail(kind, 0)
                device.hold_at(kind, 0)
            device.detain(0)
            device.hold(False)

    # ---- power ----

    def of(self, host):
        """The devices of a host."""
        return [self.devices[name] for name in (["data"] if host == "target" else []) + [name for name, _point in self.mounts[host]]]

    def mount(self, hosts):
        for host in hosts:
            for name, point in self.mounts[host]:
                point.mkdir(parents=True, exist_ok=True)
                _run("mount", self.devices[name], point)
                with contextlib.suppress(FileNotFoundError):
                    (point / "lost+found").rmdir()
                _sync(point)  # ext4 writes its superblock when it is mounted, over two sectors with one checksum, and not by its journal

    def unmount(self, hosts):
        deadline = time.monotonic() + BUSY_S
        for host in hosts:
            for _name, point in reversed(self.mounts[host]):
                while os.path.ismount(point):
                    result = subprocess.run(["umount", point], capture_output=True, text=True, check=False)
                    if result.returncode:  # what a dead process had under way keeps it busy for a moment
                        if time.monotonic() > deadline:
                            raise RuntimeError(result.stderr)
                        time.sleep(0.01)

    def save(self):
        """Remember everything, nobody being at work; for restore()."""
        self.unmount(self.mounts)
        for device in self.devices.values():
            device.save()
        self._saved = dict(self.images), Path(self.source).read_bytes()
        self.mount(self.mounts)

    def restore(self):
        """Everything is as save() found it, whatever was done since."""
        self.answer_all()
        self.stop_all()
        self.unmount(self.mounts)
        for device in self.devices.values():
            device.restore()
        self.images, self.period, self.defect, self.told = dict(self._saved[0]), None, "", Told()
        self.write(self._saved[1])
        self.mount(self.mounts)

    def start(self, role, *arguments, crash="", how=""):
        process = super().start(role, *arguments, crash=crash, how=how)
        process.host, process.role, process.crash, process.held = "source" if role == "source" else "target", role, crash, {}
        process.may_end = {0, 1} if role == "source" else {0}
        return process

    def ready(self, process):
        ready = super().ready(process)
        if ready is not None:
            self.port, process.held = ready["port"], oracle.held(process.pid)
        return ready

    def finish(self, target):
        """As Scene.finish(); of a target that lives on, what it opened since it was ready is closed."""
        deadline = time.monotonic() + CLOSED_S
        while target.held and target.poll() is None and (leaked := oracle.leaked(target.held, self._held(target))):
            if time.monotonic() > deadline:
                raise oracle.Forbidden(f"a target still has open what it opened for a session: {leaked}")
            time.sleep(0.002)
        return super().finish(target)

    def _held(self, target):
        """As oracle.held(), without the undo file of an attempt that stays open, and its marks."""
        held, block = oracle.held(target.pid), oracle.superblock(self.state / "target")
        if block is None or block.open_id == oracle.NO_ID:
            return held
        return {leads: count for leads, count in held.items() if Path(leads).parent != self.undo and "qrep-undo-marks" not in leads}

    def stop_all(self):
        for process in self._running:
            self._bury(process)
        self._running.clear()

    def _bury(self, process):
        """Who still runs is ended; what it said is judged by `told`."""
        if process.poll() is None:
            process.kill()
        process.wait()
        while process.readline():
            pass
        self.told.note(process)
        process.close()

    def lose_power(self, hosts, chance, keep=()):
        """The power of these hosts goes now, with everything that runs there; then it is back. What was cut is judged against the write log.
        keep: {device's name: percent} where it is not left to chance. Returns ({device's name: percent}, what the processes had said, by host)."""
        keeps = {device: dict(keep).get(device.name, chance.choice(KEEPS)) for host in hosts for device in self.of(host)}
        victims = [process for process in self._running if process.host in hosts]

        def kill():
            for process in victims:
                process.kill()

        cut(keeps, chance.getrandbits(63), kill)
        said = {host: "" for host in hosts}
        for process in victims:
            read = len(process.said)
            self._bury(process)
            said[process.host] += process.said[read:].decode()
            self._running.remove(process)
        if "target" in hosts:
            self.judge()
        self.unmount(hosts)
        for device in keeps:
            device.power_on()
        self.mount(hosts)
        return {device.name: keep for device, keep in keeps.items()}, said

    # ---- the oracle ----

    def watch(self):
        """From now on, with nobody at work, everything that the target writes is judged."""
        self.period = Period(self.devices["data"], self.devices["undo"], self.devices["state"], self.undo, self.state / "target")

    def judge(self, **canary):
        """INV-U since watch(); ends that. Returns how many sectors of the target changed."""
        period, self.period = self.period, None
        return period.check(**canary) if period is not None else 0

    def holds(self, image):
        found = oracle.read_direct(self.target)
        if blake3.blake3(found).digest() != blake3.blake3(image).digest():
            raise oracle.Wrong(f"the target does not hold its committed generation: {oracle.first_difference(image, found)}")

    def points_are_true(self):
        """INV-K: each sync point within reach shows its image."""
        out, err = self.start("points").communicate()
        self.stop_all()
        if not out:
            raise oracle.Wrong(f"the sync points cannot be read: {err}")
        for counter, root in json.loads(out).items():
            if root != blake3.blake3(self.images[int(counter)]).hexdigest():
                raise oracle.Wrong(f"sync point {counter} does not show its image")

    def committed(self):
        """(counter, id, ids before it, newest first) of the superblock that counts."""
        block = oracle.superblock(self.state / "target")
        return (block.counter, block.committed_id, block.history) if block else (0, oracle.NO_ID, ())


def _run(*command):
    result = subprocess.run([os.fspath(word) for word in command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit {result.returncode}: {result.stderr.strip()}")


def _sync(point):
    descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
