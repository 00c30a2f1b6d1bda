#include "undo_view_internal.h"

#include "blake3.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512u
#define PIECE_SECTORS (QREP_VIEW_PIECE / SECTOR)

/* A piece of a read: which of its sectors have their content from a before-image already. */
struct piece {
    uint8_t *data;
    uint64_t offset, size;
    unsigned left; /* sectors without one */
    uint8_t done[PIECE_SECTORS];
};

/* ---- the device ---- */

static int read_device(const struct qrep_undo_view *view, uint8_t *data, uint64_t size, uint64_t offset)
{
    uint64_t start = offset / view->align * view->align, end = qrep_align_up(offset + size, view->align), got;
    int rc;

    if (start == offset && end == offset + size && (uintptr_t)data % view->align == 0) {
        rc = view_pread(view->device_fd, data, size, offset, &got);
        return rc ? rc : got == size ? 0 : -ENODATA;
    }
    uint8_t *room;
    if (posix_memalign((void **)&room, QREP_PAGE_SIZE, end - start))
        return -ENOMEM;
    rc = view_pread(view->device_fd, room, end - start, start, &got); /* it may end within the last block of a file */
    if (rc == 0 && got < offset - start + size)
        rc = -ENODATA;
    if (rc == 0)
        memcpy(data, room + (offset - start), size);
    free(room);
    return rc;
}

/* ---- batches ---- */

static int check_head(const struct qrep_undo_view *view, const struct view_batch *batch, const struct qrep_undo_batch *head, uint64_t available)
{
    const struct view_file *file = &view->files[batch->file];

    if (qrep_undo_batch_peek(head, batch->position, available))
        return -EBADMSG;
    if (head->attempt != file->attempt || memcmp(head->base_id, file->base_id, QREP_ID_SIZE) || head->sequence != batch->sequence)
        return -EBADMSG;
    return qrep_undo_batch_size(head->extent_count, head->payload_size) == (uint64_t)batch->pages * QREP_PAGE_SIZE ? 0 : -EBADMSG;
}

/* All of a batch into the window, payload and all checked. */
static int load_whole(struct qrep_undo_view *view, uint32_t number)
{
    struct view_batch *batch = &view->batches[number];
    const struct view_file *file = &view->files[batch->file];
    const struct qrep_undo_batch *head = (const void *)view->window;
    uint64_t size = (uint64_t)batch->pages * QREP_PAGE_SIZE, got;
    uint8_t digest[QREP_DIGEST_SIZE];

    if (view->whole == number)
        return 0;
    view->whole = NO_BATCH;
    view->window_size = 0;
    int rc = view_pread(file->fd, view->window, size, batch->position, &got);
    if (rc)
        return rc;
    if (got != size || check_head(view, batch, head, size) || qrep_undo_batch_check(head, (const void *)(head + 1), file->volume_size))
        return -EBADMSG;
    qrep_blake3_hash(view->window + qrep_undo_payload_offset(head->extent_count), head->payload_size, digest);
    if (memcmp(digest, head->digest, sizeof digest))
        return -EBADMSG;
    view->whole = number;
    batch->proven = 1;
    return 0;
}

/* The table of a batch that is not read whole, from memory or from the start of the batch. */
static int load_table(struct qrep_undo_view *view, uint32_t number, const struct view_table **found)
{
    const struct view_batch *batch = &view->batches[number];
    const struct view_file *file = &view->files[batch->file];
    struct view_table *table = &view->tables[number % VIEW_TABLES];
    uint64_t size = (uint64_t)batch->pages * QREP_PAGE_SIZE, ask = QREP_PAGE_SIZE, got;
    const struct qrep_undo_batch *head = (const void *)view->window;

    *found = table;
    if (table->extents != NULL && table->batch == number)
        return 0;
    view->whole = NO_BATCH;
    view->window_size = 0;
    for (int step = 0; step < 2; step++) { /* the first page says how long the table is */
        int rc = view_pread(file->fd, view->window, ask, batch->position, &got);
        if (rc)
            return rc;
        if (got != ask || check_head(view, batch, head, size))
            return -EBADMSG;
        ask = qrep_undo_payload_offset(head->extent_count);
        if (ask <= got)
            break;
    }
    if (ask > got || qrep_undo_batch_check(head, (const void *)(head + 1), file->volume_size))
        return -EBADMSG;
    uint64_t bytes = qrep_undo_batch_table_size(head->extent_count);
    if (bytes > VIEW_TABLE_MAX)
        return load_whole(view, number);
    free(table->extents);
    table->extents = malloc(bytes);
    if (table->extents == NULL)
        return -ENOMEM;
    memcpy(table->extents, head + 1, bytes);
    table->head = *head;
    table->batch = number;
    return 0;
}

/* ---- laying before-images over a piece ---- */

/* Bytes [from, to) of the volume, which one DATA extent holds from `within` on in the payload. */
static int take_payload(struct qrep_undo_view *view, uint32_t number, uint32_t extent_count, uint64_t within, uint8_t *data, uint64_t size)
{
    const struct view_batch *batch = &view->batches[number];
    uint64_t at = qrep_undo_payload_offset(extent_count) + within, got;

    if (view->whole == number) {
        memcpy(data, view->window + at, size);
        return 0;
    }
    uint64_t start = at / QREP_PAGE_SIZE * QREP_PAGE_SIZE, ask = qrep_align_up(at + size, QREP_PAGE_SIZE) - start;
    int rc = view_pread(view->files[batch->file].fd, view->slice, ask, batch->position + start, &got);
    if (rc == 0 && got != ask)
        rc = -EBADMSG;
    if (rc == 0)
        memcpy(data, view->slice + (at - start), size);
    return rc;
}

