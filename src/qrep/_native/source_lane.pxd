# The source's lanes (lane.h): one run, shared by all of them.
from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, uint32_t, uint64_t

from .connection cimport Connection, atomic_int, qrep_connection
from .lane cimport qrep_bad_list, qrep_run_base
from .nice cimport ReadLimit, qrep_nice
from .wire cimport qrep_geometry


cdef extern from "ring.h" nogil:
    enum:
        QREP_RING_AUTO
        QREP_RING_URING
        QREP_RING_THREADS


cdef extern from "lane.h" nogil:
    uint64_t QREP_WORK_HOLE
    uint64_t QREP_WORK_UNKNOWN
    uint64_t QREP_WORK_LEAVES

    enum:
        QREP_PACKING_OFF
        QREP_PACKING_AUTO
        QREP_PACKING_ON

    struct qrep_leaf_span:
        uint64_t first
        uint64_t count

    struct qrep_source_run:
        qrep_run_base base
        const uint64_t *work
        uint64_t work_count
        const qrep_leaf_span *wanted
        uint64_t wanted_count
        uint64_t cursor
        uint32_t frame_size
        uint32_t slots
        uint32_t io_size
        uint32_t ring_backend
        uint32_t packing
        qrep_bad_list bad
        void *share
        qrep_nice *nice

    int qrep_source_lane(qrep_source_run *run, int device_fd, qrep_connection *connection, uint32_t lane, atomic_int *lane_stop)


cdef extern from "share.h" nogil:
    struct qrep_share:
        pass

    qrep_share *qrep_share_open(const qrep_geometry *geometry, uint32_t entries, uint64_t patience_ns)
    void qrep_share_close(qrep_share *share)
    int qrep_share_join(qrep_share *share, qrep_source_run *run)
    void qrep_share_leave(qrep_source_run *run)


cdef class SharedScan:
    cdef qrep_share *share        # NULL only while being made


cdef class SourceRun:
    cdef SharedScan shared        # kept until run has left it
    cdef readonly ReadLimit nice  # kept while lanes may obey it, or None
    cdef qrep_source_run *run     # NULL only while being made
    cdef Py_buffer views[7]       # what run points to; [0, view_count) are held
    cdef int view_count
    cdef readonly object geometry
    cdef readonly bytearray fresh_states  # a byte per granule; lanes write their own granules only
    cdef readonly object fresh_values     # 32 bytes per granule
    cdef readonly bytearray marked        # a byte per granule: 1 begun, 2 handed over whole

    cdef void *hold(self, object buffer, bint writable, uint64_t size, str what) except NULL
