"""Which leaves of a granule must be sent, and which of them are zero. Releases the GIL while it looks."""

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from .views cimport view_bytes

cdef enum:
    DIGEST_SIZE = 32


def isa():
    """Name of the zero test in use: avx512, avx2, sse2 or portable."""
    return qrep_zero_test_isa().decode()


def select(isa=None):
    """Use the zero test of that name, or the widest this CPU has. For tests and benchmarks.

    Raises RuntimeError if there is none of that name here (nothing changed).
    """
    cdef bytes name = isa.encode() if isa is not None else b""
    if qrep_zero_test_select(<const char *>name if isa is not None else NULL):
        raise RuntimeError(f"no zero test {isa!r} on this CPU or in this build: avx512, avx2, sse2 or portable")


def is_zero(data):
    """True if every byte of `data` is zero; empty data is. Stops at the first 256 bytes that are not."""
    cdef Py_buffer view
    cdef bint zero
    view_bytes(data, &view, False, "data")
    with nogil:
        zero = qrep_is_zero(view.buf, view.len)
    PyBuffer_Release(&view)
    return zero


def compare_leaves(fresh, base, data, uint64_t leaf_size):
    """The leaves of one granule that must be sent, as ascending, maximal runs: a list of (first, count, zero).

    fresh: 32 bytes for each of the ceil(len(data) / leaf_size) leaves, as read.
    base: the same of the committed generation; None: every leaf differs.
    data: the granule, not empty; its last leaf may be short. leaf_size: bytes, a power of two.
    first, count: leaf numbers in the granule. zero: every leaf of the run holds only zero bytes.
    """
    cdef Py_buffer fresh_view, base_view, data_view
    view_bytes(data, &data_view, False, "data")
    try:
        view_bytes(fresh, &fresh_view, False, "fresh")
        try:
            if base is None:
                return compare_views(&fresh_view, NULL, &data_view, leaf_size)
            view_bytes(base, &base_view, False, "base")
            try:
                return compare_views(&fresh_view, &base_view, &data_view, leaf_size)
            finally:
                PyBuffer_Release(&base_view)
        finally:
            PyBuffer_Release(&fresh_view)
    finally:
        PyBuffer_Release(&data_view)


cdef list compare_views(Py_buffer *fresh, Py_buffer *base, Py_buffer *data, uint64_t leaf_size):
    cdef uint64_t count
    cdef size_t found, i
    cdef qrep_leaf_run *runs
    cdef const uint8_t *base_values = NULL
    if leaf_size == 0 or leaf_size & (leaf_size - 1):
        raise ValueError(f"leaf_size: {leaf_size} is not a power of two")
    if data.len == 0:
        raise ValueError("data: a granule is not empty")
    count = (<uint64_t>data.len - 1) // leaf_size + 1
    if count > <uint64_t>1 << 32:
        raise ValueError(f"data: {count} leaves are more than a run can number")
    if <uint64_t>fresh.len != count * DIGEST_SIZE:
        raise ValueError(f"fresh: {fresh.len} bytes, but {count} leaves need {count * DIGEST_SIZE}")
    if base != NULL:
        if base.len != fresh.len:
            raise ValueError(f"base: {base.len} bytes, but {count} leaves need {count * DIGEST_SIZE}")
        base_values = <const uint8_t *>base.buf
    runs = <qrep_leaf_run *>malloc(count * sizeof(qrep_leaf_run))
    if runs == NULL:
        raise MemoryError()
    try:
        with nogil:
            found = qrep_compare_leaves(<uint8_t *>fresh.buf, base_values, count, <uint8_t *>data.buf, data.len,
                                        leaf_size, runs)
        return [(runs[i].first, runs[i].count, runs[i].zero != 0) for i in range(found)]
    finally:
        free(runs)
