/* The io_uring backend: one SINGLE_ISSUER ring whose completions run when the lane asks for them (DEFER_TASKRUN). */
#include "ring_internal.h"
#include "uring_compat.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* user_data: the request's index, and in bit 32 whether this is a poll for it. */
#define POLL_BIT ((uint64_t)1 << 32)

struct uring {
    struct qrep_ring front;
    struct io_uring ring;
    uint8_t *region; /* registered memory, cut into iovecs of QREP_TRANSFER_MAX; NULL: none */
    size_t region_size;
    int locked; /* R_DISABLED and not enabled yet */
    int can_sendmsg_zc;
    int can_send_zc;
};

/* --- set-up ------------------------------------------------------------------------------------------------------------------- */

/* Best first. With DEFER_TASKRUN completions run when the lane asks for them, not in the middle of a hash (bench/RESULTS.md, ring). */
static const uint32_t setup_choices[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, /* Linux 6.1 */
    IORING_SETUP_COOP_TASKRUN,                               /* Linux 5.19 */
    0,
};

/* Everything a lane asks for, and nothing that opens, connects, or names a file by number. Unregistering stays allowed: see uring_free(). */
static const uint8_t allowed_opcodes[] = {
    IORING_OP_READ,    IORING_OP_WRITE,   IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_FSYNC,
    IORING_OP_SENDMSG, IORING_OP_SEND_ZC, IORING_OP_SENDMSG_ZC, IORING_OP_RECVMSG,     IORING_OP_POLL_ADD,
};
static const uint8_t allowed_registrations[] = { IORING_UNREGISTER_FILES, IORING_UNREGISTER_BUFFERS };
#define ALLOWED_COUNT (sizeof allowed_opcodes + sizeof allowed_registrations)

static int restrict_ring(struct uring *uring)
{
    struct io_uring_restriction rules[ALLOWED_COUNT + 1];
    memset(rules, 0, sizeof rules);
    unsigned count = 0;
    struct io_uring_probe *probe = io_uring_get_probe_ring(&uring->ring);
    for (size_t i = 0; i < sizeof allowed_opcodes; i++) {
        if (probe != NULL && !io_uring_opcode_supported(probe, allowed_opcodes[i]))
            continue; /* an opcode the kernel does not know would be refused here */
        rules[count].opcode = IORING_RESTRICTION_SQE_OP;
        rules[count++].sqe_op = allowed_opcodes[i];
    }
    io_uring_free_probe(probe);
    for (size_t i = 0; i < sizeof allowed_registrations; i++) {
        rules[count].opcode = IORING_RESTRICTION_REGISTER_OP;
        rules[count++].register_op = allowed_registrations[i];
    }
    rules[count].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    rules[count++].sqe_flags = IOSQE_FIXED_FILE;
    int rc = io_uring_register_restrictions(&uring->ring, rules, count);
    return rc < 0 ? -EOPNOTSUPP : 0;
}

