"""BLAKE3 of devices: digests of bytes, chaining values of leaves and granules, and roots made from them.

Every function takes any C-contiguous buffer, checks all shapes before it writes anything (ValueError) and releases
the GIL while it hashes. Digests and chaining values are 32 bytes; sizes and offsets are bytes.
"""

import os

from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.errno cimport EINVAL
from libc.stdint cimport uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from .views cimport view_bytes

cdef enum:
    DIGEST_SIZE = 32


def isa():
    """Name of the kernel in use: avx512, avx2, sse41, neon or portable."""
    return qrep_blake3_isa().decode()


def select(isa=None):
    """Use the kernel of that name, or with None what QREP_ISA says, else the widest this CPU has; return its lanes.

    For tests and benchmarks: nobody may be hashing meanwhile. Holds for this module; every native module has its own
    choice, made from QREP_ISA when it is loaded.
    Raises ValueError if the name is unknown, RuntimeError if this CPU or build lacks the kernel (nothing changed).
    """
    cdef bytes name = isa.encode() if isa is not None else b""
    cdef int lanes = qrep_blake3_select(<const char *>name if isa is not None else NULL)
    explain(lanes, isa if isa is not None else os.environ.get("QREP_ISA"))
    return lanes


cdef int explain(int rc, object name) except -1:
    if rc == -EINVAL:
        raise ValueError(f"no BLAKE3 kernel is called {name!r}: avx512, avx2, sse41, neon or portable")
    if rc < 0:  # -ENOTSUP
        raise RuntimeError(f"the BLAKE3 kernel {name!r} does not exist on this CPU or in this build")
    return 0


def self_test():
    """Compare the kernel in use with the scalar loops and the published vector. Raises RuntimeError if it is wrong."""
    cdef int rc
    with nogil:
        rc = qrep_blake3_self_test()
    if rc:
        raise RuntimeError(f"the BLAKE3 kernel {isa()!r} computes wrong digests on this CPU; set QREP_ISA=portable")


def hash(data):
    """Plain BLAKE3 of `data`, of any length."""
    cdef Py_buffer view
    cdef uint8_t digest[DIGEST_SIZE]
    view_bytes(data, &view, False, "data")
    with nogil:
        qrep_blake3_hash(view.buf, view.len, digest)
    PyBuffer_Release(&view)
    return digest[:DIGEST_SIZE]


def hash_parts(*parts):
    """Plain BLAKE3 of buffers one after the other, without putting them together."""
    cdef Py_buffer view
    cdef qrep_hashstream stream
    cdef uint8_t digest[DIGEST_SIZE]
    qrep_hashstream_start(&stream)
    for part in parts:
        view_bytes(part, &view, False, "part")
        with nogil:
            qrep_hashstream_add(&stream, view.buf, view.len)
        PyBuffer_Release(&view)
    qrep_hashstream_end(&stream, digest)
    return digest[:DIGEST_SIZE]


def keyed(bytes key not None, data):
    """Keyed BLAKE3 of `data` with a key of 32 bytes."""
    cdef Py_buffer view
    cdef const uint8_t *key_bytes = key
    cdef uint8_t digest[DIGEST_SIZE]
    if len(key) != 32:
        raise ValueError(f"a BLAKE3 key is 32 bytes, not {len(key)}")
    view_bytes(data, &view, False, "data")
    with nogil:
        qrep_blake3_keyed(key_bytes, view.buf, view.len, digest)
    PyBuffer_Release(&view)
    return digest[:DIGEST_SIZE]


cdef int check_leaf_size(uint64_t leaf_size) except -1:
    if leaf_size < QREP_CHUNK_SIZE or leaf_size & (leaf_size - 1):
        raise ValueError(f"leaf_size: {leaf_size} is not a power of two of at least {QREP_CHUNK_SIZE}")
    return 0


