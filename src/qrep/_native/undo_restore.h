/* Putting before-images back: the way from an open or newer generation to the one its undo file leads to.
 *
 * The order of the list decides (latest sequence first, so that the first-logged content of a leaf is what stays); batches are written back
 * many at a time where they do not touch the same places. Every batch is checked again before it is used. Repeating all of it from the start
 * gives the same device. Nothing is flushed here (R10 is the caller's). */
#ifndef QREP_UNDO_RESTORE_H
#define QREP_UNDO_RESTORE_H

#include "undo_scan.h"

struct qrep_restore_job {
    int device_fd; /* O_DIRECT, claimed, nothing else writes it */
    int undo_fd;   /* O_DIRECT or not */
    uint64_t device_size;
    const struct qrep_undo_found *batches; /* in the order of restoring; position and size are used */
    size_t count;
    int punch;   /* what was zero is deallocated where that works; else zeroes are written */
    int is_file; /* the device is an image file */
    uint32_t backend;
    uint32_t sector_size; /* of the device; 0: not known, then what takes no write is found in larger pieces */
    /* results */
    uint64_t restored; /* bytes of the device put back */
    uint64_t failed;   /* position of the batch that failed, or QREP_UNDO_NO_PLACE */
};

/* 0; -EBADMSG: a batch is not what it was; or -errno of reading or writing. Stops at the first failure; no I/O is in flight on return. */
int qrep_undo_restore(struct qrep_restore_job *job);

#endif
