/* Token buckets. The level counts bytes, `fraction` the part of a byte, in byte-nanoseconds (0 .. 10^9 - 1), so no refill is ever lost. */
#include "bucket.h"

#include <sched.h>

#define NS_PER_S 1000000000u
#define BURST_NS 20000000u       /* 20 ms: half of it is what a sleeper may be late without losing bytes (bench/RESULTS.md, limit) */
#define BURST_MIN ((uint64_t)64 << 10)
#define WAIT_MAX_NS 3600000000000u /* one hour; the caller asks again anyway */

typedef unsigned __int128 wide; /* rate * ns passes 2^64 within 1.5 s at 12.5 GB/s */

static void lock_one(struct qrep_bucket *bucket)
{
    /* Held for a few dozen instructions. If its holder was descheduled, spinning on would only keep it off the CPU. */
    while (__atomic_exchange_n(&bucket->lock, 1, __ATOMIC_ACQUIRE) != 0)
        sched_yield();
}

static void unlock_one(struct qrep_bucket *bucket) { __atomic_store_n(&bucket->lock, 0, __ATOMIC_RELEASE); }

/* Always from the connection to the node, so two lanes never hold what the other waits for. */
static void lock_chain(struct qrep_bucket *bucket)
{
    for (; bucket != NULL; bucket = bucket->parent)
        lock_one(bucket);
}

static void unlock_chain(struct qrep_bucket *bucket)
{
    for (; bucket != NULL; bucket = bucket->parent)
        unlock_one(bucket);
}

/* Nanoseconds until the level is `need`, rounded up; 0 when it is. rate > 0. */
static wide fill_ns(const struct qrep_bucket *bucket, int64_t need)
{
    if (bucket->level >= need)
        return 0;
    wide missing = (wide)(uint64_t)(need - bucket->level) * NS_PER_S - bucket->fraction;
    return (missing + bucket->rate_bytes_per_s - 1) / bucket->rate_bytes_per_s;
}

static void refill(struct qrep_bucket *bucket, uint64_t now_ns)
{
    /* Lanes read the clock before they take the lock: a later reading may have been here first. */
    uint64_t elapsed_ns = now_ns > bucket->updated_ns ? now_ns - bucket->updated_ns : 0;
    bucket->updated_ns += elapsed_ns;
    if (bucket->rate_bytes_per_s == QREP_RATE_UNLIMITED)
        return;
    /* Clamp first: no product is formed with a time longer than it takes to fill the bucket. */
    if (elapsed_ns >= fill_ns(bucket, (int64_t)bucket->capacity)) {
        bucket->level = (int64_t)bucket->capacity;
        bucket->fraction = 0;
        return;
    }
    wide gained = (wide)elapsed_ns * bucket->rate_bytes_per_s + bucket->fraction;
    bucket->level += (int64_t)(gained / NS_PER_S);
    bucket->fraction = (uint64_t)(gained % NS_PER_S);
}

static uint64_t choose_capacity(uint64_t rate_bytes_per_s, uint64_t capacity)
{
    if (capacity == 0) {
        capacity = (uint64_t)((wide)rate_bytes_per_s * BURST_NS / NS_PER_S);
        capacity = capacity < BURST_MIN ? BURST_MIN : capacity;
    }
    return capacity > INT64_MAX / 2 ? INT64_MAX / 2 : capacity;
}

void qrep_bucket_init(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, struct qrep_bucket *parent, uint64_t now_ns)
{
    *bucket = (struct qrep_bucket){
        .rate_bytes_per_s = rate_bytes_per_s,
        .capacity = choose_capacity(rate_bytes_per_s, capacity),
        .updated_ns = now_ns,
        .parent = parent,
    };
    bucket->level = (int64_t)bucket->capacity;
}

void qrep_bucket_set_rate(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, uint64_t now_ns)
{
    lock_one(bucket);
    int was_unlimited = bucket->rate_bytes_per_s == QREP_RATE_UNLIMITED;
    refill(bucket, now_ns); /* what was earned so far was earned at the old rate */
    bucket->rate_bytes_per_s = rate_bytes_per_s;
    bucket->capacity = choose_capacity(rate_bytes_per_s, capacity);
    if (was_unlimited || bucket->level > (int64_t)bucket->capacity) {
        bucket->level = (int64_t)bucket->capacity;
        bucket->fraction = 0;
    }
    bucket->claim = 0;
    unlock_one(bucket);
}

/* The level at which `size` is granted. From half the capacity on it is the half: what is taken beyond it is debt, and the other half
 * goes on filling while the sleeper is late. With the whole capacity every late wake-up would lose bytes: 10 % at 100 MB/s. */
static uint64_t needed_level(const struct qrep_bucket *bucket, uint64_t size)
{
    uint64_t half = (bucket->capacity + 1) / 2;
    return size < half ? size : half;
}

/* Nanoseconds until this bucket alone would grant `size`; 0: now. */
static uint64_t wait_ns_of(struct qrep_bucket *bucket, uint64_t size)
{
    if (bucket->rate_bytes_per_s == QREP_RATE_UNLIMITED)
        return 0;
    uint64_t need = needed_level(bucket, size);
    if (need > bucket->claim && bucket->level < (int64_t)need)
        bucket->claim = need;
    /* A refused large request is not starved by small ones that fit earlier: they wait for the level it waits for, and then
     * whoever asks first goes first. */
    uint64_t level = need > bucket->claim ? need : bucket->claim;
    wide wait_ns = fill_ns(bucket, (int64_t)level);
    return wait_ns > WAIT_MAX_NS ? WAIT_MAX_NS : (uint64_t)wait_ns;
}

static void pay(struct qrep_bucket *bucket, uint64_t size)
{
    bucket->taken += size;
    if (bucket->rate_bytes_per_s == QREP_RATE_UNLIMITED)
        return;
    if (needed_level(bucket, size) >= bucket->claim)
        bucket->claim = 0;
    bucket->level -= (int64_t)size;
}

uint64_t qrep_bucket_take(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
{
    if (size > INT64_MAX / 2)
        return WAIT_MAX_NS; /* no frame is that large; the level could not hold the debt */
    uint64_t longest_ns = 0;
    lock_chain(bucket);
    for (struct qrep_bucket *each = bucket; each != NULL; each = each->parent) {
        refill(each, now_ns);
        uint64_t wait_ns = wait_ns_of(each, size);
        longest_ns = wait_ns > longest_ns ? wait_ns : longest_ns;
    }
    if (longest_ns == 0)
        for (struct qrep_bucket *each = bucket; each != NULL; each = each->parent)
            pay(each, size);
    unlock_chain(bucket);
    return longest_ns;
}

void qrep_bucket_return(struct qrep_bucket *bucket, uint64_t size)
{
    lock_chain(bucket);
    for (struct qrep_bucket *each = bucket; each != NULL; each = each->parent) {
        each->taken -= size;
        int64_t room = (int64_t)each->capacity - each->level;
        each->level += size < (uint64_t)room ? (int64_t)size : room;
    }
    unlock_chain(bucket);
}
