#include "undo_scan.h"

#include "buffers.h"
#include "punch.h"
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define READ_SIZE (1u << 20) /* per request; a segment is 16 of them (bench/RESULTS.md, read: what is in flight) */

struct reader {
    struct qrep_ring *ring;
    struct qrep_arena arena; /* two segments */
    uint64_t end;            /* of what is read */
    uint64_t next;           /* place of the next segment to ask for */
    unsigned pending[2];     /* requests of each half */
};

static int ask_segment(struct reader *reader, int half)
{
    uint64_t left = reader->end > reader->next ? reader->end - reader->next : 0;
    uint64_t size = left < QREP_UNDO_SEGMENT_SIZE ? left : QREP_UNDO_SEGMENT_SIZE;
    uint8_t *place = reader->arena.base + (size_t)half * QREP_UNDO_SEGMENT_SIZE;

    size -= size % QREP_PAGE_SIZE; /* a batch is whole pages */
    for (uint64_t done = 0; done < size; done += READ_SIZE) {
        size_t part = size - done < READ_SIZE ? (size_t)(size - done) : READ_SIZE;
        int rc = qrep_ring_read(reader->ring, 0, place + done, part, reader->next + done, (uint64_t)half);
        if (rc)
            return rc;
        reader->pending[half]++;
    }
    reader->next += QREP_UNDO_SEGMENT_SIZE;
    return qrep_ring_submit(reader->ring);
}

static int wait_segment(struct reader *reader, int half)
{
    struct qrep_completion done[16];
    int failed = 0;

    while (reader->pending[half]) {
        int count = qrep_ring_wait(reader->ring, done, 16, UINT64_MAX);
        if (count < 0)
            return count;
        for (int i = 0; i < count; i++) {
            reader->pending[done[i].tag]--;
            if (done[i].result < 0)
                failed = (int)done[i].result;
        }
    }
    return failed;
}

static int keep(struct qrep_undo_list *list, const struct qrep_undo_batch *batch)
{
    if (list->count == list->room) {
        size_t room = list->room ? 2 * list->room : 1024;
        struct qrep_undo_found *grown = realloc(list->found, room * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        list->found = grown;
        list->room = room;
    }
    list->found[list->count++] = (struct qrep_undo_found){
        .position = batch->position,
        .size = qrep_undo_batch_size(batch->extent_count, batch->payload_size),
        .sequence = batch->sequence,
    };
    return 0;
}

static int scan_segment(struct qrep_undo_list *list, const struct qrep_undo_header *header, const uint8_t *segment, uint64_t size, uint64_t position)
{
    const struct qrep_undo_batch *batch;
    struct qrep_undo_scan scan = {
        .segment = segment,
        .size = size,
        .position = position,
        .device_size = header->size,
        .attempt = header->attempt,
        .gap = QREP_UNDO_NO_PLACE,
        .damaged = QREP_UNDO_NO_PLACE,
    };
    memcpy(scan.base_id, header->base_id, QREP_ID_SIZE);
    while (qrep_undo_scan_next(&scan, &batch)) {
        int rc = keep(list, batch);
        if (rc)
            return rc;
    }
    if (scan.damaged < list->damaged)
        list->damaged = scan.damaged;
    return 0;
}

static int scan_segments(struct reader *reader, const struct qrep_undo_header *header, struct qrep_undo_list *list)
{
    uint64_t position = reader->next;
    int half = 0, rc = ask_segment(reader, half);

    for (; rc == 0 && position < reader->end; position += QREP_UNDO_SEGMENT_SIZE) {
        uint64_t left = reader->end - position;
        uint64_t size = left < QREP_UNDO_SEGMENT_SIZE ? left : QREP_UNDO_SEGMENT_SIZE;
        rc = ask_segment(reader, !half);
        if (rc == 0)
            rc = wait_segment(reader, half);
        if (rc == 0)
            rc = scan_segment(list, header, reader->arena.base + (size_t)half * QREP_UNDO_SEGMENT_SIZE, size - size % QREP_PAGE_SIZE, position);
        half = !half;
    }
    return rc;
}

/* What one request reads needs no ring: most files hold a segment's beginning only. */
static int scan_small(int undo_fd, uint64_t start, uint64_t size, const struct qrep_undo_header *header, struct qrep_undo_list *list)
{
    void *room = NULL;

    if (posix_memalign(&room, QREP_PAGE_SIZE, (size_t)size))
        return -ENOMEM;
    memset(room, 0, (size_t)size);
    int rc = qrep_pread_all(undo_fd, room, (size_t)size, start);
    if (rc == 0 || rc == -ENODATA) /* the file ended sooner: as a hole */
        rc = scan_segment(list, header, room, size, start);
    free(room);
    return rc;
}

int qrep_undo_scan_file(int undo_fd, uint64_t start, uint64_t end, const struct qrep_undo_header *header, uint32_t backend, struct qrep_undo_list *list)
{
    struct qrep_ring_options options = {.backend = backend, .entries = 64};
    struct reader reader = {.next = start, .end = end};

    memset(list, 0, sizeof *list);
    list->damaged = QREP_UNDO_NO_PLACE;
    if (end <= start)
        return 0;
    uint64_t batches = end - start;
    int rc;
    batches -= batches % QREP_PAGE_SIZE; /* a batch is whole pages */
    if (batches == 0)
        return 0;
    if (batches <= READ_SIZE) {
        rc = scan_small(undo_fd, start, batches, header, list);
        if (rc)
            qrep_undo_list_free(list);
        return rc;
    }
    rc = qrep_arena_open(&reader.arena, batches > QREP_UNDO_SEGMENT_SIZE ? 2 * (size_t)QREP_UNDO_SEGMENT_SIZE : (size_t)batches);
    if (rc == 0)
        rc = qrep_ring_open(&reader.ring, &options);
    if (rc == 0)
        rc = qrep_ring_register_files(reader.ring, &undo_fd, 1);
    if (rc == 0) {
        rc = qrep_ring_register_buffers(reader.ring, reader.arena.base, reader.arena.size);
        if (rc >= 0)
            rc = scan_segments(&reader, header, list);
    }
    qrep_ring_close(reader.ring); /* sees what is still being read complete */
    qrep_arena_close(&reader.arena);
    if (rc)
        qrep_undo_list_free(list);
    return rc;
}

void qrep_undo_list_free(struct qrep_undo_list *list)
{
    free(list->found);
    memset(list, 0, sizeof *list);
    list->damaged = QREP_UNDO_NO_PLACE;
}
