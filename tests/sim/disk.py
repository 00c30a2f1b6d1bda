"""Devices and files of the simulation: a volatile cache, flushes, torn sectors, failures, and writes that outlive their process."""

import errno

from sim.world import Killed, Signal

SECTOR = 512
PAGE = 4096
HEAD = 2 * PAGE


class Faults:
    """When a disk fails: the n-th operation of a kind from now on. once or for ever until healed."""

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.left = {}  # kind -> operations until it fails
        self.sticky = set()

    def arm(self, kind, count, sticky):
        self.left[kind] = count
        if sticky:
            self.sticky.add(kind)

    def heal(self):
        self.left.clear()
        self.sticky.clear()

    def hits(self, kind):
        left = self.left.get(kind)
        if left is None:
            return False
        if left > 1:
            self.left[kind] = left - 1
            return False
        if kind not in self.sticky:
            del self.left[kind]
        self.world.log(f"{self.name} fails a {kind}")
        return True


class MediumError(OSError):
    """A place of the medium takes no write."""


class Disk:
    """A block device, or a file that lies in segments of 2^24 bytes of which only the start is used.

    Reads see the cache. A write is in flight until it completes, then in the cache, and durable after a flush that began later.
    latency: seconds, scale. shorn: how often a sector that was being written when the power went holds nonsense.
    """

    def __init__(self, world, name, size, *, latency=0.001, shorn=0.03):
        self.world, self.name, self.latency, self.shorn = world, name, latency, shorn
        self.cache = bytearray(size)
        self.durable = bytearray(size)
        self.pending = []  # (offset, bytes), completed and not flushed, in order
        self.in_flight = {}  # number -> (offset, bytes, signal)
        self.idle = Signal()
        self.number = 0
        self.faults = Faults(world, name)
        self.unwritable = set()  # offsets: writes over them fail and change nothing, until they are taken out
        self.observer = None  # called with (offset, data, mark) as a write lands

    def read(self, offset, size):
        if self.faults.hits("read"):
            raise OSError(errno.EIO, f"{self.name}: read of {size} at {offset}")
        return bytes(self.cache[offset : offset + size])

    def submit(self, offset, data, mark=None):
        """Start a write; it lands later, whether its process lives or not. Returns the signal of its completion."""
        if self.faults.hits("write"):
            raise OSError(errno.EIO, f"{self.name}: write of {len(data)} at {offset}")
        if any(offset <= place < offset + len(data) for place in self.unwritable):
            raise MediumError(errno.EIO, f"{self.name}: the medium takes no write of {len(data)} at {offset}")
        self.number += 1
        done = Signal()
        self.in_flight[self.number] = (offset, data, done, mark)
        wait = self.world.delay(self.latency)
        if self.world.chance(0.02):
            wait += self.world.delay(1.0)  # a queue that stalls: this is what a killed process leaves behind (M4)
        self.world.at(wait, self._land, self.number)
        return done

    def _land(self, number):
        entry = self.in_flight.pop(number, None)
        if entry is None:
            return  # the power went first
        offset, data, done, mark = entry
        if self.observer:
            self.observer(offset, data, mark)
        self.cache[offset : offset + len(data)] = data
        self.pending.append((offset, data))
        done.fire()
        if not self.in_flight:
            idle, self.idle = self.idle, Signal()
            idle.fire()

    def drained(self):
        """Wait until nothing is in flight: what taking the claim means (R1, M5)."""
        while self.in_flight:
            yield self.idle

    def flush(self):
        """R2: a flush that fails ends the process, and what was not flushed may be lost while the next flush says it is well (M3)."""
        yield self.world.delay(self.latency)
        if self.faults.hits("flush"):
            self._keep_some()
            raise Killed(f"a flush of {self.name} failed")
        for offset, data in self.pending:
            self.durable[offset : offset + len(data)] = data
        self.pending.clear()

    def _keep_some(self):
        """Any subset of the sectors that were not flushed survives; some that were just being written hold nonsense."""
        random, durable = self.world.random, self.durable
        keep = random.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        writes = self.pending + [(offset, data) for offset, data, _, _ in self.in_flight.values()]
        for offset, data in writes:
            for start in range(0, len(data), SECTOR):
                if random.random() < keep:
                    part = data[start : start + SECTOR] if random.random() >= self.shorn else random.randbytes(SECTOR)
                    durable[offset + start : offset + start + len(part)] = part
        self.pending.clear()
        self.cache[:] = durable

    def power_cut(self):
        self._keep_some()
        self.in_flight.clear()
        idle, self.idle = self.idle, Signal()
        idle.fire()


SEGMENT = 1 << 24
ROOM = 1 << 18  # bytes of each segment that a small volume ever uses


class SparseFile(Disk):
    """A Disk addressed like a real undo file, whose segments lie 2^24 bytes apart; kept without the gaps. sealed: once it leads back from a committed
    generation it says how many batches it has."""

    sealed = True

    def __init__(self, world, name, *, segments=0, latency=0.0005):
        super().__init__(world, name, HEAD, latency=latency)

    def place(self, offset):
        """Where a file offset lies in the kept bytes: segment 0 (the header and its copy) has two pages, the others ROOM each."""
        segment, inside = divmod(offset, SEGMENT)
        if segment == 0:
            return inside
        if inside >= ROOM:
            raise ValueError("a segment of the simulation is full")
        return HEAD + (segment - 1) * ROOM + inside

    def grow(self, end):
        if len(self.cache) < end:
            self.cache.extend(bytes(end - len(self.cache)))
            self.durable.extend(bytes(end - len(self.durable)))

    def submit(self, offset, data, mark=None):
        place = self.place(offset)
        self.grow(place + len(data))
        return super().submit(place, data, mark)

    def segments(self):
        """(file offset, bytes) of every segment that was ever written to."""
        for index, start in enumerate(range(HEAD, len(self.cache), ROOM)):
            yield (index + 1) * SEGMENT, bytearray(self.cache[start : start + ROOM])


class Store:
    """Small files replaced atomically and durably; a crash in the middle leaves the old or the new."""

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.files = {}
        self.faults = Faults(world, name)

    def write(self, name, data):
        """None removes."""
        if self.faults.hits("write"):
            raise OSError(errno.ENOSPC, f"{self.name}: no space for {name}")
        early = self.world.random.random() < 0.5  # the rename is durable before or after the moment of a crash
        if early:
            self._put(name, data)
        yield self.world.delay(0.001)
        if not early:
            self._put(name, data)

    def _put(self, name, data):
        if data is None:
            self.files.pop(name, None)
        else:
            self.files[name] = data
