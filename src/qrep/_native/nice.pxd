# The read limiter of source lanes (nice.h) for Python; a SourceRun keeps a reference to the one its lanes obey.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from .bucket cimport qrep_bucket


cdef extern from "nice.h" nogil:
    enum:
        QREP_NICE_PIECE_MIN

    struct qrep_nice:
        qrep_bucket bucket
        int paused
        uint32_t piece_size
        unsigned in_flight
        uint64_t reads
        uint64_t bytes
        uint64_t timed
        uint64_t timed_ns

    void qrep_nice_init(qrep_nice *nice, uint64_t now_ns)
    void qrep_nice_close(qrep_nice *nice)
    void qrep_nice_order(qrep_nice *nice, uint64_t rate_bytes_per_s, uint32_t piece_size, int paused, uint64_t now_ns)
    uint64_t qrep_nice_take(qrep_nice *nice, qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
    void qrep_nice_read_begun(qrep_nice *nice)
    void qrep_nice_read_ended(qrep_nice *nice, uint64_t size, uint64_t latency_ns)


cdef class ReadLimit:
    cdef qrep_nice nice      # lives as long as the object
    cdef qrep_bucket bucket  # of read(), which Python calls
