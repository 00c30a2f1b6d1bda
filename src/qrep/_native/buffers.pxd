# Who owns a buffer. This file is the one home of that fact.
#
# A slot is a fixed, 4096-aligned piece of an arena (buffers.h) and has exactly one owner at any time:
#
#   owner    from                                        until
#   pool     BufferPool made, Slot.give_back()           lease_nowait()
#   lane     lease_nowait(), a completion                give_back(), or the request is queued
#   kernel   qrep_ring_read/write/receive/send queued    the completion; with QREP_DONE_MORE (zero-copy) its NOTIFY, not before
#   view     memoryview(slot), any buffer-protocol user  the view is released; views are counted
#
# Only the lane may change a slot's bytes. A slot with views or with a request in flight is not given back: give_back()
# raises BufferError, and Ring keeps a view for as long as the kernel holds the memory. The memory itself is unmapped when
# the pool, its slots and their views are all gone. Alignment comes from the arena, once, and is not checked again.
#
# Lanes in C own their arena themselves and follow the same table; there the slot's state is a field of the lane.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t


cdef extern from "buffers.h" nogil:
    struct qrep_arena:
        uint8_t *base
        size_t size
        int huge
    int qrep_arena_open(qrep_arena *arena, size_t size)
    void qrep_arena_close(qrep_arena *arena)


cdef class BufferPool:
    cdef qrep_arena arena
    cdef readonly size_t slot_size    # bytes
    cdef readonly size_t slots        # how many there are
    cdef size_t *free_indexes         # a stack of those the pool owns; C, so that it outlives a garbage collection
    cdef size_t free_count

    cdef void take_back(self, size_t index) noexcept


cdef class Slot:
    cdef BufferPool pool
    cdef uint8_t *data                # NULL once given back
    cdef readonly size_t index
    cdef readonly Py_ssize_t views    # exported and not released
