/* Token buckets. The level counts bytes, `fraction` the part of a byte, in byte-nanoseconds (0 .. 10^9 - 1), so no refill is ever lost. */
#include "bucket_internal.h"

#include <sched.h>

/* A lane that wakes later than this loses bytes; more would be a burst above 1.25 x in 100 ms (bench/RESULTS.md, limit). */
#define BURST_NS 16000000u
#define BURST_MIN ((uint64_t)1 << 10)
#define OWED_NS 80000000u /* with BURST_NS below 2 % of 5 s */
#define OWED_SLOWNESS 32
#define PIECE_NS 2000000u /* shorter waits cost wake-ups, longer ones are bursts */
#define PIECES_NS 8000000u /* those of all that share */
#define PIECE_LEAST_NS 500000u
#define PIECE_MIN ((uint64_t)1 << 10)
#define PIECE_MAX ((uint64_t)1 << 20)
#define SIZE_LIMIT ((uint64_t)1 << 40) /* no frame is that large; the level could not hold the debt of many */

/* ---- the lock ---- */

static void lock_tree(struct qrep_bucket *bucket)
{
    /* Held for a few dozen instructions. If its holder was descheduled, spinning on would only keep it off the CPU. */
    while (__atomic_exchange_n(&bucket->root->lock, 1, __ATOMIC_ACQUIRE) != 0)
        sched_yield();
}

static void unlock_tree(struct qrep_bucket *bucket) { __atomic_store_n(&bucket->root->lock, 0, __ATOMIC_RELEASE); }

/* ---- one bucket ---- */

wide qrep_bucket_fill_ns(const struct qrep_bucket *bucket, int64_t need)
{
    if (bucket->level >= need)
        return 0;
    wide missing = (wide)(uint64_t)(need - bucket->level) * NS_PER_S - bucket->fraction;
    return (missing + bucket->rate_bytes_per_s - 1) / bucket->rate_bytes_per_s;
}

/* What is earned while a bucket is full is lost, as it must be when nobody wants it. When somebody waited for this very bucket, the CPUs were busy
 * elsewhere: then it is paid back, so slowly that no burst comes of it, and never so much that 5 s have more than 2 % too much. */
static void note_owed(struct qrep_bucket *bucket, wide late_ns)
{
    if (bucket->waiting == 0 || bucket->level >= (int64_t)(bucket->capacity / 2))
        return;
    uint64_t most = (uint64_t)((wide)bucket->rate_bytes_per_s * OWED_NS / NS_PER_S);
    wide owed = bucket->owed + (late_ns < OWED_NS ? late_ns : OWED_NS) * bucket->rate_bytes_per_s / NS_PER_S;
    bucket->owed = owed < most ? (uint64_t)owed : most;
}

static void pay_back(struct qrep_bucket *bucket, uint64_t gained)
{
    int64_t room = (int64_t)bucket->capacity - bucket->level;
    uint64_t more = gained / OWED_SLOWNESS;

    if (room <= 0)
        return;
    more = more < bucket->owed ? more : bucket->owed;
    more = more < (uint64_t)room ? more : (uint64_t)room;
    bucket->level += (int64_t)more;
    bucket->owed -= more;
}

void qrep_bucket_refill(struct qrep_bucket *bucket, uint64_t now_ns)
{
    /* Lanes read the clock before they take the lock: a later reading may have been here first. */
    uint64_t elapsed_ns = now_ns > bucket->updated_ns ? now_ns - bucket->updated_ns : 0;
    bucket->updated_ns += elapsed_ns;
    if (!qrep_bucket_limited(bucket))
        return;
    /* Clamp first: no product is formed with a time longer than it takes to fill the bucket. */
    wide full_ns = qrep_bucket_fill_ns(bucket, (int64_t)bucket->capacity);
    if (elapsed_ns >= full_ns) {
        note_owed(bucket, elapsed_ns - full_ns);
        bucket->level = (int64_t)bucket->capacity;
        bucket->fraction = 0;
        return;
    }
    wide gained = (wide)elapsed_ns * bucket->rate_bytes_per_s + bucket->fraction;
    bucket->level += (int64_t)(gained / NS_PER_S);
    bucket->fraction = (uint64_t)(gained % NS_PER_S);
    pay_back(bucket, (uint64_t)(gained / NS_PER_S));
}

