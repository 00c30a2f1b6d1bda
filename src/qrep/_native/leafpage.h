/* Leaf pages: the chaining values of one granule's leaves, two slots of them per granule in the map's `leaves` file (disk.h).
 *
 * A page is never trusted for being there: it is believed only if its leaves merge to the granule's value in the map root (R8), so a stale, torn or
 * damaged page costs bandwidth and never a wrong skip. A new page goes to the slot the committed map does not use. The file is buffered. */
#ifndef QREP_LEAFPAGE_H
#define QREP_LEAFPAGE_H

#include "wire.h"

/* The chaining value of a granule from the `count` values of its leaves. Needs no scratch of the caller's. 1 <= count <= 16384. */
void qrep_leaves_merge(const uint8_t *leaves, uint32_t count, uint8_t value[QREP_DIGEST_SIZE]);

/* Read the page of `granule` from the slot that `state` names, if it has the PAGE bit and is HASHED. leaves: room for qrep_granule_leaves() digests.
 * 1: believed, `leaves` holds them. 0: not there, or not believed (`leaves` is then undefined). -errno: the file could not be read. */
int qrep_leaf_page_read(int fd, const struct qrep_geometry *geometry, uint64_t granule, uint8_t state, const uint8_t value[QREP_DIGEST_SIZE],
                        uint8_t *leaves);

/* Write `count` == qrep_granule_leaves() digests as the page of `granule` in slot 0 or 1, zeroes after them. 0 or -errno (the slot is then undefined,
 * which reading finds out). Durable only after a flush of the file. */
int qrep_leaf_page_write(int fd, const struct qrep_geometry *geometry, uint64_t granule, int slot, const uint8_t *leaves, uint32_t count);

#endif
