# The target's lanes (lane.h): one run, shared by all of them.
from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .connection cimport Connection, atomic_int, qrep_connection
from .lane cimport qrep_bad_list, qrep_run_base


cdef extern from "lane.h" nogil:
    struct qrep_target_run:
        qrep_run_base base
        int undo_fd
        uint32_t punch
        uint8_t *base_id
        uint64_t undo_next
        uint64_t undo_limit
        uint64_t undo_sequence
        uint64_t undo_flushed
        uint32_t slots
        uint32_t ring_backend
        uint32_t is_file
        qrep_bad_list bad
        uint32_t frame_limit
        void *undo_reach
        uint64_t undo_reach_size

    int qrep_target_lane(qrep_target_run *run, int device_fd, qrep_connection *connection, uint32_t lane, atomic_int *lane_stop)


cdef class TargetRun:
    cdef qrep_target_run *run     # NULL only while being made
    cdef Py_buffer views[6]       # what run points to; [0, view_count) are held
    cdef int view_count
    cdef readonly object geometry
    cdef readonly object fresh_states  # a byte per granule; lanes write their own granules only
    cdef readonly object fresh_values  # 32 bytes per granule
    cdef readonly object marked        # a byte per granule: 1 touched, 2 a whole pass of it is written

    cdef void *hold(self, object buffer, bint writable, uint64_t size, str what) except NULL
    cdef int hold_reach(self, object buffer) except -1
    cdef int set_undo(self, int undo_fd, uint64_t limit, uint64_t start, uint64_t sequence, bytes base_id) except -1
