/* What a transfer means for its request: done, continue, or wait. Both backends obey this one file. */
#include "ring_internal.h"

#include <errno.h>

static enum qrep_step done(struct qrep_request *request, int64_t result)
{
    request->result = result;
    return QREP_STEP_DONE;
}

static enum qrep_step step_disk(struct qrep_request *request, int64_t result)
{
    if (result == -EINTR || result == -EAGAIN)
        return QREP_STEP_AGAIN;
    if (result < 0)
        return done(request, result);
    size_t end = request->position + (size_t)result;
    /* No byte beyond what was reached already: the end of the device. */
    if (end <= request->reached || request->size == 0)
        return done(request, (int64_t)request->reached);
    request->reached = end;
    if (end >= request->size)
        return done(request, (int64_t)request->size);
    /* O_DIRECT goes on only from a whole page. What lies between is transferred again: if that too stops short of the next
     * page it was the end (a file whose size is no multiple of the sector), else the short count was an accident. */
    request->position = request->direct ? end / QREP_PAGE_SIZE * QREP_PAGE_SIZE : end;
    return QREP_STEP_AGAIN;
}

/* Reasons to send by copying after all: no such opcode or socket (EOPNOTSUPP, EINVAL), or pinned pages and skbs used up
 * (RLIMIT_MEMLOCK, net.core.optmem_max). Nothing of this transfer was sent. */
static int wants_plain_send(int64_t error)
{
    return error == -EOPNOTSUPP || error == -EINVAL || error == -ENOBUFS || error == -ENOMEM;
}

static void advance(struct msghdr *message, size_t size)
{
    while (size > 0) {
        struct iovec *iov = message->msg_iov;
        if (size < iov->iov_len) {
            iov->iov_base = (uint8_t *)iov->iov_base + size;
            iov->iov_len -= size;
            return;
        }
        size -= iov->iov_len;
        message->msg_iov++;
        message->msg_iovlen--;
    }
}

static int has_bytes(struct msghdr *message)
{
    while (message->msg_iovlen > 0 && message->msg_iov->iov_len == 0) {
        message->msg_iov++;
        message->msg_iovlen--;
    }
    return message->msg_iovlen > 0;
}

static enum qrep_step step_stream(struct qrep_request *request, int64_t result)
{
    if (result == -EINTR)
        return QREP_STEP_AGAIN;
    if (result == -EAGAIN)
        return QREP_STEP_POLL;
    if (result < 0 && request->kind == QREP_SEND_ZC && wants_plain_send(result)) {
        request->kind = QREP_SEND;
        request->copied = 1;
        return QREP_STEP_AGAIN;
    }
    if (result < 0)
        return done(request, result);
    advance(&request->message, (size_t)result);
    request->moved += (size_t)result;
    if (result == 0 || !has_bytes(&request->message))
        return done(request, (int64_t)request->moved);
    return QREP_STEP_AGAIN;
}

enum qrep_step qrep_request_step(struct qrep_request *request, int64_t result)
{
    switch (request->kind) {
    case QREP_READ:
    case QREP_WRITE:
        return step_disk(request, result);
    case QREP_FSYNC:
        return done(request, result); /* R2: whatever it says, it is not asked again */
    default:
        return step_stream(request, result);
    }
}
