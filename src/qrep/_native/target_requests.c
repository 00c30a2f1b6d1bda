/* A lane's requests and the booking of their completions. Nothing moves from stage to stage here, so this may be called from any stage. */
#include "target_stages.h"

#include <errno.h>
#include <time.h>

#define REAP_ROOM 64

int qrep_target_fail(struct target_lane *lane, enum qrep_failure_kind kind, int error, uint64_t granule)
{
    if (!lane->failed)
        lane->failed = qrep_fail(&lane->run->base, kind, error, lane->index, granule);
    return lane->failed;
}

static int start_request(struct target_lane *lane, unsigned op, void *data, size_t size, uint64_t offset, uint64_t tag)
{
    switch (op) {
    case TARGET_OP_READ:
        return qrep_ring_read(lane->ring, TARGET_DEVICE, data, size, offset, tag);
    case TARGET_OP_UNDO:
        return qrep_ring_write(lane->ring, TARGET_UNDO, data, size, offset, tag);
    case TARGET_OP_WRITE:
        return qrep_ring_write(lane->ring, TARGET_DEVICE, data, size, offset, tag);
    case TARGET_OP_FLUSH:
        return qrep_ring_fsync(lane->ring, TARGET_UNDO, tag);
    case TARGET_OP_RECEIVE:
        return qrep_ring_receive(lane->ring, TARGET_RECEIVE, data, (unsigned)size, tag);
    default:
        return qrep_ring_send(lane->ring, TARGET_SEND, data, (unsigned)size, MSG_NOSIGNAL, tag);
    }
}

int qrep_target_request(struct target_lane *lane, struct target_frame *frame, unsigned op, void *data, size_t size, uint64_t offset)
{
    uint64_t tag = (frame ? (uint64_t)(frame - lane->frames) << 8 : 0) | op;
    int rc;

    while ((rc = start_request(lane, op, data, size, offset, tag)) == -EBUSY)
        if ((rc = qrep_target_reap(lane, UINT64_MAX)))
            return rc;
    if (rc)
        return qrep_target_fail(lane, QREP_FAILURE_MEMORY, -rc, UINT64_MAX);
    if (op == TARGET_OP_READ || op == TARGET_OP_WRITE)
        lane->file_requests++;
    if (frame && op <= TARGET_OP_WRITE) {
        frame->pending++;
        frame->asked += size;
    }
    return 0;
}

static void book_transfer(struct target_lane *lane, struct target_frame *frame, unsigned op, int64_t result)
{
    static const enum qrep_failure_kind kinds[] = {
        [TARGET_OP_READ] = QREP_FAILURE_READ,
        [TARGET_OP_UNDO] = QREP_FAILURE_UNDO_WRITE,
        [TARGET_OP_WRITE] = QREP_FAILURE_WRITE,
    };

    frame->pending--;
    if (op != TARGET_OP_UNDO)
        lane->file_requests--;
    if (result >= 0)
        frame->moved += (uint64_t)result;
    else if (op == TARGET_OP_WRITE && qrep_is_medium_error((int)-result))
        frame->refused = 1; /* it is gone over again when all of its piece have come back */
    else if (op == TARGET_OP_UNDO && (result == -ENOSPC || result == -EDQUOT))
        qrep_target_fail(lane, QREP_FAILURE_UNDO_SPACE, ENOSPC, frame->header.granule);
    else
        qrep_target_fail(lane, kinds[op], (int)-result, frame->header.granule);
}

static void book(struct target_lane *lane, const struct qrep_completion *done)
{
    struct target_frame *frame = &lane->frames[done->tag >> 8];
    unsigned op = done->tag & 0xff;

    switch (op) {
    case TARGET_OP_FLUSH:
        qrep_undo_flush_done(&lane->undo, done->result);
        qrep_crashpoint("target-undo-flushed");
        break;
    case TARGET_OP_RECEIVE:
        lane->receiving = 0;
        lane->arrived = 1;
        lane->receive_result = done->result;
        break;
    case TARGET_OP_SEND:
        lane->answered = 1;
        if (done->result != (int64_t)sizeof(struct qrep_frame_header))
            qrep_target_fail(lane, QREP_FAILURE_CONNECTION, done->result < 0 ? (int)-done->result : EPIPE, UINT64_MAX);
        break;
    default:
        book_transfer(lane, frame, op, done->result);
    }
}

int qrep_target_reap(struct target_lane *lane, uint64_t wait_ns)
{
    struct qrep_run_counters *counters = &lane->run->base.counters;
    struct qrep_completion done[REAP_ROOM];
    int disk = qrep_ring_in_flight(lane->ring) > (unsigned)lane->receiving;
    uint64_t before = wait_ns ? qrep_now_ns() : 0;
    if (wait_ns && wait_ns != UINT64_MAX && qrep_ring_in_flight(lane->ring) == 0) {
        /* The ring does not wait for nothing; what is waited for here is another lane's flush, or `stop`. */
        struct timespec pause = {.tv_nsec = (long)wait_ns};
        nanosleep(&pause, NULL);
        wait_ns = 0;
    }
    int count = qrep_ring_wait(lane->ring, done, REAP_ROOM, wait_ns);

    if (before) {
        uint64_t waited = qrep_now_ns() - before;
        lane->waited_ns += waited;
        atomic_fetch_add_explicit(disk ? &counters->wait_device_ns : &counters->wait_network_ns, waited, memory_order_relaxed);
    }
    for (int i = 0; i < count; i++)
        book(lane, &done[i]);
    if (count < 0)
        return qrep_target_fail(lane, QREP_FAILURE_MEMORY, -count, UINT64_MAX);
    return lane->failed;
}

/* What was being logged when the lane ended. */
static void settle_undo(struct target_lane *lane)
{
    for (uint64_t i = lane->first; i < lane->first + lane->count; i++) {
        struct target_frame *frame = &lane->frames[i % QREP_TARGET_FRAMES];
        if (frame->stage == TARGET_LOGGING && frame->pending == 0 && frame->moved == frame->asked)
            qrep_undo_written(&lane->undo, frame->batch);
    }
    qrep_undo_settle(&lane->undo);
}

void qrep_target_drain(struct target_lane *lane)
{
    struct qrep_completion done[REAP_ROOM];

    if (lane->failed)
        qrep_connection_abort(lane->connection); /* so that a receive or send in flight returns */
    while (qrep_ring_in_flight(lane->ring)) {
        int count = qrep_ring_wait(lane->ring, done, REAP_ROOM, UINT64_MAX);
        if (count < 0)
            return; /* closing the ring waits for them as well */
        for (int i = 0; i < count; i++)
            book(lane, &done[i]);
    }
    if (lane->run->undo_fd >= 0)
        settle_undo(lane);
}
