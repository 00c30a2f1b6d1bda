# Borrowing bytes from Python objects. The Limited API has the buffer protocol but not Cython's typed memoryviews.
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyObject_GetBuffer


cdef inline int view_bytes(object exporter, Py_buffer *view, bint writable, str what) except -1:
    """Borrow the bytes of a C-contiguous buffer; the caller releases the view with PyBuffer_Release.

    Raises TypeError if `exporter` has no buffer, ValueError if it is not contiguous or not writable as asked.
    """
    try:
        PyObject_GetBuffer(exporter, view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    except (BufferError, ValueError) as err:
        raise ValueError(f"{what}: {err}") from err
    return 0