/* One extent: its part of the piece, run by run of sectors that have nothing older yet. */
static int lay_extent(struct qrep_undo_view *view, struct piece *piece, uint32_t number, uint32_t extent_count, const struct qrep_undo_extent *extent,
                      uint64_t payload)
{
    uint64_t from = extent->offset > piece->offset ? extent->offset : piece->offset;
    uint64_t end = extent->offset + extent->size, to = end < piece->offset + piece->size ? end : piece->offset + piece->size;

    while (from < to) {
        uint64_t first = (from - piece->offset) / SECTOR, last = first;
        if (piece->done[first]) {
            from += SECTOR;
            continue;
        }
        while (piece->offset + last * SECTOR < to && !piece->done[last])
            piece->done[last++] = 1;
        uint64_t size = (last - first) * SECTOR;
        uint8_t *data = piece->data + (from - piece->offset);
        if (extent->kind == QREP_UNDO_ZERO)
            memset(data, 0, size);
        else {
            int rc = take_payload(view, number, extent_count, payload + (from - extent->offset), data, size);
            if (rc)
                return rc;
        }
        piece->left -= (unsigned)(last - first);
        from += size;
    }
    return 0;
}

static int lay_batch(struct qrep_undo_view *view, struct piece *piece, uint32_t number)
{
    struct view_batch *batch = &view->batches[number];
    const struct view_table *table = NULL;
    const struct qrep_undo_batch *head = (const void *)view->window;
    const struct qrep_undo_extent *extents = (const void *)(head + 1);
    uint64_t payload = 0;
    int rc;

    if (view->whole != number && batch->proven && (uint64_t)batch->pages * QREP_PAGE_SIZE > VIEW_SMALL)
        rc = load_table(view, number, &table);
    else
        rc = load_whole(view, number);
    if (rc)
        return rc;
    if (view->whole != number) {
        head = &table->head;
        extents = table->extents;
    }
    /* In their order: where extents of a batch overlap, the first counts. */
    for (uint32_t i = 0; i < head->extent_count; i++) {
        if (extents[i].offset < piece->offset + piece->size && piece->offset < extents[i].offset + extents[i].size) {
            rc = lay_extent(view, piece, number, head->extent_count, &extents[i], payload);
            if (rc)
                return rc;
        }
        if (extents[i].kind == QREP_UNDO_DATA)
            payload += extents[i].size;
    }
    return 0;
}

static int is_older(const struct view_batch *a, const struct view_batch *b)
{
    return a->file != b->file ? a->file < b->file : a->sequence < b->sequence;
}

static int compare_age(const void *a, const void *b, void *context)
{
    const struct view_batch *batches = context, *first = &batches[*(const uint32_t *)a], *second = &batches[*(const uint32_t *)b];
    return is_older(first, second) ? -1 : is_older(second, first);
}

/* Batches that touch the piece, oldest first; a batch that touches several cells of it is there several times, which changes nothing. */
static int collect(struct qrep_undo_view *view, const struct piece *piece, size_t *count)
{
    uint64_t end = piece->offset + piece->size;

    *count = 0;
    for (uint64_t cell = piece->offset / view->cell_size; cell <= (end - 1) / view->cell_size; cell++)
        for (uint32_t node = view->heads[cell]; node != NO_BATCH; node = view->nodes[node].next) {
            const struct view_batch *batch = &view->batches[view->nodes[node].batch];
            if (batch->low >= end || batch->high <= piece->offset)
                continue;
            if (*count == view->candidate_room) {
                size_t room = view->candidate_room ? 2 * view->candidate_room : 256;
                uint32_t *grown = realloc(view->candidates, room * sizeof *grown);
                if (grown == NULL)
                    return -ENOMEM;
                view->candidates = grown;
                view->candidate_room = room;
            }
            view->candidates[(*count)++] = view->nodes[node].batch;
        }
    if (*count) /* else there may be no array yet */
        qsort_r(view->candidates, *count, sizeof *view->candidates, compare_age, view->batches);
    return 0;
}

static int lay_over(struct qrep_undo_view *view, struct piece *piece)
{
    size_t count;
    int rc = view_refresh(view);

    if (rc == 0)
        rc = collect(view, piece, &count);
    for (size_t i = 0; rc == 0 && piece->left && i < count; i++)
        rc = lay_batch(view, piece, view->candidates[i]);
    return rc;
}

static int read_piece(struct qrep_undo_view *view, uint8_t *data, uint64_t size, uint64_t offset)
{
    struct piece piece = {.data = data, .offset = offset, .size = size, .left = (unsigned)(size / SECTOR)};

    pthread_mutex_lock(&view->lock);
    uint64_t epoch = view->epoch;
    pthread_mutex_unlock(&view->lock);
    if (atomic_load(view->epoch_now) != epoch)
        return -ESTALE;
    int rc = read_device(view, data, size, offset);
    if (rc)
        return rc;
    /* The device first, then the epoch, then the marks: see undo_view.h. */
    atomic_thread_fence(memory_order_seq_cst);
    pthread_mutex_lock(&view->lock);
    if (atomic_load(view->epoch_now) != epoch || view->epoch != epoch)
        rc = -ESTALE;
    else
        rc = lay_over(view, &piece);
    pthread_mutex_unlock(&view->lock);
    return rc;
}

int qrep_undo_view_read(struct qrep_undo_view *view, uint8_t *data, uint64_t size, uint64_t offset)
{
    if (offset % SECTOR || size % SECTOR || offset > view->size || size > view->size - offset)
        return -EINVAL;
    while (size) {
        uint64_t part = QREP_VIEW_PIECE - offset % QREP_VIEW_PIECE;
        part = part < size ? part : size;
        int rc = read_piece(view, data, part, offset);
        if (rc)
            return rc;
        data += part;
        offset += part;
        size -= part;
    }
    return 0;
}
