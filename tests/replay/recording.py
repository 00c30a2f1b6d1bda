"""What two devices were asked to write and to flush, in one order; and what each may hold if the power goes at some moment.

A device with a volatile write cache: a write is durable once a flush has ended that was asked for after it had ended, or once it has ended itself if it
is FUA. Of the others any sector (512 bytes) may have been written, or not.
"""

import bisect
import copy
import dataclasses
import itertools
import json
import lzma
import math

from replay import dmlog, trace

SECTOR, BLOCK = 512, 4096
# The filesystem's own superblock, two sectors with a checksum over both: torn it is not mounted, whatever lies on it.
EXT4_SUPERBLOCK = (1024, 2048)
NONE, ALL, SOME = "none", "all", "some"  # of what is not durable, what is there after the power is back
KEEP = (NONE, ALL, SOME)


@dataclasses.dataclass
class Write:
    """data: of `size` bytes; empty for a discard, which leaves zeroes. queued, done: times. durable: when it is for sure."""

    offset: int
    size: int
    data: bytes
    fua: bool
    queued: int
    done: float
    durable: float = math.inf


class Device:
    """base: what it held at first. writes: in the order in which they were asked for. flushes: [(asked for, ended)]. whole: places (start, end) that
    are written in one piece or not at all."""

    def __init__(self, base, writes, flushes, whole=()):
        self.base, self.writes, self.flushes = base, sorted(writes, key=lambda each: each.queued), sorted(flushes)
        self.whole = tuple(tuple(place) for place in whole)
        self.extents = self._extents()
        self._starts, self._ends = [start for start, _end in self.extents], list(itertools.accumulate(end - start for start, end in self.extents))
        self._first = bytearray().join(base[start:end] for start, end in self.extents)
        self.settle()

    def _extents(self):
        """[(start, end)] of everything that is not zero at first, or is ever written."""
        blocks = {start // BLOCK for start in range(0, len(self.base), BLOCK) if self.base.count(0, start, start + BLOCK) < min(BLOCK, len(self.base) - start)}
        for write in self.writes:
            blocks.update(range(write.offset // BLOCK, (write.offset + write.size - 1) // BLOCK + 1))
        extents = []
        for block in sorted(blocks):
            start, end = block * BLOCK, min((block + 1) * BLOCK, len(self.base))
            if extents and extents[-1][1] == start:
                extents[-1] = extents[-1][0], end
            else:
                extents.append((start, end))
        return extents

    def settle(self):
        """Say of each write when it is durable."""
        asked = [queued for queued, _done in self.flushes]
        ends = [done for _queued, done in self.flushes]
        for place in range(len(ends) - 2, -1, -1):  # the first to end of those asked for from here on
            ends[place] = min(ends[place], ends[place + 1])
        for write in self.writes:
            place = bisect.bisect(asked, write.done)
            flushed = ends[place] if place < len(ends) else math.inf
            write.durable = min(flushed, write.done if write.fua else math.inf)

    def at(self, time, keep, chance):
        """[(offset, bytes)] of what it holds if the power goes just before `time`; all else is zero."""
        image = self._first[:]
        for write in self.writes:
            if write.queued >= time:
                break
            if write.durable < time or keep == ALL:
                self._put(image, write, 0, write.size)
            elif keep == SOME:
                step = write.size if any(start < write.offset + write.size and write.offset < end for start, end in self.whole) else SECTOR
                for start in range(0, write.size, step):
                    if chance.random() < 0.5:
                        self._put(image, write, start, step)
        view, done = memoryview(image), 0
        for (start, _end), end in zip(self.extents, self._ends, strict=True):
            yield start, view[done:end]
            done = end

    def image(self, time, keep, chance):
        """As at(), all of it in one piece."""
        whole = bytearray(len(self.base))
        for offset, data in self.at(time, keep, chance):
            whole[offset : offset + len(data)] = data
        return bytes(whole)

    def _put(self, image, write, start, size):
        number = bisect.bisect(self._starts, write.offset) - 1
        at = self._ends[number] - self.extents[number][1] + write.offset + start
        size = min(size, write.size - start)
        image[at : at + size] = write.data[start : start + size] or bytes(size)

    def without(self, dropped):
        """A device like this one, of which these flushes [(asked for, ended)] did nothing."""
        return self.but([dataclasses.replace(write) for write in self.writes], [flush for flush in self.flushes if flush not in dropped])

    def but(self, writes, flushes):
        return Device(self.base, writes, flushes, self.whole)


class Recording:
    """devices: {name: Device}. marks: [(time, text)]. plan: (seed, size, generations) of record.Plan."""

    def __init__(self, plan, devices, marks):
        self.plan, self.devices, self.marks = tuple(plan), devices, marks

    @property
    def end(self):
        """A moment after everything."""
        devices = self.devices.values()
        ends = [done for device in devices for _queued, done in device.flushes] + [write.done for device in devices for write in device.writes]
        return max(time for time in [*ends, *(time for time, _text in self.marks)] if time < math.inf) + 1

    def boundaries(self):
        """When a flush ended, or a FUA write, on either of them."""
        times = {done for device in self.devices.values() for _queued, done in device.flushes}
        times |= {write.done for device in self.devices.values() for write in device.writes if write.fua}
        return sorted(time for time in times if time < math.inf)

    def generations(self, time):
        """(the last that was acknowledged, the last that was begun) before `time`."""
        acked = begun = 0
        for at, text in self.marks:
            what, _space, number = text.partition(" ")
            if at < time and what == "acked":
                acked = int(number)
            elif at < time and what == "begin":
                begun = int(number)
        return acked, begun

    def during(self, generation):
        """(when it was begun, when it was acknowledged)."""
        begun = next(at for at, text in self.marks if text == f"begin {generation}")
        return begun, next(at for at, text in self.marks if text == f"acked {generation}")

    def but(self, **devices):
        """A copy with other devices, or other marks."""
        other = copy.copy(self)
        other.marks = devices.pop("marks", self.marks)
        other.devices = {**self.devices, **devices}
        return other

    # ---- as a small file ----

    def save(self, path):
        blob, devices = bytearray(), {}
        for name, device in self.devices.items():
            pieces = []
            for start in range(0, len(device.base), BLOCK):
                if any(device.base[start : start + BLOCK]):
                    pieces.append(start)
                    blob += device.base[start : start + BLOCK]
            writes = []
            for write in device.writes:
                blob += write.data
                writes.append([write.offset, write.size, len(write.data), write.fua, write.queued, _number(write.done)])
            devices[name] = {"size": len(device.base), "base": pieces, "writes": writes, "flushes": [[queued, _number(done)] for queued, done in device.flushes], "whole": device.whole}
        head = json.dumps({"plan": self.plan, "marks": self.marks, "devices": devices}).encode()
        path.write_bytes(lzma.compress(len(head).to_bytes(8, "little") + head + bytes(blob), preset=9))

    @classmethod
    def load(cls, path):
        data = lzma.decompress(path.read_bytes())
        size = 8 + int.from_bytes(data[:8], "little")
        head, devices = json.loads(data[8:size]), {}

        def take(count):
            nonlocal size
            size += count
            return data[size - count : size]

        for name, told in head["devices"].items():
            base = bytearray(told["size"])
            for start in told["base"]:
                base[start : start + BLOCK] = take(BLOCK)
            writes = [Write(offset, length, take(count), fua, queued, _time(done)) for offset, length, count, fua, queued, done in told["writes"]]
            devices[name] = Device(bytes(base), writes, [(queued, _time(done)) for queued, done in told["flushes"]], told["whole"])
        return cls(head["plan"], devices, [tuple(mark) for mark in head["marks"]])


def _number(time):
    return None if time == math.inf else time


def _time(number):
    return math.inf if number is None else number


def joined(plan, told, bases, logs):
    """The Recording of a run in the guest. told: what record.py left. bases: {name: what the device held}. logs: {name: path of its dm-log-writes}.

    Raises trace.BadTrace, dmlog.BadLog where the log and the trace do not tell the same.
    """
    head, _newline, text = told.partition("\n")
    names = dict(word.split("=")[::-1] for word in head.split()[1:])
    requests, marks = trace.read(text)
    devices = {}
    for number, name in names.items():
        entries = list(dmlog.entries(logs[name]))
        logged_marks = [entry.mark for entry in entries if entry.flags & dmlog.MARK]
        if logged_marks != [mark.replace(" ", "-") for _time, mark in marks] + ["dm-log-writes-end"]:
            raise trace.BadTrace(f"{name}: the log has the marks {logged_marks}, the trace {marks}")
        devices[name] = _device(name, bases[name], entries, requests.get(number, []))
    return Recording(plan, devices, marks)


def _device(name, base, entries, requests):
    """Data from the log, times from the trace. Requests of the same place follow each other; the log has them in the order in which they ended,
    but FUA writes before others that were not flushed yet.

    The log has a flush that comes with data as two entries. Of such data nothing is there before that flush has ended, and when that was is not known:
    it counts as asked for when it ended.
    """
    waiting = {}
    for request in sorted(requests, key=lambda each: each.done):
        if request.size:
            waiting.setdefault((request.key, request.fua), []).append(request)
    writes, flushes = [], [(request.queued, request.done) for request in requests if request.preflush]
    logged = sum(not entry.size and bool(entry.flags & dmlog.FLUSH) for entry in entries)
    if logged != len(flushes):
        raise trace.BadTrace(f"{name}: {logged} flushes in the log, {len(flushes)} in the trace")
    for number, entry in enumerate(entries):
        if not entry.size:
            continue
        same = waiting.get(((entry.offset, entry.size, bool(entry.flags & dmlog.DISCARD)), bool(entry.flags & dmlog.FUA)))
        if not same:
            raise trace.BadTrace(f"{name}: entry {number} of the log, {entry.size} bytes at {entry.offset}, flags {entry.flags:#x}, is not in the trace")
        request = same.pop(0)
        queued = request.done if request.preflush else request.queued
        writes.append(Write(entry.offset, entry.size, entry.data, request.fua, queued, request.done))
    left = [request for each in waiting.values() for request in each]
    if left:
        raise trace.BadTrace(f"{name}: {len(left)} requests of the trace are not in the log, the first {left[0]}")
    return Device(base, writes, flushes, [EXT4_SUPERBLOCK] if name == "state" else ())
