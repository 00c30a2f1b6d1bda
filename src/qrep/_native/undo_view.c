#include "undo_view_internal.h"

#include "buffers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int qrep_undo_view_open(struct qrep_undo_view **opened, int device_fd, uint64_t size, uint32_t align, uint64_t cell_size, const _Atomic uint64_t *epoch)
{
    struct qrep_undo_view *view = calloc(1, sizeof *view);
    int rc = -ENOMEM;

    if (view == NULL)
        return rc;
    view->device_fd = device_fd;
    view->size = size;
    view->align = align;
    view->cell_size = cell_size;
    view->cells = (size + cell_size - 1) / cell_size;
    view->epoch_now = epoch;
    view->whole = NO_BATCH;
    pthread_mutex_init(&view->lock, NULL);
    view->heads = malloc(view->cells * sizeof *view->heads);
    if (view->heads != NULL)
        rc = qrep_arena_open(&view->arena, VIEW_WINDOW + VIEW_SLICE);
    if (rc) {
        qrep_undo_view_close(view);
        return rc;
    }
    memset(view->heads, 0xff, view->cells * sizeof *view->heads);
    view->window = view->arena.base;
    view->slice = view->arena.base + VIEW_WINDOW;
    *opened = view;
    return 0;
}

void qrep_undo_view_close(struct qrep_undo_view *view)
{
    if (view == NULL)
        return;
    qrep_undo_view_keep(view, 0);
    qrep_arena_close(&view->arena);
    pthread_mutex_destroy(&view->lock);
    free(view->heads);
    free(view->files);
    free(view->batches);
    free(view->nodes);
    free(view->candidates);
    free(view);
}

void qrep_undo_view_set_epoch(struct qrep_undo_view *view, uint64_t epoch)
{
    pthread_mutex_lock(&view->lock);
    view->epoch = epoch;
    pthread_mutex_unlock(&view->lock);
}

uint64_t qrep_undo_view_batches(const struct qrep_undo_view *view) { return view->batch_count; }

static void forget_tables(struct qrep_undo_view *view)
{
    for (unsigned i = 0; i < VIEW_TABLES; i++) {
        free(view->tables[i].extents);
        view->tables[i].extents = NULL;
    }
    view->whole = NO_BATCH;
}

static int link_batch(struct qrep_undo_view *view, uint32_t number)
{
    const struct view_batch *batch = &view->batches[number];

    for (uint64_t cell = batch->low / view->cell_size; cell <= (batch->high - 1) / view->cell_size; cell++) {
        if (view->node_count == view->node_room) {
            size_t room = view->node_room ? 2 * view->node_room : 1024;
            struct view_node *grown = realloc(view->nodes, room * sizeof *grown);
            if (grown == NULL || room >= NO_BATCH)
                return -ENOMEM;
            view->nodes = grown;
            view->node_room = room;
        }
        view->nodes[view->node_count] = (struct view_node){.batch = number, .next = view->heads[cell]};
        view->heads[cell] = (uint32_t)view->node_count++;
    }
    return 0;
}

static void keep_locked(struct qrep_undo_view *view, uint32_t count)
{
    size_t kept = 0;

    if (view->file_count <= count)
        return;
    for (uint32_t i = count; i < view->file_count; i++)
        free(view->files[i].cursors);
    view->file_count = count;
    memset(view->heads, 0xff, view->cells * sizeof *view->heads);
    view->node_count = 0;
    forget_tables(view);
    for (size_t i = 0; i < view->batch_count; i++)
        if (view->batches[i].file < count) {
            view->batches[kept] = view->batches[i];
            link_batch(view, (uint32_t)kept++); /* there was room for these nodes before */
        }
    view->batch_count = kept;
}

void qrep_undo_view_keep(struct qrep_undo_view *view, uint32_t count)
{
    pthread_mutex_lock(&view->lock);
    keep_locked(view, count);
    pthread_mutex_unlock(&view->lock);
}

/* ---- finding batches ---- */

int view_pread(int fd, uint8_t *data, uint64_t size, uint64_t offset, uint64_t *got)
{
    *got = 0;
    while (*got < size) {
        ssize_t part = pread(fd, data + *got, size - *got, (off_t)(offset + *got));
        if (part < 0 && errno == EINTR)
            continue;
        if (part < 0)
            return -errno;
        *got += (uint64_t)part;
        if (part == 0 || part % 512)
            return 0; /* the end of the file; an O_DIRECT read could not go on from here anyway */
    }
    return 0;
}

