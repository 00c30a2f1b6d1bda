/* Source lane, fourth stage: batches of frames onto the connection, one send at a time, at the rate that is allowed. */
#include "source_parts.h"

#include "disk.h"

#include <errno.h>
#include <string.h>

/* Below this, pinning pages costs more than copying them (bench/RESULTS.md, send). */
#define ZERO_COPY_MIN (16u << 10)
/* So many notifications decide: if more than half of them say `copied`, the path does not do zero copy. */
#define ZERO_COPY_TRIAL 16

#define LIMIT_POLL_NS 50000000u /* a lane asks again after this at the latest: the rate may have changed meanwhile */

static int fail_connection(struct source_lane *lane, int64_t result)
{
    int error = result < 0 ? (int)-result : ECONNRESET;

    /* Stopped while blocked in the connection: somebody else's failure, or none. */
    if (error == ECANCELED)
        return -ECANCELED;
    return qrep_fail(&lane->run->base, QREP_FAILURE_CONNECTION, error, lane->lane, UINT64_MAX);
}

static struct source_batch *free_batch(struct source_lane *lane)
{
    for (uint32_t i = 0; i < lane->batch_count; i++) {
        struct source_batch *batch = &lane->batches[i];
        if (!batch->busy) {
            memset(batch, 0, offsetof(struct source_batch, headers));
            batch->busy = 1;
            return batch;
        }
    }
    return NULL;
}

/* Its bytes are sent and the kernel needs its memory no longer. */
static void release_batch(struct source_batch *batch)
{
    struct source_slot *slot = batch->slot;

    batch->busy = 0;
    if (slot && --slot->batches == 0 && slot->run_next == slot->run_count)
        slot->state = SLOT_FREE;
}

static void mark(struct source_lane *lane, const struct source_batch *batch, uint8_t value)
{
    for (uint64_t i = 0; i < batch->span; i++)
        lane->run->base.marked[batch->granule + i] = value;
}

static void begin_sending(struct source_lane *lane, struct source_batch *batch)
{
    batch->unsent = (struct qrep_iov_cursor){batch->iov, batch->iov_count, 0};
    mark(lane, batch, 1);
    lane->framing = NULL;
    lane->sending = batch;
}

/* The newest zero run may still grow, unless it is long enough or nothing more can come. */
static int has_closed_zero_run(const struct source_lane *lane)
{
    if (lane->zero_count == 0)
        return 0;
    if (lane->zero_count > 1 || lane->zero_runs[lane->zero_first].span >= SOURCE_ZERO_SPAN_MAX)
        return 1;
    if (!lane->work_done)
        return 0;
    for (uint32_t i = 0; i < lane->run->slots; i++)
        if (lane->slots[i].state == SLOT_READING || lane->slots[i].state == SLOT_READ)
            return 0;
    return 1;
}

/* A batch for what is next, in lane->framing: all frames of a zero run, or none yet of the slot at the head of the queue. Once its first frame is made all of
 * its frames come before anything else: a target takes one granule after the other. */
static void begin_framing(struct source_lane *lane)
{
    int zero = !lane->within_granule && has_closed_zero_run(lane);
    if (!zero && lane->queue_count == 0)
        return;
    struct source_batch *batch = lane->framing = free_batch(lane);
    if (batch == NULL)
        return; /* all of them wait for notifications */

    if (zero) {
        struct source_zero_run run = lane->zero_runs[lane->zero_first];
        lane->zero_first = (lane->zero_first + 1) % lane->zero_room;
        lane->zero_count--;
        source_frame_zero(lane, run.granule, run.span, batch);
        return;
    }
    batch->slot = lane->queue[lane->queue_first];
    batch->slot->batches++;
    if (batch->slot->packing == SOURCE_UNDECIDED)
        source_pack_decide(lane, batch->slot);
}

static void frame_next(struct source_lane *lane)
{
    if (lane->framing == NULL)
        begin_framing(lane);
    struct source_batch *batch = lane->framing;
    if (batch == NULL || batch->full)
        return;
    source_frame_slot(lane, batch->slot, batch);
    lane->within_granule = !batch->finishes;
    if (batch->finishes) {
        lane->queue_first = (lane->queue_first + 1) % lane->run->slots;
        lane->queue_count--;
    }
}

