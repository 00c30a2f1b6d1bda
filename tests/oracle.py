"""What a stranger finds on the devices, in the records and in the logs, after whatever was done to qrep. Shares no code with it.

Devices are read with O_DIRECT and hashed with the packaged blake3; superblocks and maps are read as docs/DISK_FORMAT.md describes them.

    images = Images()
    images.keep(id, content)                    # of every generation that may be committed
    found = superblock(state / "target")        # or None; Wrong if no slot can be believed
    images.are_on(device, found.committed_id)   # Wrong, with the first leaf that differs
    map_is_true(state / "target" / "map", found.committed_id, content)
    nothing_forbidden(agent.log, agent.events())
"""

import dataclasses
import hashlib
import mmap
import os
import re
import struct
from pathlib import Path

import blake3
import plainblake3

SECTOR, LEAF, STEP = 512, 4096, 1 << 20
SLOTS = (0, 4096)
NO_ID = bytes(16)
UNKNOWN, HASHED, ZERO = 0, 1, 2
STATE_MASK, VALUE_KNOWN = 0x03, 0x20
# What no log may contain, whatever was done: qrep tells its own faults as `internal`, Python with a traceback, sanitizers with their names.
FORBIDDEN_TEXT = re.compile(
    r"Traceback|exception was never retrieved|was never awaited|AddressSanitizer|LeakSanitizer|UndefinedBehaviorSanitizer|runtime error:|ThreadSanitizer|ResourceWarning"
    r"|internal error|Segmentation fault|dumped core|double free|Fatal Python error"
)
# What no agent may report when nobody harmed its devices or records.
FORBIDDEN_EVENTS = frozenset({"volume-damaged", "volume-missing", "points-out-of-reach", "points-forgotten", "device-differs", "verify-differs", "group-damaged", "split-brain", "front-ended", "agent-died"})


class Wrong(AssertionError):
    """The devices or records are not what they must be."""


class Forbidden(AssertionError):
    """Something happened that must not happen, though the data are right."""


# ---- devices ----


