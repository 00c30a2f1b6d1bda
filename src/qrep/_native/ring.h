/* One queue of device and socket requests per lane, in two backends: io_uring, and threads that call pread, pwrite,
 * fdatasync, sendmsg and recvmsg where io_uring is not allowed. Both behave the same; tests run every case on both.
 *
 * Single issuer: every function of one ring is called by the thread that opened it. A request completes exactly once, whole:
 * short transfers are continued and EINTR/EAGAIN retried inside. What completes with fewer bytes than asked met the end of the
 * device or of the stream. A failed fsync is reported once and never retried here. */
#ifndef QREP_RING_H
#define QREP_RING_H

#include "common.h"

#include <sys/socket.h>
#include <sys/uio.h>

enum qrep_ring_backend { QREP_RING_AUTO = 0, QREP_RING_URING = 1, QREP_RING_THREADS = 2 };

struct qrep_ring_options {
    uint32_t backend;    /* AUTO: QREP_RING=uring|threads|threads1 from the environment (threads1: one worker, so that tests see disk requests
                            in their order), else io_uring where the kernel grants it */
    uint32_t entries;    /* requests in flight at most, 1..4096 */
    uint32_t threads;    /* THREADS backend: workers, 1..64; 0: 4 */
    uint32_t unrestricted; /* io_uring, 0: the kernel lets this ring read, write, fsync, send and receive on registered files and refuses
                              everything else (-EACCES); -EOPNOTSUPP where it cannot. The ring locks itself with the first submission:
                              register before it. THREADS: nothing to restrict, seccomp sees its calls */
};

struct qrep_ring; /* opaque */

/* flags of a completion */
#define QREP_DONE_MORE 1u   /* SEND_ZC: the bytes are queued, the buffer is still the kernel's; a NOTIFY follows */
#define QREP_DONE_NOTIFY 2u /* SEND_ZC: the kernel gave the buffer back */
#define QREP_DONE_COPIED 4u /* with NOTIFY: the kernel copied, zero-copy gained nothing */

struct qrep_completion {
    uint64_t tag;   /* as given with the request */
    int64_t result; /* bytes, or -errno; of a request that failed after some bytes, -errno */
    uint32_t flags;
    uint32_t reserved;
};

/* Set up. *ring is NULL on failure. -errno tells the cause; qrep_ring_explain() turns it into cause and remedy. */
int qrep_ring_open(struct qrep_ring **ring, const struct qrep_ring_options *options);
/* R12: waits for the completion of everything in flight (closing or cancelling is not a drain), then frees. NULL is fine.
 * A request on a silent stream never completes by itself: shutdown(2) the streams first. */
void qrep_ring_close(struct qrep_ring *ring);

int qrep_ring_backend(const struct qrep_ring *ring);         /* URING or THREADS */
unsigned qrep_ring_in_flight(const struct qrep_ring *ring);  /* requests whose completion was not delivered yet */
/* 0, or the -errno for which AUTO had to take THREADS. */
int qrep_ring_fallback(const struct qrep_ring *ring);
/* io_uring: the IORING_SETUP_* flags that the kernel granted; THREADS: 0. */
uint32_t qrep_ring_setup_flags(const struct qrep_ring *ring);
/* One line for people, static storage: why io_uring could not be opened (disabled by sysctl, no memlock, old kernel) and the way out. */
const char *qrep_ring_explain(int error);

/* Register one region, once per ring, for fixed-buffer requests (reads and writes inside it then use it by themselves).
 * 0, or 1 where the kernel refused for RLIMIT_MEMLOCK and plain buffers are used instead (slower, correct), or -errno. */
int qrep_ring_register_buffers(struct qrep_ring *ring, void *base, size_t size);
/* Register descriptors; requests name them by index 0..count-1. Once per ring. They stay the caller's to close, after
 * qrep_ring_close(). Set O_DIRECT and O_NONBLOCK before: a non-blocking stream is polled for inside. */
int qrep_ring_register_files(struct qrep_ring *ring, const int *descriptors, unsigned count);

/* Queue a request. 0, -EBUSY when `entries` are in flight (reap first), -EINVAL for an index never registered.
 * The memory belongs to the ring until the completion (SEND_ZC: until its NOTIFY) is delivered. */
int qrep_ring_read(struct qrep_ring *ring, unsigned file, void *data, size_t size, uint64_t offset, uint64_t tag);
int qrep_ring_write(struct qrep_ring *ring, unsigned file, const void *data, size_t size, uint64_t offset, uint64_t tag);
int qrep_ring_fsync(struct qrep_ring *ring, unsigned file, uint64_t tag); /* fdatasync */
/* Send all of the iovecs (count <= 1024; the array and what it names stay valid until the completion; the array is consumed:
 * its entries change when a transfer is continued). flags: MSG_* of sendmsg(2). SIGPIPE is never raised.
 * A stream takes one send and one receive in flight at a time. */
int qrep_ring_send(struct qrep_ring *ring, unsigned file, struct iovec *iov, unsigned count, int flags, uint64_t tag);
/* The same without copying, where the backend, the kernel and the socket have it; else plain. Without copying the completion carries MORE
 * and one NOTIFY follows it, always in this order; a completion without MORE was a plain send and its buffer is free. */
int qrep_ring_send_zc(struct qrep_ring *ring, unsigned file, struct iovec *iov, unsigned count, int flags, uint64_t tag);
/* Fill all of the iovecs from the stream; completes short only at its end. */
int qrep_ring_receive(struct qrep_ring *ring, unsigned file, struct iovec *iov, unsigned count, uint64_t tag);

/* Hand everything queued to the kernel. Returns 0 or -errno. */
int qrep_ring_submit(struct qrep_ring *ring);
/* Submit, then deliver up to `room` completions. Waits for the first one at most wait_ns (0: do not wait; UINT64_MAX: for ever).
 * Returns how many, 0 on time-out, or -errno of the ring itself. -EINTR is handled inside. */
int qrep_ring_wait(struct qrep_ring *ring, struct qrep_completion *done, unsigned room, uint64_t wait_ns);

#endif
