/* Looking at bytes: zero test and leaf comparison, and the run-length extents that come out of it. */
#ifndef QREP_COMPARE_H
#define QREP_COMPARE_H

#include "common.h"

/* 1 if all `size` bytes are zero. Stops at the first non-zero block, so it is free on data. Any alignment and size. */
int qrep_is_zero(const void *data, size_t size);

/* A run of leaves inside one granule. `zero` runs carry no data on the wire. */
struct qrep_leaf_run {
    uint32_t first; /* leaf index inside the granule */
    uint32_t count; /* >= 1 */
    uint32_t zero;  /* 1: every leaf of the run is zero */
    uint32_t reserved;
};

/* The leaves of one granule that must be sent, as ascending, maximal runs.
 * fresh: `count` digests of the leaves as read. base: the same of the committed generation, or NULL (then every leaf differs).
 * data: the granule; its leaves are leaf_size bytes, the last one short if size says so.
 * runs: room for `count` runs. Returns the number of runs, 0 when nothing differs. */
size_t qrep_compare_leaves(const uint8_t *fresh, const uint8_t *base, size_t count, const uint8_t *data, size_t size,
                           size_t leaf_size, struct qrep_leaf_run *runs);

#endif