int source_frame_ahead(struct source_lane *lane, int if_none)
{
    if (lane->pack.packer == NULL || lane->sending == NULL)
        return 0;
    if (lane->framing == NULL) {
        if (lane->queue_count == 0)
            return 0;
        struct source_slot *slot = lane->queue[lane->queue_first];
        if (slot->packing == SOURCE_UNDECIDED)
            source_pack_decide(lane, slot);
        if (slot->packing <= SOURCE_PLAIN)
            return 0; /* made in no time, once it is their turn */
    } else if (if_none || lane->framing->full) {
        return 0;
    }
    frame_next(lane);
    return lane->framing != NULL;
}

/* How many bytes may go out with one send. Under a rate a frame is sent in pieces: a whole one would be a burst, and at 64 KiB/s last for 32 s. */
static size_t piece_size(const struct qrep_connection *connection)
{
    if (connection->bucket == NULL)
        return SIZE_MAX;
    size_t wire = qrep_bucket_piece(connection->bucket), record = connection->record_size;
    if (record == 0)
        return wire;
    size_t records = (wire + record + connection->record_overhead - 1) / (record + connection->record_overhead);
    size_t bytes = wire - records * connection->record_overhead;
    /* Whole records, as far as there are any: every record that is cut short costs as much overhead as a full one. */
    return bytes > record ? bytes - bytes % record : bytes;
}

/* What `size` bytes of the stream are on the wire. */
static uint64_t wire_size(const struct qrep_connection *connection, size_t size)
{
    if (connection->record_size == 0)
        return size;
    return size + (uint64_t)connection->record_overhead * ((size + connection->record_size - 1) / connection->record_size);
}

/* The piece that was handed over is on its way; with its last one the batch is. */
static void piece_sent(struct source_lane *lane)
{
    struct source_batch *batch = lane->sending;
    struct qrep_run_counters *counters = &lane->run->base.counters;

    source_count(&counters->sent, lane->piece_size);
    source_count(&lane->connection->sent, lane->piece_size);
    source_pack_sent(lane, lane->piece_size);
    lane->piece_size = 0;
    if (batch->unsent.count)
        return;
    source_count(&counters->frames, batch->frame_count);
    if (batch->finishes && !(batch->slot && batch->slot->parts))
        mark(lane, batch, 2);
    qrep_crashpoint("source-frame-sent");
    lane->sending = NULL;
    if (batch->notify_left == 0)
        release_batch(batch);
}

/* Ask for the piece after this one while it is sent: a lane that its connection slows down would lose its turns otherwise. */
static void ask_ahead(struct source_lane *lane, uint64_t now_ns)
{
    const struct source_batch *batch = lane->sending;
    size_t most = piece_size(lane->connection), left = 0;

    for (unsigned i = 0; i < batch->unsent.count && left < most; i++)
        left += batch->unsent.iov[i].iov_len - (i == 0 ? batch->unsent.used : 0);
    if (left == 0 && (lane->framing || lane->queue_count))
        left = most; /* of the next batch */
    qrep_bucket_ask(lane->connection->bucket, wire_size(lane->connection, left < most ? left : most), now_ns);
}

static int send_blocking(struct source_lane *lane, unsigned piece_count)
{
    uint64_t started_ns = qrep_now_ns();
    /* A stream is sent through Python, and who holds its lock must not be kept off the CPU. */
    int yields = lane->run->nice && lane->connection->kind == QREP_CONNECTION_STREAM;
    if (yields)
        qrep_thread_restore(&lane->thread_class);
    int rc = qrep_connection_send(lane->connection, lane->piece, piece_count, &lane->run->base.stop);
    if (yields)
        qrep_thread_yield(&lane->thread_class);
    lane->timed_from_ns = 0;
    uint64_t waited_ns = qrep_now_ns() - started_ns;

    source_count(&lane->run->base.counters.wait_network_ns, waited_ns);
    lane->waited_ns += waited_ns;
    source_pack_waited(lane, waited_ns);
    if (rc)
        return fail_connection(lane, rc);
    piece_sent(lane);
    return 0;
}

