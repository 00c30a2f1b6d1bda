#include "target_receive.h"

#include "blake3.h"
#include "disk.h"

#include <errno.h>
#include <string.h>

uint64_t qrep_receive_room_max(const struct target_lane *lane)
{
    struct qrep_frame_header largest = {.run_count = QREP_FRAME_RUNS_MAX, .data_size = lane->frame_limit};
    return qrep_align_up(qrep_frame_table_room(&largest, &lane->run->base.geometry), QREP_PAGE_SIZE) +
           qrep_align_up(lane->frame_limit, QREP_PAGE_SIZE);
}

/* ---- what arrives ---- */

static struct target_frame *newest(struct target_lane *lane)
{
    return lane->count ? &lane->frames[(lane->first + lane->count - 1) % QREP_TARGET_FRAMES] : NULL;
}

/* `incoming` is whole. */
static int take_header(struct target_lane *lane)
{
    const struct qrep_frame_header *header = &lane->incoming;
    int rc = qrep_frame_check(header, &lane->wire);

    if (rc == 0 && qrep_frame_leaf_bytes(header, &lane->wire.geometry) > lane->frame_limit)
        rc = -EPROTO;
    if (rc)
        return qrep_target_fail(lane, QREP_FAILURE_FRAME, -rc, UINT64_MAX);
    lane->ended = header->kind == QREP_FRAME_END;
    lane->have_header = !lane->ended;
    return 0;
}

/* The body of `frame` is whole. */
static int take_body(struct target_lane *lane, struct target_frame *frame)
{
    qrep_crashpoint("target-frame-received");
    if (frame->header.kind == QREP_FRAME_RUNS) {
        int rc = qrep_runs_check(&frame->header, frame->runs, &lane->run->base.geometry);
        if (rc)
            return qrep_target_fail(lane, QREP_FAILURE_FRAME, -rc, frame->header.granule);
    }
    frame->stage = TARGET_ARRIVED;
    return 0;
}

static void count_received(struct target_lane *lane, uint64_t bytes)
{
    atomic_fetch_add_explicit(&lane->run->base.counters.received, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&lane->connection->received, bytes, memory_order_relaxed);
}

/* The connection ended: a frame that is not whole is dropped. */
static int lose(struct target_lane *lane, int error)
{
    struct target_frame *frame = newest(lane);
    if (frame && frame->stage == TARGET_RECEIVING)
        lane->count--;
    lane->lost = error;
    return 0;
}

/* ---- room ---- */

/* A frame for the header in hand. NULL while there is none: too many in flight, no room, or one that has not been accepted yet. */
static struct target_frame *new_frame(struct target_lane *lane)
{
    struct target_frame *last = newest(lane);
    const struct qrep_frame_header *header = &lane->incoming;
    uint64_t data_room = qrep_align_up(qrep_frame_leaf_bytes(header, &lane->wire.geometry), QREP_PAGE_SIZE);
    uint8_t *block = NULL;

    if (lane->count == QREP_TARGET_FRAMES || (last && last->stage <= TARGET_ARRIVED))
        return NULL;
    if (header->data_size || header->run_count) {
        block = qrep_window_take(&lane->window, data_room + qrep_frame_table_room(header, &lane->wire.geometry));
        if (block == NULL)
            return NULL;
    }
    struct target_frame *frame = &lane->frames[(lane->first + lane->count++) % QREP_TARGET_FRAMES];
    memset(frame, 0, sizeof *frame);
    frame->header = *header;
    frame->data = block;
    if (header->flags & QREP_FRAME_PACKED) /* the frame before was unpacked, or will be before this one arrives */
        frame->packed = lane->packed[lane->packed_next++ % 2];
    frame->runs = block ? (struct qrep_wire_run *)(block + data_room) : NULL;
    frame->window_end = lane->window.tail;
    frame->stage = TARGET_RECEIVING;
    lane->have_header = 0;
    return frame;
}

/* Where the data of a frame arrives. */
static uint8_t *arrival_place(const struct target_frame *frame) { return frame->packed ? (uint8_t *)frame->packed : frame->data; }

/* ---- sockets ---- */

