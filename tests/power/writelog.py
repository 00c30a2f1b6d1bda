"""INV-U from the write logs of the devices: no byte of the target changes in an open generation before its undo record is durable.

Shares no code with qrep: batches of before-images and superblocks are found in what was written to the devices below the filesystems, as
docs/DISK_FORMAT.md describes them. One Period goes from a moment at which the devices are quiet to another one, or to a power cut.
"""

import heapq
import os
import struct
from pathlib import Path
from typing import NamedTuple

import blake3
import oracle

SECTOR, PAGE = 512, 4096
BATCH, HEADER_SIZE, CHECKED = b"QREPBTCH", 144, 112
SLOT = b"QPERSBLK"
DATA = 1


class Early(AssertionError):
    """A byte of the target changed before the way back of it was durable."""


class Standing(NamedTuple):
    """What the superblock that counts says."""

    sequence: int
    committed: bytes
    attempt: int


def standing(sector):
    """The Standing of a slot, None for anything else."""
    if sector[:8] != SLOT or blake3.blake3(sector[:480]).digest() != sector[480:SECTOR]:
        return None
    sequence, attempt = struct.unpack_from("<Q", sector, 16)[0], struct.unpack_from("<Q", sector, 104)[0]
    return Standing(sequence, sector[56:72], attempt)


class Pages:
    """The content of a device as far as it was written, by the page."""

    def __init__(self):
        self._pages = {}

    def write(self, offset, data):
        """data: of whole sectors."""
        for start in range(offset // PAGE * PAGE, offset + len(data), PAGE):
            page = self._pages.setdefault(start, bytearray(PAGE))
            first, end = max(start, offset), min(start + PAGE, offset + len(data))
            page[first - start : end - start] = data[first - offset : end - offset]

    def read(self, offset, size):
        """Pages that were not written: zeroes. offset: of a page."""
        return b"".join(bytes(self._pages.get(start, bytes(PAGE))) for start in range(offset, offset + size, PAGE))[:size]


def batch_at(read):
    """((base, attempt), [(offset, size)]) of the batch of before-images that begins where read(offset in it, size) reads; None if it is not whole."""
    head = read(0, PAGE)
    extents = struct.unpack_from("<I", head, 12)[0]
    if head[:8] != BATCH or not 0 < extents <= 16384:
        return None
    front = -(-(HEADER_SIZE + extents * 16) // PAGE) * PAGE
    table = read(0, front)[HEADER_SIZE : HEADER_SIZE + extents * 16]
    if blake3.blake3(head[:CHECKED] + table).digest() != head[CHECKED:HEADER_SIZE]:
        return None
    base, attempt, payload_size = head[16:32], struct.unpack_from("<Q", head, 32)[0], struct.unpack_from("<Q", head, 56)[0]
    if blake3.blake3(read(front, payload_size)).digest() != head[80:112]:
        return None
    return (base, attempt), [(offset, size) for offset, size, _kind in struct.iter_unpack("<QII", table)]


class Coverage:
    """Which sectors of the target have a durable way back: (base, attempt) -> sectors."""

    def __init__(self):
        self.sectors = {}

    def add(self, found):
        key, extents = found
        sectors = self.sectors.setdefault(key, set())
        for offset, size in extents:
            sectors.update(range(offset // SECTOR, (offset + size) // SECTOR))

    def add_files(self, directory):
        """What the undo files of a mounted, quiet filesystem hold."""
        for path in Path(directory).glob("*.undo"):
            with open(path, "rb") as file:
                for start, end in data_of(file.fileno()):
                    for place in range(start // PAGE * PAGE, end, PAGE):
                        if os.pread(file.fileno(), 8, place) == BATCH:
                            found = batch_at(lambda offset, size, place=place: os.pread(file.fileno(), size, place + offset))
                            if found:
                                self.add(found)


def data_of(descriptor):
    """[(start, end)] of a file without its holes."""
    found, end, size = [], 0, os.lseek(descriptor, 0, os.SEEK_END)
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            break
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        found.append((start, end))
    return found


class Period:
    """data, undo, state: Devices; undo_directory, state_directory: where their filesystems are mounted, quiet now."""

    def __init__(self, data, undo, state, undo_directory, state_directory):
        self._devices = {"data": data, "undo": undo, "state": state}
        self._content = bytearray(oracle.read_direct(data))
        slots = [standing(part) for part in self._slots(state_directory)]
        self._standing = max((slot for slot in slots if slot), default=None)
        self._covered = Coverage()
        self._covered.add_files(undo_directory)
        self._pages, self._unflushed = Pages(), set()
        self.changed = 0  # sectors of the target that changed
        for device in self._devices.values():
            device.record(data=True)

    @staticmethod
    def _slots(directory):
        path = Path(directory, "superblock")
        content = path.read_bytes() if path.exists() else b""
        return [content[start : start + SECTOR] for start in (0, PAGE)]

    def check(self, arrange=lambda events: events):
        """Raises Early, naming the place. Returns how many sectors of the target changed. arrange: for canaries, of the events in their order."""
        events = arrange(events_of({name: device.log() for name, device in self._devices.items()}))
        for _stamp, name, step, record in events:
            if not record.error:
                getattr(self, f"_{name}_{step}")(record)
        return self.changed

    def _data_begun(self, record):
        if record.kind == "flush" or self._standing is None or self._standing.committed == oracle.NO_ID:
            return  # what was never committed has no way back
        key = (self._standing.committed, self._standing.attempt)
        covered = self._covered.sectors.get(key, ())
        data = record.data if record.kind == "write" else bytes(record.size)
        for done in range(0, record.size, SECTOR):
            at = record.offset + done
            if self._content[at : at + SECTOR] != data[done : done + SECTOR]:
                self.changed += 1
                if at // SECTOR not in covered:
                    raise Early(
                        f"sector {at // SECTOR} of the target changed at {record.begun} ns without a durable before-image of attempt {key[1]:016x} on {key[0].hex()}"
                    )

    def _data_done(self, record):
        if record.kind != "flush":
            self._content[record.offset : record.offset + record.size] = record.data if record.kind == "write" else bytes(record.size)

    def _undo_done(self, record):
        if record.kind == "write":
            self._pages.write(record.offset, record.data)
            places = range(-record.offset % PAGE, record.size, PAGE)
            self._unflushed.update(record.offset + place for place in places if record.data[place : place + 8] == BATCH)
        elif record.kind == "flush":
            for place in self._unflushed:
                found = batch_at(lambda offset, size, place=place: self._pages.read(place + offset, size))
                if found:
                    self._covered.add(found)
            self._unflushed.clear()

    def _state_done(self, record):
        if record.kind == "write":
            for place in range(0, record.size, SECTOR):
                found = standing(record.data[place : place + SECTOR])
                if found and (self._standing is None or found.sequence >= self._standing.sequence):
                    self._standing = found

    def _undo_begun(self, record):
        pass

    _state_begun = _undo_begun


def events_of(logs):
    """[(stamp, device's name, "begun" or "done", Record)] of all devices in the order of time; a request that was begun is before one that is done."""
    streams = [[(record.begun, name, "begun", record) for record in log] + [(record.done, name, "done", record) for record in log] for name, log in logs.items()]
    return list(heapq.merge(*(sorted(stream, key=order) for stream in streams), key=order))


def order(event):
    stamp, name, step, _record = event
    return stamp, step, name
