# How a lane's bytes travel (lane.h), and the Python object that keeps what the C structure points to alive.
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

from .bucket cimport Bucket, qrep_bucket


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "<stdatomic.h>" nogil:
    ctypedef int atomic_int


cdef extern from "lane.h" nogil:
    enum:
        QREP_CONNECTION_NONE
        QREP_CONNECTION_SOCKET
        QREP_CONNECTION_STREAM
        QREP_CONNECTION_PIPES

    struct qrep_stream:
        void *context
        int (*send)(void *context, const iovec *iov, unsigned count) noexcept
        int (*receive)(void *context, void *data, size_t size) noexcept

    struct qrep_connection:
        uint32_t kind
        uint32_t index
        int receive_fd
        int send_fd
        int zero_copy
        qrep_stream stream
        qrep_bucket *bucket
        uint32_t record_size
        uint32_t record_overhead
        uint64_t sent
        uint64_t received
        atomic_int ended


cdef class Connection:
    cdef qrep_connection connection  # for one lane, once: its frames are numbered from 0
    cdef atomic_int lane_stop        # 1: that lane finishes what it has taken and ends in order
    cdef readonly Bucket bucket      # whose rate this connection keeps to, with others
    cdef Bucket turn                 # its child, of this connection alone: keeps connection.bucket alive
    cdef readonly object error       # what the stream raised first, or None
    cdef object wrapped
    cdef bytearray staging           # small pieces are sent from here together
    cdef Py_ssize_t staged
    cdef bint used

    cdef int claim(self) except -1   # a lane takes it; call once per lane
    cdef int flush(self) except -1
    cdef int send_all(self, const iovec *iov, unsigned count) except -1
    cdef int receive_all(self, char *data, size_t size) except -1
