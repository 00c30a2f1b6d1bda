/* Looking at bytes: zero test and leaf comparison, and the run-length extents that come out of it. */
#ifndef QREP_COMPARE_H
#define QREP_COMPARE_H

#include "common.h"

/* 1 if all `size` bytes are zero. Stops at the first 256 bytes that are not, so it is free on data. Any alignment and size. */
int qrep_is_zero(const void *data, size_t size);

/* Use the zero test of that name ("avx512", "avx2", "sse2", "portable"), or with NULL the widest this CPU has, as a constructor
 * does. Returns 0, or -ENOTSUP when there is none such here (nothing changed then). For tests and benchmarks. */
int qrep_zero_test_select(const char *isa);

/* Name of the zero test in use, never NULL. */
const char *qrep_zero_test_isa(void);

/* A run of leaves inside one granule. `zero` runs carry no data on the wire. */
struct qrep_leaf_run {
    uint32_t first; /* leaf index inside the granule */
    uint32_t count; /* >= 1 */
    uint32_t zero;  /* 1: every leaf of the run is zero */
    uint32_t reserved;
};

/* The leaves of one granule that must be sent, as ascending, maximal runs.
 * fresh: `count` digests of the leaves as read. base: the same of the committed generation, or NULL (then every leaf differs).
 * Maximal: neighbours are joined if they agree in `zero`, so two adjacent runs differ in it.
 * data: the granule; its leaves are leaf_size bytes, the last one short if size says so.
 * runs: room for `count` runs. Returns the number of runs, 0 when nothing differs. */
size_t qrep_compare_leaves(const uint8_t *fresh, const uint8_t *base, size_t count, const uint8_t *data, size_t size,
                           size_t leaf_size, struct qrep_leaf_run *runs);

#endif
