"""Records on disk for Python: superblock, undo store and digest map headers. Lanes use the C of disk.h directly.

A record has plain attributes; pack() seals and checks them (ValueError for what a reader would refuse), unpack() checks all
of a buffer before it returns one: RecordDamaged, or RecordNewer when a later version wrote it. Ids are 16 bytes.
"""

from collections import namedtuple

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from .hasher cimport qrep_blake3_hash
from .views cimport view_bytes

cdef extern from "errno.h":
    enum: ENOTSUP  # not in Cython's libc.errno

cdef enum:
    DIGEST_SIZE = 32
    ID_SIZE = 16
    PAGE_SIZE = 4096

VERSION = QREP_DISK_VERSION
SUPERBLOCK_SIZE = sizeof(qrep_superblock)
SUPERBLOCK_SLOT_DISTANCE = QREP_SUPERBLOCK_SLOT_DISTANCE
HISTORY_MAX = QREP_HISTORY_MAX
ROLE_REPLICA, ROLE_PRIMARY = QREP_ROLE_REPLICA, QREP_ROLE_PRIMARY
OPEN_NONE, OPEN_RUN, OPEN_ROLLBACK = QREP_OPEN_NONE, QREP_OPEN_RUN, QREP_OPEN_ROLLBACK
UNDO_HEADER_SIZE = sizeof(qrep_undo_header)
UNDO_BATCH_SIZE = sizeof(qrep_undo_batch)
UNDO_SEGMENT_SIZE = QREP_UNDO_SEGMENT_SIZE
UNDO_COPY_OFFSET = QREP_UNDO_COPY_OFFSET
UNDO_EXTENTS_MAX = QREP_UNDO_EXTENTS_MAX
UNDO_DATA, UNDO_ZERO = QREP_UNDO_DATA, QREP_UNDO_ZERO
MAP_HEADER_SIZE = sizeof(qrep_map_header)
STATE_MASK, STATE_SLOT, STATE_VALUE, STATE_PAGE = QREP_STATE_MASK, QREP_STATE_SLOT, QREP_STATE_VALUE, QREP_STATE_PAGE
STATE_UNKNOWN, STATE_HASHED, STATE_ZERO = QREP_STATE_UNKNOWN, QREP_STATE_HASHED, QREP_STATE_ZERO
ZERO_ID = bytes(ID_SIZE)
ZERO_DIGEST = bytes(DIGEST_SIZE)


class RecordDamaged(ValueError):
    """The bytes are not this record, or are damaged; nothing in them may be used."""


class RecordNewer(ValueError):
    """A later version of qrep wrote this record, or it uses a feature we do not know: hands off."""


cdef int put(uint8_t *target, Py_ssize_t size, object value, str what) except -1:
    cdef bytes exact = bytes(value)
    if len(exact) != size:
        raise ValueError(f"{what}: {len(exact)} bytes, not {size}")
    memcpy(target, <const uint8_t *>exact, size)
    return 0


cdef bytes take(object data, Py_ssize_t size, str what):
    cdef bytes exact = bytes(data)
    if len(exact) != size:
        raise RecordDamaged(f"{what}: {len(exact)} bytes, not {size}")
    return exact


cdef int verdict(int rc, const void *record, size_t size, uint64_t magic, str what) except -1:
    """Turn what a check of disk.h says into an exception that says what was wrong."""
    cdef uint8_t checksum[DIGEST_SIZE]
    if rc == 0:
        return 0
    if rc == -ENOTSUP:
        raise RecordNewer(f"{what}: written by a later version of qrep, or with a feature that this one does not know")
    if (<const uint64_t *>record)[0] != magic:
        raise RecordDamaged(f"{what}: not there, its magic is missing")
    qrep_blake3_hash(record, size - DIGEST_SIZE, checksum)
    if checksum[:DIGEST_SIZE] != (<const uint8_t *>record)[size - DIGEST_SIZE:size]:
        raise RecordDamaged(f"{what}: damaged, its checksum does not match")
    raise RecordDamaged(f"{what}: its checksum matches, but a field is out of range")


