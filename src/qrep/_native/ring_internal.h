/* Between the front of the ring (ring.c) and its two backends: the request, its continuation, and the ops table.
 *
 * A backend moves bytes; it does not decide what a short transfer means. After each transfer it calls qrep_request_step() and
 * does what that says. The threads backend calls it from its workers: it touches nothing but the request. */
#ifndef QREP_RING_INTERNAL_H
#define QREP_RING_INTERNAL_H

#include "ring.h"

/* Largest single transfer: below MAX_RW_COUNT, and the size of one registered iovec. */
#define QREP_TRANSFER_MAX ((size_t)1 << 30)

enum qrep_request_kind { QREP_READ, QREP_WRITE, QREP_FSYNC, QREP_SEND, QREP_SEND_ZC, QREP_RECEIVE };

/* How far a request is with the kernel's hold on its buffer. */
enum qrep_zero_copy { QREP_COPIES, QREP_NOTIFIES, QREP_COMPLETED }; /* copies; some transfer notifies; that, and its completion is ready */

struct qrep_request {
    uint64_t tag;
    int64_t result; /* valid once qrep_request_step() said DONE */
    uint8_t kind;
    uint8_t direct; /* the file is O_DIRECT: a transfer starts only at whole pages of the request */
    uint8_t zero_copy; /* enum qrep_zero_copy */
    uint8_t copied; /* SEND_ZC: at least one notification said so */
    uint32_t notifications; /* SEND_ZC: notifications the kernel still owes */
    uint32_t file;
    int descriptor;
    struct qrep_request *next; /* free list, queue or done list; in one of them at a time */
    /* disk: bytes relative to the request */
    uint8_t *data;
    size_t size;
    uint64_t offset;
    size_t position; /* start of the transfer under way */
    size_t asked;    /* its bytes; set by the backend */
    size_t reached;  /* bytes known to be transferred; position <= reached */
    /* stream */
    struct msghdr message; /* msg_iov moves along the caller's array */
    size_t moved;
    int flags;
};

enum qrep_step { QREP_STEP_DONE, QREP_STEP_AGAIN, QREP_STEP_POLL };

/* Judge one transfer: `result` is its bytes or -errno. AGAIN: start the next transfer (same request, advanced). POLL: the stream is
 * non-blocking, wait until it is ready, then AGAIN. */
enum qrep_step qrep_request_step(struct qrep_request *request, int64_t result);

struct qrep_ring_file {
    int descriptor;
    int direct;
    int kernel_tls; /* a connection whose kernel encrypts what is sent; it refuses MSG_WAITALL (-EOPNOTSUPP) */
};

struct qrep_ring;

struct qrep_ring_ops {
    int backend;
    int (*register_buffers)(struct qrep_ring *ring, void *base, size_t size);
    int (*register_files)(struct qrep_ring *ring, const int *descriptors, unsigned count);
    int (*start)(struct qrep_ring *ring, struct qrep_request *request); /* 0, or -errno: the request was not taken */
    int (*submit)(struct qrep_ring *ring);
    /* Submit, and move what completed to `ready`. With none there yet, wait at most wait_ns. 0 or -errno. */
    int (*collect)(struct qrep_ring *ring, uint64_t wait_ns);
    void (*free)(struct qrep_ring *ring); /* nothing is in flight */
};

/* First member of each backend's own structure. */
struct qrep_ring {
    const struct qrep_ring_ops *ops;
    unsigned entries;
    unsigned in_flight;
    int fallback;
    uint32_t setup_flags;
    struct qrep_request *requests; /* [entries] */
    struct qrep_request *free_requests;
    struct qrep_ring_file *files;
    unsigned file_count;
    int region_registered;
    /* FIFO of what can be delivered; a request has at most two events there (completion, NOTIFY) */
    struct qrep_ready {
        struct qrep_completion completion;
        struct qrep_request *release; /* freed on delivery, or NULL */
    } *ready; /* [2 * entries] */
    unsigned ready_first;
    unsigned ready_count;
};

/* A backend reports a request that is over, or (SEND_ZC) a notification that came in. */
void qrep_ring_finish(struct qrep_ring *ring, struct qrep_request *request);
void qrep_ring_notify(struct qrep_ring *ring, struct qrep_request *request, int copied);

/* Make a backend. 0 or -errno; *ring is untouched on failure. */
int qrep_uring_open(struct qrep_ring **ring, const struct qrep_ring_options *options);
int qrep_threads_open(struct qrep_ring **ring, const struct qrep_ring_options *options);

/* CLOCK_MONOTONIC in ns; now + wait without overflow. */
uint64_t qrep_now_ns(void);
static inline uint64_t qrep_deadline_ns(uint64_t wait_ns)
{
    uint64_t now = qrep_now_ns();
    return wait_ns > UINT64_MAX - now ? UINT64_MAX : now + wait_ns;
}

#endif
