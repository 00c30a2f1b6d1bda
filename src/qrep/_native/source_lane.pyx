"""The sending end of a run: lanes that read, hash, compare and send granules from one shared cursor."""

from cpython.buffer cimport PyBuffer_Release
from libc.stdint cimport uint8_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from .lane cimport QREP_BAD_EXTENTS_MAX, QREP_DIGEST_SIZE, bad_extents_of, counters_of, failure_of
from .views cimport view_bytes
from .wire cimport Geometry, feature_bits, qrep_granules

WORK_HOLE = QREP_WORK_HOLE
WORK_UNKNOWN = QREP_WORK_UNKNOWN
WORK_LEAVES = QREP_WORK_LEAVES

PACKING = {"off": QREP_PACKING_OFF, "auto": QREP_PACKING_AUTO, "on": QREP_PACKING_ON}
BACKENDS = {"auto": QREP_RING_AUTO, "uring": QREP_RING_URING, "threads": QREP_RING_THREADS}


cdef class SharedScan:
    """What several runs over one frozen image share: whoever comes to a granule first reads and hashes it for all (share.h).

    geometry: Geometry of the volume. entries: granules that are kept for those behind, 1 to 1024. patience_s: how long one run may keep the others
    waiting in all, seconds.
    """

    def __cinit__(self, Geometry geometry not None, uint32_t entries, double patience_s):
        if not 1 <= entries <= 1024 or not 0 <= patience_s <= 3600:
            raise ValueError(f"entries: {entries}, patience_s: {patience_s}")
        self.share = qrep_share_open(&geometry.geometry, entries, <uint64_t>(patience_s * 1e9))
        if self.share == NULL:
            raise MemoryError()

    def __dealloc__(self):
        qrep_share_close(self.share)


