"""A Python face of the ring, for tests, benchmarks and cold paths; lanes use ring.h from C.

Buffers are any C-contiguous buffers; on O_DIRECT files they must be aligned, so they come from a BufferPool.
"""

import threading

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport free, malloc

from .buffers cimport BufferPool
from .check cimport check
from .views cimport view_bytes

BACKENDS = {"auto": QREP_RING_AUTO, "uring": QREP_RING_URING, "threads": QREP_RING_THREADS}
MORE = QREP_DONE_MORE
NOTIFY = QREP_DONE_NOTIFY
COPIED = QREP_DONE_COPIED
FOREVER_NS = 0xFFFFFFFFFFFFFFFF

cdef enum:
    ROOM = 64  # completions taken by one wait


cdef uint32_t backend_number(str name) except? 0:
    if name not in BACKENDS:
        raise ValueError(f"backend: {name!r} is none of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def explain(int error):
    """Cause and remedy, in one line, for an errno with which io_uring could not be opened."""
    return qrep_ring_explain(error).decode()


cdef class Held:
    """The views and the iovecs of one request, alive until the kernel gives the memory back."""

    def __cinit__(self, list buffers, bint writable):
        self.views = <Py_buffer *>malloc((len(buffers) or 1) * sizeof(Py_buffer))
        self.iov = <iovec *>malloc((len(buffers) or 1) * sizeof(iovec))
        if self.views == NULL or self.iov == NULL:
            raise MemoryError()
        for buffer in buffers:
            view_bytes(buffer, &self.views[self.count], writable, "buffer")
            self.iov[self.count].iov_base = self.views[self.count].buf
            self.iov[self.count].iov_len = self.views[self.count].len
            self.count += 1

    def __dealloc__(self):
        cdef unsigned i
        for i in range(self.count):
            PyBuffer_Release(&self.views[i])
        free(self.views)
        free(self.iov)


cdef class Ring:
    """A queue of requests; one thread uses it, the one that made it (RuntimeError otherwise).

    backend: auto, uring or threads. entries: requests in flight at most, 1..4096. threads: workers of that backend.
    unrestricted: the kernel does not refuse what is not read, write, fsync, send or receive on a registered file; no lane asks for that.
    Raises OSError if the backend cannot be opened; explain(err.errno) tells the cause.

    Either one request at a time (read, write, fsync, send, receive: they wait, and raise OSError), or many:
    start_*(..., tag) and wait(), which returns (tag, result, flags) with result bytes or -errno.
    """

    def __cinit__(self, str backend="auto", unsigned entries=64, *, unsigned threads=0, bint unrestricted=False):
        cdef qrep_ring_options options
        options.backend = backend_number(backend)
        options.entries = entries
        options.threads = threads
        options.unrestricted = unrestricted
        self.held = {}
        self.thread = threading.get_ident()
        check(qrep_ring_open(&self.ring, &options), f"ring ({backend})")

    def __dealloc__(self):
        # With requests in flight, perhaps on another thread, there is no drain: ring and memory are left to the process,
        # so that the kernel never writes into memory that was given away. close() is how it is done.
        if self.ring != NULL and qrep_ring_in_flight(self.ring) == 0:
            qrep_ring_close(self.ring)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    cdef int usable(self) except -1:
        if self.ring == NULL:
            raise ValueError("the ring is closed")
        if self.thread != threading.get_ident():
            raise RuntimeError("a ring is used by the thread that made it")
        return 0

    def close(self):
        """Wait for everything in flight, then free. A receive on a silent stream waits for ever: shut the stream down first."""
        if self.ring == NULL:
            return
        self.usable()
        while self.held:
            self.wait()
        qrep_ring_close(self.ring)
        self.ring = NULL

    @property
    def backend(self):
        """The backend in use: uring or threads."""
        self.usable()
        return "uring" if qrep_ring_backend(self.ring) == QREP_RING_URING else "threads"

    @property
    def fallback(self):
        """The errno for which `auto` had to take threads, or 0."""
        self.usable()
        return -qrep_ring_fallback(self.ring)

    @property
    def setup_flags(self):
        """IORING_SETUP_* flags that the kernel granted; 0 with threads."""
        self.usable()
        return qrep_ring_setup_flags(self.ring)

    @property
    def in_flight(self):
        """Requests whose last completion was not delivered yet."""
        self.usable()
        return qrep_ring_in_flight(self.ring)

    def register_buffers(self, BufferPool pool not None):
        """Pin a pool; its memory is then used without further ado. True, or False where RLIMIT_MEMLOCK forbids it."""
        self.usable()
        cdef int rc = check(qrep_ring_register_buffers(self.ring, pool.arena.base, pool.arena.size), "register buffers")
        self.pool = pool
        return rc == 0

    def register_files(self, descriptors):
        """Name descriptors (ints or objects with fileno()) by index 0.. for the requests. Once; they stay the caller's."""
        self.usable()
        cdef list numbers = [each if isinstance(each, int) else each.fileno() for each in descriptors]
        cdef int *array = <int *>malloc((len(numbers) or 1) * sizeof(int))
        if array == NULL:
            raise MemoryError()
        try:
            for i, number in enumerate(numbers):
                array[i] = number
            check(qrep_ring_register_files(self.ring, array, len(numbers)), "register files")
        finally:
            free(array)

    cdef object hold(self, buffers, bint writable, tag):
        self.usable()
        if tag in self.held:
            raise ValueError(f"tag {tag} is in flight")
        return Held(buffers, writable)

    cdef int keep(self, tag, Held held) except -1:
        # A reference of its own: even a ring that is dropped leaves the memory alone while the kernel may use it.
        self.held[tag] = held
        Py_INCREF(held)
        return 0

    cdef int let_go(self, tag) except -1:
        held = self.held.pop(tag)
        Py_DECREF(held)
        return 0

    cdef object alone(self, str what):
        """Wait for the one request in flight; its bytes. Raises OSError."""
        result = 0
        while self.held:
            for _, each, flags in self.wait():
                result = result if flags & QREP_DONE_NOTIFY else each
        return check(result, what)

    cdef int check_idle(self) except -1:
        self.usable()
        if self.held:
            raise RuntimeError(f"{len(self.held)} requests are in flight; one at a time and many do not mix")
        return 0

    def start_read(self, unsigned file, buffer, uint64_t offset, uint64_t tag):
        """Fill `buffer` from `offset`. Completes short only at the end of the device."""
        cdef Held held = self.hold([buffer], True, tag)
        check(qrep_ring_read(self.ring, file, held.iov[0].iov_base, held.iov[0].iov_len, offset, tag), "read")
        self.keep(tag, held)

    def start_write(self, unsigned file, buffer, uint64_t offset, uint64_t tag):
        """Write all of `buffer` at `offset`."""
        cdef Held held = self.hold([buffer], False, tag)
        check(qrep_ring_write(self.ring, file, held.iov[0].iov_base, held.iov[0].iov_len, offset, tag), "write")
        self.keep(tag, held)

    def start_fsync(self, unsigned file, uint64_t tag):
        """fdatasync. Covers the writes whose completions were delivered before."""
        cdef Held held = self.hold([], False, tag)
        check(qrep_ring_fsync(self.ring, file, tag), "fsync")
        self.keep(tag, held)

    def start_send(self, unsigned file, buffers, uint64_t tag, *, bint zero_copy=False, int flags=0):
        """Send all of the buffers. zero_copy: where the completion carries MORE, they are the kernel's until NOTIFY."""
        cdef Held held = self.hold(list(buffers), False, tag)
        if zero_copy:
            check(qrep_ring_send_zc(self.ring, file, held.iov, held.count, flags, tag), "send")
        else:
            check(qrep_ring_send(self.ring, file, held.iov, held.count, flags, tag), "send")
        self.keep(tag, held)

    def start_receive(self, unsigned file, buffers, uint64_t tag):
        """Fill all of the buffers. Completes short only at the end of the stream."""
        cdef Held held = self.hold(list(buffers), True, tag)
        check(qrep_ring_receive(self.ring, file, held.iov, held.count, tag), "receive")
        self.keep(tag, held)

    def submit(self):
        """Hand everything started to the kernel now; wait() does it too."""
        self.usable()
        check(qrep_ring_submit(self.ring), "submit")

    def wait(self, timeout=None, *, unsigned room=ROOM):
        """Submit, and return the completions at hand as [(tag, result, flags)], at least one unless `timeout` seconds pass.

        timeout: None waits for ever, 0 does not wait. room: completions at most, 1..64. Returns [] at once when nothing is in flight.
        """
        cdef qrep_completion done[ROOM]
        cdef uint64_t wait_ns = FOREVER_NS if timeout is None else <uint64_t>(timeout * 1e9)
        cdef int i, count
        self.usable()
        with nogil:
            count = qrep_ring_wait(self.ring, done, min(room, <unsigned>ROOM), wait_ns)
        check(count, "wait")
        events = []
        for i in range(count):
            if not done[i].flags & QREP_DONE_MORE:
                self.let_go(done[i].tag)
            events.append((done[i].tag, done[i].result, done[i].flags))
        return events

    def read(self, unsigned file, buffer, uint64_t offset):
        """Fill `buffer` from `offset`; return the bytes read, fewer only at the end of the device. Raises OSError."""
        self.check_idle()
        self.start_read(file, buffer, offset, 0)
        return self.alone("read")

    def write(self, unsigned file, buffer, uint64_t offset):
        """Write all of `buffer` at `offset`; return the bytes written. Raises OSError."""
        self.check_idle()
        self.start_write(file, buffer, offset, 0)
        return self.alone("write")

    def fsync(self, unsigned file):
        """fdatasync. Raises OSError; after that the device's content is unknown, and asking again would lie."""
        self.check_idle()
        self.start_fsync(file, 0)
        self.alone("fsync")

    def send(self, unsigned file, buffers, *, bint zero_copy=False):
        """Send all of the buffers and get them back; return the bytes. Raises OSError."""
        self.check_idle()
        self.start_send(file, buffers, 0, zero_copy=zero_copy)
        return self.alone("send")

    def receive(self, unsigned file, buffers):
        """Fill all of the buffers; return the bytes, fewer only at the end of the stream. Raises OSError."""
        self.check_idle()
        self.start_receive(file, buffers, 0)
        return self.alone("receive")


def salvage_read(int descriptor, buffer, uint64_t offset, size_t sector_size, *, unsigned room=256):
    """Read len(buffer) bytes round bad spots; return them as [(offset, size, errno)], merged, sector-exact, ascending.

    The bytes of bad extents in `buffer` are undefined. room: extents at most, the last one then covers the rest.
    Raises OSError for a call that cannot be made: bad alignment (EINVAL), the end of the device inside (ENXIO).
    """
    cdef Py_buffer view
    cdef int count
    cdef qrep_bad_extent *bad = <qrep_bad_extent *>malloc((room or 1) * sizeof(qrep_bad_extent))
    if bad == NULL:
        raise MemoryError()
    try:
        view_bytes(buffer, &view, True, "buffer")
        with nogil:
            count = qrep_salvage_read(descriptor, view.buf, view.len, offset, sector_size, bad, room)
        PyBuffer_Release(&view)
        check(count, "salvage read")
        return [(bad[i].offset, bad[i].size, bad[i].error) for i in range(count)]
    finally:
        free(bad)


def read_device(int descriptor, uint64_t size, uint32_t block_size=1 << 20, uint32_t depth=16, str backend="auto"):
    """Read the first `size` bytes once, in order, looking at nothing; return the bytes read. Releases the GIL.

    block_size: bytes per request, a multiple of 4096. depth: requests in flight, 1..256. Raises OSError.
    """
    cdef qrep_sweep sweep
    cdef int64_t moved
    sweep.size, sweep.block_size, sweep.depth, sweep.backend = size, block_size, depth, backend_number(backend)
    with nogil:
        moved = qrep_sweep_read(descriptor, &sweep)
    return check(moved, "read")


def write_device(int descriptor, uint64_t size, pattern, uint32_t depth=16, str backend="auto"):
    """Write `pattern` over and over to the first `size` bytes, then flush; return the bytes written. Releases the GIL.

    pattern: one block, a multiple of 4096 bytes; each request writes it. Raises OSError.
    """
    cdef qrep_sweep sweep
    cdef Py_buffer view
    cdef int64_t moved
    view_bytes(pattern, &view, False, "pattern")
    try:
        if <uint64_t>view.len >> 32:
            raise ValueError("pattern: larger than 4 GiB")
        sweep.size, sweep.block_size, sweep.depth, sweep.backend = size, view.len, depth, backend_number(backend)
        with nogil:
            moved = qrep_sweep_write(descriptor, &sweep, view.buf)
    finally:
        PyBuffer_Release(&view)
    return check(moved, "write")
