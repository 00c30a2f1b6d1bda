# Zero test and leaf comparison for the lanes: the C functions of compare.h, which says what each of them promises.
from libc.stdint cimport uint8_t, uint32_t


cdef extern from "compare.h" nogil:
    struct qrep_leaf_run:
        uint32_t first
        uint32_t count
        uint32_t zero

    int qrep_is_zero(const void *data, size_t size)
    int qrep_zero_test_select(const char *isa)
    const char *qrep_zero_test_isa()
    size_t qrep_compare_leaves(const uint8_t *fresh, const uint8_t *base, size_t count, const uint8_t *data, size_t size,
                               size_t leaf_size, qrep_leaf_run *runs)
