/* What lanes share, used by several threads at once as lanes do: `threads NAME`. Compiled with the thread sanitizer. */
#include "bucket.h"
#include "nice.h"

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define LANES 4
#define TURNS 3000

static struct qrep_bucket top, group;
static struct qrep_nice limiter;
static atomic_int going;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void on_threads(void *(*lane)(void *), void *(*other)(void *))
{
    pthread_t threads[LANES + 1];
    atomic_store(&going, LANES);
    for (uintptr_t i = 0; i < LANES; i++)
        assert(pthread_create(&threads[i], NULL, lane, (void *)i) == 0);
    assert(pthread_create(&threads[LANES], NULL, other, NULL) == 0);
    for (int i = 0; i <= LANES; i++)
        assert(pthread_join(threads[i], NULL) == 0);
}

/* --- a tree of buckets: connections come, take, ask, give back, move and go, while somebody changes the rates ------------------------ */

static void *take_from_buckets(void *number)
{
    struct qrep_bucket own;
    qrep_bucket_init(&own, 0, 0, &group, now());
    uint64_t seed = (uintptr_t)number * 2654435761u + 1;
    for (int i = 0; i < TURNS; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t size = 1 + (seed >> 40) % 65536;
        switch ((seed >> 33) % 8) {
        case 0:
            qrep_bucket_ask(&own, size, now());
            break;
        case 1:
            qrep_bucket_leave(&own);
            break;
        case 2:
            qrep_bucket_leave(&own);
            qrep_bucket_move(&own, (seed >> 37) % 2 ? &group : &top);
            break;
        case 3:
            qrep_bucket_set_rate(&own, (seed >> 20) % 2 ? 0 : 1u << 30, 0, now());
            break;
        default:
            if (qrep_bucket_take(&own, size, now()) == 0 && (seed >> 36) % 4 == 0)
                qrep_bucket_return(&own, size);
            (void)qrep_bucket_piece(&own);
        }
    }
    qrep_bucket_leave(&own);
    qrep_bucket_close(&own);
    atomic_fetch_sub(&going, 1);
    return NULL;
}

static void *change_rates(void *unused)
{
    while (atomic_load(&going)) {
        qrep_bucket_set_rate(&group, 1u << 28, 0, now());
        (void)qrep_bucket_rate(&group);
        qrep_bucket_set_rate(&top, 0, 0, now());
        qrep_bucket_set_rate(&top, 1u << 29, 0, now());
    }
    return unused;
}

static void buckets_of_one_tree(void)
{
    qrep_bucket_init(&top, 1u << 29, 0, NULL, now());
    qrep_bucket_init(&group, 0, 0, &top, now());
    on_threads(take_from_buckets, change_rates);
    qrep_bucket_close(&group);
    qrep_bucket_close(&top);
}

/* --- the read limiter: lanes read, somebody gives orders ------------------------------------------------------------------------- */

static void *read_nicely(void *unused)
{
    struct qrep_bucket own;
    qrep_bucket_init(&own, 0, 0, &limiter.bucket, now());
    for (int i = 0; i < TURNS; i++)
        if (qrep_nice_take(&limiter, &own, 4096, now()) == 0) {
            qrep_nice_read_begun(&limiter);
            qrep_nice_read_ended(&limiter, 4096, i % 2 ? 1000 : 0);
        }
    qrep_bucket_leave(&own);
    qrep_bucket_close(&own);
    atomic_fetch_sub(&going, 1);
    return unused;
}

static void *give_orders(void *unused)
{
    for (uint32_t i = 0; atomic_load(&going); i++)
        qrep_nice_order(&limiter, i % 3 ? 1u << 28 : 0, i % 2 ? 65536 : 0, i % 5 == 0, now());
    return unused;
}

static void the_read_limiter(void)
{
    qrep_nice_init(&limiter, now());
    on_threads(read_nicely, give_orders);
    assert(atomic_load(&limiter.in_flight) == 0);
    qrep_nice_close(&limiter);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "buckets_of_one_tree") == 0)
        buckets_of_one_tree();
    else if (argc == 2 && strcmp(argv[1], "the_read_limiter") == 0)
        the_read_limiter();
    else
        return 2;
    puts("done");
    return 0;
}