/* Start sending the next piece. 1: go on, 0: nothing to do now, or -errno. */
static int send_piece(struct source_lane *lane)
{
    struct source_batch *batch = lane->sending;
    struct qrep_bucket *bucket = lane->connection->bucket;
    struct qrep_iov_cursor before = batch->unsent;
    unsigned piece_count;
    source_pack_asked(lane);
    size_t size = qrep_iov_take(&batch->unsent, piece_size(lane->connection), lane->piece, SOURCE_BATCH_IOVECS, &piece_count);

    if (bucket) {
        uint64_t now_ns = qrep_now_ns();
        uint64_t wait_ns = qrep_bucket_take(bucket, wire_size(lane->connection, size), now_ns);
        if (wait_ns) {
            lane->limit_until_ns = now_ns + (wait_ns < LIMIT_POLL_NS ? wait_ns : LIMIT_POLL_NS);
            batch->unsent = before;
            return 0;
        }
        lane->limit_until_ns = 0;
        ask_ahead(lane, now_ns);
    }
    lane->piece_size = size;
    if (lane->connection->kind != QREP_CONNECTION_SOCKET) {
        int rc = send_blocking(lane, piece_count);
        return rc ? rc : 1;
    }
    uint64_t tag = source_tag(SOURCE_TAG_SEND, 0, (uint32_t)(batch - lane->batches));
    int rc = lane->zero_copy && size >= ZERO_COPY_MIN
                 ? qrep_ring_send_zc(lane->ring, SOURCE_FILE_SEND, lane->piece, piece_count, MSG_NOSIGNAL, tag)
                 : qrep_ring_send(lane->ring, SOURCE_FILE_SEND, lane->piece, piece_count, MSG_NOSIGNAL, tag);
    if (rc == 0)
        return 0;
    lane->piece_size = 0;
    batch->unsent = before;
    if (bucket)
        qrep_bucket_return(bucket, wire_size(lane->connection, size));
    return rc == -EBUSY ? 0 : fail_connection(lane, rc); /* EBUSY: many notifications are outstanding, one will come */
}

int source_pump(struct source_lane *lane)
{
    for (;;) {
        if (lane->piece_size)
            return 0;
        if (lane->limit_until_ns && qrep_now_ns() < lane->limit_until_ns)
            return 0;
        if (lane->sending == NULL) {
            if (lane->framing == NULL)
                frame_next(lane);
            if (lane->framing == NULL)
                return 0;
            begin_sending(lane, lane->framing);
        }
        int rc = send_piece(lane);
        if (rc <= 0)
            return rc;
    }
}

static int piece_notified(struct source_lane *lane, struct source_batch *batch, int copied)
{
    struct qrep_run_counters *counters = &lane->run->base.counters;

    source_count(&counters->zc_notified, 1);
    source_count(&counters->zc_copied, (uint64_t)copied);
    lane->notified++;
    lane->copied += (uint32_t)copied;
    if (lane->notified == ZERO_COPY_TRIAL && lane->copied > ZERO_COPY_TRIAL / 2)
        lane->zero_copy = 0;
    if (--batch->notify_left == 0 && batch != lane->sending)
        release_batch(batch);
    return 0;
}

int source_send_done(struct source_lane *lane, uint64_t tag, int64_t result, uint32_t flags)
{
    struct source_batch *batch = &lane->batches[(uint32_t)tag];

    if (flags & QREP_DONE_NOTIFY)
        return piece_notified(lane, batch, (flags & QREP_DONE_COPIED) != 0);
    if (flags & QREP_DONE_MORE)
        batch->notify_left++;
    if (result != (int64_t)lane->piece_size)
        return fail_connection(lane, result);
    piece_sent(lane);
    return 0;
}

int source_idle(const struct source_lane *lane)
{
    if (lane->queue_count || lane->zero_count || lane->sending)
        return 0;
    for (uint32_t i = 0; i < lane->batch_count; i++)
        if (lane->batches[i].busy)
            return 0;
    return 1;
}

int source_send_end(struct source_lane *lane)
{
    struct source_batch *batch = free_batch(lane);

    lane->ending = 1;
    source_frame_end(lane, batch); /* source_idle() said that all of them are free */
    begin_sending(lane, batch);
    return source_pump(lane);
}

int source_check_answer(struct source_lane *lane)
{
    int rc = qrep_frame_check(&lane->answer, &lane->incoming);

    if (rc == 0 && (lane->answer.kind != QREP_FRAME_END || !lane->ending))
        rc = -EPROTO;
    if (rc)
        return qrep_fail(&lane->run->base, QREP_FAILURE_FRAME, -rc, lane->lane, UINT64_MAX);
    lane->answered = 1;
    return 0;
}
