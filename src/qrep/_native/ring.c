/* The front of the ring: request table, in-flight accounting, dispatch to a backend, and what a finished request owes its caller. */
#include "ring.h"
#include "ring_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/tls.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ENTRIES_MAX 4096
#define THREADS_MAX 64
#define IOVECS_MAX 1024

uint64_t qrep_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- opening and closing ------------------------------------------------------------------------------------------------------ */

/* Is this a reason to work without io_uring? A shortage of descriptors, say, is not: it would hit us again later. */
static int means_unavailable(int error)
{
    return error == -ENOSYS || error == -EPERM || error == -EACCES || error == -ENOMEM || error == -EINVAL;
}

/* What the caller or the environment wants, or -EINVAL. one_worker: set for "threads1", where disk requests are carried out in their order. */
static int backend_wanted(uint32_t backend, int *one_worker)
{
    *one_worker = 0;
    if (backend != QREP_RING_AUTO)
        return (int)backend;
    const char *name = getenv("QREP_RING");
    if (name == NULL || *name == '\0')
        return QREP_RING_AUTO;
    if (strcmp(name, "uring") == 0)
        return QREP_RING_URING;
    *one_worker = strcmp(name, "threads1") == 0;
    if (*one_worker || strcmp(name, "threads") == 0)
        return QREP_RING_THREADS;
    return -EINVAL;
}

static int allocate_tables(struct qrep_ring *ring, unsigned entries)
{
    ring->requests = calloc(entries, sizeof *ring->requests);
    ring->ready = calloc(2 * (size_t)entries, sizeof *ring->ready);
    if (ring->requests == NULL || ring->ready == NULL)
        return -ENOMEM;
    ring->entries = entries;
    for (unsigned i = entries; i-- > 0;) {
        ring->requests[i].next = ring->free_requests;
        ring->free_requests = &ring->requests[i];
    }
    return 0;
}

static void free_ring(struct qrep_ring *ring)
{
    struct qrep_request *requests = ring->requests;
    struct qrep_ready *ready = ring->ready;
    struct qrep_ring_file *files = ring->files;
    ring->ops->free(ring);
    free(requests);
    free(ready);
    free(files);
}

int qrep_ring_open(struct qrep_ring **ring, const struct qrep_ring_options *options)
{
    *ring = NULL;
    int one_worker = 0;
    int want = backend_wanted(options->backend, &one_worker);
    if (want < 0)
        return want;
    if (want > QREP_RING_THREADS || options->entries < 1 || options->entries > ENTRIES_MAX || options->threads > THREADS_MAX)
        return -EINVAL;
    struct qrep_ring *opened = NULL;
    struct qrep_ring_options chosen = *options;
    int fallback = 0;
    if (one_worker)
        chosen.threads = 1;
    int rc = want == QREP_RING_THREADS ? qrep_threads_open(&opened, &chosen) : qrep_uring_open(&opened, options);
    if (want == QREP_RING_AUTO && means_unavailable(rc)) {
        fallback = rc;
        rc = qrep_threads_open(&opened, options);
    }
    if (rc < 0)
        return rc;
    opened->fallback = fallback;
    rc = allocate_tables(opened, options->entries);
    if (rc < 0) {
        free_ring(opened);
        return rc;
    }
    *ring = opened;
    return 0;
}

void qrep_ring_close(struct qrep_ring *ring)
{
    if (ring == NULL)
        return;
    struct qrep_completion done[64];
    while (ring->in_flight > 0) {
        int count = qrep_ring_wait(ring, done, 64, UINT64_MAX);
        /* A ring that cannot wait cannot promise that its memory is free: stop here rather than let the kernel write into it. */
        if (count < 0)
            abort();
    }
    free_ring(ring);
}

int qrep_ring_backend(const struct qrep_ring *ring) { return ring->ops->backend; }
unsigned qrep_ring_in_flight(const struct qrep_ring *ring) { return ring->in_flight; }
int qrep_ring_fallback(const struct qrep_ring *ring) { return ring->fallback; }
uint32_t qrep_ring_setup_flags(const struct qrep_ring *ring) { return ring->setup_flags; }

