/* From a verified frame to its bytes on the device: look at what is there, log it, wait for the flush, write. */
#include "compare.h"
#include "punch.h"
#include "target_stages.h"

#include <errno.h>
#include <string.h>

/* ---- room ---- */

static uint32_t room_leaves(const struct target_lane *lane, uint64_t room)
{
    uint32_t leaf_size = lane->run->base.geometry.leaf_size;
    return (uint32_t)((room + leaf_size - 1) / leaf_size);
}

/* In front of the room the batch header and its table, behind it what must become zero; at most one entry per leaf in either. */
static uint64_t room_size(const struct target_lane *lane, uint64_t room)
{
    uint32_t leaves = room_leaves(lane, room);
    return qrep_undo_front_room(leaves) + qrep_align_up(room, QREP_PAGE_SIZE) + leaves * sizeof(struct target_range);
}

uint64_t qrep_frame_room_max(const struct target_lane *lane) { return room_size(lane, lane->frame_limit) + QREP_PAGE_SIZE; }

int qrep_frame_take_room(struct target_lane *lane, struct target_frame *frame)
{
    uint64_t bytes = qrep_frame_old_bytes(lane, frame);
    uint64_t room = bytes < lane->frame_limit ? bytes : lane->frame_limit;

    frame->room = (uint32_t)qrep_align_up(room, lane->run->base.geometry.leaf_size);
    if (room == 0)
        return 1;
    uint8_t *block = qrep_window_take(&lane->window, room_size(lane, frame->room));
    if (block == NULL)
        return 0;
    frame->old = block + qrep_undo_front_room(room_leaves(lane, frame->room));
    frame->clear = (struct target_range *)(frame->old + qrep_align_up(frame->room, QREP_PAGE_SIZE));
    frame->window_end = lane->window.tail;
    return 1;
}

/* ---- look ---- */

/* Holes of an image file are zero: they are neither read nor logged. Only long runs of zeroes are worth asking for. */
static void skip_holes(struct target_lane *lane, struct target_frame *frame)
{
    const struct qrep_geometry *geometry = &lane->run->base.geometry;
    struct target_cursor ahead = frame->piece;
    struct target_extent extent;

    if (!lane->run->is_file || frame->header.kind != QREP_FRAME_ZERO || !qrep_frame_next(lane, frame, &ahead, UINT64_MAX, &extent))
        return;
    uint64_t data = qrep_next_data(lane->device_fd, extent.offset, extent.offset + extent.size);
    if (data == extent.offset + extent.size) {
        frame->piece = ahead;
        return;
    }
    frame->piece.within += (data - extent.offset) / geometry->leaf_size * geometry->leaf_size;
}

static int start_piece(struct target_lane *lane, struct target_frame *frame)
{
    struct target_extent extent;
    uint8_t *place = frame->old;

    skip_holes(lane, frame);
    qrep_frame_cut_piece(lane, frame);
    frame->stage = TARGET_LOOKING;
    frame->asked = frame->moved = 0;
    frame->clear_count = 0;
    if (frame->room == 0)
        return 0;
    struct target_cursor cursor = frame->piece;
    while (qrep_frame_next_until(lane, frame, &cursor, &frame->piece_end, &extent)) {
        if (lane->run->undo_fd < 0 && extent.data)
            continue;
        int rc = qrep_target_request(lane, frame, TARGET_OP_READ, place, extent.size, extent.offset);
        if (rc)
            return rc;
        place += extent.size;
    }
    return 0;
}

int qrep_frame_start(struct target_lane *lane, struct target_frame *frame)
{
    frame->piece = (struct target_cursor){0};
    return start_piece(lane, frame);
}

/* ---- log ---- */

struct table {
    struct qrep_undo_extent *extents;
    uint32_t count;
    uint64_t payload_size;
};

static void add_before_image(struct table *table, uint64_t offset, uint32_t size, uint32_t kind)
{
    if (table->count) {
        struct qrep_undo_extent *last = &table->extents[table->count - 1];
        if (last->kind == kind && last->offset + last->size == offset) {
            last->size += size;
            return;
        }
    }
    table->extents[table->count++] = (struct qrep_undo_extent){.offset = offset, .size = size, .kind = kind};
}

static void add_clear(struct target_frame *frame, uint64_t offset, uint64_t size)
{
    if (frame->clear_count) {
        struct target_range *last = &frame->clear[frame->clear_count - 1];
        if (last->offset + last->size == offset) {
            last->size += size;
            return;
        }
    }
    frame->clear[frame->clear_count++] = (struct target_range){offset, size};
}

