# Reading a sync point while the device under it is written: undo_view.h.
from cpython.buffer cimport Py_buffer
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .disk cimport qrep_undo_header


cdef extern from "undo_view.h" nogil:
    enum:
        QREP_ID_SIZE
        QREP_UNDO_REACH_HEADER
    struct qrep_undo_reach:
        pass
    struct qrep_undo_view:
        pass

    void qrep_undo_reach_set(qrep_undo_reach *reach, size_t size, uint64_t end)
    int qrep_undo_view_open(qrep_undo_view **view, int device_fd, uint64_t size, uint32_t align, uint64_t cell_size, const void *epoch)
    void qrep_undo_view_keep(qrep_undo_view *view, uint32_t count)
    int qrep_undo_view_add(qrep_undo_view *view, int undo_fd, const qrep_undo_header *header, const qrep_undo_reach *reach, size_t reach_size)
    void qrep_undo_view_set_epoch(qrep_undo_view *view, uint64_t epoch)
    int qrep_undo_view_read(qrep_undo_view *view, uint8_t *data, uint64_t size, uint64_t offset)
    uint64_t qrep_undo_view_batches(const qrep_undo_view *view)
    void qrep_undo_view_close(qrep_undo_view *view)


cdef class UndoView:
    cdef qrep_undo_view *view   # NULL once closed
    cdef Py_buffer epoch_view   # held until then
    cdef list files             # what of each file C points to: kept alive
    cdef readonly int readers   # reads under way: close() waits for none, it refuses

    cdef int _check(self) except -1
