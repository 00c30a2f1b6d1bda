/* What source lanes and target lanes both do outside their rings: the clock, iovec arithmetic, and blocking transfers over the connections that are
 * not driven through a ring (STREAM and PIPES). */
#ifndef QREP_LANE_COMMON_H
#define QREP_LANE_COMMON_H

#include "lane.h"

/* CLOCK_MONOTONIC; defined with the ring, which needs it too. */
uint64_t qrep_now_ns(void);

/* A place in a list of iovecs: `used` bytes of the first one are done. */
struct qrep_iov_cursor {
    struct iovec *iov;
    unsigned count;
    size_t used;
};

/* Describe the next at most `limit` bytes in `piece` (room for `room` iovecs) and move on past them. Returns the bytes described, *piece_count how
 * many iovecs; 0 at the end. The list itself is not altered. */
size_t qrep_iov_take(struct qrep_iov_cursor *cursor, size_t limit, struct iovec *piece, unsigned room, unsigned *piece_count);

/* PIPES only, else nothing: make both descriptors non-blocking for the time a lane uses them, so that `stop` is heard within QREP_STOP_POLL_MS,
 * and put back what was there. 0 or -errno. Writing to a pipe without a reader raises SIGPIPE, which Python ignores. */
int qrep_connection_begin(struct qrep_connection *connection, int saved[2]);
void qrep_connection_end(struct qrep_connection *connection, const int saved[2]);

#define QREP_STOP_POLL_MS 100

/* Send all of the iovecs (altered on the way); STREAM and PIPES. 0; -ECANCELED once *stop is set (PIPES; a stream is interrupted by closing it);
 * -errno otherwise. */
int qrep_connection_send(struct qrep_connection *connection, struct iovec *iov, unsigned count, const atomic_int *stop);

/* Fill `size` bytes; STREAM and PIPES. 0; -ENODATA at the end before the first byte; -ECONNRESET at the end in the middle; else as above. */
int qrep_connection_receive(struct qrep_connection *connection, void *data, size_t size, const atomic_int *stop);

/* A lane that gives up must still see its requests complete (R12), also when the peer no longer reads: shut the socket down so that a send or
 * receive in flight returns; with zero_copy also drop what TCP has queued, so that the notifications come. The connection is of no use afterwards.
 * SOCKET only, else nothing happens. */
void qrep_connection_abort(struct qrep_connection *connection);

#endif