static int setup_ring(struct uring *uring, unsigned entries, int restricted)
{
    int rc = -EINVAL;
    for (size_t i = 0; rc == -EINVAL && i < sizeof setup_choices / sizeof *setup_choices; i++) {
        struct io_uring_params params;
        memset(&params, 0, sizeof params);
        params.flags = setup_choices[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP | (restricted ? IORING_SETUP_R_DISABLED : 0);
        /* A zero-copy send gives two completions per transfer, and a request may need several transfers. */
        params.cq_entries = 4 * entries;
        rc = io_uring_queue_init_params(entries, &uring->ring, &params);
        uring->front.setup_flags = params.flags;
    }
    if (rc < 0)
        return rc;
    /* EXT_ARG carries the time-out of a wait, NODROP keeps completions when the queue overflows (Linux 5.11 has both). */
    unsigned needed = IORING_FEAT_EXT_ARG | IORING_FEAT_NODROP;
    return (uring->ring.features & needed) == needed ? 0 : -ENOSYS;
}

static void probe_opcodes(struct uring *uring)
{
    struct io_uring_probe *probe = io_uring_get_probe_ring(&uring->ring);
    if (probe == NULL)
        return;
    uring->can_send_zc = io_uring_opcode_supported(probe, IORING_OP_SEND_ZC);
    uring->can_sendmsg_zc = io_uring_opcode_supported(probe, IORING_OP_SENDMSG_ZC);
    io_uring_free_probe(probe);
}

static int uring_register_buffers(struct qrep_ring *front, void *base, size_t size)
{
    struct uring *uring = (struct uring *)front;
    struct iovec parts[64];
    unsigned count = 0;
    for (size_t start = 0; start < size; start += QREP_TRANSFER_MAX) {
        if (count == 64)
            return -EINVAL;
        size_t left = size - start;
        parts[count].iov_base = (uint8_t *)base + start;
        parts[count++].iov_len = left < QREP_TRANSFER_MAX ? left : QREP_TRANSFER_MAX;
    }
    int rc = io_uring_register_buffers(&uring->ring, parts, count);
    if (rc == -ENOMEM || rc == -EPERM)
        return 1; /* RLIMIT_MEMLOCK: the kernel pins per request instead */
    if (rc < 0)
        return rc;
    uring->region = base;
    uring->region_size = size;
    return 0;
}

static int uring_register_files(struct qrep_ring *front, const int *descriptors, unsigned count)
{
    return io_uring_register_files(&((struct uring *)front)->ring, descriptors, count);
}

/* --- requests ----------------------------------------------------------------------------------------------------------------- */

/* Index of the registered iovec that holds data, with *size cut to its end; -1: not registered memory. */
static int region_index(const struct uring *uring, const uint8_t *data, size_t *size)
{
    if (uring->region == NULL || data < uring->region || data >= uring->region + uring->region_size)
        return -1;
    size_t start = (size_t)(data - uring->region);
    if (*size > uring->region_size - start)
        return -1;
    size_t left = QREP_TRANSFER_MAX - start % QREP_TRANSFER_MAX;
    if (*size > left)
        *size = left;
    return (int)(start / QREP_TRANSFER_MAX);
}

static void prepare_disk(struct uring *uring, struct qrep_request *request, struct io_uring_sqe *sqe)
{
    uint8_t *data = request->data + request->position;
    uint64_t offset = request->offset + request->position;
    size_t size = request->size - request->position;
    int index = region_index(uring, data, &size);
    if (size > QREP_TRANSFER_MAX)
        size = QREP_TRANSFER_MAX;
    request->asked = size;
    int file = (int)request->file;
    if (request->kind == QREP_READ && index >= 0)
        io_uring_prep_read_fixed(sqe, file, data, (unsigned)size, offset, index);
    else if (request->kind == QREP_READ)
        io_uring_prep_read(sqe, file, data, (unsigned)size, offset);
    else if (index >= 0)
        io_uring_prep_write_fixed(sqe, file, data, (unsigned)size, offset, index);
    else
        io_uring_prep_write(sqe, file, data, (unsigned)size, offset);
}

static void prepare_send_zc(struct uring *uring, struct qrep_request *request, struct io_uring_sqe *sqe)
{
    struct iovec *iov = request->message.msg_iov;
    size_t size = iov->iov_len;
    int index = request->message.msg_iovlen == 1 && uring->can_send_zc ? region_index(uring, iov->iov_base, &size) : -1;
    if (index >= 0 && size == iov->iov_len) {
        io_uring_prep_send_zc_fixed(sqe, (int)request->file, iov->iov_base, size, request->flags | MSG_WAITALL,
                                    IORING_SEND_ZC_REPORT_USAGE, (unsigned)index);
    } else {
        io_uring_prep_sendmsg_zc(sqe, (int)request->file, &request->message, (unsigned)request->flags | MSG_WAITALL);
        sqe->ioprio = IORING_SEND_ZC_REPORT_USAGE;
    }
}

static int uring_start(struct qrep_ring *front, struct qrep_request *request)
{
    struct uring *uring = (struct uring *)front;
    /* The submission queue has a place per request, and a request has one entry in it at most. */
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (sqe == NULL)
        return -EBUSY;
    if (request->kind == QREP_SEND_ZC && !uring->can_sendmsg_zc)
        request->kind = QREP_SEND;
    switch (request->kind) {
    case QREP_READ:
    case QREP_WRITE:
        prepare_disk(uring, request, sqe);
        break;
    case QREP_FSYNC:
        io_uring_prep_fsync(sqe, (int)request->file, IORING_FSYNC_DATASYNC);
        break;
    case QREP_SEND:
        /* Whole, so that it completes once; what completes short is continued (ring_step.c). */
        io_uring_prep_sendmsg(sqe, (int)request->file, &request->message,
                              (unsigned)request->flags | (front->files[request->file].kernel_tls ? 0 : MSG_WAITALL));
        break;
    case QREP_SEND_ZC:
        prepare_send_zc(uring, request, sqe);
        break;
    default:
        io_uring_prep_recvmsg(sqe, (int)request->file, &request->message, MSG_WAITALL);
    }
    sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = (uint64_t)(request - front->requests);
    return 0;
}

static void start_poll(struct uring *uring, struct qrep_request *request)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);
    if (sqe == NULL)
        abort(); /* our own count is wrong: see uring_start() */
    io_uring_prep_poll_add(sqe, (int)request->file, request->kind == QREP_RECEIVE ? POLLIN : POLLOUT);
    sqe->flags |= IOSQE_FIXED_FILE;
    sqe->user_data = (uint64_t)(request - uring->front.requests) | POLL_BIT;
}

/* --- completions -------------------------------------------------------------------------------------------------------------- */