def read_direct(path):
    """All bytes of a block device or image file, past the page cache of whoever reads it. A last piece below a sector is read through the cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        content, buffer = bytearray(size), mmap.mmap(-1, STEP)
        with buffer:
            done = 0
            while done < size:
                got = os.preadv(descriptor, [buffer], done)
                if got <= 0:
                    raise Wrong(f"{path}: nothing to be read at {done} of {size}")
                content[done : done + got] = buffer[: min(got, size - done)]
                done += got
                if done % SECTOR and done < size:
                    raise Wrong(f"{path}: a read ended inside a sector, at {done} of {size}")
        return bytes(content)
    finally:
        os.close(descriptor)


def first_difference(wanted, found):
    """Where two contents differ, in words."""
    if len(wanted) != len(found):
        return f"{len(found)} bytes instead of {len(wanted)}"
    leaves = [start for start in range(0, len(wanted), LEAF) if wanted[start : start + LEAF] != found[start : start + LEAF]]
    return f"{len(leaves)} leaves differ, the first at {leaves[0]}" if leaves else "no leaf differs"


class Images:
    """The content of every generation, as the harness wrote it. A generation: whatever names it, an id or a counter."""

    def __init__(self):
        self.content, self.digests = {}, {}

    def keep(self, generation, content):
        self.content[generation] = bytes(content)
        self.digests[generation] = blake3.blake3(content).digest()

    def are_on(self, device, generation):
        """INV-E, INV-R: the device holds this generation, every byte of it. Returns its root."""
        if generation not in self.content:
            raise Wrong(f"{device}: generation {generation!r} was never sent")
        found = read_direct(device)
        if blake3.blake3(found).digest() != self.digests[generation]:
            raise Wrong(f"{device} is not generation {generation!r}: {first_difference(self.content[generation], found)}")
        return self.digests[generation].hex()


# ---- records ----


@dataclasses.dataclass(frozen=True)
class Superblock:
    """What the slot that counts says. role: 1 replica, 2 primary; open_kind: 0 nothing, 1 a run, 2 a rollback."""

    sequence: int
    role: int
    open_kind: int
    size: int
    leaf_size: int
    granule_size: int
    volume_id: bytes
    committed_id: bytes
    counter: int
    max_epoch: int
    open_id: bytes
    history: tuple


def _slot(data):
    if len(data) != SECTOR or data[:8] != b"QPERSBLK" or blake3.blake3(data[:480]).digest() != data[480:]:
        return None
    version, role, open_kind, _features = struct.unpack_from("<HBBI", data, 8)
    if version != 1:
        raise Wrong(f"a superblock of version {version}")
    sequence, size, leaf_size, granule_size = struct.unpack_from("<QQII", data, 16)
    counter, max_epoch = struct.unpack_from("<QQ", data, 72)
    history = tuple(data[start : start + 16] for start in range(112, 304, 16) if data[start : start + 16] != NO_ID)
    return Superblock(
        sequence, role, open_kind, size, leaf_size, granule_size, data[40:56], data[56:72], counter, max_epoch, data[88:104], history
    )  # fmt: skip


def superblock(directory):
    """The superblock of the volume that keeps its records there; None: it has none yet. Wrong: no slot can be believed."""
    path = Path(directory, "superblock")
    return superblock_in(path.read_bytes(), path) if path.exists() else None


def superblock_in(data, path):
    """As superblock(), of what such a file holds."""
    slots = [slot for slot in (_slot(data[start : start + SECTOR]) for start in SLOTS) if slot]
    if not slots:
        raise Wrong(f"{path}: no slot is valid")
    return max(slots, key=lambda slot: slot.sequence)


_values = {}  # of parts that were looked at before: numpy takes 50 ms for a MiB


def _value(part, offset):
    key = blake3.blake3(part).digest(), offset
    if key not in _values:
        _values[key] = plainblake3.subtree(part, offset)
    return _values[key]


def map_is_true(path, committed_id, content):
    """INV-I: a map that claims to be the committed generation's says of every granule what it holds, or nothing. Returns how many it says it of.

    A map that is not there, or is another generation's, claims nothing. Wrong: it is damaged, or lies.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "root"
    return known_truly(path.read_bytes(), path, committed_id, content) if path.exists() else 0