cdef int check_node(uint64_t size, uint64_t offset, uint64_t leaf_size) except -1:
    """A node of `size` bytes can stand at `offset`: aligned to its size rounded up to a power of two of chunks."""
    cdef uint64_t unit = QREP_CHUNK_SIZE
    check_leaf_size(leaf_size)
    if size == 0 or size > <uint64_t>1 << 63:
        raise ValueError(f"size: a node of {size} bytes cannot be hashed")
    while unit < size:
        unit *= 2
    if offset % unit:
        raise ValueError(f"offset: {offset} is not a multiple of {unit}, so no node of {size} bytes starts there")
    return 0


cdef int view_leaves(object leaves, Py_buffer *view, uint64_t size, uint64_t leaf_size) except -1:
    """Borrow the room for every leaf's value; view.buf stays NULL when nobody wants them."""
    cdef uint64_t count = (size - 1) // leaf_size + 1
    view.buf = NULL
    if leaves is None:
        return 0
    view_bytes(leaves, view, True, "leaves")
    if <uint64_t>view.len != count * DIGEST_SIZE:
        PyBuffer_Release(view)
        raise ValueError(f"leaves: {view.len} bytes, but {count} leaves need {count * DIGEST_SIZE}")
    return 0


def subtree(data, uint64_t offset, uint64_t leaf_size, leaves=None):
    """Hash `data`, which stands at `offset` of its device, as a subtree that is not the root; return its value.

    data: a granule or leaf: a power of two >= 1024, or shorter at the end of the device. At least one byte.
    offset: multiple of that power of two. leaf_size: power of two >= 1024.
    leaves: None, or writable, 32 bytes for each of the ceil(len(data) / leaf_size) leaves; filled in order.
    """
    cdef Py_buffer view, leaf_view
    cdef uint8_t value[DIGEST_SIZE]
    view_bytes(data, &view, False, "data")
    try:
        check_node(view.len, offset, leaf_size)
        view_leaves(leaves, &leaf_view, view.len, leaf_size)
        with nogil:
            qrep_blake3_subtree(view.buf, view.len, offset, leaf_size, <uint8_t *>leaf_view.buf, value)
        if leaf_view.buf != NULL:
            PyBuffer_Release(&leaf_view)
    finally:
        PyBuffer_Release(&view)
    return value[:DIGEST_SIZE]


def zero_subtree(uint64_t size, uint64_t offset, uint64_t leaf_size, leaves=None):
    """What `subtree` returns for `size` zero bytes at `offset`, without reading them."""
    cdef Py_buffer leaf_view
    cdef uint8_t value[DIGEST_SIZE]
    check_node(size, offset, leaf_size)
    view_leaves(leaves, &leaf_view, size, leaf_size)
    with nogil:
        qrep_blake3_zero_subtree(size, offset, leaf_size, <uint8_t *>leaf_view.buf, value)
    if leaf_view.buf != NULL:
        PyBuffer_Release(&leaf_view)
    return value[:DIGEST_SIZE]


def gather(data, uint64_t leaf_size, offsets, out):
    """The values of whole leaves that lie back to back in `data` but anywhere on their device.

    offsets: 8-byte aligned buffer of native uint64, one per leaf, multiples of leaf_size. out: writable, 32 bytes a leaf.
    """
    cdef Py_buffer view, offset_view, out_view
    cdef size_t count, i
    cdef const uint64_t *starts
    check_leaf_size(leaf_size)
    view_bytes(data, &view, False, "data")
    try:
        view_bytes(offsets, &offset_view, False, "offsets")
        try:
            view_bytes(out, &out_view, True, "out")
            try:
                count = <uint64_t>view.len // leaf_size
                if <uint64_t>view.len % leaf_size:
                    raise ValueError(f"data: {view.len} bytes are not whole leaves of {leaf_size}")
                if <size_t>offset_view.len != count * sizeof(uint64_t) or offset_view.itemsize not in (1, 8):
                    raise ValueError(f"offsets: {offset_view.len} bytes, but {count} leaves need {count} uint64")
                if count and <uintptr_t>offset_view.buf % sizeof(uint64_t):
                    raise ValueError("offsets: not aligned to 8 bytes")
                if <size_t>out_view.len != count * DIGEST_SIZE:
                    raise ValueError(f"out: {out_view.len} bytes, but {count} leaves need {count * DIGEST_SIZE}")
                starts = <const uint64_t *>offset_view.buf
                for i in range(count):
                    if starts[i] % leaf_size:
                        raise ValueError(f"offsets: {starts[i]} is not a multiple of leaf_size {leaf_size}")
                with nogil:
                    qrep_blake3_gather(view.buf, count, leaf_size, starts, <uint8_t *>out_view.buf)
            finally:
                PyBuffer_Release(&out_view)
        finally:
            PyBuffer_Release(&offset_view)
    finally:
        PyBuffer_Release(&view)


