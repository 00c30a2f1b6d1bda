"""The content of a sync point under a device that is being written, and the shared marks that make that right."""

import mmap
import os

from cpython.buffer cimport PyBuffer_Release
from libc.errno cimport ESTALE
from libc.string cimport memcpy, memset

from .check cimport check
from .views cimport view_bytes

ID_SIZE = QREP_ID_SIZE
SEGMENTS_MAX = 1 << 20  # 16 TiB of one undo file; 4 MiB of address space, and memory only where it is used
REACH_SIZE = QREP_UNDO_REACH_HEADER + 4 * SEGMENTS_MAX

cdef extern from *:
    """
    #include <stdatomic.h>
    static inline uint64_t load_counter(const void *at) { return atomic_load((const _Atomic uint64_t *)at); }
    static inline void count_up(void *at) { atomic_fetch_add((_Atomic uint64_t *)at, 1); }
    """
    uint64_t load_counter(const void *at) nogil
    void count_up(void *at) nogil


def set_reach(reach, uint64_t end):
    """The batch that ends at `end` in the undo file, and all before it in its segment, are flushed. reach: writable, shared."""
    cdef Py_buffer view
    view_bytes(reach, &view, True, "reach")
    try:
        if view.len < QREP_UNDO_REACH_HEADER or end == 0:
            raise ValueError("reach: too small, or no end")
        qrep_undo_reach_set(<qrep_undo_reach *>view.buf, view.len, end)
    finally:
        PyBuffer_Release(&view)


def read_counter(buffer):
    """The number at the start of shared memory."""
    cdef Py_buffer view
    view_bytes(buffer, &view, False, "counter")
    try:
        if view.len < 8:
            raise ValueError("counter: too small")
        return load_counter(view.buf)
    finally:
        PyBuffer_Release(&view)


def raise_counter(buffer):
    """Add one to it."""
    cdef Py_buffer view
    view_bytes(buffer, &view, True, "counter")
    try:
        if view.len < 8:
            raise ValueError("counter: too small")
        count_up(view.buf)
    finally:
        PyBuffer_Release(&view)


cdef class UndoView:
    """device_fd: O_DIRECT, stays the caller's and open. size: bytes of the volume. align: of the device's I/O. cell_size: of the index,
    a power of two. epoch: shared memory with the counter of the list of files."""

    def __cinit__(self, int device_fd, uint64_t size, uint32_t align, uint64_t cell_size, epoch):
        self.files = []
        if size == 0 or size % 512 or not 512 <= align <= 4096 or align & (align - 1) or cell_size < 4096 or cell_size & (cell_size - 1):
            raise ValueError(f"size {size}, align {align}, cell_size {cell_size} do not fit")
        view_bytes(epoch, &self.epoch_view, False, "epoch")
        try:
            if self.epoch_view.len < 8:
                raise ValueError("epoch: too small")
            check(qrep_undo_view_open(&self.view, device_fd, size, align, cell_size, self.epoch_view.buf), "undo view")
        except BaseException:
            PyBuffer_Release(&self.epoch_view)
            raise

    def __dealloc__(self):
        if self.view != NULL:
            qrep_undo_view_close(self.view)
            PyBuffer_Release(&self.epoch_view)

    def close(self):
        """Raises ValueError while a read is under way. Harmless when repeated."""
        if self.readers:
            raise ValueError("a read is under way")
        if self.view != NULL:
            qrep_undo_view_close(self.view)
            PyBuffer_Release(&self.epoch_view)
            self.view = NULL
            self.files.clear()

    @property
    def batches(self):
        """How many are indexed."""
        return qrep_undo_view_batches(self.view) if self.view != NULL else 0

    def keep(self, uint32_t count):
        """Forget all files but the first `count`."""
        self._check()
        with nogil:
            qrep_undo_view_keep(self.view, count)
        del self.files[count:]

    def add(self, int undo_fd, header, reach=None):
        """Index one more file, after those that are there. header: disk.UndoHeader; its batches: how many there are at least, where the file
        grows no more. undo_fd: stays open while it is in the list.

        reach: shared memory with the marks of a file that grows, or None. Raises OSError: EBADMSG when a flushed batch is missing.
        Releases the GIL.
        """
        cdef qrep_undo_header wanted
        cdef const qrep_undo_reach *marks = NULL
        cdef Reach held = Reach(reach) if reach is not None else None
        cdef size_t marks_size = 0
        cdef bytes base_id = header.base_id
        cdef int rc
        self._check()
        if len(base_id) != QREP_ID_SIZE:
            raise ValueError(f"base_id: {len(base_id)} bytes, not {QREP_ID_SIZE}")
        memset(&wanted, 0, sizeof(wanted))
        wanted.attempt, wanted.size, wanted.batches = header.attempt, header.size, header.batches
        memcpy(wanted.base_id, <const uint8_t *>base_id, QREP_ID_SIZE)
        if held is not None:
            marks, marks_size = <const qrep_undo_reach *>held.view.buf, held.view.len
        with nogil:
            rc = qrep_undo_view_add(self.view, undo_fd, &wanted, marks, marks_size)
        check(rc, "undo view")
        self.files.append(held)

    def set_epoch(self, uint64_t epoch):
        """The list is the one of this epoch."""
        self._check()
        qrep_undo_view_set_epoch(self.view, epoch)

    def read_into(self, buffer, uint64_t offset):
        """Fill a writable buffer with the content from `offset` on. Whole sectors of 512 bytes inside the volume; page-aligned is fastest.

        Returns False when the list of files is not the present one (set it and read again), else True. Raises OSError: EBADMSG when a
        before-image is damaged, EOVERFLOW when the file outgrew its marks. Releases the GIL; any number of threads.
        """
        cdef Py_buffer view
        cdef int rc
        self._check()
        view_bytes(buffer, &view, True, "buffer")
        self.readers += 1
        try:
            with nogil:
                rc = qrep_undo_view_read(self.view, <uint8_t *>view.buf, view.len, offset)
        finally:
            self.readers -= 1
            PyBuffer_Release(&view)
        if rc == -ESTALE:
            return False
        check(rc, "view of a sync point")
        return True

    cdef int _check(self) except -1:
        if self.view == NULL:
            raise ValueError("the view is closed")
        return 0


cdef class Reach:
    """Marks held for as long as a view looks at them."""

    cdef Py_buffer view
    cdef int held

    def __cinit__(self, buffer):
        view_bytes(buffer, &self.view, False, "reach")
        self.held = 1
        if self.view.len < QREP_UNDO_REACH_HEADER:
            raise ValueError("reach: too small")

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


def shared_memory(str name, size_t size):
    """(descriptor, writable mmap) of fresh shared memory, all zero. The caller closes the descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return descriptor, mmap.mmap(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise


def read_only(int descriptor):
    """Another descriptor of it that can neither write nor map it writable, for a process that is not trusted."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
