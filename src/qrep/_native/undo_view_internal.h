/* What undo_view.c (the index) and undo_view_read.c (the reading) share. */
#ifndef QREP_UNDO_VIEW_INTERNAL_H
#define QREP_UNDO_VIEW_INTERNAL_H

#include "buffers.h"
#include "undo_view.h"

#include <pthread.h>

#define NO_BATCH UINT32_MAX
#define VIEW_WINDOW ((size_t)QREP_UNDO_SEGMENT_SIZE) /* a batch may fill a segment */
#define VIEW_SLICE ((size_t)QREP_VIEW_PIECE + 2 * QREP_PAGE_SIZE)
#define VIEW_LOOK (128u << 10)      /* read at a time while batches are looked for */
#define VIEW_SMALL (256u << 10)     /* a batch up to this size is read whole each time */
#define VIEW_TABLES 256
#define VIEW_TABLE_MAX (64u << 10)  /* bytes of a table that is remembered: 16 MiB of them at most */

struct view_batch {
    uint64_t position, sequence;
    uint64_t low, high;  /* the part of the volume it touches */
    uint32_t pages;      /* bytes / QREP_PAGE_SIZE of all of it */
    uint32_t file : 31;
    uint32_t proven : 1; /* its payload was read and is what its digest says */
};

struct view_node { /* of the list of batches that touch a cell */
    uint32_t batch, next;
};

struct view_table {
    uint32_t batch;
    struct qrep_undo_batch head;
    struct qrep_undo_extent *extents;
};

struct view_file {
    int fd;
    uint8_t base_id[QREP_ID_SIZE];
    uint64_t attempt, volume_size;
    const struct qrep_undo_reach *reach;
    size_t reach_size;
    uint64_t seen;     /* version of the marks that is indexed */
    uint32_t *cursors; /* [segment]: pages of it that are indexed */
    uint64_t cursor_count;
};

struct qrep_undo_view {
    int device_fd;
    uint64_t size, cell_size, cells, epoch;
    uint32_t align;
    const _Atomic uint64_t *epoch_now;
    pthread_mutex_t lock; /* of all that follows */
    struct view_file *files;
    uint32_t file_count;
    struct view_batch *batches;
    size_t batch_count, batch_room;
    uint32_t *heads; /* [cell] */
    struct view_node *nodes;
    size_t node_count, node_room;
    uint32_t *candidates; /* of the read that holds the lock */
    size_t candidate_room;
    struct qrep_arena arena;
    uint8_t *window, *slice;
    uint64_t window_start, window_size; /* what of a file is in the window while batches are looked for */
    uint32_t whole;                     /* the batch that is in the window, proven; or NO_BATCH */
    struct view_table tables[VIEW_TABLES]; /* [batch % VIEW_TABLES] */
};

/* Read up to `size` bytes; *got is less only at the end of the file. 0 or -errno. */
int view_pread(int fd, uint8_t *data, uint64_t size, uint64_t offset, uint64_t *got);
/* Index what the growing files have been marked since. 0 or what qrep_undo_view_read() returns. */
int view_refresh(struct qrep_undo_view *view);

#endif