/* One receive for the body in hand and the header after it, so that a frame costs one request. */
static int ask_socket(struct target_lane *lane)
{
    struct target_frame *frame = NULL;
    unsigned parts = 0;

    if (lane->receiving || lane->arrived || lane->ended || lane->lost)
        return 0;
    if (lane->have_header) {
        frame = new_frame(lane);
        if (frame == NULL)
            return 0;
        if (frame->header.run_count)
            lane->iov[parts++] = (struct iovec){frame->runs, frame->header.run_count * sizeof *frame->runs};
        if (frame->header.data_size)
            lane->iov[parts++] = (struct iovec){arrival_place(frame), frame->header.data_size};
    } /* else the very first header, which comes alone */
    lane->iov[parts++] = (struct iovec){&lane->incoming, sizeof lane->incoming};
    lane->receive_size = 0;
    for (unsigned i = 0; i < parts; i++)
        lane->receive_size += lane->iov[i].iov_len;
    int rc = qrep_target_request(lane, NULL, TARGET_OP_RECEIVE, lane->iov, parts, 0);
    if (rc == 0)
        lane->receiving = 1;
    return rc;
}

static int take_arrival(struct target_lane *lane)
{
    struct target_frame *frame = newest(lane);

    lane->arrived = 0;
    if (lane->receive_result < 0)
        return lose(lane, (int)-lane->receive_result);
    count_received(lane, (uint64_t)lane->receive_result);
    uint64_t missing = lane->receive_size - (uint64_t)lane->receive_result;
    if (frame && frame->stage == TARGET_RECEIVING && missing <= sizeof lane->incoming) { /* the body is whole, whatever became of what follows */
        int rc = take_body(lane, frame);
        if (rc)
            return rc;
    }
    return missing ? lose(lane, ECONNRESET) : take_header(lane);
}

static int receive_socket(struct target_lane *lane)
{
    int taken = lane->arrived;
    int rc = taken ? take_arrival(lane) : 0;
    if (rc == 0)
        rc = ask_socket(lane);
    return rc ? rc : taken;
}

/* ---- streams and pipes ---- */

static int fill(struct target_lane *lane, void *data, size_t size)
{
    uint64_t before = qrep_now_ns();
    int rc = size ? qrep_connection_receive(lane->connection, data, size, &lane->run->base.stop) : 0;
    uint64_t waited = qrep_now_ns() - before;

    lane->waited_ns += waited;
    atomic_fetch_add_explicit(&lane->run->base.counters.wait_network_ns, waited, memory_order_relaxed);
    if (rc == 0)
        count_received(lane, size);
    return rc;
}

static int receive_blocking(struct target_lane *lane)
{
    int rc;

    /* Other lanes wait for this lane's flush of the undo store: see it through before waiting for the peer. */
    if (lane->ended || lane->lost || lane->undo.own_flush)
        return 0;
    if (!lane->have_header) {
        rc = qrep_ring_submit(lane->ring);
        if (rc)
            return qrep_target_fail(lane, QREP_FAILURE_MEMORY, -rc, UINT64_MAX);
        rc = fill(lane, &lane->incoming, sizeof lane->incoming);
        if (rc)
            return rc == -ECANCELED ? 0 : lose(lane, rc == -ENODATA ? ECONNRESET : -rc);
        rc = take_header(lane);
        if (rc || lane->ended)
            return rc ? rc : 1;
    }
    struct target_frame *frame = new_frame(lane);
    if (frame == NULL)
        return 0;
    rc = fill(lane, frame->runs, frame->header.run_count * sizeof *frame->runs);
    if (rc == 0)
        rc = fill(lane, arrival_place(frame), frame->header.data_size);
    if (rc)
        return lose(lane, rc == -ENODATA ? ECONNRESET : -rc);
    rc = take_body(lane, frame);
    return rc ? rc : 1;
}

int qrep_lane_receive(struct target_lane *lane)
{
    return lane->connection->kind == QREP_CONNECTION_SOCKET ? receive_socket(lane) : receive_blocking(lane);
}

/* ---- accepting ---- */

/* How many granules the frame is about. */
static uint32_t frame_span(const struct target_frame *frame) { return frame->header.kind == QREP_FRAME_ZERO ? frame->header.span : 1; }

/* Is an earlier pass over any of this frame's granules not finished? Two writes of one place must not be in flight at once. */
static int must_wait_for_pass(const struct target_lane *lane, const struct target_frame *frame)
{
    uint64_t first = frame->header.granule, end = first + frame_span(frame);

    for (uint64_t number = lane->pass_first; number < lane->pass_next; number++) {
        const struct target_pass *pass = &lane->passes[number % QREP_TARGET_PASSES];
        if (!pass->finished && pass->closed && pass->granule < end && first < pass->granule + pass->span)
            return 1;
    }
    return 0;
}

