/* What a frame covers, walked run by run without a list of its own. */
#include "target_stages.h"

/* Run `index` of the frame. 0 past the last. */
static int whole_run(const struct target_lane *lane, const struct target_frame *frame, uint32_t index, struct target_extent *run)
{
    const struct qrep_geometry *geometry = &lane->run->base.geometry;
    const struct qrep_frame_header *header = &frame->header;
    uint64_t start = header->granule * geometry->granule_size;

    if (header->kind == QREP_FRAME_RUNS) {
        if (index == header->run_count)
            return 0;
        const struct qrep_wire_run *entry = &frame->runs[index];
        run->offset = start + (uint64_t)entry->first * geometry->leaf_size;
        run->size = qrep_run_bytes(geometry, header->granule, entry);
        run->data = entry->count & QREP_RUN_ZERO ? NULL : frame->data;
        return 1;
    }
    if (index)
        return 0;
    if (header->kind == QREP_FRAME_FULL) {
        run->offset = start + (uint64_t)header->first_leaf * geometry->leaf_size;
        run->size = qrep_frame_bytes(header);
        run->data = frame->data;
    } else {
        uint64_t left = geometry->size - start, size = (uint64_t)header->span * geometry->granule_size;
        run->offset = start;
        run->size = size < left ? size : left;
        run->data = NULL;
    }
    return 1;
}

int qrep_frame_next(const struct target_lane *lane, const struct target_frame *frame, struct target_cursor *cursor, uint64_t limit,
                    struct target_extent *extent)
{
    struct target_extent run;

    if (!whole_run(lane, frame, cursor->run, &run))
        return 0;
    uint64_t left = run.size - cursor->within;
    extent->offset = run.offset + cursor->within;
    extent->size = left < limit ? left : limit;
    extent->data = run.data ? run.data + cursor->data : NULL;
    if (run.data)
        cursor->data += (uint32_t)extent->size;
    cursor->within += extent->size;
    if (cursor->within == run.size) {
        cursor->run++;
        cursor->within = 0;
    }
    return 1;
}

int qrep_frame_next_until(const struct target_lane *lane, const struct target_frame *frame, struct target_cursor *cursor,
                          const struct target_cursor *end, struct target_extent *extent)
{
    if (cursor->run < end->run)
        return qrep_frame_next(lane, frame, cursor, UINT64_MAX, extent);
    return cursor->run == end->run && cursor->within < end->within &&
           qrep_frame_next(lane, frame, cursor, end->within - cursor->within, extent);
}

static int is_looked_at(const struct target_lane *lane, const struct target_extent *extent)
{
    return lane->run->undo_fd >= 0 || extent->data == NULL;
}

uint64_t qrep_frame_old_bytes(const struct target_lane *lane, const struct target_frame *frame)
{
    struct target_cursor cursor = {0};
    struct target_extent extent;
    uint64_t bytes = 0;

    while (qrep_frame_next(lane, frame, &cursor, UINT64_MAX, &extent))
        if (is_looked_at(lane, &extent))
            bytes += extent.size;
    return bytes;
}

void qrep_frame_cut_piece(const struct target_lane *lane, struct target_frame *frame)
{
    struct target_cursor cursor = frame->piece;
    struct target_extent extent;
    uint64_t room = frame->room;

    for (;;) {
        struct target_cursor ahead = cursor;
        if (!qrep_frame_next(lane, frame, &ahead, UINT64_MAX, &extent))
            break;
        if (is_looked_at(lane, &extent)) {
            if (extent.size > room) { /* room is whole leaves, so the cut is at a leaf */
                if (room)
                    qrep_frame_next(lane, frame, &cursor, room, &extent);
                break;
            }
            room -= extent.size;
        }
        cursor = ahead;
    }
    frame->piece_end = cursor;
}

int qrep_frame_at_end(const struct target_lane *lane, const struct target_frame *frame)
{
    struct target_extent run;
    return !whole_run(lane, frame, frame->piece_end.run, &run);
}
