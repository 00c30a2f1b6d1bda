"""A second reader of undo files, as docs/DISK_FORMAT.md has them: which generation one leads to, and what it puts back. Shares no code with qrep."""

import struct

import blake3

PAGE, SEGMENT, COPY = 4096, 16 << 20, 4096
DATA, ZERO = 1, 2
MAGIC = b"QREPBTCH"


class Broken(AssertionError):
    """A file that is to lead back to a sync point does not."""


class Bytes:
    """A sparse file of which the contents are known: pieces ((offset, bytes), ...) and size."""

    def __init__(self, pieces, size):
        self.pieces, self.size = pieces, size

    def read(self, offset, size):
        found = bytearray(max(0, min(size, self.size - offset)))
        for start, data in self.pieces:
            first, last = max(start, offset), min(start + len(data), offset + len(found))
            if first < last:
                found[first - offset : last - offset] = data[first - start : last - start]
        return bytes(found)


def header(file, offset=0):
    """(base, new, attempt, batches), None if there is none that can be believed."""
    data = file.read(offset, 128)
    if len(data) < 128 or data[:8] != b"QREPUNDO" or blake3.blake3(data[:96]).digest() != data[96:]:
        return None
    return data[32:48], data[48:64], struct.unpack_from("<Q", data, 64)[0], struct.unpack_from("<Q", data, 88)[0]


def places(start, piece):
    """Where batches may begin in what lies at `start` of a file."""
    at = piece.find(MAGIC)
    while at >= 0:
        if start + at >= SEGMENT and (start + at) % PAGE == 0:
            yield start + at
        at = piece.find(MAGIC, at + 1)


def batches(file, base, attempt):
    """[(sequence, [(offset, bytes)])] of every valid batch of a file, in the order of logging."""
    found = []
    for start, piece in file.pieces:
        for at in places(start, piece):
            head = file.read(at, 144)
            if len(head) < 144:
                continue
            count = struct.unpack_from("<I", head, 12)[0]
            _attempt, sequence, position, size = struct.unpack_from("<QQQQ", head, 32)
            table = file.read(at + 144, 16 * count)
            if head[16:32] != base or _attempt != attempt or position != at or blake3.blake3(head[:112] + table).digest() != head[112:]:
                continue
            payload = file.read(at + -(-(144 + 16 * count) // PAGE) * PAGE, size)
            if len(payload) < size or blake3.blake3(payload).digest() != head[80:112]:
                continue
            extents, done = [], 0
            for number in range(count):
                offset, length, kind = struct.unpack_from("<QII", table, 16 * number)
                extents.append((offset, payload[done : done + length] if kind == DATA else bytes(length)))
                done += length if kind == DATA else 0
            found.append((sequence, extents))
    return sorted(found)


def way_back(pieces, size, sealed=True):
    """(base, new, [(offset, bytes)] in the order in which they are put back) of a committed generation. sealed: the copy of the header must be there,
    with the number of batches. Raises Broken."""
    file = Bytes(pieces, size)
    head = header(file)
    copy = header(file, COPY) if sealed else head
    if head is None or copy is None or head[:3] != copy[:3]:
        raise Broken("its header or the copy of it cannot be believed")
    base, new, attempt, _none = head
    found = batches(file, base, attempt)
    if len(found) < copy[3]:
        raise Broken(f"{len(found)} of {copy[3]} batches can be read")
    return base, new, [extent for _sequence, extents in reversed(found) for extent in reversed(extents)]
