"""The receiving end of a run: lanes that verify frames, log before-images and write."""

from cpython.buffer cimport PyBuffer_Release
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from .lane cimport QREP_DIGEST_SIZE, bad_extents_of, counters_of, failure_of
from .ring cimport QREP_RING_AUTO, QREP_RING_THREADS, QREP_RING_URING
from .views cimport view_bytes
from .wire cimport QREP_FRAME_DATA_MAX, Geometry, feature_bits, qrep_granules

BACKENDS = {"auto": QREP_RING_AUTO, "uring": QREP_RING_URING, "threads": QREP_RING_THREADS}

cdef extern from "disk.h":
    enum:
        QREP_ID_SIZE
        QREP_UNDO_SEGMENT_SIZE

cdef extern from "undo_reach.h":
    enum:
        QREP_UNDO_REACH_HEADER

cdef extern from "flush.h":
    enum:
        QREP_EXIT_FLUSH_FAILED

EXIT_FLUSH_FAILED = QREP_EXIT_FLUSH_FAILED


cdef class TargetRun:
    """One session of an attempt. Start a thread per connection that calls lane(), join them, then read what came of it.

    geometry: Geometry of the volume. attempt, session, key (32 bytes): identity of the frames. sector_size: of the device.
    base_states, base_values: the map before: a byte and 32 bytes per granule; not changed while lanes run.
    leaves_fd: the map's `leaves` file, read and written, or -1.
    undo_fd: O_DIRECT, or -1: no before-images are kept. undo_next: offset of its next free segment; undo_limit: bytes it may
    take; undo_sequence: of the next batch; base_id: the generation it leads back to (16 bytes).
    punch: zero ranges are deallocated, else zeroes are written. is_file: the device is an image file.
    frame_limit: bytes of data a frame may carry. slots: frames of that size in flight per lane.
    fresh_states, fresh_values, marked: those of the session before, so that a resumed one goes on with them.
    undo_reach: writable shared memory (undo_view.new_reach()) in which views of sync points see how far the undo file may be believed, or None.
    features: names of what the frames may use (protocol/features.py).
    rehearsal: frames are checked as ever, and dropped: nothing is written, and nothing read.
    Raises ValueError for shapes that do not fit.
    """

    def __cinit__(self, *args, **kwargs):
        self.run = <qrep_target_run *>calloc(1, sizeof(qrep_target_run))
        if self.run == NULL:
            raise MemoryError()

    def __init__(self, Geometry geometry not None, *, uint64_t attempt, uint64_t session, bytes key not None, uint32_t sector_size,
                 base_states, base_values, int leaves_fd=-1, int undo_fd=-1, uint64_t undo_limit=0,
                 uint64_t undo_next=QREP_UNDO_SEGMENT_SIZE, uint64_t undo_sequence=0, bytes base_id=bytes(16), bint punch=True,
                 bint is_file=False, uint32_t frame_limit=QREP_FRAME_DATA_MAX, uint32_t slots=4, str ring_backend="auto",
                 fresh_states=None, fresh_values=None, marked=None, bint rehearsal=False, undo_reach=None, features=()):
        cdef uint64_t granules = qrep_granules(&geometry.geometry)
        cdef qrep_run_base *base = &self.run.base
        if self.view_count:
            raise ValueError("a run is made once")
        if len(key) != QREP_DIGEST_SIZE:
            raise ValueError(f"key: {len(key)} bytes, not {QREP_DIGEST_SIZE}")
        check_sizes(geometry, sector_size, frame_limit, slots)
        if ring_backend not in BACKENDS:
            raise ValueError(f"ring_backend: {ring_backend!r} is not one of {', '.join(BACKENDS)}")
        self.geometry = geometry
        base.geometry, base.granules = geometry.geometry, granules
        base.attempt, base.session = attempt, session
        memcpy(base.key, <const uint8_t *>key, QREP_DIGEST_SIZE)
        base.sector_size, base.leaves_fd, base.rehearsal = sector_size, leaves_fd, rehearsal
        feature_bits(features, &base.features)
        self.set_undo(undo_fd, undo_limit, undo_next, undo_sequence, base_id)
        base.base_states = <const uint8_t *>self.hold(base_states, False, granules, "base_states")
        base.base_values = <const uint8_t *>self.hold(base_values, False, granules * QREP_DIGEST_SIZE, "base_values")
        self.fresh_states = bytearray(base_states) if fresh_states is None else fresh_states
        self.fresh_values = bytearray(base_values) if fresh_values is None else fresh_values
        self.marked = bytearray(granules) if marked is None else marked
        base.fresh_states = <uint8_t *>self.hold(self.fresh_states, True, granules, "fresh_states")
        base.fresh_values = <uint8_t *>self.hold(self.fresh_values, True, granules * QREP_DIGEST_SIZE, "fresh_values")
        base.marked = <uint8_t *>self.hold(self.marked, True, granules, "marked")
        if undo_reach is not None:
            self.hold_reach(undo_reach)
        self.run.punch, self.run.is_file, self.run.frame_limit, self.run.slots = punch, is_file, frame_limit, slots
        self.run.ring_backend = BACKENDS[ring_backend]

    def __dealloc__(self):
        for i in range(self.view_count):
            PyBuffer_Release(&self.views[i])
        free(self.run)

    cdef void *hold(self, object buffer, bint writable, uint64_t size, str what) except NULL:
        cdef Py_buffer *view = &self.views[self.view_count]
        view_bytes(buffer, view, writable, what)
        self.view_count += 1
        if <uint64_t>view.len != size:
            raise ValueError(f"{what}: {view.len} bytes, not {size}")
        return view.buf

    cdef int hold_reach(self, object buffer) except -1:
        cdef Py_buffer *view = &self.views[self.view_count]
        view_bytes(buffer, view, True, "undo_reach")
        self.view_count += 1
        if <uint64_t>view.len < <uint64_t>QREP_UNDO_REACH_HEADER:
            raise ValueError(f"undo_reach: {view.len} bytes are too few")
        self.run.undo_reach, self.run.undo_reach_size = view.buf, view.len
        return 0

    cdef int set_undo(self, int undo_fd, uint64_t limit, uint64_t start, uint64_t sequence, bytes base_id) except -1:
        if len(base_id) != QREP_ID_SIZE:
            raise ValueError(f"base_id: {len(base_id)} bytes, not {QREP_ID_SIZE}")
        if start == 0 or start % <uint64_t>QREP_UNDO_SEGMENT_SIZE:
            raise ValueError(f"undo_next: {start} is not the start of a segment ({QREP_UNDO_SEGMENT_SIZE} bytes, the first holds the header)")
        self.run.undo_fd, self.run.undo_limit = undo_fd, limit
        self.run.undo_next, self.run.undo_sequence = start, sequence
        memcpy(self.run.base_id, <const uint8_t *>base_id, QREP_ID_SIZE)
        return 0

    def lane(self, int device_fd, Connection connection not None, uint32_t lane_index=0):
        """Serve one connection to its end, without the GIL. device_fd: O_DIRECT, read and write, claimed (R1).

        Returns 0 after the END was answered, or the errno it ended with. After an error failure() tells the first of all lanes;
        ECANCELED alone is a stop(). Whatever it returns, no I/O of this lane is in flight. A failed flush of the undo store
        ends the process with EXIT_FLUSH_FAILED (R2).
        """
        cdef int rc
        if connection.connection.kind == 0:
            raise ValueError("a target lane needs a connection")
        connection.claim()
        with nogil:
            rc = qrep_target_lane(self.run, device_fd, &connection.connection, lane_index, &connection.lane_stop)
        return -rc

    def stop(self):
        """Every lane drains its I/O and returns ECANCELED; frames that were not written yet are dropped."""
        self.run.base.stop = 1

    @property
    def stopped(self):
        return self.run.base.stop != 0

    @property
    def undo_next(self):
        """Offset of the next free segment of the undo file: where a resumed session goes on."""
        return self.run.undo_next

    @property
    def undo_sequence(self):
        """Of the next batch: where a resumed session goes on."""
        return self.run.undo_sequence

    @property
    def undo_flushed(self):
        """Batches of this session that are flushed: nothing but what they cover was overwritten."""
        return self.run.undo_flushed

    def counters(self):
        """Bytes, granules, frames and ns so far, summed over the lanes; any time."""
        return counters_of(&self.run.base.counters)

    def bad_extents(self):
        """[(offset, size, errno)] of what the device did not take, in bytes of it, ascending. Call it after the lanes."""
        return bad_extents_of(&self.run.bad)

    def failure(self):
        """None, or (kind, errno or 0, lane, granule or None) of the lane that failed first."""
        return failure_of(&self.run.base.failure)


cdef int check_sizes(Geometry geometry, uint32_t sector_size, uint32_t frame_limit, uint32_t slots) except -1:
    cdef uint32_t leaf_size = geometry.geometry.leaf_size
    if sector_size < 512 or sector_size & (sector_size - 1) or leaf_size % sector_size:
        raise ValueError(f"sector_size: {sector_size} does not fit leaves of {leaf_size}")
    if geometry.geometry.size % sector_size:
        raise ValueError(f"sector_size: {sector_size} does not divide the size {geometry.geometry.size}")
    if frame_limit < leaf_size or frame_limit > QREP_FRAME_DATA_MAX:
        raise ValueError(f"frame_limit: {frame_limit}, not {leaf_size} (a leaf) to {QREP_FRAME_DATA_MAX}")
    if not 2 <= slots <= 64:
        raise ValueError(f"slots: {slots}, not 2 to 64")
    return 0