def known_truly(data, path, committed_id, content):
    """As map_is_true(), of what such a file holds."""
    if data[:8] != b"QREPPMAP" or blake3.blake3(data[:224]).digest() != data[224:256] or blake3.blake3(data[256:]).digest() != data[128:160]:
        raise Wrong(f"{path}: damaged")
    if data[32:48] != committed_id or committed_id == NO_ID:
        return 0
    size, _leaf, granule, granules = struct.unpack_from("<QIIQ", data, 72)
    if size != len(content) or granules != -(-size // granule):
        raise Wrong(f"{path}: {size} bytes in {granules} granules of {granule}, for {len(content)} bytes")
    values = 256 + -(-granules // 32) * 32
    if any(data[96:128]) and data[96:128] != blake3.blake3(content).digest():
        raise Wrong(f"{path}: its root is not that of the committed content")
    known = 0
    for number in range(granules):
        part, state = content[number * granule : (number + 1) * granule], data[256 + number]
        kind = state & STATE_MASK
        if kind == UNKNOWN:
            continue
        known += 1
        if kind == ZERO and any(part):
            raise Wrong(f"{path}: granule {number} is not zero")
        value = data[values + 32 * number : values + 32 * (number + 1)]
        if state & VALUE_KNOWN and value != _value(part, number * granule):
            raise Wrong(f"{path}: the value of granule {number} is not that of the committed content")
    return known


SEGMENT, PAGE, BATCH = 16 << 20, 4096, 144


@dataclasses.dataclass(frozen=True)
class Batch:
    """Of before-images. size: bytes it takes in its file. extents: ((offset, size) on the device, ...)."""

    size: int
    flushed: int
    extents: tuple


def undo_batches(path, size):
    """{position: Batch} of the batches of an undo file that are of its attempt and whole. size: of the volume.

    What comes first, header or copy, says which attempt that is. Wrong: neither can be believed."""
    with open(path, "rb") as file:
        headers = [file.read(128), os.pread(file.fileno(), 128, PAGE)]
        names = [head[32:48] + head[64:72] for head in headers if head[:8] == b"QREPUNDO" and blake3.blake3(head[:96]).digest() == head[96:]]
        if not names:
            raise Wrong(f"{path}: no header can be believed")
        found, end = {}, os.fstat(file.fileno()).st_size
        for start in range(SEGMENT, end, SEGMENT):
            position = start
            while position < min(start + SEGMENT, end):
                batch = _batch(file.fileno(), position, names[0], size)
                if batch:
                    found[position] = batch
                position += batch.size if batch else PAGE
        return found


def _batch(descriptor, position, name, size):
    head = os.pread(descriptor, BATCH, position)
    if len(head) < BATCH or head[:8] != b"QREPBTCH" or head[16:40] != name:
        return None
    count, at, payload, flushed = *struct.unpack_from("<I", head, 12), *struct.unpack_from("<QQQ", head, 48)
    if not 1 <= count <= 16384 or at != position or payload > SEGMENT:
        return None
    table = os.pread(descriptor, 16 * count, position + BATCH)
    before = -(-(BATCH + 16 * count) // PAGE) * PAGE
    if blake3.blake3(head[:112] + table).digest() != head[112:] or blake3.blake3(os.pread(descriptor, payload, position + before)).digest() != head[80:112]:
        return None
    extents = tuple((offset, length) for offset, length, _kind in struct.iter_unpack("<QII", table))
    if any(offset + length > size for offset, length in extents):
        return None
    return Batch(before + -(-payload // PAGE) * PAGE, flushed, extents)


def lost_untold(before, now):
    """Whether what undo_batches() had is missing without a word: of no missing batch another one of its segment says that it was flushed. False: none is missing."""
    missing = [place for place in before if now.get(place) != before[place]]
    told = any(place // SEGMENT == other // SEGMENT and batch.flushed > place for place in missing for other, batch in now.items())
    return bool(missing) and not told


# ---- what was told ----


def nothing_forbidden(log, events=(), allowed=()):
    """Nothing in the log, and none of the events, that must not be. allowed: codes of events that what was done must lead to."""
    found = FORBIDDEN_TEXT.search(log)
    if found:
        raise Forbidden(f"the log says: {log[max(0, found.start() - 200) : found.end() + 800]}")
    told = [event for event in events if event["code"] in FORBIDDEN_EVENTS - set(allowed)]
    if told:
        raise Forbidden(f"{len(told)} events that must not be, the first: {told[0]}")


def held(pid):
    """What a process holds: {what a descriptor leads to: how many}, sockets and pipes by their kind only."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            leads = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:  # closed meanwhile
            continue
        kind = leads.split(":", 1)[0] if re.match(r"(socket|pipe):", leads) else leads
        found[kind] = found.get(kind, 0) + 1
    return found


def leaked(before, after):
    """Of two held(): what is held more often than before, in words; empty: nothing."""
    return ", ".join(f"{kind} {before.get(kind, 0)} to {count}" for kind, count in sorted(after.items()) if count > before.get(kind, 0))


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


def resident(pid):
    """Bytes in memory."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def anonymous(pid):
    """Bytes in memory that no file backs."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def fingerprint(directory):
    """What all files below a directory hold, as one digest: for what must not write anything."""
    digest = hashlib.sha256()
    for path in sorted(Path(directory).rglob("*")):
        digest.update(f"{path.relative_to(directory)}\0".encode())
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
