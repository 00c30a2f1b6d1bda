/* What bucket.c and bucket_turns.c share: one bucket is filled and emptied there, here and in the other it is decided whose turn it is. The caller of
 * each of these holds the lock of the tree. */
#ifndef QREP_BUCKET_INTERNAL_H
#define QREP_BUCKET_INTERNAL_H

#include "bucket.h"

#define NS_PER_S 1000000000u
#define WAIT_MAX_NS 3600000000000u /* one hour; the caller asks again anyway */

typedef unsigned __int128 wide; /* rate * ns passes 2^64 within 1.5 s at 12.5 GB/s */

static inline int qrep_bucket_limited(const struct qrep_bucket *bucket) { return bucket->rate_bytes_per_s != QREP_RATE_UNLIMITED; }

/* ---- bucket.c ---- */

/* Nanoseconds until the level is `need`, rounded up; 0 when it is. rate > 0. */
wide qrep_bucket_fill_ns(const struct qrep_bucket *bucket, int64_t need);
void qrep_bucket_refill(struct qrep_bucket *bucket, uint64_t now_ns);
/* The level at which `size` is granted. From half the capacity on it is the half: what is taken beyond it is debt, and the other half
 * goes on filling while the sleeper is late. */
int64_t qrep_bucket_needed(const struct qrep_bucket *bucket, uint64_t size);

/* ---- bucket_turns.c ---- */

/* The bucket with the least rate from here to the root; NULL: none has one. */
struct qrep_bucket *qrep_bucket_slowest(struct qrep_bucket *bucket);
/* So many more requests, of so many bytes in all, wait below and here; modulo 2^32 and 2^64, to take away. */
void qrep_bucket_count_waiting(struct qrep_bucket *bucket, uint32_t requests, uint64_t bytes);
/* So many more requests below and here stand or were granted and not collected; modulo 2^32. */
void qrep_bucket_count_busy(struct qrep_bucket *bucket, uint32_t requests);
/* To the whole chain, and to the turns of its buckets. */
void qrep_bucket_give_back(struct qrep_bucket *bucket, uint64_t size);
/* What was granted is taken. */
void qrep_bucket_collect(struct qrep_bucket *bucket);
/* Nothing is asked for any more and nothing waits to be collected. */
void qrep_bucket_clear_request(struct qrep_bucket *bucket);
/* Let a request for `size` bytes stand, unless it was granted already, and hand out what the tree has earned. */
void qrep_bucket_request(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns);
/* Nanoseconds until the standing request of `bucket` will be granted: exact if it is alone, else about. */
uint64_t qrep_bucket_turn_ns(struct qrep_bucket *bucket, uint64_t now_ns);

#endif
