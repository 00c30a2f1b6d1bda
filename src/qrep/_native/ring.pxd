# The ring (ring.h), salvage reads (salvage.h) and whole-device loops (sweep.h). Lanes in C use the headers themselves.
from cpython.buffer cimport Py_buffer
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "ring.h" nogil:
    enum: QREP_RING_AUTO
    enum: QREP_RING_URING
    enum: QREP_RING_THREADS
    enum: QREP_DONE_MORE
    enum: QREP_DONE_NOTIFY
    enum: QREP_DONE_COPIED
    struct qrep_ring_options:
        uint32_t backend
        uint32_t entries
        uint32_t threads
        uint32_t unrestricted
    struct qrep_ring:
        pass
    struct qrep_completion:
        uint64_t tag
        int64_t result
        uint32_t flags
    int qrep_ring_open(qrep_ring **ring, const qrep_ring_options *options)
    void qrep_ring_close(qrep_ring *ring)
    int qrep_ring_backend(const qrep_ring *ring)
    unsigned qrep_ring_in_flight(const qrep_ring *ring)
    int qrep_ring_fallback(const qrep_ring *ring)
    uint32_t qrep_ring_setup_flags(const qrep_ring *ring)
    const char *qrep_ring_explain(int error)
    int qrep_ring_register_buffers(qrep_ring *ring, void *base, size_t size)
    int qrep_ring_register_files(qrep_ring *ring, const int *descriptors, unsigned count)
    int qrep_ring_read(qrep_ring *ring, unsigned file, void *data, size_t size, uint64_t offset, uint64_t tag)
    int qrep_ring_write(qrep_ring *ring, unsigned file, const void *data, size_t size, uint64_t offset, uint64_t tag)
    int qrep_ring_fsync(qrep_ring *ring, unsigned file, uint64_t tag)
    int qrep_ring_send(qrep_ring *ring, unsigned file, iovec *iov, unsigned count, int flags, uint64_t tag)
    int qrep_ring_send_zc(qrep_ring *ring, unsigned file, iovec *iov, unsigned count, int flags, uint64_t tag)
    int qrep_ring_receive(qrep_ring *ring, unsigned file, iovec *iov, unsigned count, uint64_t tag)
    int qrep_ring_submit(qrep_ring *ring)
    int qrep_ring_wait(qrep_ring *ring, qrep_completion *done, unsigned room, uint64_t wait_ns)


cdef extern from "salvage.h" nogil:
    struct qrep_bad_extent:
        uint64_t offset
        uint64_t size
        int32_t error
    int qrep_salvage_read(int descriptor, void *data, size_t size, uint64_t offset, size_t sector_size,
                          qrep_bad_extent *bad, unsigned room)


cdef extern from "sweep.h" nogil:
    struct qrep_sweep:
        uint64_t size
        uint32_t block_size
        uint32_t depth
        uint32_t backend
    int64_t qrep_sweep_read(int descriptor, const qrep_sweep *sweep)
    int64_t qrep_sweep_write(int descriptor, const qrep_sweep *sweep, const void *pattern)


cdef class Held:
    cdef Py_buffer *views
    cdef iovec *iov
    cdef unsigned count


cdef class Ring:
    cdef qrep_ring *ring          # NULL once closed
    cdef object thread            # ident of the one thread that may use it
    cdef object pool              # keeps the registered region alive
    cdef readonly dict held       # tag -> Held; each has a reference of its own while the kernel has its memory

    cdef int usable(self) except -1
    cdef object hold(self, buffers, bint writable, tag)
    cdef int keep(self, tag, Held held) except -1
    cdef int let_go(self, tag) except -1
    cdef object alone(self, str what)
    cdef int check_idle(self) except -1
