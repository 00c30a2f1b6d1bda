/* A read limiter for source lanes: how much they may read now, in what pieces, and whether at all. source/nice.py decides, some 20 times a second; the
 * lanes obey before each read they queue, and count what it needs to decide.
 *
 * All lanes of a run, and all runs of a job one after the other, share one qrep_nice. Everything in it is safe to read and write at any time. */
#ifndef QREP_NICE_H
#define QREP_NICE_H

#include "bucket.h"
#include "common.h"

#include <stdatomic.h>

#define QREP_NICE_PIECE_MIN 4096u

struct qrep_nice {
    struct qrep_bucket bucket;      /* bytes read; without a rate while nobody is disturbed. Each lane has a child of it */
    atomic_int paused;              /* nothing is read, so that others can be seen */
    _Atomic uint32_t piece_size;    /* bytes of a read, a power of two; 0: as large as it goes */
    atomic_uint in_flight;          /* reads */
    _Atomic uint64_t reads, bytes;  /* that have ended, and what they brought */
    _Atomic uint64_t timed, timed_ns; /* reads for which a lane waited from their start to their end, and how long they took in all */
};

/* No lane uses it before init and after close. */
void qrep_nice_init(struct qrep_nice *nice, uint64_t now_ns);
void qrep_nice_close(struct qrep_nice *nice);
/* rate 0: unlimited. piece 0: as large as it goes, else a power of two, QREP_NICE_PIECE_MIN or more. */
void qrep_nice_order(struct qrep_nice *nice, uint64_t rate_bytes_per_s, uint32_t piece_size, int paused, uint64_t now_ns);

/* May `size` bytes be read now, by the lane that `bucket`, a child of nice->bucket, belongs to? 0: yes, they are taken; else ns until it is to be asked
 * again: never long, for the order may be another one by then. */
uint64_t qrep_nice_take(struct qrep_nice *nice, struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns);
void qrep_nice_read_begun(struct qrep_nice *nice);
/* size: bytes that came; latency_ns: how long it took, 0 if that was not measured. */
void qrep_nice_read_ended(struct qrep_nice *nice, uint64_t size, uint64_t latency_ns);

/* How the calling thread is scheduled, to be put back. */
struct qrep_thread_class {
    int policy; /* -1: nothing was changed */
    int io_priority;
};

/* The calling thread gets the CPU when nobody else wants it, and what it reads, also by kernel threads made for it from now on, is of the lowest priority
 * that is still served in turn. Where that is not permitted, or cannot be undone, it stays what it is. */
void qrep_thread_yield(struct qrep_thread_class *before);
void qrep_thread_restore(const struct qrep_thread_class *before);

#endif