/* Leaf by leaf: what was zero needs no payload; what was zero and stays zero needs nothing at all. The payload is closed up over what falls away. */
static void sort_before_images(struct target_lane *lane, struct target_frame *frame, struct table *table)
{
    uint32_t leaf_size = lane->run->base.geometry.leaf_size;
    struct target_cursor cursor = frame->piece;
    struct target_extent extent;
    const uint8_t *old = frame->old;

    while (qrep_frame_next_until(lane, frame, &cursor, &frame->piece_end, &extent)) {
        if (lane->run->undo_fd < 0 && extent.data)
            continue;
        for (uint64_t done = 0; done < extent.size;) {
            uint32_t size = extent.size - done < leaf_size ? (uint32_t)(extent.size - done) : leaf_size;
            int zero = qrep_is_zero(old, size);
            if (extent.data == NULL && !zero)
                add_clear(frame, extent.offset + done, size);
            if (extent.data || !zero) {
                add_before_image(table, extent.offset + done, size, zero ? QREP_UNDO_ZERO : QREP_UNDO_DATA);
                if (!zero) {
                    uint8_t *place = frame->old + table->payload_size;
                    if (place != old)
                        memmove(place, old, size);
                    table->payload_size += size;
                }
            }
            old += size;
            done += size;
        }
    }
}

static int write_piece(struct target_lane *lane, struct target_frame *frame);

static int log_piece(struct target_lane *lane, struct target_frame *frame)
{
    struct table table = {.extents = lane->extents};
    struct qrep_undo_place place;

    if (frame->moved != frame->asked)
        return qrep_target_fail(lane, QREP_FAILURE_SHRUNK, ENODATA, frame->header.granule);
    if (frame->room)
        sort_before_images(lane, frame, &table);
    atomic_fetch_add_explicit(&lane->run->base.counters.read, frame->moved, memory_order_relaxed);
    if (lane->run->undo_fd < 0 || table.count == 0)
        return write_piece(lane, frame);

    int rc = qrep_undo_build(&lane->undo, frame->old, table.payload_size, table.extents, table.count, &place);
    if (rc)
        return qrep_target_fail(lane, rc == -ENOSPC ? QREP_FAILURE_UNDO_SPACE : QREP_FAILURE_UNDO_WRITE, -rc, frame->header.granule);
    frame->stage = TARGET_LOGGING;
    frame->batch = place.number;
    frame->asked = frame->moved = 0;
    return qrep_target_request(lane, frame, TARGET_OP_UNDO, place.start, place.size, place.position);
}

static int note_logged(struct target_lane *lane, struct target_frame *frame)
{
    if (frame->moved != frame->asked)
        return qrep_target_fail(lane, QREP_FAILURE_UNDO_WRITE, EIO, frame->header.granule);
    atomic_fetch_add_explicit(&lane->run->base.counters.undo, frame->moved, memory_order_relaxed);
    qrep_crashpoint("target-undo-written");
    qrep_undo_written(&lane->undo, frame->batch);
    frame->stage = TARGET_LOGGED;
    return 0;
}

/* ---- write ---- */

/* fallocate(2) on a file waits for direct I/O in flight, and this ring's completes only when asked for. */
static int drain_file_requests(struct target_lane *lane)
{
    while (lane->run->is_file && lane->file_requests) {
        int rc = qrep_target_reap(lane, UINT64_MAX);
        if (rc)
            return rc;
    }
    return 0;
}

/* What of a range the medium does not take; data NULL: zeroes, of which `room` may be used to write from. */
static int note_refused(struct target_lane *lane, const struct target_extent *extent, const struct qrep_zero_room *room)
{
    struct qrep_target_run *run = lane->run;
    struct qrep_bad_extent bad[QREP_BAD_EXTENTS_MAX];
    uint64_t granule = extent->offset / run->base.geometry.granule_size;

    if (extent->data == NULL)
        memset(room->base, 0, room->size);
    for (uint64_t done = 0; done < extent->size;) {
        uint64_t left = extent->size - done, part = extent->data || left < room->size ? left : room->size;
        int count = qrep_salvage_write(lane->device_fd, extent->data ? extent->data : room->base, part, extent->offset + done, run->base.sector_size,
                                       QREP_UNWRITABLE_MAX, bad, QREP_BAD_EXTENTS_MAX);
        if (count < 0)
            return qrep_target_fail(lane, QREP_FAILURE_WRITE, -count, granule);
        if (count && (qrep_bad_list_add(&run->bad, bad, (unsigned)count) || run->bad.bytes > QREP_UNWRITABLE_MAX))
            return qrep_target_fail(lane, QREP_FAILURE_WRITE, bad[0].error, granule);
        done += part;
    }
    return 0;
}

/* The medium did not take all of the piece: all of its data once more, halved down to the sector. Its before-images are flushed, and nobody else
 * writes these places meanwhile. */
