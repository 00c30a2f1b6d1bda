/* Whose turn it is in a tree of buckets: start-time fair queueing on every level, among those that wait. */
#include "bucket_internal.h"

#include <stddef.h>

#define TURN_MIN_NS 50000u /* what waits behind others asks again after this at the earliest */
/* How long somebody is sent to sleep in a queue: all of them together ask about a thousand times a second, which hands out what is earned. */
#define TURN_MAX_NS 5000000u
#define TURN_EACH_NS 250000u
#define TURN_LIMIT_NS 50000000u

/* ---- the chain of one request ---- */

struct qrep_bucket *qrep_bucket_slowest(struct qrep_bucket *bucket)
{
    struct qrep_bucket *found = NULL;

    for (; bucket; bucket = bucket->parent)
        if (qrep_bucket_limited(bucket) && (found == NULL || bucket->rate_bytes_per_s < found->rate_bytes_per_s))
            found = bucket;
    return found;
}

/* How far behind its turn a child may come and still be given what it missed: lanes that wake late must not lose their share,
 * and one that was idle must not get it all afterwards. Bytes. */
static uint64_t patience(struct qrep_bucket *bucket)
{
    const struct qrep_bucket *limit = qrep_bucket_slowest(bucket);
    return limit == NULL ? 0 : 4 * limit->capacity;
}

static uint64_t earliest_start(const struct qrep_bucket *child, uint64_t patience_bytes)
{
    uint64_t clock = child->parent->clock, least = clock > patience_bytes ? clock - patience_bytes : 0;
    return child->start > least ? child->start : least;
}

void qrep_bucket_count_waiting(struct qrep_bucket *bucket, uint32_t requests, uint64_t bytes)
{
    for (; bucket; bucket = bucket->parent) {
        bucket->waiting += requests;
        bucket->asked += bytes;
    }
}

static void withdraw(struct qrep_bucket *bucket)
{
    if (bucket->wanted)
        qrep_bucket_count_waiting(bucket, (uint32_t)-1, -bucket->wanted);
    bucket->wanted = 0;
}

void qrep_bucket_give_back(struct qrep_bucket *bucket, uint64_t size)
{
    for (; bucket; bucket = bucket->parent) {
        bucket->taken -= size < bucket->taken ? size : bucket->taken; /* it may have been granted below another parent */
        bucket->start -= size < bucket->start ? size : bucket->start;
        if (!qrep_bucket_limited(bucket))
            continue;
        int64_t room = (int64_t)bucket->capacity - bucket->level;
        if (room > 0)
            bucket->level += size > (uint64_t)room ? room : (int64_t)size;
    }
}

void qrep_bucket_count_busy(struct qrep_bucket *bucket, uint32_t requests)
{
    for (; bucket; bucket = bucket->parent)
        bucket->busy += requests;
}

void qrep_bucket_collect(struct qrep_bucket *bucket)
{
    qrep_bucket_count_busy(bucket, (uint32_t)-1);
    bucket->granted = 0;
}

void qrep_bucket_clear_request(struct qrep_bucket *bucket)
{
    if (bucket->wanted || bucket->granted)
        qrep_bucket_count_busy(bucket, (uint32_t)-1);
    withdraw(bucket);
    if (bucket->granted)
        qrep_bucket_give_back(bucket, bucket->granted);
    bucket->granted = 0;
}

static void grant(struct qrep_bucket *bucket)
{
    uint64_t size = bucket->wanted, patience_bytes = patience(bucket);

    withdraw(bucket);
    bucket->granted = size;
    for (struct qrep_bucket *each = bucket; each; each = each->parent) {
        each->taken += size;
        if (qrep_bucket_limited(each))
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
    if (found == NULL || !qrep_bucket_limited(bucket))
        return found;
    qrep_bucket_refill(bucket, now_ns);
    return bucket->level >= qrep_bucket_needed(bucket, found->wanted) ? found : NULL;
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

/* Bytes that go before `bucket` has its turn among its siblings, if `ahead` bytes below it do. Of a sibling that is no more than what it asks for
 * now: whether it will ask for more before is not known, and to sleep too long costs others, too. */
static uint64_t ahead_of(const struct qrep_bucket *bucket, uint64_t ahead, uint64_t patience_bytes)
{
    uint64_t turn = earliest_start(bucket, patience_bytes) + ahead, sum = ahead;

    for (const struct qrep_bucket *each = bucket->parent->children; each; each = each->next) {
        if (each == bucket || each->waiting == 0 || (qrep_bucket_limited(each) && each->level <= 0))
            continue;
        uint64_t start = earliest_start(each, patience_bytes);
        if (start < turn)
            sum += turn - start < each->asked ? turn - start : each->asked;
    }
    return sum;
}

uint64_t qrep_bucket_turn_ns(struct qrep_bucket *bucket, uint64_t now_ns)
{
    uint64_t ahead = 0, patience_bytes = patience(bucket);
    wide longest_ns = 0, limit_ns = WAIT_MAX_NS;

    for (struct qrep_bucket *each = bucket; each; each = each->parent) {
        if (qrep_bucket_limited(each)) {
            qrep_bucket_refill(each, now_ns);
            wide wait_ns = qrep_bucket_fill_ns(each, qrep_bucket_needed(each, bucket->wanted) + (int64_t)ahead);
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

void qrep_bucket_request(struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
{
    if (bucket->granted == size)
        return;
    qrep_bucket_clear_request(bucket);
    qrep_bucket_count_busy(bucket, 1);
    qrep_bucket_count_waiting(bucket, 1, size);
    bucket->wanted = size;
    hand_out(bucket->root, now_ns);
}
