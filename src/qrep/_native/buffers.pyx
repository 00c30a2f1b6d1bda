"""Aligned, pre-faulted buffers for Python code that talks to a ring. buffers.pxd states who owns a buffer when."""

cimport cython
from cpython.buffer cimport Py_buffer, PyBuffer_FillInfo
from libc.stdlib cimport free, malloc

from .check cimport check

cdef enum:
    PAGE_SIZE = 4096


cdef class BufferPool:
    """`slots` buffers of `slot_size` bytes in one arena.

    slot_size: bytes, a multiple of 4096. slots: >= 1.
    Raises ValueError on other shapes, OSError if the memory cannot be had (all of it is touched here, none later).
    """

    def __cinit__(self, size_t slot_size, size_t slots):
        if slot_size == 0 or slot_size % PAGE_SIZE or slots == 0 or slot_size > (<size_t>1 << 46) // slots:
            raise ValueError(f"no pool has {slots} slots of {slot_size} bytes")
        check(qrep_arena_open(&self.arena, slot_size * slots), "buffer arena")
        self.slot_size = slot_size
        self.slots = slots
        self.free_indexes = <size_t *>malloc(slots * sizeof(size_t))
        if self.free_indexes == NULL:
            raise MemoryError()
        while self.free_count < slots:
            self.take_back(slots - 1 - self.free_count)

    def __dealloc__(self):
        qrep_arena_close(&self.arena)
        free(self.free_indexes)

    @property
    def free(self):
        """How many slots can be leased now."""
        return self.free_count

    @property
    def huge(self):
        """Whether the kernel was asked for huge pages and accepted."""
        return self.arena.huge != 0

    def lease_nowait(self):
        """A free Slot, or None. The slot that was given back last comes first: its bytes may still be in a cache."""
        if self.free_count == 0:
            return None
        cdef Slot slot = Slot.__new__(Slot)
        slot.pool = self
        self.free_count -= 1
        slot.index = self.free_indexes[self.free_count]
        slot.data = self.arena.base + slot.index * self.slot_size
        return slot

    cdef void take_back(self, size_t index) noexcept:
        self.free_indexes[self.free_count] = index
        self.free_count += 1


@cython.no_gc
cdef class Slot:
    """A leased buffer: writable through the buffer protocol until it is given back. Leaving a `with` gives it back."""

    def __init__(self):
        raise TypeError("slots come from BufferPool.lease_nowait()")

    def __dealloc__(self):
        # No view is left, or it would hold us. The index goes home like with give_back().
        if self.data != NULL:
            self.pool.take_back(self.index)

    def give_back(self):
        """Return the slot to its pool. Raises BufferError while views of it exist; harmless when it was returned."""
        if self.views:
            raise BufferError(f"slot {self.index} has {self.views} views")
        if self.data != NULL:
            self.data = NULL
            self.pool.take_back(self.index)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.give_back()

    def __len__(self):
        return self.pool.slot_size

    def __getbuffer__(self, Py_buffer *view, int flags):
        if self.data == NULL:
            raise BufferError(f"slot {self.index} was given back")
        PyBuffer_FillInfo(view, self, self.data, <Py_ssize_t>self.pool.slot_size, False, flags)
        self.views += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.views -= 1
