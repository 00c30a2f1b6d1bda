# How C's answers become exceptions: -errno -> OSError, with the subclass that Python has for it.
from libc.stdint cimport int64_t


cdef extern from "string.h" nogil:
    char *strerror(int number)


cdef inline int64_t check(int64_t rc, str what) except -1:
    """Pass a count through; raise OSError (errno set, `what` in the message) for -errno."""
    if rc < 0:
        raise OSError(<int>-rc, f"{what}: {strerror(<int>-rc).decode()}")
    return rc
