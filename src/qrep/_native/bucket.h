/* Rate limits: token buckets in a tree, connection -> job -> shaping group -> node. Pure arithmetic; the caller brings the time.
 *
 * Every bucket of the tree may have a rate, and bytes are paid to the whole chain up to the root. What a bucket earns goes to its children in turn,
 * an equal share of bytes to each that has something to send, however large its requests are and however many connections are below it
 * (start-time fair queueing: of the children that wait, the one that has had least goes next). What one does not use, the others get at once; so the
 * shares are max-min fair on every level.
 *
 * Nobody is woken: whoever asks hands out what all buckets of its tree have earned meanwhile, also to requests of others, which collect it when
 * they ask again. A lane that comes late for its turn therefore neither loses it nor keeps the others from theirs.
 *
 * All functions are safe to call from several lanes at once; one lock, in the root, guards a tree. */
#ifndef QREP_BUCKET_H
#define QREP_BUCKET_H

#include "common.h"

#define QREP_RATE_UNLIMITED 0

struct qrep_bucket {
    struct qrep_bucket *root;   /* of its tree, for life */
    struct qrep_bucket *parent; /* NULL at the top */
    struct qrep_bucket *children, *next, *previous;
    uint64_t lock; /* of the root: a spinlock word; zero is free */

    uint64_t rate_bytes_per_s;  /* 0: unlimited */
    uint64_t capacity;          /* bytes of burst, >= 1 when rate is set */
    int64_t level;              /* bytes available now; negative after a request larger than half the capacity */
    uint64_t updated_ns;        /* CLOCK_MONOTONIC of `level` */
    uint64_t fraction;          /* remainder of the last refill, in byte-nanoseconds, so that slow rates are exact */
    uint64_t owed;              /* bytes that were earned while somebody waited, and found no room: all lanes were late at once */
    uint64_t taken;             /* bytes ever paid here, for figures */

    /* Turns, in bytes of virtual time: a child begins at `start`, its parent's `clock` is the latest start that was granted. */
    uint64_t start, clock;
    uint32_t waiting; /* requests below and here that were not granted yet */
    uint64_t asked;   /* bytes of these */
    uint32_t busy;    /* these, and what was granted and not collected yet */
    uint64_t wanted;  /* the request of this bucket itself; 0: none */
    uint64_t granted; /* what was granted to it and not collected yet */
};

/* The parent must stay alive until the child is closed. capacity 0: chosen from the rate (16 ms, at least 1 KiB). */
void qrep_bucket_init(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, struct qrep_bucket *parent, uint64_t now_ns);
/* Leave the tree; what was granted and not collected is given back. Has no children any more. */
void qrep_bucket_close(struct qrep_bucket *bucket);
/* Go below another parent of the same tree while in use; the share begins anew there. */
void qrep_bucket_move(struct qrep_bucket *bucket, struct qrep_bucket *parent);
/* Change the rate while in use, from the next request on. What was earned stays, cut to the new capacity; a debt keeps its duration. */
void qrep_bucket_set_rate(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, uint64_t now_ns);

/* How many bytes to ask for at once: what was granted already, else 2 ms of the slowest rate of the chain, or of 8 ms the share that it has with others, 0.5 ms at least,
 * 1 KiB to 1 MiB; QREP_PIECE_UNLIMITED without a rate. */
#define QREP_PIECE_UNLIMITED ((uint64_t)2 << 20)
uint64_t qrep_bucket_piece(struct qrep_bucket *bucket);
/* Bytes per second of the slowest rate of the chain, QREP_RATE_UNLIMITED without one. */
uint64_t qrep_bucket_rate(struct qrep_bucket *bucket);
/* Take `size` bytes from this bucket and all its parents. Returns 0 when taken, else the nanoseconds to wait before asking again; until then the
 * request stands, and another size asked for takes its place. Never more than rate * time + capacity in all. A size above half the
 * capacity is granted when the bucket is half full, exceeds that sum by what it has above the half, and is paid by waiting after. */
uint64_t qrep_bucket_take(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns);
/* Let a request stand while what was taken before is still being sent: the turn may come meanwhile, and the next take() of this size collects it. */
void qrep_bucket_ask(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns);
/* Give back bytes that were taken and not sent. */
void qrep_bucket_return(struct qrep_bucket *bucket, uint64_t size);
/* Withdraw a request that still stands, and give back what was granted to it: nobody will ask for it again. */
void qrep_bucket_leave(struct qrep_bucket *bucket);

#endif
