/* The backend for places without io_uring: workers that block in pread, pwrite, fdatasync, sendmsg and recvmsg.
 *
 * Disk and stream requests have workers of their own: a silent peer holds its stream's worker and no disk request behind it.
 * Workers start when there is work and none is idle, and end when the ring is closed. */
#include "ring_internal.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define DISK_WORKERS 4

struct threads;

struct pool {
    struct threads *owner;
    struct qrep_request *first, **last; /* FIFO of requests no worker has taken */
    pthread_cond_t work;
    pthread_t *workers; /* [limit] */
    unsigned started, idle, waiting, limit; /* waiting: requests in the FIFO */
};

struct threads {
    struct qrep_ring front;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t finished;
    struct qrep_request *done_first, **done_last;
    struct pool disk, stream;
    int closing;
};

/* --- workers ------------------------------------------------------------------------------------------------------------------ */

static int64_t transfer(struct qrep_request *request)
{
    size_t left = request->size - request->position;
    size_t size = left < QREP_TRANSFER_MAX ? left : QREP_TRANSFER_MAX;
    uint8_t *data = request->data + request->position;
    off_t offset = (off_t)(request->offset + request->position);
    int64_t result;
    switch (request->kind) {
    case QREP_READ:
        result = pread(request->descriptor, data, size, offset);
        break;
    case QREP_WRITE:
        result = pwrite(request->descriptor, data, size, offset);
        break;
    case QREP_FSYNC:
        result = fdatasync(request->descriptor);
        break;
    case QREP_SEND:
        result = sendmsg(request->descriptor, &request->message, request->flags);
        break;
    default:
        result = recvmsg(request->descriptor, &request->message, request->flags);
    }
    return result < 0 ? -(int64_t)errno : result;
}

static void carry_out(struct qrep_request *request)
{
    enum qrep_step step;
    do {
        step = qrep_request_step(request, transfer(request));
        if (step == QREP_STEP_POLL) {
            struct pollfd ready = { .fd = request->descriptor, .events = request->kind == QREP_RECEIVE ? POLLIN : POLLOUT };
            poll(&ready, 1, -1); /* whatever woke us, the transfer tells what is the matter */
        }
    } while (step != QREP_STEP_DONE);
}

static void *work(void *argument)
{
    struct pool *pool = argument;
    struct threads *threads = pool->owner;
    pthread_mutex_lock(&threads->lock);
    for (;;) {
        while (pool->first == NULL && !threads->closing) {
            pool->idle++;
            pthread_cond_wait(&pool->work, &threads->lock);
            pool->idle--;
        }
        struct qrep_request *request = pool->first;
        if (request == NULL)
            break;
        pool->first = request->next;
        if (pool->first == NULL)
            pool->last = &pool->first;
        pool->waiting--;
        pthread_mutex_unlock(&threads->lock);
        carry_out(request);
        pthread_mutex_lock(&threads->lock);
        request->next = NULL;
        *threads->done_last = request;
        threads->done_last = &request->next;
        pthread_cond_signal(&threads->finished);
    }
    pthread_mutex_unlock(&threads->lock);
    return NULL;
}

/* Signals are for the process's main thread, never for a worker in the middle of a transfer. */
static int start_worker(struct pool *pool)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&pool->workers[pool->started], NULL, work, pool);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0)
        pool->started++;
    return -rc;
}

static int threads_start(struct qrep_ring *front, struct qrep_request *request)
{
    struct threads *threads = (struct threads *)front;
    if (request->kind == QREP_SEND_ZC)
        request->kind = QREP_SEND;
    struct pool *pool = request->kind >= QREP_SEND ? &threads->stream : &threads->disk;
    int rc = 0;
    pthread_mutex_lock(&threads->lock);
    /* idle counts workers not yet woken too, so each waiting request has spoken for one of them */
    if (pool->idle <= pool->waiting && pool->started < pool->limit) {
        rc = start_worker(pool);
        /* A disk request can wait for a worker that exists. A stream request may not: those workers can block for ever. */
        if (pool == &threads->disk && pool->started > 0)
            rc = 0;
    }
    if (rc == 0) {
        request->next = NULL;
        *pool->last = request;
        pool->last = &request->next;
        pool->waiting++;
        pthread_cond_signal(&pool->work);
    }
    pthread_mutex_unlock(&threads->lock);
    return rc;
}

