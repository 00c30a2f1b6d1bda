"""What dm-log-writes left on its log device, read back (kernel: Documentation/admin-guide/device-mapper/log-writes.rst, drivers/md/dm-log-writes.c).

The first sector is a header: magic, version, number of entries, sector size. Then entry after entry: a sector {sector, sectors, flags, length of a
mark, the mark}, and the sectors that were written; a discard has none. A write is there once a later flush has ended, a FUA write once it has ended.
"""

import struct
from typing import NamedTuple

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
HEADER, ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")


class BadLog(ValueError):
    """This is no log of dm-log-writes, or not a whole one."""


class Entry(NamedTuple):
    """offset, size: bytes. data: what was written; empty for a discard, a flush and a mark. mark: its text."""

    offset: int
    size: int
    flags: int
    data: bytes
    mark: str = ""


def entries(path):
    """All entries of a log, in its order. Raises BadLog."""
    with open(path, "rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size:
            raise BadLog(f"{path}: {len(head)} bytes are no log")
        magic, version, count, sector = HEADER.unpack(head)
        if (magic, version) != (MAGIC, VERSION) or sector not in (512, 1024, 2048, 4096):
            raise BadLog(f"{path}: magic {magic:#x}, version {version}, sectors of {sector}")
        position = sector
        for number in range(count):
            file.seek(position)
            block = file.read(sector)
            if len(block) < sector:
                raise BadLog(f"{path}: it ends before entry {number} of {count}")
            at, sectors, flags, length = ENTRY.unpack_from(block)
            if length > sector - ENTRY.size or flags > 0x1F:
                raise BadLog(f"{path}: entry {number} has flags {flags:#x} and a mark of {length}")
            position += sector
            data = b""
            if not flags & DISCARD:
                data = file.read(sectors * sector)
                if len(data) < sectors * sector:
                    raise BadLog(f"{path}: it ends inside entry {number} of {count}")
                position += len(data)
            yield Entry(at * sector, sectors * sector, flags, data, block[ENTRY.size : ENTRY.size + length].decode() if flags & MARK else "")


def written(items, sector=512):
    """The bytes of a log of these entries, as the kernel would have written it: for tests."""
    out = bytearray(HEADER.pack(MAGIC, VERSION, len(items), sector).ljust(sector, b"\0"))
    for entry in items:
        mark = entry.mark.encode()
        out += (ENTRY.pack(entry.offset // sector, entry.size // sector, entry.flags, len(mark)) + mark).ljust(sector, b"\0") + entry.data
    return bytes(out)
