#include "lane_common.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int qrep_fail(struct qrep_run_base *run, enum qrep_failure_kind kind, int error, uint32_t lane, uint64_t granule)
{
    unsigned unclaimed = 0;

    if (atomic_compare_exchange_strong(&run->failure.claimed, &unclaimed, 1)) {
        run->failure.error = error;
        run->failure.lane = lane;
        run->failure.granule = granule;
        atomic_store_explicit(&run->failure.kind, kind, memory_order_release);
    }
    atomic_store(&run->stop, 1);
    return -error;
}

size_t qrep_iov_take(struct qrep_iov_cursor *cursor, size_t limit, struct iovec *piece, unsigned room, unsigned *piece_count)
{
    size_t total = 0;
    unsigned parts = 0;

    while (cursor->count && total < limit && parts < room) {
        size_t left = cursor->iov->iov_len - cursor->used;
        size_t take = left < limit - total ? left : limit - total;
        if (take)
            piece[parts++] = (struct iovec){(uint8_t *)cursor->iov->iov_base + cursor->used, take};
        total += take;
        cursor->used += take;
        if (take == left) {
            cursor->iov++;
            cursor->count--;
            cursor->used = 0;
        }
    }
    *piece_count = parts;
    return total;
}

static int set_nonblocking(int fd, int *saved)
{
    *saved = fcntl(fd, F_GETFL);
    if (*saved < 0 || fcntl(fd, F_SETFL, *saved | O_NONBLOCK) < 0)
        return -errno;
    return 0;
}

int qrep_connection_begin(struct qrep_connection *connection, int saved[2])
{
    saved[0] = saved[1] = -1;
    if (connection->kind != QREP_CONNECTION_PIPES)
        return 0;
    int rc = set_nonblocking(connection->receive_fd, &saved[0]);
    if (rc == 0)
        rc = set_nonblocking(connection->send_fd, &saved[1]);
    if (rc)
        qrep_connection_end(connection, saved);
    return rc;
}

void qrep_connection_end(struct qrep_connection *connection, const int saved[2])
{
    /* In reverse, so that one description behind both descriptors ends as it was found. */
    if (saved[1] >= 0)
        fcntl(connection->send_fd, F_SETFL, saved[1]);
    if (saved[0] >= 0)
        fcntl(connection->receive_fd, F_SETFL, saved[0]);
}

/* Wait until `fd` is ready. 0, -ECANCELED or -errno. */
static int wait_ready(int fd, short events, const atomic_int *stop)
{
    struct pollfd ready = {.fd = fd, .events = events};

    for (;;) {
        if (atomic_load_explicit(stop, memory_order_relaxed))
            return -ECANCELED;
        int rc = poll(&ready, 1, QREP_STOP_POLL_MS);
        if (rc > 0)
            return 0;
        if (rc < 0 && errno != EINTR)
            return -errno;
    }
}

int qrep_connection_send(struct qrep_connection *connection, struct iovec *iov, unsigned count, const atomic_int *stop)
{
    if (connection->kind == QREP_CONNECTION_STREAM)
        return connection->stream.send(connection->stream.context, iov, count);

    while (count) {
        ssize_t put = writev(connection->send_fd, iov, (int)(count < 1024 ? count : 1024));
        if (put < 0 && errno == EAGAIN) {
            int rc = wait_ready(connection->send_fd, POLLOUT, stop);
            if (rc)
                return rc;
            continue;
        }
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        for (; count && (size_t)put >= iov->iov_len; iov++, count--)
            put -= (ssize_t)iov->iov_len;
        if (count) {
            iov->iov_base = (uint8_t *)iov->iov_base + put;
            iov->iov_len -= (size_t)put;
        }
    }
    return 0;
}

int qrep_connection_receive(struct qrep_connection *connection, void *data, size_t size, const atomic_int *stop)
{
    if (connection->kind == QREP_CONNECTION_STREAM)
        return connection->stream.receive(connection->stream.context, data, size);

    for (size_t done = 0; done < size;) {
        ssize_t got = read(connection->receive_fd, (uint8_t *)data + done, size - done);
        if (got < 0 && errno == EAGAIN) {
            int rc = wait_ready(connection->receive_fd, POLLIN, stop);
            if (rc)
                return rc;
            continue;
        }
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            return done ? -ECONNRESET : -ENODATA;
        done += (size_t)got;
    }
    return 0;
}

void qrep_connection_abort(struct qrep_connection *connection)
{
    if (connection->kind != QREP_CONNECTION_SOCKET)
        return;
    shutdown(connection->receive_fd, SHUT_RDWR);
    if (connection->send_fd != connection->receive_fd)
        shutdown(connection->send_fd, SHUT_RDWR);
    if (!connection->zero_copy)
        return; /* what TCP has queued may still arrive: a resumed run need not send it again */
    /* Dissolving the association purges TCP's queue, whose pages zero-copy sends wait for; other families refuse, and have none. */
    struct sockaddr nothing = {.sa_family = AF_UNSPEC};
    connect(connection->send_fd, &nothing, sizeof nothing);
}