cdef class SourceRun:
    """One pass over a volume. Start a thread per connection that calls lane(), join them, then read what came of it.

    geometry: Geometry of the volume. attempt, session, key (32 bytes): identity of the frames. sector_size: of the device.
    base_states, base_values: what the target holds: a byte and 32 bytes per granule; not changed while lanes run.
    leaves_fd: the map's `leaves` file, read and written, or -1. work: 8-byte aligned buffer of native uint64, granule
    indexes with WORK_HOLE, WORK_UNKNOWN or WORK_LEAVES; None: all granules in order. wanted: 8-byte aligned buffer of pairs of uint64,
    first leaf of the volume and how many, ascending and disjoint: what of granules with WORK_LEAVES may differ from the base; the
    rest of them is not read.
    frame_size: bytes of data per frame, power of two. slots: granule buffers per lane. io_size: bytes per read, 0: whole
    granules. ring_backend: auto, uring or threads. rehearsal: nothing is read, granules of made-up bytes are sent for ever,
    until the connections are told to finish(). features: names of what the frames may use (protocol/features.py). packing: off, auto (where it is
    faster) or on (whatever gets smaller); without the feature zstd nothing is packed. nice: what the lanes obey before
    they read; with one they also leave the CPU to others. fresh_values: a copy of base_values that becomes the run's own,
    None: one is made. Raises ValueError for shapes that do not fit.
    """

    def __cinit__(self, *args, **kwargs):
        self.run = <qrep_source_run *>calloc(1, sizeof(qrep_source_run))
        if self.run == NULL:
            raise MemoryError()

    def __init__(self, Geometry geometry not None, *, uint64_t attempt, uint64_t session, bytes key not None, uint32_t sector_size,
                 base_states, base_values, int leaves_fd=-1, work=None, wanted=None, uint32_t frame_size=2 << 20, uint32_t slots=2,
                 uint32_t io_size=0, str ring_backend="auto", bint rehearsal=False, features=(), str packing="off", ReadLimit nice=None,
                 fresh_values=None):
        cdef uint64_t granules = qrep_granules(&geometry.geometry)
        cdef qrep_run_base *base = &self.run.base
        if self.view_count:
            raise ValueError("a run is made once")
        if len(key) != QREP_DIGEST_SIZE:
            raise ValueError(f"key: {len(key)} bytes, not {QREP_DIGEST_SIZE}")
        check_sizes(geometry, sector_size, frame_size, slots, io_size)
        if ring_backend not in BACKENDS:
            raise ValueError(f"ring_backend: {ring_backend!r} is not one of {', '.join(BACKENDS)}")
        if packing not in PACKING:
            raise ValueError(f"packing: {packing!r} is not one of {', '.join(PACKING)}")
        self.geometry = geometry
        base.geometry, base.granules = geometry.geometry, granules
        base.attempt, base.session = attempt, session
        memcpy(base.key, <const uint8_t *>key, QREP_DIGEST_SIZE)
        base.sector_size, base.leaves_fd, base.rehearsal = sector_size, leaves_fd, rehearsal
        feature_bits(features, &base.features)
        base.base_states = <const uint8_t *>self.hold(base_states, False, granules, "base_states")
        base.base_values = <const uint8_t *>self.hold(base_values, False, granules * QREP_DIGEST_SIZE, "base_values")
        self.fresh_states, self.marked = bytearray(base_states), bytearray(granules)
        self.fresh_values = bytearray(base_values) if fresh_values is None else fresh_values
        base.fresh_states = <uint8_t *>self.hold(self.fresh_states, True, granules, "fresh_states")
        base.fresh_values = <uint8_t *>self.hold(self.fresh_values, True, granules * QREP_DIGEST_SIZE, "fresh_values")
        base.marked = <uint8_t *>self.hold(self.marked, True, granules, "marked")
        self.run.work_count = granules
        if work is not None:
            self.run.work_count = memoryview(work).nbytes // sizeof(uint64_t)
            if self.run.work_count:
                self.run.work = <const uint64_t *>self.hold(work, False, self.run.work_count * sizeof(uint64_t), "work")
                if <uintptr_t>self.run.work % sizeof(uint64_t):
                    raise ValueError("work: not aligned to 8 bytes")
        if wanted is not None and memoryview(wanted).nbytes:
            self.run.wanted_count = memoryview(wanted).nbytes // sizeof(qrep_leaf_span)
            self.run.wanted = <const qrep_leaf_span *>self.hold(wanted, False, self.run.wanted_count * sizeof(qrep_leaf_span), "wanted")
            if <uintptr_t>self.run.wanted % sizeof(uint64_t):
                raise ValueError("wanted: not aligned to 8 bytes")
        self.run.frame_size, self.run.slots, self.run.io_size = frame_size, slots, io_size
        self.run.ring_backend, self.run.packing = BACKENDS[ring_backend], PACKING[packing]
        self.nice = nice
        self.run.nice = &nice.nice if nice is not None else NULL

    def share(self, SharedScan shared not None):
        """Read together with the other runs of `shared`. Before the first lane. Raises ValueError where the shape is another one or too many share."""
        cdef int rc = qrep_share_join(shared.share, self.run)
        if rc:
            raise ValueError(f"this run cannot read together with the others ({-rc})")
        self.shared = shared

    def leave(self):
        """The lanes have ended: nobody waits for this run any more."""
        qrep_share_leave(self.run)
        self.shared = None

    def __dealloc__(self):
        qrep_share_leave(self.run)
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

    def lane(self, int device_fd, Connection connection not None, uint32_t lane_index=0):
        """Run one lane to its end, without the GIL. device_fd: O_DIRECT. Returns 0, or the errno it ended with.

        After an error failure() tells the first of all lanes; ECANCELED alone is a stop(). Whatever it returns, no I/O of
        this lane is in flight, and 0 means that the other side has written all of it.
        """
        cdef int rc
        connection.claim()
        with nogil:
            rc = qrep_source_lane(self.run, device_fd, &connection.connection, lane_index, &connection.lane_stop)
        return -rc

    def stop(self):
        """Every lane drains its I/O and returns ECANCELED; what a connection holds of unsent frames is lost."""
        self.run.base.stop = 1

    @property
    def stopped(self):
        return self.run.base.stop != 0

    @property
    def complete(self):
        """All work was taken. Lanes that returned 0 without it were told to finish, all of them: then this run is not all there is to send."""
        return self.run.cursor >= self.run.work_count

    def counters(self):
        """Bytes, granules, frames and ns so far, summed over the lanes; any time."""
        return counters_of(&self.run.base.counters)

    def failure(self):
        """None, or (kind, errno or 0, lane, granule or None) of the lane that failed first."""
        return failure_of(&self.run.base.failure)

    def bad_extents(self):
        """[(offset, size, errno)] of what could not be read, in bytes of the device, ascending. Call it after the lanes.

        At most BAD_EXTENTS_MAX; beyond that extents are widened over what lies between them.
        """
        return bad_extents_of(&self.run.bad)


BAD_EXTENTS_MAX = QREP_BAD_EXTENTS_MAX


cdef int check_sizes(Geometry geometry, uint32_t sector_size, uint32_t frame_size, uint32_t slots, uint32_t io_size) except -1:
    cdef uint32_t leaf_size = geometry.geometry.leaf_size
    if sector_size < 512 or sector_size & (sector_size - 1) or geometry.geometry.granule_size % sector_size:
        raise ValueError(f"sector_size: {sector_size} does not fit granules of {geometry.geometry.granule_size}")
    if frame_size < leaf_size or frame_size > 4 << 20 or frame_size & (frame_size - 1):
        raise ValueError(f"frame_size: {frame_size} is not a power of two from {leaf_size} (a leaf) to {4 << 20}")
    if not 1 <= slots <= 256:
        raise ValueError(f"slots: {slots}, not 1 to 256")
    if io_size % sector_size:
        raise ValueError(f"io_size: {io_size} is not a multiple of the sector size {sector_size}")
    return 0
