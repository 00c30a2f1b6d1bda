"""The read limiter of jobs that are to be nice: looks at the source's device, asks nice.Nice what follows, and tells the lanes.

    reading = Reading(info)     # DeviceInfo of the source
    SourceRun(..., nice=reading.limit(fd))
    reading.end()

Sources that have a device in common share one limiter: two runs that are nice to each other would both hold back for nobody.
"""

import logging
import os
import threading
import time

from qrep._native.nice import ReadLimit
from qrep.source.neighbours import Neighbours
from qrep.source.nice import Nice, Sample

log = logging.getLogger("qrep.source")
_lock = threading.Lock()
_limiters = []


def join(info):
    """The ReadLimiter of the devices that a source lies on."""
    neighbours = Neighbours(info)
    with _lock:
        for limiter in _limiters:
            if limiter.numbers & neighbours.numbers:
                limiter.users += 1
                neighbours.close()
                return limiter
        limiter = ReadLimiter(neighbours)
        _limiters.append(limiter)
        return limiter


class Reading:
    """What is read of one source for one purpose, a run or a verify. info: its DeviceInfo. nice False: nobody is looked for, nothing is limited."""

    def __init__(self, info, nice):
        self._info, self._nice, self._limiter = info, nice, None

    def limit(self, fd):
        """The ReadLimit that whoever reads through this descriptor has to obey, None for none."""
        if not self._nice:
            return None
        if self._limiter is None:
            self._limiter = join(self._info)
        self._limiter.reading(fd)
        return self._limiter.native

    def shown(self):
        """`nice` of a PROGRESS (docs/API.md), None where nothing is limited."""
        limiter = self._limiter
        return limiter.shown() if limiter is not None else None

    def end(self):
        """It may begin again."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.leave()


class ReadLimiter:
    """native: what lanes obey. Its thread ends with the last user."""

    def __init__(self, neighbours):
        self.native, self.users, self.numbers = ReadLimit(), 1, neighbours.numbers
        self._neighbours, self._nice = neighbours, Nice()
        self._inside = True
        self._ending = threading.Event()
        self._thread = None
        if neighbours.can_see:  # else there is nobody to be nice to but who wants the CPU
            self._obey()
            self._thread = threading.Thread(target=self._watch, name="nice", daemon=True)
            self._thread.start()

    def reading(self, fd):
        """From now on lanes read through this descriptor."""
        self._inside = os.fstat(fd).st_rdev in {os.makedev(*number) for number in self.numbers}

    def leave(self):
        with _lock:
            self.users -= 1
            if self.users:
                return
            _limiters.remove(self)
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self._neighbours.close()

    def _watch(self):
        wait_s = 0.0
        try:
            while not self._ending.wait(wait_s):
                wait_s = self._obey()
        except Exception:  # a bug of ours must not keep a run from its end
            log.exception("the read limiter died; reads are not limited any more")
            self.native.order(0, 0, False)

    def _obey(self):
        counters, seen = self.native.counters(), self._neighbours.seen()
        order = self._nice.look(
            Sample(
                now=time.monotonic(), ios=seen.ios, own_ios=counters["reads"] if self._inside else 0, busy_s=seen.busy_s, below=seen.below,
                in_flight=counters["in_flight"], timed=counters["timed"], timed_s=counters["timed_ns"] / 1e9,
            )
        )  # fmt: skip
        self.native.order(order.rate, order.piece, order.paused)
        return order.wait_s

    def shown(self):
        """As Reading.shown()."""
        nice = self._nice
        return {
            "holds_back": nice.sharing, "limit_bytes_per_s": nice.rate or None, "others_ios_per_s": round(nice.others_ios_per_s or 0) if nice.sharing else None,
            "read_ms": round(nice.latency_s * 1000, 3) if nice.sharing and nice.latency_s else None,
        }  # fmt: skip
