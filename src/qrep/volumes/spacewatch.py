"""Whether a space is about to overflow: nearly full now, or at the pace of the last look."""

import threading
import time

from qrep import units
from qrep.volumes.base import SnapshotError

NEARLY = 0.9  # of a space
SPARE = 8 << 30  # bytes that are enough in any case, unless they go fast
AHEAD_S = 5.0  # a look takes a moment, and giving up as well
FORGET_S = 600.0


class SpaceWatch:
    """Remembers what it saw. Thread-safe."""

    def __init__(self, clock=time.monotonic):
        self._clock, self._lock, self._seen = clock, threading.Lock(), {}

    def look(self, name, spaces, way_out):
        """spaces: (what, used, total), bytes. Raises SnapshotError (code snapshot-full) if one of them is about to overflow."""
        for what, used, total in spaces:
            left_s = self._left_s((name, what), used, total)
            if is_tight(used, total) or left_s < AHEAD_S:
                pace = "" if is_tight(used, total) else f", and would be full in {left_s:.0f} s"
                raise SnapshotError(
                    f"{name}: {what} is {used / total:.0%} full of {units.format_size(total)}{pace}; the snapshot is given up before it overflows, "
                    f"the source is unharmed",
                    code="snapshot-full", hint=way_out,
                )  # fmt: skip

    def _left_s(self, key, used, total):
        """Seconds until it is full, at the pace since the last look."""
        now = self._clock()
        with self._lock:
            before = self._seen.get(key)
            self._seen[key] = now, used
            for old in [old for old, (seen, _) in self._seen.items() if now - seen > FORGET_S]:
                del self._seen[old]
        if before is None or now <= before[0] or used <= before[1]:
            return float("inf")
        return (total - used) * (now - before[0]) / (used - before[1])


def is_tight(used, total):
    return total - used < min((1 - NEARLY) * total, SPARE)
