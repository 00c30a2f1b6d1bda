/* Finding the batches of an undo file. The walk over a segment and the verdict on damage are disk.h's; this reads the segments, one ahead. */
#ifndef QREP_UNDO_SCAN_H
#define QREP_UNDO_SCAN_H

#include "disk.h"

struct qrep_undo_found {
    uint64_t position; /* of the batch in the undo file */
    uint64_t size;     /* bytes of it, padding included */
    uint64_t sequence;
};

struct qrep_undo_list {
    struct qrep_undo_found *found; /* in file order; freed by qrep_undo_list_free() */
    size_t count, room;
    uint64_t damaged; /* first place whose batch was flushed and is not there any more, or QREP_UNDO_NO_PLACE */
};

/* Every valid batch of header's base and attempt in `undo_fd` (O_DIRECT or not) from `start`, where a segment begins, up to `end`: 24 bytes for each.
 * backend: enum qrep_ring_backend. 0, or -errno (of reading or memory; the list is then empty). */
int qrep_undo_scan_file(int undo_fd, uint64_t start, uint64_t end, const struct qrep_undo_header *header, uint32_t backend, struct qrep_undo_list *list);
void qrep_undo_list_free(struct qrep_undo_list *list);

#endif
