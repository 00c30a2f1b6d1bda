# Token buckets (bucket.h) for Python and for the lanes: a lane takes &bucket.bucket and keeps a reference to the object.
from libc.stdint cimport int64_t, uint64_t


cdef extern from "bucket.h" nogil:
    struct qrep_bucket:
        uint64_t rate_bytes_per_s
        uint64_t capacity
        int64_t level
        uint64_t taken
        qrep_bucket *root
        qrep_bucket *parent
    void qrep_bucket_init(qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, qrep_bucket *parent, uint64_t now_ns)
    void qrep_bucket_close(qrep_bucket *bucket)
    void qrep_bucket_move(qrep_bucket *bucket, qrep_bucket *parent)
    void qrep_bucket_set_rate(qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, uint64_t now_ns)
    uint64_t qrep_bucket_piece(qrep_bucket *bucket)
    uint64_t qrep_bucket_take(qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
    void qrep_bucket_ask(qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
    void qrep_bucket_return(qrep_bucket *bucket, uint64_t size)
    void qrep_bucket_leave(qrep_bucket *bucket)


cdef class Bucket:
    cdef qrep_bucket bucket      # lives as long as the object
    cdef readonly Bucket parent  # keeps bucket.parent alive