static uint64_t choose_capacity(uint64_t rate_bytes_per_s, uint64_t capacity)
{
    if (capacity == 0) {
        capacity = (uint64_t)((wide)rate_bytes_per_s * BURST_NS / NS_PER_S);
        capacity = capacity < BURST_MIN ? BURST_MIN : capacity;
    }
    return capacity > INT64_MAX / 4 ? INT64_MAX / 4 : capacity;
}

int64_t qrep_bucket_needed(const struct qrep_bucket *bucket, uint64_t size)
{
    uint64_t half = (bucket->capacity + 1) / 2;
    return (int64_t)(size < half ? size : half);
}

/* ---- for callers ---- */

static void link_below(struct qrep_bucket *bucket, struct qrep_bucket *parent)
{
    bucket->parent = parent;
    bucket->previous = NULL;
    bucket->next = parent->children;
    if (parent->children)
        parent->children->previous = bucket;
    parent->children = bucket;
    bucket->start = parent->clock;
}

static void unlink_bucket(struct qrep_bucket *bucket)
{
    if (bucket->next)
        bucket->next->previous = bucket->previous;
    if (bucket->previous)
        bucket->previous->next = bucket->next;
    else
        bucket->parent->children = bucket->next;
}

void qrep_bucket_init(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, struct qrep_bucket *parent, uint64_t now_ns)
{
    *bucket = (struct qrep_bucket){
        .root = parent ? parent->root : bucket,
        .rate_bytes_per_s = rate_bytes_per_s,
        .capacity = choose_capacity(rate_bytes_per_s, capacity),
        .updated_ns = now_ns,
    };
    bucket->level = (int64_t)bucket->capacity;
    if (parent == NULL)
        return;
    lock_tree(bucket);
    link_below(bucket, parent);
    unlock_tree(bucket);
}

void qrep_bucket_close(struct qrep_bucket *bucket)
{
    if (bucket->parent == NULL)
        return;
    lock_tree(bucket);
    qrep_bucket_clear_request(bucket);
    unlink_bucket(bucket);
    unlock_tree(bucket);
}

void qrep_bucket_move(struct qrep_bucket *bucket, struct qrep_bucket *parent)
{
    lock_tree(bucket);
    qrep_bucket_count_waiting(bucket->parent, -bucket->waiting, -bucket->asked);
    qrep_bucket_count_busy(bucket->parent, -bucket->busy);
    unlink_bucket(bucket);
    link_below(bucket, parent);
    qrep_bucket_count_waiting(parent, bucket->waiting, bucket->asked);
    qrep_bucket_count_busy(parent, bucket->busy);
    unlock_tree(bucket);
}

void qrep_bucket_set_rate(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, uint64_t now_ns)
{
    lock_tree(bucket);
    uint64_t before = bucket->rate_bytes_per_s;
    qrep_bucket_refill(bucket, now_ns); /* what was earned so far was earned at the old rate */
    bucket->rate_bytes_per_s = rate_bytes_per_s;
    bucket->capacity = choose_capacity(rate_bytes_per_s, capacity);
    bucket->owed = 0;
    if (before == QREP_RATE_UNLIMITED || bucket->level > (int64_t)bucket->capacity) {
        bucket->level = (int64_t)bucket->capacity;
        bucket->fraction = 0;
    } else if (bucket->level < 0 && qrep_bucket_limited(bucket)) {
        /* 128 KiB of debt are 0.2 ms at 600 MB/s and would be 2 s at 64 KiB/s. */
        wide debt = (wide)(uint64_t)-bucket->level * rate_bytes_per_s / before;
        bucket->level = debt > INT64_MAX / 4 ? -(INT64_MAX / 4) : -(int64_t)debt;
    }
    unlock_tree(bucket);
}