/* --- completions -------------------------------------------------------------------------------------------------------------- */

static int threads_collect(struct qrep_ring *front, uint64_t wait_ns)
{
    struct threads *threads = (struct threads *)front;
    if (front->ready_count > 0)
        wait_ns = 0;
    uint64_t deadline = qrep_deadline_ns(wait_ns);
    struct timespec until = { .tv_sec = (time_t)(deadline / 1000000000u), .tv_nsec = (long)(deadline % 1000000000u) };
    pthread_mutex_lock(&threads->lock);
    int rc = 0;
    while (wait_ns > 0 && threads->done_first == NULL && rc == 0)
        rc = pthread_cond_timedwait(&threads->finished, &threads->lock, &until);
    struct qrep_request *done = threads->done_first;
    threads->done_first = NULL;
    threads->done_last = &threads->done_first;
    pthread_mutex_unlock(&threads->lock);
    while (done != NULL) {
        struct qrep_request *next = done->next;
        qrep_ring_finish(front, done);
        done = next;
    }
    return rc == 0 || rc == ETIMEDOUT ? 0 : -rc;
}

static int threads_submit(struct qrep_ring *front) { return 0; } /* a worker has it since start */

static int threads_register_buffers(struct qrep_ring *front, void *base, size_t size) { return 0; } /* pread pins nothing */

static int threads_register_files(struct qrep_ring *front, const int *descriptors, unsigned count) { return 0; }

/* --- set-up ------------------------------------------------------------------------------------------------------------------- */

static void join_workers(struct pool *pool)
{
    for (unsigned i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i], NULL);
    free(pool->workers);
    pthread_cond_destroy(&pool->work);
}

static void threads_free(struct qrep_ring *front)
{
    struct threads *threads = (struct threads *)front;
    pthread_mutex_lock(&threads->lock);
    threads->closing = 1;
    pthread_cond_broadcast(&threads->disk.work);
    pthread_cond_broadcast(&threads->stream.work);
    pthread_mutex_unlock(&threads->lock);
    join_workers(&threads->disk);
    join_workers(&threads->stream);
    pthread_cond_destroy(&threads->finished);
    pthread_mutex_destroy(&threads->lock);
    free(threads);
}

static int init_pool(struct pool *pool, struct threads *owner, unsigned limit)
{
    pool->owner = owner;
    pool->last = &pool->first;
    pool->limit = limit;
    pool->workers = calloc(limit, sizeof *pool->workers);
    pthread_cond_init(&pool->work, NULL);
    return pool->workers == NULL ? -ENOMEM : 0;
}

static const struct qrep_ring_ops threads_ops = {
    .backend = QREP_RING_THREADS,
    .register_buffers = threads_register_buffers,
    .register_files = threads_register_files,
    .start = threads_start,
    .submit = threads_submit,
    .collect = threads_collect,
    .free = threads_free,
};

int qrep_threads_open(struct qrep_ring **ring, const struct qrep_ring_options *options)
{
    struct threads *threads = calloc(1, sizeof *threads);
    if (threads == NULL)
        return -ENOMEM;
    threads->front.ops = &threads_ops;
    threads->done_last = &threads->done_first;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&threads->finished, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&threads->lock, NULL);
    int rc = init_pool(&threads->disk, threads, options->threads ? options->threads : DISK_WORKERS);
    int rc_stream = init_pool(&threads->stream, threads, options->entries);
    if (rc < 0 || rc_stream < 0) {
        threads_free(&threads->front);
        return -ENOMEM;
    }
    *ring = &threads->front;
    return 0;
}
