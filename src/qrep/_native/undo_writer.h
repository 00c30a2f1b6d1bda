/* Logging before-images: a lane's own segments of the undo file, its batches in them, and the group flush (R3).
 *
 * Batches of a lane are numbered from 0. One becomes durable only together with all before it, so that recovery, which reads a segment from
 * its start, never meets a hole in front of a batch whose frame was written. Nothing here waits; the lane issues the requests. */
#ifndef QREP_UNDO_WRITER_H
#define QREP_UNDO_WRITER_H

#include "disk.h"
#include "lane.h"

#define QREP_UNDO_BATCHES_MAX 128 /* built and not yet flushed, at most */

struct qrep_undo_writer {
    struct qrep_target_run *run;
    uint64_t next, end;       /* place in the current segment; equal: no segment yet */
    uint64_t flushed_until;   /* the watermark of disk.h: end of the last flushed batch of the current segment, or 0 */
    uint64_t built;           /* number of the next batch */
    uint64_t written;         /* every batch below is written */
    uint64_t flushed;         /* every batch below is flushed: their frames may be written */
    uint64_t awaited;         /* batches below are covered by any flush that starts with number `ticket` or later; == flushed: none awaited */
    uint64_t ticket;
    uint64_t covered;         /* while own_flush: batches below were written before it was issued */
    int own_flush;            /* 1: this lane's flush is in flight */
    uint64_t ends[QREP_UNDO_BATCHES_MAX];   /* [number % MAX]: where the batch ends in the undo file */
    uint8_t complete[QREP_UNDO_BATCHES_MAX]; /* [number % MAX]: its write completed */
};

struct qrep_undo_place {
    uint8_t *start;    /* what to write: the batch begins this far before the payload */
    size_t size;       /* bytes, a multiple of QREP_PAGE_SIZE */
    uint64_t position; /* where in the undo file */
    uint64_t number;   /* of the batch */
};

/* Bytes that must be writable in front of a payload for a batch of at most `extents` extents. */
static inline uint64_t qrep_undo_front_room(uint32_t extents) { return qrep_undo_payload_offset(extents); }

void qrep_undo_writer_start(struct qrep_undo_writer *writer, struct qrep_target_run *run);

/* Build a batch around `payload` (page aligned, qrep_undo_front_room() writable bytes in front, writable up to the next page): table, digest, seal.
 * count >= 1. 0 and *place; or -ENOSPC when the limit or the file system has no further segment, or another -errno of allocating one (nothing
 * was built then). */
int qrep_undo_build(struct qrep_undo_writer *writer, uint8_t *payload, uint64_t payload_size, const struct qrep_undo_extent *extents,
                    uint32_t count, struct qrep_undo_place *place);

/* The write of batch `number` completed whole. */
void qrep_undo_written(struct qrep_undo_writer *writer, uint64_t number);

/* 1: issue an fdatasync of the undo file now and report its end with qrep_undo_flush_done(). 0: nothing to flush, or another lane's flush is in
 * flight; then ask again soon: it may cover these batches, or they are next. */
int qrep_undo_flush_begin(struct qrep_undo_writer *writer);
/* result: of the request. A failure ends the process (R2). */
void qrep_undo_flush_done(struct qrep_undo_writer *writer, int64_t result);

/* At the end of a lane, nothing of it in flight: flush and count what is written and not flushed. It covered no write, but it is in the file, and where it
 * were not counted it would stand in for as many that are lost later. Waits for another lane's flush, FLUSH_WAIT_MS at most. A failure ends the process. */
void qrep_undo_settle(struct qrep_undo_writer *writer);

/* 1: batch `number` is flushed, its frame may be written. */
static inline int qrep_undo_is_flushed(const struct qrep_undo_writer *writer, uint64_t number) { return number < writer->flushed; }
/* 1: written batches wait for a flush that is not this lane's. */
static inline int qrep_undo_waits(const struct qrep_undo_writer *writer) { return writer->awaited > writer->flushed && !writer->own_flush; }

#endif