/* Its share of what `limit`, above it, has is one of so many; those that are not busy do not count. */
static uint64_t sharers_of(const struct qrep_bucket *bucket, const struct qrep_bucket *limit)
{
    uint64_t sharers = 1;

    for (; limit && bucket != limit; bucket = bucket->parent) {
        uint64_t alike = 1;
        for (const struct qrep_bucket *each = bucket->parent->children; each; each = each->next)
            alike += each != bucket && each->busy;
        sharers = sharers * alike < SIZE_LIMIT ? sharers * alike : sharers;
    }
    return sharers;
}

uint64_t qrep_bucket_rate(struct qrep_bucket *bucket)
{
    lock_tree(bucket);
    const struct qrep_bucket *limit = qrep_bucket_slowest(bucket);
    uint64_t rate = limit ? limit->rate_bytes_per_s : QREP_RATE_UNLIMITED;
    unlock_tree(bucket);
    return rate;
}

uint64_t qrep_bucket_piece(struct qrep_bucket *bucket)
{
    lock_tree(bucket);
    const struct qrep_bucket *limit = qrep_bucket_slowest(bucket);
    uint64_t rate = limit ? limit->rate_bytes_per_s : QREP_RATE_UNLIMITED, granted = bucket->granted, sharers = sharers_of(bucket, limit);
    unlock_tree(bucket);
    if (rate == QREP_RATE_UNLIMITED)
        return QREP_PIECE_UNLIMITED;
    if (granted)
        return granted;
    /* Each of those that share may hold a piece that it was granted and has not sent: all of them together must not be a burst. */
    uint64_t part_ns = sharers > 1 ? PIECES_NS / sharers : PIECE_NS;
    uint64_t bytes = (uint64_t)((wide)rate * (part_ns < PIECE_LEAST_NS ? PIECE_LEAST_NS : part_ns) / NS_PER_S);
    return bytes < PIECE_MIN ? PIECE_MIN : bytes > PIECE_MAX ? PIECE_MAX : bytes;
}

static void take_unlimited(struct qrep_bucket *bucket, uint64_t size)
{
    qrep_bucket_clear_request(bucket);
    for (; bucket; bucket = bucket->parent)
        bucket->taken += size;
}

uint64_t qrep_bucket_take(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
{
    uint64_t wait_ns = 0;

    if (size > SIZE_LIMIT)
        return WAIT_MAX_NS;
    lock_tree(bucket);
    if (size == 0) {
        for (struct qrep_bucket *each = bucket; each; each = each->parent)
            qrep_bucket_refill(each, now_ns);
    } else if (qrep_bucket_slowest(bucket) == NULL) {
        take_unlimited(bucket, size);
    } else {
        qrep_bucket_request(bucket, size, now_ns);
        if (bucket->granted)
            qrep_bucket_collect(bucket);
        else
            wait_ns = qrep_bucket_turn_ns(bucket, now_ns);
    }
    unlock_tree(bucket);
    return wait_ns;
}

void qrep_bucket_ask(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
{
    if (size == 0 || size > SIZE_LIMIT)
        return;
    lock_tree(bucket);
    if (qrep_bucket_slowest(bucket))
        qrep_bucket_request(bucket, size, now_ns);
    unlock_tree(bucket);
}

void qrep_bucket_return(struct qrep_bucket *bucket, uint64_t size)
{
    lock_tree(bucket);
    qrep_bucket_give_back(bucket, size);
    unlock_tree(bucket);
}

void qrep_bucket_leave(struct qrep_bucket *bucket)
{
    lock_tree(bucket);
    qrep_bucket_clear_request(bucket);
    unlock_tree(bucket);
}
