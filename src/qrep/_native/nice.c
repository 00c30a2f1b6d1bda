/* The read limiter of source lanes, and the priority of their threads. */
#include "nice.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAUSE_POLL_NS 500000u  /* a pause is short, and what is not read in it is lost */
#define RATE_POLL_NS 20000000u /* the others may have gone meanwhile */

/* ioprio_set(2) has no wrapper in libc. Best effort, the last of its eight levels: the idle class may be kept waiting for as long as anybody else reads,
 * and a run must come to its end. */
#define IO_PRIORITY_PROCESS 1
#define IO_PRIORITY_LAST (2 << 13 | 7)

void qrep_nice_init(struct qrep_nice *nice, uint64_t now_ns)
{
    *nice = (struct qrep_nice){0};
    qrep_bucket_init(&nice->bucket, QREP_RATE_UNLIMITED, 0, NULL, now_ns);
}

void qrep_nice_close(struct qrep_nice *nice) { qrep_bucket_close(&nice->bucket); }

void qrep_nice_order(struct qrep_nice *nice, uint64_t rate_bytes_per_s, uint32_t piece_size, int paused, uint64_t now_ns)
{
    /* A burst is what the limit is there to avoid: one piece at a time, and what is due while a lane was late comes as one more. */
    if (rate_bytes_per_s != nice->bucket.rate_bytes_per_s)
        qrep_bucket_set_rate(&nice->bucket, rate_bytes_per_s, piece_size ? 2 * (uint64_t)piece_size : 0, now_ns);
    atomic_store_explicit(&nice->piece_size, piece_size, memory_order_relaxed);
    atomic_store_explicit(&nice->paused, paused, memory_order_relaxed);
}

uint64_t qrep_nice_take(struct qrep_nice *nice, struct qrep_bucket *bucket, uint64_t size, uint64_t now_ns)
{
    if (atomic_load_explicit(&nice->paused, memory_order_relaxed))
        return PAUSE_POLL_NS;
    uint64_t wait_ns = qrep_bucket_take(bucket, size, now_ns);
    return wait_ns < RATE_POLL_NS ? wait_ns : RATE_POLL_NS;
}

void qrep_nice_read_begun(struct qrep_nice *nice) { atomic_fetch_add_explicit(&nice->in_flight, 1, memory_order_relaxed); }

void qrep_nice_read_ended(struct qrep_nice *nice, uint64_t size, uint64_t latency_ns)
{
    atomic_fetch_add_explicit(&nice->reads, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&nice->bytes, size, memory_order_relaxed);
    if (latency_ns) {
        atomic_fetch_add_explicit(&nice->timed_ns, latency_ns, memory_order_relaxed);
        atomic_fetch_add_explicit(&nice->timed, 1, memory_order_relaxed);
    }
    atomic_fetch_sub_explicit(&nice->in_flight, 1, memory_order_relaxed);
}

/* Of one thread, not of the process as the POSIX calls have it: the kernel knows threads by number, 0 is the caller. */
static int set_policy(int policy)
{
    const struct sched_param none = {0};
    return (int)syscall(SYS_sched_setscheduler, 0, policy, &none);
}

/* The way back counts as a raise of priority. */
static int may_come_back(void)
{
    struct rlimit limit;

    return geteuid() == 0 || (getrlimit(RLIMIT_NICE, &limit) == 0 && limit.rlim_cur >= (rlim_t)(20 - getpriority(PRIO_PROCESS, 0)));
}

void qrep_thread_yield(struct qrep_thread_class *before)
{
    *before = (struct qrep_thread_class){.policy = -1};
    int policy = (int)syscall(SYS_sched_getscheduler, 0);
    if (policy != SCHED_OTHER && policy != SCHED_BATCH)
        return; /* somebody has chosen another one */
    if (!may_come_back() || set_policy(SCHED_IDLE))
        return;
    before->policy = policy;
    before->io_priority = (int)syscall(SYS_ioprio_get, IO_PRIORITY_PROCESS, 0);
    syscall(SYS_ioprio_set, IO_PRIORITY_PROCESS, 0, IO_PRIORITY_LAST);
}

void qrep_thread_restore(const struct qrep_thread_class *before)
{
    if (before->policy < 0)
        return;
    set_policy(before->policy);
    if (before->io_priority >= 0)
        syscall(SYS_ioprio_set, IO_PRIORITY_PROCESS, 0, before->io_priority);
}
