"""When the power goes: after a time, when a process comes by a crash point, or at the n-th write or flush of a device, which no timing can miss."""

import select
import time

from fault.nest import NATIVE
from fault.test_kill_matrix import RECOVERY_POINTS, SOURCE_POINTS, TARGET_POINTS

AFTERWARDS_S = (0.0, 0.0, 0.0, 0.002, 0.02)  # how long the others go on
STEP_S = 0.002
LIMIT_S = 120.0
# A process that is to die at a native point has to be a new interpreter, which takes as long as a whole trial: few of them.
NATIVE_SHARE = 0.05


class Moment:
    """The moment has come when one of these has: crash (host, point), io (device, kind, nth), seconds."""

    def __init__(self, chance, *, seconds=None, crash=None, io=None):
        self.seconds, self.crash, self.io = seconds, crash, io
        self.afterwards = chance.choice(AFTERWARDS_S)

    def __str__(self):
        if self.crash:
            return f"{self.crash[0]} at {self.crash[1]}"
        return f"{self.io[0].name} at {self.io[1]} {self.io[2]}" if self.io else f"after {self.seconds:.3f} s"

    def arm(self):
        if self.io:
            device, kind, nth = self.io
            device.hold_at(kind, nth)

    def crash_of(self, host):
        """QREP_CRASH for a process of a host."""
        return f"{self.crash[1]}:1" if self.crash and self.crash[0] == host else ""

    def ready(self, scene, target):
        """What a target says when it is ready; None: the moment has come before."""
        deadline = time.monotonic() + LIMIT_S
        while not select.select([target.stdout], [], [], STEP_S)[0]:
            if self._held():
                return None
            assert time.monotonic() < deadline, f"the target says nothing: {target.errors()}"
        return scene.ready(target)

    def wait(self, processes):
        """Until it has come, or one of the processes has ended. Whether it came as it was meant."""
        if self.seconds is not None:
            time.sleep(self.seconds)
            return True
        deadline = time.monotonic() + LIMIT_S
        while not self._held() and all(process.poll() is None for process in processes):
            assert time.monotonic() < deadline, f"neither {self} nor the end of the run has come"
            time.sleep(STEP_S)
        met = self._held() or any(process.poll() == -9 for process in processes)
        time.sleep(self.afterwards)
        return met

    def _held(self):
        return bool(self.io and self.io[0].counts().held)


def of_run(chance, scene, hosts, requests, length):
    """Of a run: length: seconds of a whole one; requests: {device's name: Counts} of one."""
    draw = chance.random()
    if draw < 0.2:
        return Moment(chance, seconds=chance.uniform(0.0, 1.2 * length))
    if draw < 0.5:
        host, native = chance.choice(hosts), chance.random() < NATIVE_SHARE
        points = SOURCE_POINTS if host == "source" else TARGET_POINTS
        return Moment(chance, crash=(host, chance.choice([point for point in points if (point in NATIVE) == native])))
    device = chance.choice([device for host in hosts for device in scene.of(host)])
    kind = chance.choice(("write", "flush"))
    return Moment(chance, io=(device, kind, chance.randint(1, 1 + getattr(requests[device.name], kind))))


def of_recovery(chance, scene, length):
    """Of a recovery of the target."""
    draw = chance.random()
    if draw < 0.2:
        return Moment(chance, seconds=chance.uniform(0.0, 0.3 * length))
    if draw < 0.5:
        return Moment(chance, crash=("target", chance.choice([point for point in RECOVERY_POINTS if point not in NATIVE])))
    device = chance.choice(scene.of("target"))
    return Moment(chance, io=(device, chance.choice(("write", "flush")), chance.randint(1, 5)))
