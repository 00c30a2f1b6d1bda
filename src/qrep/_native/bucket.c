/* Token buckets. The level counts bytes, `fraction` the part of a byte, in byte-nanoseconds (0 .. 10^9 - 1), so no refill is ever lost. */
#include "bucket.h"

#include <sched.h>

#define NS_PER_S 1000000000u
/* A lane that wakes later than this loses bytes; more would be a burst above 1.25 x in 100 ms (bench/RESULTS.md, limit). */
#define BURST_NS 16000000u
#define BURST_MIN ((uint64_t)1 << 10)
#define PIECE_NS 2000000u /* shorter waits cost wake-ups, longer ones are bursts */
#define PIECE_MIN ((uint64_t)1 << 10)
#define PIECE_MAX ((uint64_t)256 << 10)
#define WAIT_MAX_NS 3600000000000u /* one hour; the caller asks again anyway */
#define TURN_MIN_NS 50000u         /* what waits behind others asks again after this at the earliest */
/* How long somebody is sent to sleep in a queue: all of them together ask about a thousand times a second, which hands out what is earned. */
#define TURN_MAX_NS 5000000u
#define TURN_EACH_NS 250000u
#define TURN_LIMIT_NS 50000000u

typedef unsigned __int128 wide; /* rate * ns passes 2^64 within 1.5 s at 12.5 GB/s */

/* ---- the lock ---- */

static void lock_tree(struct qrep_bucket *bucket)
{
    /* Held for a few dozen instructions. If its holder was descheduled, spinning on would only keep it off the CPU. */
    while (__atomic_exchange_n(&bucket->root->lock, 1, __ATOMIC_ACQUIRE) != 0)
        sched_yield();
}

static void unlock_tree(struct qrep_bucket *bucket) { __atomic_store_n(&bucket->root->lock, 0, __ATOMIC_RELEASE); }

/* ---- one bucket ---- */

static int is_limited(const struct qrep_bucket *bucket) { return bucket->rate_bytes_per_s != QREP_RATE_UNLIMITED; }

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
    if (!is_limited(bucket))
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
    return capacity > INT64_MAX / 4 ? INT64_MAX / 4 : capacity;
}

/* The level at which `size` is granted. From half the capacity on it is the half: what is taken beyond it is debt, and the other half
 * goes on filling while the sleeper is late. */
static int64_t needed_level(const struct qrep_bucket *bucket, uint64_t size)
{
    uint64_t half = (bucket->capacity + 1) / 2;
    return (int64_t)(size < half ? size : half);
}

/* ---- the chain of one request ---- */

/* The bucket with the least rate from here to the root; NULL: none has one. */
static struct qrep_bucket *slowest(struct qrep_bucket *bucket)
{
    struct qrep_bucket *found = NULL;

    for (; bucket; bucket = bucket->parent)
        if (is_limited(bucket) && (found == NULL || bucket->rate_bytes_per_s < found->rate_bytes_per_s))
            found = bucket;
    return found;
}

/* How far behind its turn a child may come and still be given what it missed: lanes that wake late must not lose their share,
 * and one that was idle must not get it all afterwards. Bytes. */
static uint64_t patience(struct qrep_bucket *bucket)
{
    const struct qrep_bucket *limit = slowest(bucket);
    return limit == NULL ? 0 : 4 * limit->capacity;
}

static uint64_t earliest_start(const struct qrep_bucket *child, uint64_t patience_bytes)
{
    uint64_t clock = child->parent->clock, least = clock > patience_bytes ? clock - patience_bytes : 0;
    return child->start > least ? child->start : least;
}

static void count_waiting(struct qrep_bucket *bucket, int32_t change)
{
    for (; bucket; bucket = bucket->parent)
        bucket->waiting += (uint32_t)change;
}

static void withdraw(struct qrep_bucket *bucket)
{
    if (bucket->wanted)
        count_waiting(bucket, -1);
    bucket->wanted = 0;
}