static void take_completion(struct uring *uring, const struct io_uring_cqe *cqe)
{
    struct qrep_request *request = &uring->front.requests[cqe->user_data & 0xffffffffu];
    if (cqe->flags & IORING_CQE_F_NOTIF) {
        qrep_ring_notify(&uring->front, request, ((uint32_t)cqe->res & IORING_NOTIF_USAGE_ZC_COPIED) != 0);
        return;
    }
    enum qrep_step step;
    if (cqe->user_data & POLL_BIT) {
        step = QREP_STEP_AGAIN; /* ready or broken: the transfer itself tells which */
    } else {
        if (cqe->flags & IORING_CQE_F_MORE) {
            request->notifications++;
            request->zero_copy = QREP_NOTIFIES;
        }
        step = qrep_request_step(request, cqe->res);
    }
    if (step == QREP_STEP_DONE)
        qrep_ring_finish(&uring->front, request);
    else if (step == QREP_STEP_POLL)
        start_poll(uring, request);
    else if (uring_start(&uring->front, request) < 0)
        abort(); /* our own count is wrong: see uring_start() */
}

static void reap(struct uring *uring)
{
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&uring->ring, head, cqe) {
        /* Continuing a request takes a submission entry and leaves the completion queue alone. */
        take_completion(uring, cqe);
        count++;
    }
    io_uring_cq_advance(&uring->ring, count);
}

static int unlock(struct uring *uring)
{
    if (!uring->locked)
        return 0;
    int rc = io_uring_enable_rings(&uring->ring);
    if (rc == 0)
        uring->locked = 0;
    return rc;
}

/* The kernel is out of room for completions or of memory: completions must be taken before it accepts more. */
static int must_reap_first(int rc) { return rc == -EBUSY || rc == -EAGAIN; }

static int uring_submit(struct qrep_ring *front)
{
    struct uring *uring = (struct uring *)front;
    int rc = unlock(uring);
    while (rc >= 0 && io_uring_sq_ready(&uring->ring) > 0) {
        rc = io_uring_submit(&uring->ring);
        if (must_reap_first(rc)) {
            rc = io_uring_get_events(&uring->ring);
            reap(uring);
        }
        if (rc == -EINTR)
            rc = 0;
    }
    return rc < 0 ? rc : 0;
}

/* Submit and run the kernel's deferred work, without waiting. */
static int poke(struct uring *uring)
{
    int rc = io_uring_submit_and_get_events(&uring->ring);
    reap(uring);
    return rc == -EINTR || must_reap_first(rc) ? 0 : rc;
}

static int uring_collect(struct qrep_ring *front, uint64_t wait_ns)
{
    struct uring *uring = (struct uring *)front;
    int rc = unlock(uring);
    if (rc < 0)
        return rc;
    reap(uring);
    if (wait_ns == 0 || front->ready_count > 0) {
        /* With completions at hand a system call is needed only for what is queued. */
        if (front->ready_count > 0)
            return uring_submit(front);
        rc = poke(uring);
        if (rc >= 0)
            rc = uring_submit(front);
        return rc < 0 ? rc : 0;
    }
    uint64_t deadline = qrep_deadline_ns(wait_ns);
    while (front->ready_count == 0) {
        uint64_t now = qrep_now_ns();
        if (now >= deadline)
            return 0;
        uint64_t left = deadline - now;
        struct __kernel_timespec limit = { .tv_sec = (int64_t)(left / 1000000000u), .tv_nsec = (long long)(left % 1000000000u) };
        struct io_uring_cqe *cqe;
        rc = io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1, &limit, NULL);
        reap(uring);
        if (must_reap_first(rc))
            rc = io_uring_get_events(&uring->ring);
        if (rc < 0 && rc != -ETIME && rc != -EINTR)
            return rc;
    }
    return uring_submit(front);
}

static void uring_free(struct qrep_ring *front)
{
    struct uring *uring = (struct uring *)front;
    /* The kernel takes a closed ring apart later, in a work queue; until then it would hold the devices open, and a claim on
     * them (O_EXCL) or an unmount would fail. A ring with nothing registered answers -ENXIO, which is fine. */
    io_uring_unregister_files(&uring->ring);
    io_uring_unregister_buffers(&uring->ring);
    io_uring_queue_exit(&uring->ring);
    free(uring);
}

static const struct qrep_ring_ops uring_ops = {
    .backend = QREP_RING_URING,
    .register_buffers = uring_register_buffers,
    .register_files = uring_register_files,
    .start = uring_start,
    .submit = uring_submit,
    .collect = uring_collect,
    .free = uring_free,
};

int qrep_uring_open(struct qrep_ring **ring, const struct qrep_ring_options *options)
{
    struct uring *uring = calloc(1, sizeof *uring);
    if (uring == NULL)
        return -ENOMEM;
    uring->front.ops = &uring_ops;
    uring->ring.ring_fd = -1;
    int rc = setup_ring(uring, options->entries, options->unrestricted == 0);
    if (rc == 0) {
        probe_opcodes(uring);
        if (options->unrestricted == 0) {
            uring->locked = 1;
            rc = restrict_ring(uring);
        }
    }
    if (rc < 0) {
        if (uring->ring.ring_fd >= 0)
            io_uring_queue_exit(&uring->ring);
        free(uring);
        return rc;
    }
    *ring = &uring->front;
    return 0;
}
