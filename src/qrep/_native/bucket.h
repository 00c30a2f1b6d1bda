/* Token buckets: how many bytes a connection may hand to its socket now. Pure arithmetic; the caller brings the time.
 *
 * A bucket may have a parent that is shared by several (connection -> job -> shaping group -> node); bytes are taken from the whole chain or
 * not at all. All functions are safe to call from several lanes at once. */
#ifndef QREP_BUCKET_H
#define QREP_BUCKET_H

#include "common.h"

#define QREP_RATE_UNLIMITED 0

struct qrep_bucket {
    uint64_t lock;              /* a spinlock word; zero is free */
    uint64_t rate_bytes_per_s;  /* 0: unlimited */
    uint64_t capacity;          /* bytes of burst, >= 1 when rate is set */
    int64_t level;              /* bytes available now; may be negative after a rate was lowered or a larger frame taken */
    uint64_t updated_ns;        /* CLOCK_MONOTONIC of `level` */
    uint64_t fraction;          /* remainder of the last refill, in byte-nanoseconds, so that slow rates are exact */
    uint64_t taken;             /* bytes ever taken, for figures */
    uint64_t claim;             /* level that the largest refused request waits for; smaller ones do not overtake it for ever */
    struct qrep_bucket *parent; /* NULL at the top */
};

void qrep_bucket_init(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, struct qrep_bucket *parent, uint64_t now_ns);
/* Change the rate while in use; takes effect with the next take. capacity 0: choose from the rate (20 ms, at least 64 KiB). */
void qrep_bucket_set_rate(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, uint64_t now_ns);
/* Take `size` bytes from this bucket and all its parents. Returns 0 when taken, else the nanoseconds to wait before asking again
 * (then nothing was taken). Never more than rate * time + capacity in all. A size above half
 * the capacity is granted when the bucket is half full, exceeds that sum by what it has above the half, and is paid by waiting after. */
uint64_t qrep_bucket_take(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns);
/* Give back bytes that were taken and not sent. */
void qrep_bucket_return(struct qrep_bucket *bucket, uint64_t size);

#endif
