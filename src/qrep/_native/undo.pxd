# Reading the undo store and putting it back: undo_scan.h and undo_restore.h.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .disk cimport qrep_undo_header


cdef extern from "disk.h" nogil:
    enum:
        QREP_ID_SIZE
    uint64_t QREP_UNDO_NO_PLACE
    uint64_t QREP_UNDO_SEGMENT_SIZE


cdef extern from "undo_scan.h" nogil:
    struct qrep_undo_found:
        uint64_t position
        uint64_t size
        uint64_t sequence

    struct qrep_undo_list:
        qrep_undo_found *found
        size_t count
        uint64_t damaged

    int qrep_undo_scan_file(int undo_fd, uint64_t start, uint64_t end, const qrep_undo_header *header, uint32_t backend, qrep_undo_list *found)
    void qrep_undo_list_free(qrep_undo_list *found)


cdef extern from "undo_restore.h" nogil:
    struct qrep_restore_job:
        int device_fd
        int undo_fd
        uint64_t device_size
        const qrep_undo_found *batches
        size_t count
        int punch
        int is_file
        uint32_t backend
        uint32_t sector_size
        uint64_t restored
        uint64_t failed

    int qrep_undo_restore(qrep_restore_job *job)