static int rewrite_piece(struct target_lane *lane, struct target_frame *frame)
{
    struct target_cursor cursor = frame->piece;
    struct target_extent extent;
    int rc = 0;

    frame->refused = 0;
    while (rc == 0 && qrep_frame_next_until(lane, frame, &cursor, &frame->piece_end, &extent))
        if (extent.data)
            rc = note_refused(lane, &extent, NULL);
    frame->moved = frame->asked;
    return rc;
}

static int clear_ranges(struct target_lane *lane, struct target_frame *frame)
{
    /* The before-images have been logged and flushed, or were not wanted: their room is free. */
    struct qrep_zero_room room = {.base = frame->old, .size = qrep_align_up(frame->room, QREP_PAGE_SIZE)};
    int rc = drain_file_requests(lane);

    for (uint32_t i = 0; rc == 0 && i < frame->clear_count; i++) {
        int64_t written = qrep_make_zero(lane->device_fd, frame->clear[i].offset, frame->clear[i].size, &lane->punch, &room);
        if (written < 0 && qrep_is_medium_error((int)-written)) {
            struct target_extent extent = {frame->clear[i].offset, frame->clear[i].size, NULL};
            rc = note_refused(lane, &extent, &room);
            continue;
        }
        if (written < 0)
            return qrep_target_fail(lane, QREP_FAILURE_WRITE, (int)-written, frame->clear[i].offset / lane->run->base.geometry.granule_size);
        atomic_fetch_add_explicit(&lane->run->base.counters.written, (uint64_t)written, memory_order_relaxed);
    }
    return rc;
}

/* Once per frame: a ZERO frame may be many pieces over many granules. What an earlier pass had finished is in parts again. */
static void mark_granules(struct target_lane *lane, struct target_frame *frame)
{
    const struct target_pass *pass = &lane->passes[frame->pass % QREP_TARGET_PASSES];
    if (frame->marked)
        return;
    frame->marked = 1;
    for (uint64_t granule = pass->granule; granule < pass->granule + pass->span; granule++)
        lane->run->base.marked[granule] = 1;
}

/* Nothing of the piece is submitted before its before-images are flushed: this is only reached through log_piece() with nothing to log, or from LOGGED
 * once qrep_undo_is_flushed() says so (R3). */
static int write_piece(struct target_lane *lane, struct target_frame *frame)
{
    struct target_cursor cursor = frame->piece;
    struct target_extent extent;

    frame->stage = TARGET_WRITING;
    frame->asked = frame->moved = 0;
    mark_granules(lane, frame);
    while (qrep_frame_next_until(lane, frame, &cursor, &frame->piece_end, &extent)) {
        if (extent.data == NULL) {
            atomic_fetch_add_explicit(&lane->run->base.counters.zero, extent.size, memory_order_relaxed);
            continue;
        }
        int rc = qrep_target_request(lane, frame, TARGET_OP_WRITE, (void *)extent.data, extent.size, extent.offset);
        if (rc)
            return rc;
    }
    if (frame->clear_count) {
        int rc = clear_ranges(lane, frame);
        if (rc)
            return rc;
    }
    int rc = qrep_ring_submit(lane->ring);
    if (rc)
        return qrep_target_fail(lane, QREP_FAILURE_WRITE, -rc, frame->header.granule);
    qrep_crashpoint("target-write-submitted");
    return 0;
}

static void finish_piece(struct target_lane *lane, struct target_frame *frame)
{
    atomic_fetch_add_explicit(&lane->run->base.counters.written, frame->moved, memory_order_relaxed);
    qrep_crashpoint("target-write-done");
    if (qrep_frame_at_end(lane, frame))
        frame->stage = TARGET_DONE;
}

int qrep_frame_advance(struct target_lane *lane, struct target_frame *frame)
{
    int rc = 0;

    while (rc == 0 && frame->pending == 0) {
        switch (frame->stage) {
        case TARGET_LOOKING:
            rc = log_piece(lane, frame);
            break;
        case TARGET_LOGGING:
            rc = note_logged(lane, frame);
            break;
        case TARGET_LOGGED:
            if (!qrep_undo_is_flushed(&lane->undo, frame->batch))
                return 0;
            rc = write_piece(lane, frame);
            break;
        case TARGET_WRITING:
            if (frame->refused && (rc = rewrite_piece(lane, frame)))
                break;
            if (frame->moved != frame->asked)
                return qrep_target_fail(lane, QREP_FAILURE_WRITE, ENOSPC, frame->header.granule);
            finish_piece(lane, frame);
            if (frame->stage == TARGET_DONE)
                return 0;
            frame->piece = frame->piece_end;
            rc = start_piece(lane, frame);
            break;
        default:
            return 0;
        }
    }
    return rc;
}
