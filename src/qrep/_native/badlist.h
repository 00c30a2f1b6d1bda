/* Places of a device that could not be read or written, found by many lanes: ascending, joined where they touch, bounded. */
#ifndef QREP_BADLIST_H
#define QREP_BADLIST_H

#include "salvage.h"
#include <stdatomic.h>

#define QREP_BAD_EXTENTS_MAX 256

struct qrep_bad_list {
    atomic_uint lock;
    uint32_t count;
    uint64_t bytes; /* added in all */
    struct qrep_bad_extent extents[QREP_BAD_EXTENTS_MAX];
};

/* Add `count` extents, none of which is there already. Any lane. Returns how many found no place of their own: the list was full, and an extent was
 * widened over what lies between, so that rather too much is named than too little. */
unsigned qrep_bad_list_add(struct qrep_bad_list *list, const struct qrep_bad_extent *extents, unsigned count);

/* 1: something of [offset, offset + size) is listed. Any lane; what another one adds meanwhile may be missed. */
int qrep_bad_list_touches(struct qrep_bad_list *list, uint64_t offset, uint64_t size);

#endif