static int keep_batch(struct qrep_undo_view *view, uint32_t file, const struct qrep_undo_batch *head)
{
    const struct qrep_undo_extent *extents = (const void *)(head + 1);
    uint64_t size = qrep_undo_batch_size(head->extent_count, head->payload_size);
    struct view_batch found = {
        .position = head->position, .sequence = head->sequence, .low = UINT64_MAX, .pages = (uint32_t)(size / QREP_PAGE_SIZE), .file = file,
    };

    for (uint32_t i = 0; i < head->extent_count; i++) {
        uint64_t end = extents[i].offset + extents[i].size;
        found.low = extents[i].offset < found.low ? extents[i].offset : found.low;
        found.high = end > found.high ? end : found.high;
    }
    if (found.high <= found.low)
        return 0;
    if (found.high > view->size) /* the table was checked against the size of the file's volume */
        return -EBADMSG;
    if (view->batch_count >= QREP_VIEW_BATCHES_MAX)
        return -E2BIG;
    if (view->batch_count == view->batch_room) {
        size_t room = view->batch_room ? 2 * view->batch_room : 1024;
        struct view_batch *grown = realloc(view->batches, room * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        view->batches = grown;
        view->batch_room = room;
    }
    view->batches[view->batch_count] = found;
    int rc = link_batch(view, (uint32_t)view->batch_count);
    if (rc == 0)
        view->batch_count++;
    return rc;
}

/* The head of a batch of this file at `position`, its table checked, in the window. *loaded: bytes of the file from *start on that are there.
 * 0 and *head; -ENOENT or -EBADMSG: none; or -errno of reading. */
static int look_at(struct qrep_undo_view *view, const struct view_file *file, uint64_t position, uint64_t end, const struct qrep_undo_batch **head)
{
    uint64_t need = sizeof **head;
    int rc;

    for (;;) {
        if (position < view->window_start || position + need > view->window_start + view->window_size) {
            uint64_t size = end - position < VIEW_LOOK ? end - position : VIEW_LOOK, got;
            if (size < qrep_align_up(need, QREP_PAGE_SIZE) && qrep_align_up(need, QREP_PAGE_SIZE) <= end - position)
                size = qrep_align_up(need, QREP_PAGE_SIZE);
            if (size < need)
                return -ENOENT;
            view->window_size = 0;
            view->whole = NO_BATCH;
            rc = view_pread(file->fd, view->window, size, position, &got);
            if (rc)
                return rc;
            view->window_start = position;
            view->window_size = got;
            if (got < need)
                return -ENOENT;
        }
        *head = (const void *)(view->window + (position - view->window_start));
        if (need > sizeof **head)
            break;
        rc = qrep_undo_batch_peek(*head, position, end - position);
        if (rc)
            return rc;
        if ((*head)->attempt != file->attempt || memcmp((*head)->base_id, file->base_id, QREP_ID_SIZE))
            return -ENOENT;
        need += qrep_undo_batch_table_size((*head)->extent_count);
    }
    return qrep_undo_batch_check(*head, (const void *)(*head + 1), file->volume_size);
}

static int is_no_batch(int rc) { return rc == -ENOENT || rc == -EBADMSG; }

/* The batches of a segment that grows no more, added to *count. What stands behind a gap tells whether what was in the gap had been flushed. */
static int index_segment(struct qrep_undo_view *view, uint32_t number, uint64_t position, uint64_t end, uint64_t *count)
{
    const struct view_file *file = &view->files[number];
    const struct qrep_undo_batch *head;
    uint64_t gap = QREP_UNDO_NO_PLACE;

    while (end - position >= QREP_PAGE_SIZE) {
        int rc = look_at(view, file, position, end, &head);
        if (rc == 0) {
            if (gap < head->flushed)
                return -EBADMSG;
            position += qrep_undo_batch_size(head->extent_count, head->payload_size);
            rc = keep_batch(view, number, head);
            if (rc)
                return rc;
            ++*count;
            continue;
        }
        if (!is_no_batch(rc))
            return rc;
        if (gap == QREP_UNDO_NO_PLACE)
            gap = position;
        off_t data = lseek(file->fd, (off_t)(position + QREP_PAGE_SIZE), SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            return 0; /* a hole to the end of the file */
        uint64_t next = data < 0 ? position + QREP_PAGE_SIZE : (uint64_t)data / QREP_PAGE_SIZE * QREP_PAGE_SIZE;
        if (next >= end)
            return 0;
        position = next > position ? next : position + QREP_PAGE_SIZE;
    }
    return 0;
}

/* told: batches that there are at least. Behind the last of a segment no other tells that it was flushed. */
static int index_whole(struct qrep_undo_view *view, uint32_t number, uint64_t told)
{
    off_t size = lseek(view->files[number].fd, 0, SEEK_END);
    int rc = size < 0 ? -errno : 0;
    uint64_t count = 0;

    size -= size % QREP_PAGE_SIZE; /* a batch is whole pages */
    view->window_size = 0;
    for (uint64_t position = QREP_UNDO_SEGMENT_SIZE; rc == 0 && position < (uint64_t)size; position += QREP_UNDO_SEGMENT_SIZE) {
        uint64_t end = position + QREP_UNDO_SEGMENT_SIZE;
        rc = index_segment(view, number, position, end < (uint64_t)size ? end : (uint64_t)size, &count);
    }
    return rc == 0 && count < told ? -EBADMSG : rc;
}

/* What was marked since the last look. Everything below a mark is flushed: what is not there is lost. */
static int index_marked(struct qrep_undo_view *view, uint32_t number)
{
    struct view_file *file = &view->files[number];
    uint64_t version = atomic_load(&file->reach->version);
    uint64_t segments = qrep_undo_reach_segments(file->reach_size);
    const struct qrep_undo_batch *head;

    if (version == file->seen)
        return 0;
    if (atomic_load(&file->reach->lost))
        return -EOVERFLOW;
    off_t size = lseek(file->fd, 0, SEEK_END);
    if (size < 0)
        return -errno;
    uint64_t used = ((uint64_t)size + QREP_UNDO_SEGMENT_SIZE - 1) / QREP_UNDO_SEGMENT_SIZE;
    segments = used < segments ? used : segments;
    if (segments > file->cursor_count) {
        uint32_t *grown = realloc(file->cursors, segments * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        memset(grown + file->cursor_count, 0, (segments - file->cursor_count) * sizeof *grown);
        file->cursors = grown;
        file->cursor_count = segments;
    }
    for (uint64_t segment = 1; segment < segments; segment++) {
        uint32_t mark = atomic_load(&file->reach->marks[segment]);
        uint64_t start = segment * QREP_UNDO_SEGMENT_SIZE, end = start + (uint64_t)mark * QREP_PAGE_SIZE;
        if (mark > QREP_UNDO_SEGMENT_SIZE / QREP_PAGE_SIZE)
            return -EBADMSG;
        view->window_size = 0; /* what was read before may have been in the making */
        while (file->cursors[segment] < mark) {
            int rc = look_at(view, file, start + (uint64_t)file->cursors[segment] * QREP_PAGE_SIZE, end, &head);
            if (rc == 0)
                rc = keep_batch(view, number, head);
            if (rc)
                return is_no_batch(rc) ? -EBADMSG : rc;
            file->cursors[segment] += (uint32_t)(qrep_undo_batch_size(head->extent_count, head->payload_size) / QREP_PAGE_SIZE);
        }
    }
    file->seen = version;
    return 0;
}

int view_refresh(struct qrep_undo_view *view)
{
    for (uint32_t i = 0; i < view->file_count; i++)
        if (view->files[i].reach != NULL) {
            int rc = index_marked(view, i);
            if (rc)
                return rc;
        }
    return 0;
}

int qrep_undo_view_add(struct qrep_undo_view *view, int undo_fd, const struct qrep_undo_header *header, const struct qrep_undo_reach *reach, size_t reach_size)
{
    pthread_mutex_lock(&view->lock);
    uint32_t number = view->file_count;
    struct view_file *grown = realloc(view->files, (number + 1) * sizeof *grown);
    int rc = grown == NULL ? -ENOMEM : 0;
    if (rc == 0) {
        view->files = grown;
        grown[number] = (struct view_file){
            .fd = undo_fd, .attempt = header->attempt, .volume_size = header->size, .reach = reach, .reach_size = reach_size, .seen = UINT64_MAX,
        };
        memcpy(grown[number].base_id, header->base_id, QREP_ID_SIZE);
        view->file_count++;
        rc = reach ? index_marked(view, number) : index_whole(view, number, header->batches);
        if (rc)
            keep_locked(view, number);
    }
    pthread_mutex_unlock(&view->lock);
    return rc;
}