const char *qrep_ring_explain(int error)
{
    switch (error < 0 ? -error : error) {
    case 0:
        return "io_uring is available";
    case ENOSYS:
        return "this kernel has no io_uring (or seccomp hides it); Linux 5.11 or later is needed";
    case EPERM:
    case EACCES:
        return "io_uring is forbidden here: set sysctl kernel.io_uring_disabled=0, or allow io_uring_setup in the container's seccomp profile";
    case ENOMEM:
        return "no locked memory left for io_uring: raise RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in the unit)";
    case EINVAL:
        return "this kernel's io_uring is too old for the request; Linux 5.11 or later is needed";
    case EOPNOTSUPP:
        return "this kernel cannot restrict a ring; Linux 5.10 or later is needed";
    case EMFILE:
    case ENFILE:
        return "no file descriptor left for io_uring: raise LimitNOFILE";
    default:
        return "io_uring could not be opened for another reason; see the error code";
    }
}

/* --- registering -------------------------------------------------------------------------------------------------------------- */

int qrep_ring_register_buffers(struct qrep_ring *ring, void *base, size_t size)
{
    if (ring->region_registered)
        return -EBUSY;
    if (base == NULL || size == 0)
        return -EINVAL;
    int rc = ring->ops->register_buffers(ring, base, size);
    if (rc >= 0)
        ring->region_registered = 1;
    return rc;
}

static int has_kernel_tls(int descriptor)
{
    struct tls_crypto_info info;
    socklen_t size = sizeof info;

    return getsockopt(descriptor, SOL_TLS, TLS_TX, &info, &size) == 0;
}

int qrep_ring_register_files(struct qrep_ring *ring, const int *descriptors, unsigned count)
{
    if (ring->file_count > 0)
        return -EBUSY;
    if (count == 0)
        return -EINVAL;
    struct qrep_ring_file *files = calloc(count, sizeof *files);
    if (files == NULL)
        return -ENOMEM;
    for (unsigned i = 0; i < count; i++) {
        int flags = fcntl(descriptors[i], F_GETFL);
        if (flags < 0) {
            free(files);
            return -EBADF;
        }
        files[i].descriptor = descriptors[i];
        files[i].direct = (flags & O_DIRECT) != 0;
        files[i].kernel_tls = has_kernel_tls(descriptors[i]);
    }
    int rc = ring->ops->register_files(ring, descriptors, count);
    if (rc < 0) {
        free(files);
        return rc;
    }
    ring->files = files;
    ring->file_count = count;
    return 0;
}

/* --- requests ----------------------------------------------------------------------------------------------------------------- */

static int lease_request(struct qrep_ring *ring, enum qrep_request_kind kind, unsigned file, uint64_t tag, struct qrep_request **leased)
{
    if (file >= ring->file_count)
        return -EINVAL;
    struct qrep_request *request = ring->free_requests;
    if (request == NULL)
        return -EBUSY;
    ring->free_requests = request->next;
    *request = (struct qrep_request){
        .tag = tag,
        .kind = (uint8_t)kind,
        .file = file,
        .descriptor = ring->files[file].descriptor,
        .direct = (uint8_t)ring->files[file].direct,
    };
    *leased = request;
    return 0;
}

static int start_request(struct qrep_ring *ring, struct qrep_request *request)
{
    int rc = ring->ops->start(ring, request);
    if (rc < 0) {
        request->next = ring->free_requests;
        ring->free_requests = request;
        return rc;
    }
    ring->in_flight++;
    return 0;
}

static int start_disk(struct qrep_ring *ring, enum qrep_request_kind kind, unsigned file, void *data, size_t size, uint64_t offset,
                      uint64_t tag)
{
    struct qrep_request *request;
    if (size > INT64_MAX || offset > INT64_MAX - size)
        return -EINVAL;
    int rc = lease_request(ring, kind, file, tag, &request);
    if (rc < 0)
        return rc;
    request->data = data;
    request->size = size;
    request->offset = offset;
    return start_request(ring, request);
}

int qrep_ring_read(struct qrep_ring *ring, unsigned file, void *data, size_t size, uint64_t offset, uint64_t tag)
{
    return start_disk(ring, QREP_READ, file, data, size, offset, tag);
}