static void give_back(struct qrep_bucket *bucket, uint64_t size)
{
    for (; bucket; bucket = bucket->parent) {
        bucket->taken -= size;
        bucket->start -= size < bucket->start ? size : bucket->start;
        if (!is_limited(bucket))
            continue;
        int64_t room = (int64_t)bucket->capacity - bucket->level;
        bucket->level += room > 0 && size > (uint64_t)room ? room : (int64_t)size;
    }
}

/* Nothing is asked for and nothing waits to be collected. */
static void clear_request(struct qrep_bucket *bucket)
{
    withdraw(bucket);
    if (bucket->granted)
        give_back(bucket, bucket->granted);
    bucket->granted = 0;
}

static void grant(struct qrep_bucket *bucket)
{
    uint64_t size = bucket->wanted, patience_bytes = patience(bucket);

    withdraw(bucket);
    bucket->granted = size;
    for (struct qrep_bucket *each = bucket; each; each = each->parent) {
        each->taken += size;
        if (is_limited(each))
            each->level -= (int64_t)size;
        if (each->parent == NULL)
            continue;
        uint64_t start = earliest_start(each, patience_bytes);
        if (start > each->parent->clock)
            each->parent->clock = start;
        each->start = start + size;
    }
}

/* ---- whose turn it is ---- */

/* The bucket whose request goes next of those below `bucket`, if its own level and those below allow it now; else NULL. A child that its own
 * rate holds back lets its siblings pass. One that `bucket` has not earned enough for does not: a large request would never get its turn. */
static struct qrep_bucket *next_request(struct qrep_bucket *bucket, uint64_t now_ns)
{
    struct qrep_bucket *found = bucket->wanted ? bucket : NULL;
    uint64_t first = 0;

    for (struct qrep_bucket *child = bucket->children; child && !bucket->wanted; child = child->next) {
        if (child->waiting == 0 || (found && child->start >= first))
            continue;
        struct qrep_bucket *request = next_request(child, now_ns);
        if (request) {
            found = request;
            first = child->start;
        }
    }
    if (found == NULL || !is_limited(bucket))
        return found;
    refill(bucket, now_ns);
    return bucket->level >= needed_level(bucket, found->wanted) ? found : NULL;
}

static void hand_out(struct qrep_bucket *root, uint64_t now_ns)
{
    while (root->waiting) {
        struct qrep_bucket *next = next_request(root, now_ns);
        if (next == NULL)
            return;
        grant(next);
    }
}

/* Bytes that siblings get before `bucket` has its turn, if `ahead` bytes below it go before. */
static uint64_t ahead_of(const struct qrep_bucket *bucket, uint64_t ahead, uint64_t patience_bytes)
{
    uint64_t turn = earliest_start(bucket, patience_bytes) + ahead, sum = ahead;

    for (const struct qrep_bucket *each = bucket->parent->children; each; each = each->next) {
        if (each == bucket || each->waiting == 0 || (is_limited(each) && each->level <= 0))
            continue;
        uint64_t start = earliest_start(each, patience_bytes);
        sum += start < turn ? turn - start : 0;
    }
    return sum;
}

/* Nanoseconds until the request of `bucket` will be granted: exact if it is alone, else about. */
static uint64_t turn_ns(struct qrep_bucket *bucket, uint64_t now_ns)
{
    uint64_t ahead = 0, patience_bytes = patience(bucket);
    wide longest_ns = 0, limit_ns = WAIT_MAX_NS;

    for (struct qrep_bucket *each = bucket; each; each = each->parent) {
        if (is_limited(each)) {
            refill(each, now_ns);
            wide wait_ns = fill_ns(each, needed_level(each, bucket->wanted) + (int64_t)ahead);
            longest_ns = wait_ns > longest_ns ? wait_ns : longest_ns;
        }
        if (each->parent)
            ahead = ahead_of(each, ahead, patience_bytes);
    }
    if (bucket->root->waiting > 1) {
        limit_ns = TURN_MAX_NS + (wide)TURN_EACH_NS * bucket->root->waiting;
        limit_ns = limit_ns > TURN_LIMIT_NS ? TURN_LIMIT_NS : limit_ns;
        longest_ns = longest_ns < TURN_MIN_NS ? TURN_MIN_NS : longest_ns;
    }
    longest_ns = longest_ns == 0 ? 1 : longest_ns;
    return (uint64_t)(longest_ns > limit_ns ? limit_ns : longest_ns);
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
    clear_request(bucket);
    unlink_bucket(bucket);
    unlock_tree(bucket);
}

