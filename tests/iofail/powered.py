"""The same with io_uring, which no library stands in front of: source and target are block devices of tests/power, which fail the n-th request.

    with Powered(directory, seed) as sweep:       # raises power.device.Unavailable
        for point in sweep.points(): sweep.attempt(point)
"""

import contextlib
import os
from types import SimpleNamespace

import oracle
from fault.rot import Tree
from iofail.injector import WAYS, Point
from iofail.replica import SIZE, Replica
from iofail.sweep import Sweep
from power.device import Device

NAMES = ("source", "device")
KINDS = {"read": "read", "write": "write", "flush": "flush", "allocate": "zero"}
WAYS_OF = {"read": ("eio", "eio-always"), "write": ("eio", "eio-always", "enospc"), "flush": ("eio", "eio-always", "lose"), "allocate": ("eio", "enospc")}
AT_MOST = 3  # calls of one kind in one act that are tried: the first, the last, one between


class DeviceTree:
    """Of the state directory, and the two devices whole. files: as of Tree."""

    def __init__(self, replica):
        self._replica, self._state = replica, Tree(replica.directory)
        self._devices = {name: oracle.read_direct(replica.path_of(name)) for name in NAMES}
        self.files = self._state.files | {name: (SIZE, [(0, content)]) for name, content in self._devices.items()}

    def read(self, name, offset, size):
        return self._state.read(name, offset, size)

    def restore(self):
        self._state.restore()
        for name, content in self._devices.items():
            self._replica.put(name, content)


class DeviceReplica(Replica):
    """devices: {name: power.Device}."""

    def __init__(self, directory, seed, devices):
        self.devices = devices
        super().__init__(directory, seed)

    def tree(self):
        return DeviceTree(self)

    def path_of(self, name):
        return self.devices[name].path

    def put(self, name, content):
        with open(self.path_of(name), "r+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


class DeviceInjector:
    """As injector.Injector, by what the devices can do."""

    def __init__(self, devices):
        self._devices = devices
        self.shared = SimpleNamespace(hits=0, voids=0, place_offset=0)
        self.counted = {}

    def _counts(self):
        return {(name, op): getattr(device.counts(), kind) for name, device in self._devices.items() for op, kind in KINDS.items()}

    def before(self, point):
        """In the process that forks, before it does."""
        way, self._before = WAYS[point.way], self._counts()
        if point.nth:
            self._devices[point.kind].fail(KINDS[point.op], point.nth, way.error, sticky=way.lasting == "always", lose=way.how == "lose")

    def arm(self, point):
        """It is."""

    def disarm(self):
        """It goes on until over()."""

    def over(self, point):
        now = self._counts()
        self.counted = {key: count - self._before[key] for key, count in now.items()}
        self.shared.hits = int(0 < point.nth <= self.counted[point.kind, point.op])
        if point.nth:
            self._devices[point.kind].fail(KINDS[point.op], 0)
        if point.way == "lose" and self.shared.hits:  # what that flush was to make durable is seen, and is not there after the power went
            self._devices[point.kind].cut(point.nth, 0)
            self._devices[point.kind].power_on()

    def counts(self):
        return {key: count for key, count in self.counted.items() if count}

    @staticmethod
    def after_failed_flush():
        return {}


class Powered(Sweep):
    ACTS = ("first", "second", "recover", "rollback")

    def __init__(self, directory, scratch, seed):
        self._stack = contextlib.ExitStack()
        try:
            devices = {name: self._stack.enter_context(Device(scratch, SIZE, name)) for name in NAMES}
            super().__init__(DeviceReplica(directory, seed, devices), DeviceInjector(devices))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self._stack.close()

    def _forked(self, point):
        self.injector.before(point)
        return super()._forked(point)

    def points(self):
        for act in self.ACTS:
            for (name, op), calls in sorted(self.calls(act).items()):
                for way in WAYS_OF[op] if name == "device" else WAYS_OF["read"] if op == "read" else ():
                    for nth in sorted({1, (calls + 1) // 2, calls})[:AT_MOST]:
                        yield Point(act, name, op, nth, way)