class Record:
    """Plain attributes with defaults; equal when all of them are."""

    FIELDS = {}

    def __init__(self, **fields):
        unknown = fields.keys() - self.FIELDS.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name, default in self.FIELDS.items():
            setattr(self, name, fields.get(name, default))

    def replace(self, **fields):
        """A copy with some attributes changed."""
        return type(self)(**{**vars(self), **fields})

    def __eq__(self, other):
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    __hash__ = None

    def __repr__(self):
        shown = (f"{name}={value.hex() if isinstance(value, bytes) else value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({', '.join(shown)})"


class Superblock(Record):
    """The target's superblock: which generation its device holds, and what is open. history: earlier ids, newest first."""

    FIELDS = {
        "volume_id": ZERO_ID, "size": 0, "leaf_size": 4096, "granule_size": 8 << 20, "role": ROLE_REPLICA, "sequence": 0,
        "committed_id": ZERO_ID, "committed_counter": 0, "max_epoch": 0,
        "open_kind": OPEN_NONE, "open_new_id": ZERO_ID, "open_attempt": 0, "history": (),
    }

    def pack(self):
        cdef qrep_superblock block
        memset(&block, 0, sizeof(block))
        block.role, block.open_kind, block.sequence = self.role, self.open_kind, self.sequence
        block.size, block.leaf_size, block.granule_size = self.size, self.leaf_size, self.granule_size
        block.committed_counter, block.max_epoch = self.committed_counter, self.max_epoch
        block.open_attempt = self.open_attempt
        put(block.volume_id, ID_SIZE, self.volume_id, "superblock: volume_id")
        put(block.committed_id, ID_SIZE, self.committed_id, "superblock: committed_id")
        put(block.open_new_id, ID_SIZE, self.open_new_id, "superblock: open_new_id")
        if len(self.history) > QREP_HISTORY_MAX:
            raise ValueError(f"superblock: a history of {len(self.history)} ids, at most {HISTORY_MAX}")
        for i, entry in enumerate(self.history):
            put(block.history[<int>i], ID_SIZE, entry, "superblock: history")
            if entry == ZERO_ID:
                raise ValueError("superblock: history holds a zero id")
        qrep_superblock_seal(&block)
        verdict(qrep_superblock_check(&block), &block, sizeof(block), QREP_SUPERBLOCK_MAGIC, "superblock")
        return (<const uint8_t *>&block)[:sizeof(block)]

    @classmethod
    def unpack(cls, data):
        cdef qrep_superblock block
        cdef bytes exact = take(data, sizeof(block), "superblock")
        memcpy(&block, <const uint8_t *>exact, sizeof(block))
        verdict(qrep_superblock_check(&block), &block, sizeof(block), QREP_SUPERBLOCK_MAGIC, "superblock")
        history = (block.history[i][:ID_SIZE] for i in range(QREP_HISTORY_MAX))
        return cls(
            volume_id=block.volume_id[:ID_SIZE], size=block.size, leaf_size=block.leaf_size,
            granule_size=block.granule_size, role=block.role, sequence=block.sequence,
            committed_id=block.committed_id[:ID_SIZE], committed_counter=block.committed_counter,
            max_epoch=block.max_epoch, open_kind=block.open_kind, open_new_id=block.open_new_id[:ID_SIZE],
            open_attempt=block.open_attempt, history=tuple(entry for entry in history if entry != ZERO_ID))


def choose_superblock(slot_a, slot_b):
    """(superblock, slot) of the two slots' sectors: the valid one with the higher sequence; write the next to the other slot.

    A damaged slot is what a torn write leaves, and the other one then counts. Raises RecordDamaged if both are damaged or if
    they cannot be two states of one target, RecordNewer if either is from a later version.
    """
    found, reasons = [], []
    for slot, data in enumerate((slot_a, slot_b)):
        try:
            found.append((Superblock.unpack(data), slot))
        except RecordDamaged as err:
            reasons.append(f"slot {'AB'[slot]}: {err}")
    if not found:
        raise RecordDamaged("; ".join(reasons))
    if len(found) == 1:
        return found[0]
    (one, _), (other, _) = found
    if one.volume_id != other.volume_id:
        raise RecordDamaged(f"superblock: slot A is of volume {one.volume_id.hex()}, slot B of {other.volume_id.hex()}")
    if one.sequence == other.sequence and one != other:
        raise RecordDamaged(f"superblock: both slots have sequence {one.sequence} but do not say the same")
    return found[0] if one.sequence >= other.sequence else found[1]


class UndoHeader(Record):
    """Start of an undo file: the way back from new_id to base_id."""

    FIELDS = {"volume_id": ZERO_ID, "base_id": ZERO_ID, "new_id": ZERO_ID, "attempt": 0, "size": 0, "leaf_size": 4096,
              "granule_size": 8 << 20, "batches": 0}

    def pack(self):
        cdef qrep_undo_header header
        memset(&header, 0, sizeof(header))
        put(header.volume_id, ID_SIZE, self.volume_id, "undo header: volume_id")
        put(header.base_id, ID_SIZE, self.base_id, "undo header: base_id")
        put(header.new_id, ID_SIZE, self.new_id, "undo header: new_id")
        header.attempt, header.size = self.attempt, self.size
        header.leaf_size, header.granule_size, header.batches = self.leaf_size, self.granule_size, self.batches
        qrep_undo_header_seal(&header)
        verdict(qrep_undo_header_check(&header), &header, sizeof(header), QREP_UNDO_MAGIC, "undo header")
        return (<const uint8_t *>&header)[:sizeof(header)]

    @classmethod
    def unpack(cls, data):
        cdef qrep_undo_header header
        cdef bytes exact = take(data, sizeof(header), "undo header")
        memcpy(&header, <const uint8_t *>exact, sizeof(header))
        verdict(qrep_undo_header_check(&header), &header, sizeof(header), QREP_UNDO_MAGIC, "undo header")
        return cls(volume_id=header.volume_id[:ID_SIZE], base_id=header.base_id[:ID_SIZE], new_id=header.new_id[:ID_SIZE],
                   attempt=header.attempt, size=header.size, leaf_size=header.leaf_size, granule_size=header.granule_size, batches=header.batches)


# position, payload_position: bytes in the undo file. extents: restored last to first; the payload holds those of kind DATA.
UndoFound = namedtuple("UndoFound", "position sequence flushed extents payload_position payload_size")
UndoExtent = namedtuple("UndoExtent", "offset size kind")
# gap: where the valid batches first stop, or None: the unwritten tail. damaged: a place whose batch was flushed and is lost, or None.
UndoScan = namedtuple("UndoScan", "batches gap damaged")


cdef object read_extents(const qrep_undo_batch *batch):
    cdef const qrep_undo_extent *extents = <const qrep_undo_extent *>(batch + 1)
    return [UndoExtent(extents[i].offset, extents[i].size, extents[i].kind) for i in range(batch.extent_count)]


class UndoBatch(Record):
    """One batch of before-images. extents: (offset, size, kind) in bytes; payload: the bytes of those of kind DATA, in order."""

    FIELDS = {"base_id": ZERO_ID, "attempt": 0, "sequence": 0, "position": UNDO_SEGMENT_SIZE, "flushed": 0, "extents": (),
              "payload": b""}

    def pack(self, uint64_t device_size):
        """The whole batch with its padding, a multiple of 4096 bytes."""
        cdef qrep_undo_batch *batch
        cdef qrep_undo_extent *extents
        cdef uint8_t *room
        cdef bytes payload = bytes(self.payload)
        cdef uint64_t size, start
        if not 1 <= len(self.extents) <= QREP_UNDO_EXTENTS_MAX:
            raise ValueError(f"undo batch: {len(self.extents)} extents, not 1 to {UNDO_EXTENTS_MAX}")
        start = qrep_undo_payload_offset(len(self.extents))
        size = qrep_undo_batch_size(len(self.extents), len(payload))
        room = <uint8_t *>calloc(1, size)
        if room == NULL:
            raise MemoryError()
        try:
            batch = <qrep_undo_batch *>room
            extents = <qrep_undo_extent *>(batch + 1)
            put(batch.base_id, ID_SIZE, self.base_id, "undo batch: base_id")
            batch.attempt, batch.sequence = self.attempt, self.sequence
            batch.position, batch.flushed = self.position, self.flushed
            batch.extent_count, batch.payload_size = len(self.extents), len(payload)
            for i, (offset, length, kind) in enumerate(self.extents):
                extents[<size_t>i].offset, extents[<size_t>i].size, extents[<size_t>i].kind = offset, length, kind
            memcpy(room + start, <const uint8_t *>payload, len(payload))
            qrep_blake3_hash(room + start, len(payload), batch.digest)
            qrep_undo_batch_seal(batch, extents)
            left = UNDO_SEGMENT_SIZE - self.position % UNDO_SEGMENT_SIZE
            if self.position % PAGE_SIZE or qrep_undo_batch_peek(batch, self.position, left):
                raise ValueError(f"undo batch: {size} bytes at {self.position} do not lie inside one segment, or flushed is past it")
            if qrep_undo_batch_check(batch, extents, device_size):
                raise ValueError(f"undo batch: extents off the device of {device_size} bytes, or a payload of another size")
            return room[:size]
        finally:
            free(room)

    @classmethod
    def unpack(cls, data, uint64_t device_size, *, base_id, uint64_t attempt, uint64_t position):
        """The batch that starts `data`, which lies at `position` of its undo file. Raises RecordDamaged."""
        scan = scan_undo_segment(data, position, device_size, base_id, attempt, limit=1)
        if not scan.batches or scan.batches[0].position != position:
            raise RecordDamaged(f"undo batch: no valid batch of attempt {attempt:#x} at {position}")
        found = scan.batches[0]
        start = found.payload_position - position
        return cls(base_id=bytes(base_id), attempt=attempt, sequence=found.sequence, position=position, flushed=found.flushed,
                   extents=tuple(found.extents), payload=bytes(memoryview(data)[start:start + found.payload_size]))


def scan_undo_segment(buffer, uint64_t position, uint64_t device_size, base_id, uint64_t attempt, limit=None):
    """UndoScan of a segment's bytes (as far as the file goes), which lie at `position` of the undo file.

    Only batches of this base and attempt whose checksum and payload digest match are returned, in file order. An invalid
    place is stepped over in pages; it is `damaged` when a later batch says that it had been flushed, else the unwritten
    tail. limit: stop after so many batches. buffer: 8-byte aligned. Releases the GIL.
    """
    cdef Py_buffer view
    cdef qrep_undo_scan scan
    cdef const qrep_undo_batch *batch = NULL
    cdef int rc
    memset(&scan, 0, sizeof(scan))
    put(scan.base_id, ID_SIZE, base_id, "base_id")
    if position % PAGE_SIZE:
        raise ValueError(f"position: {position} is not a multiple of {PAGE_SIZE}")
    view_bytes(buffer, &view, False, "buffer")
    try:
        if <uintptr_t>view.buf % 8 or <uint64_t>view.len > UNDO_SEGMENT_SIZE - position % UNDO_SEGMENT_SIZE:
            raise ValueError(f"buffer: {view.len} bytes at {position} are not aligned to 8 or cross the end of a segment")
        scan.segment, scan.size, scan.position = <const uint8_t *>view.buf, view.len, position
        scan.device_size, scan.attempt = device_size, attempt
        scan.gap = scan.damaged = QREP_UNDO_NO_PLACE
        batches = []
        while limit is None or len(batches) < limit:
            with nogil:
                rc = qrep_undo_scan_next(&scan, &batch)
            if rc == 0:
                break
            batches.append(UndoFound(batch.position, batch.sequence, batch.flushed, read_extents(batch),
                                     batch.position + qrep_undo_payload_offset(batch.extent_count), batch.payload_size))
    finally:
        PyBuffer_Release(&view)
    return UndoScan(batches, None if scan.gap == QREP_UNDO_NO_PLACE else scan.gap,
                    None if scan.damaged == QREP_UNDO_NO_PLACE else scan.damaged)


class MapHeader(Record):
    """Start of a digest map's `root` or `pending` file; states and values follow. digest: map_digest() of those."""

    FIELDS = {"volume_id": ZERO_ID, "tag": ZERO_ID, "base": ZERO_ID, "counter": 0, "size": 0, "leaf_size": 4096,
              "granule_size": 8 << 20, "granules": 0, "root": ZERO_DIGEST, "digest": ZERO_DIGEST}

    def pack(self):
        cdef qrep_map_header header
        fill_map_header(self, &header)
        return (<const uint8_t *>&header)[:sizeof(header)]

    @classmethod
    def unpack(cls, data, uint64_t file_size):
        """data: the first MAP_HEADER_SIZE bytes of a file of file_size bytes."""
        cdef qrep_map_header header
        cdef bytes exact = take(data, sizeof(header), "map header")
        memcpy(&header, <const uint8_t *>exact, sizeof(header))
        verdict(qrep_map_header_check(&header, file_size), &header, sizeof(header), QREP_MAP_MAGIC, "map header")
        return cls(volume_id=header.volume_id[:ID_SIZE], tag=header.tag[:ID_SIZE], base=header.base[:ID_SIZE],
                   counter=header.counter, size=header.size, leaf_size=header.leaf_size, granule_size=header.granule_size,
                   granules=header.granules, root=header.root[:DIGEST_SIZE], digest=header.digest[:DIGEST_SIZE])

    def check_body(self, states, values):
        """Check states (a byte per granule) and values (32 bytes per granule) against this header. Raises RecordDamaged."""
        cdef qrep_map_header header
        cdef Py_buffer state_view, value_view
        cdef int rc
        fill_map_header(self, &header)
        check_map_body(states, values, &state_view, &value_view, header.granules)
        with nogil:
            rc = qrep_map_body_check(&header, <const uint8_t *>state_view.buf, <const uint8_t *>value_view.buf)
        PyBuffer_Release(&state_view)
        PyBuffer_Release(&value_view)
        if rc:
            raise RecordDamaged("map: its states or values are damaged, the digest of them or a state byte is wrong")


cdef int fill_map_header(object record, qrep_map_header *header) except -1:
    memset(header, 0, sizeof(qrep_map_header))
    put(header.volume_id, ID_SIZE, record.volume_id, "map header: volume_id")
    put(header.tag, ID_SIZE, record.tag, "map header: tag")
    put(header.base, ID_SIZE, record.base, "map header: base")
    put(header.root, DIGEST_SIZE, record.root, "map header: root")
    put(header.digest, DIGEST_SIZE, record.digest, "map header: digest")
    header.counter, header.size, header.granules = record.counter, record.size, record.granules
    header.leaf_size, header.granule_size = record.leaf_size, record.granule_size
    qrep_map_header_seal(header)
    return verdict(qrep_map_header_check(header, qrep_map_size(header.granules)), header, sizeof(qrep_map_header),
                   QREP_MAP_MAGIC, "map header")


cdef int check_map_body(object states, object values, Py_buffer *state_view, Py_buffer *value_view, uint64_t granules) except -1:
    """Borrow both parts of a map's body; both are released again on an error."""
    view_bytes(states, state_view, False, "states")
    try:
        view_bytes(values, value_view, False, "values")
        if <uint64_t>state_view.len == granules and <uint64_t>value_view.len == granules * DIGEST_SIZE:
            return 0
        sizes = (state_view.len, value_view.len)
        PyBuffer_Release(value_view)
        raise ValueError(f"map: {granules} granules need {granules} states and {granules * DIGEST_SIZE} bytes of values, not {sizes}")
    except:
        PyBuffer_Release(state_view)
        raise


def map_digest(states, values):
    """The digest a map header carries of its states and values. Releases the GIL."""
    cdef Py_buffer state_view, value_view
    cdef uint8_t digest[DIGEST_SIZE]
    check_map_body(states, values, &state_view, &value_view, len(states))
    with nogil:
        qrep_map_digest(<const uint8_t *>state_view.buf, <const uint8_t *>value_view.buf, state_view.len, digest)
    PyBuffer_Release(&state_view)
    PyBuffer_Release(&value_view)
    return digest[:DIGEST_SIZE]


def map_values_offset(uint64_t granules):
    """Where the values start in a map file."""
    return qrep_map_values_offset(granules)


def map_size(uint64_t granules):
    """Bytes of a map file."""
    return qrep_map_size(granules)
