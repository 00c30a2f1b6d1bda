/* How far the undo file of an open attempt may be believed: shared memory, written by the lanes, read by views of sync points (undo_view.h).
 *
 * A lane sets the mark of a segment after the flush that made a batch durable and before it submits the device write that the batch covers (R3). So
 * who reads the device first and the marks afterwards finds the before-image of every byte he may have seen overwritten; below a mark there is nothing
 * that is not flushed. A segment belongs to one lane, so each mark has one writer. */
#ifndef QREP_UNDO_REACH_H
#define QREP_UNDO_REACH_H

#include "disk.h"

#include <stdatomic.h>

#define QREP_UNDO_REACH_HEADER 64

struct qrep_undo_reach {
    _Atomic uint64_t version; /* counts changes of the marks, each after it is made */
    _Atomic uint32_t lost;    /* 1: a segment beyond the marks was used; nobody can tell what the device held */
    uint32_t reserved[13];
    _Atomic uint32_t marks[]; /* [segment of the file]: pages of it, from its start, that hold flushed batches */
};
_Static_assert(sizeof(struct qrep_undo_reach) == QREP_UNDO_REACH_HEADER, "shared with other processes of this build");

static inline uint64_t qrep_undo_reach_segments(size_t size) { return (size - QREP_UNDO_REACH_HEADER) / sizeof(uint32_t); }

/* The batch that ends at `end` in the undo file is flushed, and all before it in its segment. size: bytes of *reach, at least a header. */
static inline void qrep_undo_reach_set(struct qrep_undo_reach *reach, size_t size, uint64_t end)
{
    uint64_t segment = (end - 1) / QREP_UNDO_SEGMENT_SIZE;
    uint32_t pages = (uint32_t)((end - segment * QREP_UNDO_SEGMENT_SIZE) / QREP_PAGE_SIZE);

    if (segment >= qrep_undo_reach_segments(size))
        atomic_store(&reach->lost, 1);
    else if (atomic_load_explicit(&reach->marks[segment], memory_order_relaxed) < pages)
        atomic_store(&reach->marks[segment], pages);
    atomic_fetch_add(&reach->version, 1);
}

#endif