static struct target_pass *join_pass(struct target_lane *lane, struct target_frame *frame, int opens)
{
    if (opens) {
        struct target_pass *fresh = &lane->passes[lane->pass_next++ % QREP_TARGET_PASSES];
        memset(fresh, 0, sizeof *fresh);
        fresh->granule = frame->header.granule;
        fresh->span = frame_span(frame);
    }
    frame->pass = lane->pass_next - 1;
    struct target_pass *pass = &lane->passes[frame->pass % QREP_TARGET_PASSES];
    pass->frames++;
    return pass;
}

static int finish_zero(const struct target_lane *lane, const struct qrep_frame_header *header, struct qrep_granule_result *result)
{
    const struct qrep_geometry *geometry = &lane->run->base.geometry;

    memset(result, 0, sizeof *result);
    result->state = QREP_STATE_ZERO;
    if (!(header->flags & QREP_FRAME_VALUE))
        return 0;
    qrep_blake3_zero_subtree(qrep_granule_bytes(geometry, header->granule), header->granule * geometry->granule_size, geometry->leaf_size, NULL,
                             result->value);
    result->state |= QREP_STATE_VALUE;
    return memcmp(result->value, header->granule_value, QREP_DIGEST_SIZE) ? -EUCLEAN : 0;
}

/* The pass is complete with this frame. */
static int close_pass(struct target_lane *lane, const struct qrep_frame_header *header, struct target_pass *pass)
{
    int rc = 0;

    pass->parts = (header->flags & QREP_FRAME_PARTS) != 0;
    if (pass->parts)
        lane->assembly.open = 0; /* what the granule holds now has no value that anybody knows */
    else
        rc = header->kind == QREP_FRAME_ZERO ? finish_zero(lane, header, &pass->result)
                                             : qrep_granule_finish(&lane->assembly, header, &pass->result);
    if (rc)
        return qrep_target_fail(lane, rc == -EUCLEAN ? QREP_FAILURE_VALUE : QREP_FAILURE_MAP, -rc, header->granule);
    pass->closed = 1;
    return 0;
}

/* From here on the frame is as if it had travelled plain. */
static int unpack(struct target_lane *lane, struct target_frame *frame)
{
    struct qrep_frame_header *header = &frame->header;
    int rc = qrep_unpack(lane->unpacker, frame->packed, header->data_size, frame->data, header->span);

    if (rc)
        return qrep_target_fail(lane, QREP_FAILURE_FRAME, -rc, header->granule);
    frame->packed = NULL;
    header->flags &= ~QREP_FRAME_PACKED;
    header->data_size = header->span;
    header->span = 0;
    return 0;
}

int qrep_frame_accept(struct target_lane *lane, struct target_frame *frame)
{
    struct qrep_frame_header *header = &frame->header;
    int opens = !lane->assembly.open, rc = 0;

    if (must_wait_for_pass(lane, frame) || (!lane->run->base.rehearsal && !qrep_frame_take_room(lane, frame)))
        return 0;
    frame->stage = TARGET_LOOKING; /* its memory is settled, so the next frame may take some */
    if (lane->connection->kind == QREP_CONNECTION_SOCKET) {
        rc = ask_socket(lane);
        if (rc == 0 && (rc = qrep_ring_submit(lane->ring)))
            rc = qrep_target_fail(lane, QREP_FAILURE_MEMORY, -rc, UINT64_MAX);
        if (rc)
            return rc;
    }

    if (frame->packed && (rc = unpack(lane, frame)))
        return rc;
    uint64_t copies = header->kind == QREP_FRAME_RUNS ? (uint64_t)header->copy_leaves * lane->run->base.geometry.leaf_size : 0;
    rc = qrep_frame_verify(&lane->assembly, header, frame->data, frame->runs);
    if (rc)
        return qrep_target_fail(lane, rc == -EILSEQ ? QREP_FAILURE_DIGEST : QREP_FAILURE_FRAME, -rc, header->granule);
    atomic_fetch_add_explicit(&lane->run->base.counters.hashed, header->data_size, memory_order_relaxed);
    atomic_fetch_add_explicit(&lane->run->base.counters.copies, copies, memory_order_relaxed);
    struct target_pass *pass = join_pass(lane, frame, opens);
    if (header->kind == QREP_FRAME_ZERO || (header->flags & QREP_FRAME_LAST)) {
        rc = close_pass(lane, header, pass);
        if (rc)
            return rc;
    }
    if (lane->run->base.rehearsal) {
        frame->stage = TARGET_DONE;
        return 0;
    }
    return qrep_frame_start(lane, frame);
}
