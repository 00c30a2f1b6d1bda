/* Is what arrived what was announced, and is the granule after it what the source says it is.
 *
 * One granule is open per lane at a time: frames of a granule come in order on one connection. Leaf values fall out of the check of the data and are
 * kept until the granule's last frame; what was not replaced comes from the committed leaf page. */
#ifndef QREP_TARGET_VERIFY_H
#define QREP_TARGET_VERIFY_H

#include "lane.h"

struct qrep_assembly {
    const struct qrep_run_base *run;
    uint8_t *values;    /* [leaves of a granule][32], those with `replaced` are valid */
    uint8_t *page;      /* the same, for the committed page */
    uint8_t *replaced;  /* [leaves of a granule] */
    uint64_t *offsets;  /* [leaves of a frame], device offsets for the gather hash */
    uint64_t granule;   /* valid while open */
    uint8_t mark;       /* what `marked` said of it when it was opened */
    uint32_t leaves;    /* of it */
    uint32_t replaced_count;
    int open;
};

/* What a finished granule is. */
struct qrep_granule_result {
    uint8_t state; /* as in the map; UNKNOWN when it could neither be computed nor was announced */
    uint8_t value[QREP_DIGEST_SIZE];
};

/* Room for the granules of `run` and for frames of `frame_limit` bytes of data. 0 or -ENOMEM. Close is harmless on a zeroed assembly. */
int qrep_assembly_open(struct qrep_assembly *assembly, const struct qrep_run_base *run, uint32_t frame_limit);
void qrep_assembly_close(struct qrep_assembly *assembly);

/* Bytes a frame's table takes together with the leaf values that qrep_frame_verify() puts behind it. */
static inline uint64_t qrep_frame_table_room(const struct qrep_frame_header *header, const struct qrep_geometry *geometry)
{
    return (uint64_t)header->run_count * sizeof(struct qrep_wire_run) +
           (qrep_frame_leaf_bytes(header, geometry) / geometry->leaf_size + 1) * QREP_DIGEST_SIZE;
}

/* Check the digest of a frame whose header and runs were checked, and take its leaf values into the open granule, opening it where this is its first
 * frame. data: room for qrep_frame_leaf_bytes(). runs: qrep_frame_table_room() writable bytes, the table in front. Copies are spread before they are
 * hashed, and when all is well header, table and data are those of a frame without any. Not for END.
 * 0; -EILSEQ: the digest differs; -EPROTO: another granule is still open, or a leaf comes twice in one pass. */
int qrep_frame_verify(struct qrep_assembly *assembly, struct qrep_frame_header *header, uint8_t *data, struct qrep_wire_run *runs);

/* After the last frame of the open granule: what it is now, and its leaf page written to the slot the base map does not use. Closes the granule.
 * 0; -EUCLEAN: not what header->granule_value says; or -errno of the leaves file. */
int qrep_granule_finish(struct qrep_assembly *assembly, const struct qrep_frame_header *header, struct qrep_granule_result *result);

#endif
