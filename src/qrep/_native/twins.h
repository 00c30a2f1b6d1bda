/* Leaves of a frame that are equal: twins. The second of two travels as a reference to the first (QREP_RUN_COPY of wire.h).
 *
 * Chaining values depend on the place of a leaf, so twins are found by content: a sample of each leaf, a small table of samples, and memcmp before
 * any is believed. What that costs is bounded whatever the content is: a sample is a few words of a leaf, a look into the table is over after so many
 * places, and after some comparisons in vain a frame is not looked through any further. */
#ifndef QREP_TWINS_H
#define QREP_TWINS_H

#include "wire.h"

#include <stddef.h>

#define QREP_TWINS_NONE 0xffffu

struct qrep_twins {
    uint32_t leaf_size;
    uint32_t granule_leaves;
    uint16_t *from;              /* [granule_leaves]: what the leaf is a copy of, or QREP_TWINS_NONE; valid for the leaves last looked at */
    struct qrep_wire_run *runs;  /* [granule_leaves], scratch */
    uint64_t *samples;           /* [granule_leaves], scratch */
    struct qrep_twins_seen *seen; /* [2 * granule_leaves], a hash table of the leaves of one frame */
};

/* 0 or -ENOMEM. Close is harmless on a zeroed struct. */
int qrep_twins_open(struct qrep_twins *twins, const struct qrep_geometry *geometry);
void qrep_twins_close(struct qrep_twins *twins);

/* Look through the leaves of the data runs of a table that holds data and zero runs. data, size: of the granule. Returns how many leaves are copies of
 * earlier ones; then `from` says of which. A leaf that others are copies of is none itself. The short last leaf of a device takes no part. */
uint32_t qrep_twins_find(struct qrep_twins *twins, const uint8_t *data, size_t size, const struct qrep_wire_run *runs, uint32_t run_count);

/* After a find that found: take the copies out of the data runs, in place. run_room: entries the table has room for; data_room: data runs that may be in
 * it; where either is used up what is left of the copies stays data. Returns the new number of runs, and in *copy_leaves how many leaves are copies
 * now. */
uint32_t qrep_twins_split(struct qrep_twins *twins, struct qrep_wire_run *runs, uint32_t run_count, uint32_t run_room, uint32_t data_room,
                          uint32_t *copy_leaves);

/* The receiving end, for a frame whose header and table were checked. Spread its data, in place, so that every leaf that is not zero has its bytes, in the
 * order of the table. data: room for qrep_frame_leaf_bytes(). places: [leaves of a granule], scratch. */
void qrep_copies_spread(const struct qrep_frame_header *header, const struct qrep_wire_run *runs, const struct qrep_geometry *geometry, uint8_t *data,
                        uint32_t *places);
/* Then make of its header and table those of a frame without copies. */
void qrep_copies_forget(struct qrep_frame_header *header, struct qrep_wire_run *runs, const struct qrep_geometry *geometry);

#endif