void qrep_bucket_move(struct qrep_bucket *bucket, struct qrep_bucket *parent)
{
    lock_tree(bucket);
    int32_t waiting = (int32_t)bucket->waiting;
    count_waiting(bucket->parent, -waiting);
    unlink_bucket(bucket);
    link_below(bucket, parent);
    count_waiting(parent, waiting);
    unlock_tree(bucket);
}

void qrep_bucket_set_rate(struct qrep_bucket *bucket, uint64_t rate_bytes_per_s, uint64_t capacity, uint64_t now_ns)
{
    lock_tree(bucket);
    uint64_t before = bucket->rate_bytes_per_s;
    refill(bucket, now_ns); /* what was earned so far was earned at the old rate */
    bucket->rate_bytes_per_s = rate_bytes_per_s;
    bucket->capacity = choose_capacity(rate_bytes_per_s, capacity);
    if (before == QREP_RATE_UNLIMITED || bucket->level > (int64_t)bucket->capacity) {
        bucket->level = (int64_t)bucket->capacity;
        bucket->fraction = 0;
    } else if (bucket->level < 0 && is_limited(bucket)) {
        /* 128 KiB of debt are 0.2 ms at 600 MB/s and would be 2 s at 64 KiB/s. */
        wide debt = (wide)(uint64_t)-bucket->level * rate_bytes_per_s / before;
        bucket->level = debt > INT64_MAX / 4 ? -(INT64_MAX / 4) : -(int64_t)debt;
    }
    unlock_tree(bucket);
}

uint64_t qrep_bucket_piece(struct qrep_bucket *bucket)
{
    lock_tree(bucket);
    const struct qrep_bucket *limit = slowest(bucket);
    uint64_t rate = limit ? limit->rate_bytes_per_s : QREP_RATE_UNLIMITED;
    unlock_tree(bucket);
    if (rate == QREP_RATE_UNLIMITED)
        return QREP_PIECE_UNLIMITED;
    uint64_t bytes = rate / (NS_PER_S / PIECE_NS);
    return bytes < PIECE_MIN ? PIECE_MIN : bytes > PIECE_MAX ? PIECE_MAX : bytes;
}

uint64_t qrep_bucket_take(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
{
    uint64_t wait_ns = 0;

    if (size > INT64_MAX / 4)
        return WAIT_MAX_NS; /* no frame is that large; the level could not hold the debt */
    lock_tree(bucket);
    if (bucket->granted != size)
        clear_request(bucket);
    if (bucket->granted == 0 && slowest(bucket) == NULL) {
        withdraw(bucket);
        for (struct qrep_bucket *each = bucket; each; each = each->parent)
            each->taken += size;
    } else if (bucket->granted == 0 && size) {
        if (bucket->wanted == 0)
            count_waiting(bucket, 1);
        bucket->wanted = size;
        hand_out(bucket->root, now_ns);
        wait_ns = bucket->granted ? 0 : turn_ns(bucket, now_ns);
    } else if (size == 0) {
        for (struct qrep_bucket *each = bucket; each; each = each->parent)
            refill(each, now_ns);
    }
    if (wait_ns == 0)
        bucket->granted = 0;
    unlock_tree(bucket);
    return wait_ns;
}

void qrep_bucket_return(struct qrep_bucket *bucket, uint64_t size)
{
    lock_tree(bucket);
    give_back(bucket, size);
    unlock_tree(bucket);
}

void qrep_bucket_leave(struct qrep_bucket *bucket)
{
    lock_tree(bucket);
    clear_request(bucket);
    unlock_tree(bucket);
}