int qrep_ring_write(struct qrep_ring *ring, unsigned file, const void *data, size_t size, uint64_t offset, uint64_t tag)
{
    return start_disk(ring, QREP_WRITE, file, (void *)data, size, offset, tag);
}

int qrep_ring_fsync(struct qrep_ring *ring, unsigned file, uint64_t tag)
{
    return start_disk(ring, QREP_FSYNC, file, NULL, 0, 0, tag);
}

static int start_stream(struct qrep_ring *ring, enum qrep_request_kind kind, unsigned file, struct iovec *iov, unsigned count, int flags,
                        uint64_t tag)
{
    struct qrep_request *request;
    if (count < 1 || count > IOVECS_MAX)
        return -EINVAL;
    int rc = lease_request(ring, kind, file, tag, &request);
    if (rc < 0)
        return rc;
    request->message.msg_iov = iov;
    request->message.msg_iovlen = count;
    request->flags = flags;
    return start_request(ring, request);
}

int qrep_ring_send(struct qrep_ring *ring, unsigned file, struct iovec *iov, unsigned count, int flags, uint64_t tag)
{
    return start_stream(ring, QREP_SEND, file, iov, count, flags | MSG_NOSIGNAL, tag);
}

int qrep_ring_send_zc(struct qrep_ring *ring, unsigned file, struct iovec *iov, unsigned count, int flags, uint64_t tag)
{
    return start_stream(ring, QREP_SEND_ZC, file, iov, count, flags | MSG_NOSIGNAL, tag);
}

int qrep_ring_receive(struct qrep_ring *ring, unsigned file, struct iovec *iov, unsigned count, uint64_t tag)
{
    return start_stream(ring, QREP_RECEIVE, file, iov, count, MSG_WAITALL, tag);
}

/* --- completions -------------------------------------------------------------------------------------------------------------- */

static void push_ready(struct qrep_ring *ring, struct qrep_request *request, int64_t result, uint32_t flags, int release)
{
    unsigned last = (ring->ready_first + ring->ready_count) % (2 * ring->entries);
    ring->ready[last] = (struct qrep_ready){
        .completion = { .tag = request->tag, .result = result, .flags = flags },
        .release = release ? request : NULL,
    };
    ring->ready_count++;
}

static void push_notify(struct qrep_ring *ring, struct qrep_request *request)
{
    push_ready(ring, request, 0, QREP_DONE_NOTIFY | (request->copied ? QREP_DONE_COPIED : 0), 1);
}

void qrep_ring_finish(struct qrep_ring *ring, struct qrep_request *request)
{
    if (request->zero_copy == QREP_COPIES) {
        push_ready(ring, request, request->result, 0, 1);
        return;
    }
    push_ready(ring, request, request->result, QREP_DONE_MORE, 0);
    request->zero_copy = QREP_COMPLETED;
    if (request->notifications == 0)
        push_notify(ring, request);
}

void qrep_ring_notify(struct qrep_ring *ring, struct qrep_request *request, int copied)
{
    request->notifications--;
    request->copied |= (uint8_t)(copied != 0);
    /* Several transfers of one request give several notifications; the caller gets one, after the completion. */
    if (request->notifications == 0 && request->zero_copy == QREP_COMPLETED)
        push_notify(ring, request);
}

int qrep_ring_submit(struct qrep_ring *ring) { return ring->ops->submit(ring); }

int qrep_ring_wait(struct qrep_ring *ring, struct qrep_completion *done, unsigned room, uint64_t wait_ns)
{
    if (room == 0)
        return -EINVAL;
    /* Nothing in flight can complete: waiting for ever for it would be a bug of ours, so it does not wait. */
    if (ring->in_flight == 0)
        return 0;
    int rc = ring->ops->collect(ring, wait_ns);
    if (rc < 0)
        return rc;
    unsigned count = 0;
    while (count < room && ring->ready_count > 0) {
        struct qrep_ready *ready = &ring->ready[ring->ready_first];
        done[count++] = ready->completion;
        if (ready->release != NULL) {
            ready->release->next = ring->free_requests;
            ring->free_requests = ready->release;
            ring->in_flight--;
        }
        ring->ready_first = (ring->ready_first + 1) % (2 * ring->entries);
        ring->ready_count--;
    }
    return (int)count;
}
