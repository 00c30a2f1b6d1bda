"""The way back: finding the before-images of an attempt, and writing them back."""

from collections import namedtuple

from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strerror

from .check cimport check
from .disk cimport qrep_undo_header
from .ring cimport QREP_RING_AUTO, QREP_RING_THREADS, QREP_RING_URING

BACKENDS = {"auto": QREP_RING_AUTO, "uring": QREP_RING_URING, "threads": QREP_RING_THREADS}

# One batch: position and size in bytes of the undo file; sequence: the global order of logging.
UndoPlace = namedtuple("UndoPlace", "position size sequence")
# batches: UndoPlace in file order. damaged: first place whose batch was flushed and is lost, or None.
UndoPlaces = namedtuple("UndoPlaces", "batches damaged")


class RestoreError(OSError):
    """A batch could not be put back. errno: EBADMSG if it is not what it was; position: of the batch, or None for none in particular.

    What came before it in the list is restored. Restoring again from the start is safe.
    """

    def __init__(self, number, position):
        where = "" if position is None else f" (batch at {position})"
        super().__init__(number, f"undo restore: {strerror(number).decode()}{where}")
        self.position = position


cdef uint32_t backend_number(str name) except? 0:
    if name not in BACKENDS:
        raise ValueError(f"ring_backend: {name!r} is not one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def scan(int undo_fd, uint64_t end, header, *, uint64_t start=QREP_UNDO_SEGMENT_SIZE, str ring_backend="auto"):
    """UndoPlaces of every valid batch that belongs to `header` (disk.UndoHeader), payloads checked.

    undo_fd: open for reading, O_DIRECT or not. start: of the first segment to look at. end: of what there is to look at. Raises OSError if the file cannot
    be read, ValueError where no segment of batches starts. Releases the GIL.
    """
    cdef qrep_undo_header wanted
    cdef qrep_undo_list found
    cdef uint32_t backend = backend_number(ring_backend)
    cdef bytes base_id = header.base_id
    cdef size_t i
    cdef int rc
    if len(base_id) != QREP_ID_SIZE:
        raise ValueError(f"base_id: {len(base_id)} bytes, not {QREP_ID_SIZE}")
    if start == 0 or start % QREP_UNDO_SEGMENT_SIZE:  # the first is the header's
        raise ValueError(f"start: no batches start at {start}")
    memset(&wanted, 0, sizeof(wanted))
    wanted.attempt, wanted.size = header.attempt, header.size
    memcpy(wanted.base_id, <const uint8_t *>base_id, QREP_ID_SIZE)
    with nogil:
        rc = qrep_undo_scan_file(undo_fd, start, end, &wanted, backend, &found)
    check(rc, "undo scan")
    try:
        batches = [UndoPlace(found.found[i].position, found.found[i].size, found.found[i].sequence) for i in range(found.count)]
        return UndoPlaces(batches, None if found.damaged == QREP_UNDO_NO_PLACE else found.damaged)
    finally:
        qrep_undo_list_free(&found)


def restore_order(batches):
    """The batches in the order in which they are put back: the first-logged content of a leaf comes last, and stays."""
    return sorted(batches, key=lambda batch: batch.sequence, reverse=True)


def restore(int device_fd, int undo_fd, batches, uint64_t device_size, *, bint punch=True, bint is_file=False, uint32_t sector_size=0,
            str ring_backend="auto"):
    """Put before-images back; return the bytes of the device restored.

    device_fd: O_DIRECT, claimed, written by nobody else. batches: UndoPlace in the order of restore_order(); each is read and
    checked again before it is used. punch: what was zero is deallocated where that works, else zeroes are written.
    is_file: the device is an image file. sector_size: of the device, 0: not known. A place that takes no write is left as it is where it
    holds its before-image all the same. Releases the GIL.
    Stops at the first failure with RestoreError. Nothing is flushed: that is the caller's, before `open` is cleared (R10).
    """
    cdef qrep_restore_job job
    cdef qrep_undo_found *places
    cdef size_t i
    cdef int rc
    batches = list(batches)
    memset(&job, 0, sizeof(job))
    job.device_fd, job.undo_fd, job.device_size = device_fd, undo_fd, device_size
    job.sector_size = sector_size
    job.punch, job.is_file, job.backend = punch, is_file, backend_number(ring_backend)
    job.count = len(batches)
    places = <qrep_undo_found *>malloc((job.count or 1) * sizeof(qrep_undo_found))
    if places == NULL:
        raise MemoryError()
    try:
        for i, batch in enumerate(batches):
            places[i].position, places[i].size, places[i].sequence = batch.position, batch.size, batch.sequence
        job.batches = places
        with nogil:
            rc = qrep_undo_restore(&job)
    finally:
        free(places)
    if rc:
        raise RestoreError(-rc, None if job.failed == QREP_UNDO_NO_PLACE else job.failed)
    return job.restored