cdef bytes merge_row(const uint8_t *values, size_t count, bint root):
    cdef uint8_t value[DIGEST_SIZE]
    cdef uint8_t *scratch = <uint8_t *>malloc(count * DIGEST_SIZE)
    if scratch == NULL:
        raise MemoryError()
    with nogil:
        qrep_blake3_merge(values, count, root, scratch, value)
        free(scratch)
    return value[:DIGEST_SIZE]


def merge(values, bint root=False):
    """The value of the node whose equal-sized descendants of one row are `values` (the last may be short).

    values: count * 32 bytes, count >= 1. root: finalise as the device's root; then count >= 2.
    """
    cdef Py_buffer view
    view_bytes(values, &view, False, "values")
    try:
        if view.len == 0 or view.len % DIGEST_SIZE:
            raise ValueError(f"values: {view.len} bytes are not one or more digests of {DIGEST_SIZE}")
        if root and view.len == DIGEST_SIZE:
            raise ValueError("values: a root cannot be made from one value, see root_unit()")
        return merge_row(<const uint8_t *>view.buf, view.len // DIGEST_SIZE, root)
    finally:
        PyBuffer_Release(&view)


def root_unit(uint64_t size, uint64_t granule_size, uint64_t leaf_size):
    """The node size of the row that the root of a device of `size` >= 4096 bytes is made from.

    granule_size if it has more than one granule, else leaf_size if it has more than one leaf, else 1024.
    """
    check_leaf_size(leaf_size)
    check_leaf_size(granule_size)
    if size < 4096 or leaf_size > granule_size:
        raise ValueError(f"no device has {size} bytes, leaves of {leaf_size} and granules of {granule_size}")
    return qrep_blake3_root_unit(size, granule_size, leaf_size)


def root(uint64_t size, uint64_t node_size, values):
    """The root of a device of `size` bytes, which is its plain BLAKE3, from the values of one row of its nodes.

    node_size: what root_unit() says, or any smaller node. values: 32 bytes for each of ceil(size / node_size) nodes.
    """
    cdef Py_buffer view
    cdef uint64_t count
    check_leaf_size(node_size)
    if size <= node_size:
        raise ValueError(f"size: the root of {size} bytes cannot be made from one node of {node_size}, see root_unit()")
    count = (size - 1) // node_size + 1
    view_bytes(values, &view, False, "values")
    try:
        if view.len % DIGEST_SIZE or <uint64_t>view.len // DIGEST_SIZE != count:
            raise ValueError(f"values: {view.len} bytes, but {count} nodes need {count * DIGEST_SIZE}")
        return merge_row(<const uint8_t *>view.buf, count, True)
    finally:
        PyBuffer_Release(&view)


# QREP_ISA asked for a kernel that is not here: the import fails, so that nobody runs on another one unawares.
try:
    explain(qrep_blake3_status(), os.environ.get("QREP_ISA"))
except (ValueError, RuntimeError) as err:
    raise RuntimeError(f"QREP_ISA: {err}") from None
