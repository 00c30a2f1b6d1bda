#include "undo_restore.h"

#include "blake3.h"
#include "buffers.h"
#include "punch.h"
#include "ring.h"
#include "salvage.h"
#include "window.h"

#include <errno.h>
#include <string.h>

#define BATCHES_MAX 64
#define RING_ENTRIES 512
#define REAP_ROOM 64
#define ZERO_ROOM (1u << 20)
#define WINDOW_SIZE (3 * (size_t)QREP_UNDO_SEGMENT_SIZE) /* at most: a batch may fill a segment */

enum { DEVICE_FILE = 0, UNDO_FILE = 1 };

struct batch {
    const struct qrep_undo_found *found;
    uint8_t *data;
    uint64_t window_end;
    unsigned pending;
    uint64_t asked, moved; /* bytes of the requests of this stage */
    int checked;
    int in_any_order;      /* valid once checked */
    int refused;           /* the medium did not take one of them */
    int applied;           /* its extents are being written, or were */
    uint64_t low, high;    /* the part of the device it touches, valid once checked */
};

struct restorer {
    struct qrep_restore_job *job;
    struct qrep_ring *ring;
    struct qrep_arena arena;
    struct qrep_window window;
    struct qrep_zero_room zero_room;
    struct batch batches[BATCHES_MAX]; /* index modulo BATCHES_MAX */
    size_t asked, applied, done;       /* done <= applied <= asked: batches that were asked for, applied, and released */
    unsigned device_requests;
    int punch;
};

static int fail(struct restorer *restorer, const struct batch *batch, int rc)
{
    if (restorer->job->failed == QREP_UNDO_NO_PLACE)
        restorer->job->failed = batch->found->position;
    return rc;
}

/* ---- a medium that does not take all of it ---- */

/* A run writes round what takes no write by the sector, so the way back has to go by the sector, too. */
static size_t unit_of(const struct restorer *restorer, uint64_t offset, uint64_t size)
{
    uint64_t bits = offset | size | QREP_PAGE_SIZE;
    return restorer->job->sector_size ? restorer->job->sector_size : (size_t)(bits & -bits);
}

/* Does the device hold `data`, of at most half the room? */
static int holds(struct restorer *restorer, const uint8_t *data, size_t size, uint64_t offset)
{
    uint8_t *found = restorer->zero_room.base + ZERO_ROOM / 2;
    return qrep_pread_all(restorer->job->device_fd, found, size, offset) == 0 && memcmp(found, data, size) == 0;
}

/* Write, and halve what fails, down to `unit`. Depth is log2(ZERO_ROOM / 1024). */
static int put_back(struct restorer *restorer, const uint8_t *data, size_t size, uint64_t offset, size_t unit)
{
    int rc = qrep_pwrite_all(restorer->job->device_fd, data, size, offset);
    if (rc == 0 || !qrep_is_medium_error(-rc) || holds(restorer, data, size, offset))
        return qrep_is_medium_error(-rc) ? 0 : rc;
    if (size <= unit)
        return rc;
    size_t half = (size / unit + 1) / 2 * unit;
    rc = put_back(restorer, data, half, offset, unit);
    return rc ? rc : put_back(restorer, data + half, size - half, offset + half, unit);
}

/* A block that takes no write may still hold what it held before the run, because the run could not write it either: then it need not be written.
 * data NULL: zeroes. 0, or -errno. */
static int put_back_or_find(struct restorer *restorer, const uint8_t *data, uint64_t size, uint64_t offset)
{
    size_t room = ZERO_ROOM / 2;
    int rc = 0;

    if (data == NULL)
        memset(restorer->zero_room.base, 0, room);
    for (uint64_t done = 0, part; rc == 0 && done < size; done += part) {
        part = size - done < room ? size - done : room;
        rc = put_back(restorer, data ? data + done : restorer->zero_room.base, part, offset + done, unit_of(restorer, offset + done, part));
    }
    return rc;
}

/* All of the batch once more, in its order; nothing of it is in flight, and no batch after it that touches the same places was begun. */
static int rewrite_batch(struct restorer *restorer, struct batch *batch)
{
    const struct qrep_undo_batch *head = (const void *)batch->data;
    const struct qrep_undo_extent *extents = (const void *)(head + 1);
    const uint8_t *payload = batch->data + qrep_undo_payload_offset(head->extent_count) + head->payload_size;
    int rc = 0;

    for (uint32_t i = head->extent_count; rc == 0 && i-- > 0;) {
        if (extents[i].kind == QREP_UNDO_DATA)
            payload -= extents[i].size;
        rc = put_back_or_find(restorer, extents[i].kind == QREP_UNDO_DATA ? payload : NULL, extents[i].size, extents[i].offset);
    }
    batch->refused = 0;
    batch->moved = batch->asked;
    return rc ? fail(restorer, batch, rc) : 0;
}

static int reap(struct restorer *restorer)
{
    struct qrep_completion done[REAP_ROOM];
    int count = qrep_ring_wait(restorer->ring, done, REAP_ROOM, UINT64_MAX), rc = count < 0 ? count : 0;

    for (int i = 0; i < count; i++) {
        struct batch *batch = &restorer->batches[done[i].tag];
        batch->pending--;
        if (batch->applied)
            restorer->device_requests--;
        if (done[i].result < 0 && batch->applied && qrep_is_medium_error((int)-done[i].result))
            batch->refused = 1;
        else if (done[i].result < 0)
            rc = fail(restorer, batch, (int)done[i].result);
        else
            batch->moved += (uint64_t)done[i].result;
        if (rc == 0 && batch->refused && batch->pending == 0)
            rc = rewrite_batch(restorer, batch);
    }
    return rc;
}

/* ---- reading ahead ---- */

static int ask_batches(struct restorer *restorer)
{
    struct qrep_restore_job *job = restorer->job;

    for (; restorer->asked < job->count && restorer->asked - restorer->done < BATCHES_MAX; restorer->asked++) {
        size_t slot = restorer->asked % BATCHES_MAX;
        struct batch *batch = &restorer->batches[slot];
        memset(batch, 0, sizeof *batch);
        batch->found = &job->batches[restorer->asked];
        uint64_t size = batch->found->size, position = batch->found->position;
        if (size == 0 || size % QREP_PAGE_SIZE || position % QREP_PAGE_SIZE ||
            size > QREP_UNDO_SEGMENT_SIZE - position % QREP_UNDO_SEGMENT_SIZE)
            return fail(restorer, batch, -EINVAL);
        batch->data = qrep_window_take(&restorer->window, size);
        if (batch->data == NULL)
            return 0;
        batch->window_end = restorer->window.tail;
        int rc = qrep_ring_read(restorer->ring, UNDO_FILE, batch->data, size, position, slot);
        if (rc == -EBUSY) {
            restorer->window.tail -= size; /* not taken after all; it is the newest block */
            return 0;
        }
        if (rc)
            return fail(restorer, batch, rc);
        batch->pending = 1;
        batch->asked = size;
    }
    return 0;
}

/* ---- writing back ---- */

static int check_batch(const struct restorer *restorer, const struct batch *batch)
{
    const struct qrep_undo_batch *head = (const void *)batch->data;
    uint8_t digest[QREP_DIGEST_SIZE];

    if (batch->moved != batch->asked)
        return -EBADMSG; /* the file ended inside it */
    if (qrep_undo_batch_peek(head, batch->found->position, batch->found->size))
        return -EBADMSG;
    if (qrep_undo_batch_size(head->extent_count, head->payload_size) != batch->found->size)
        return -EBADMSG;
    if (qrep_undo_batch_check(head, (const void *)(head + 1), restorer->job->device_size))
        return -EBADMSG;
    qrep_blake3_hash(batch->data + qrep_undo_payload_offset(head->extent_count), head->payload_size, digest);
    return memcmp(digest, head->digest, sizeof digest) ? -EBADMSG : 0;
}

/* Find what the batch touches, and whether its extents ascend without overlap: they may then be written in any order. */
static void measure(struct batch *batch)
{
    const struct qrep_undo_batch *head = (const void *)batch->data;
    const struct qrep_undo_extent *extents = (const void *)(head + 1);
    uint64_t end = 0;
    int ascends = 1;

    batch->low = UINT64_MAX;
    batch->high = 0;
    for (uint32_t i = 0; i < head->extent_count; i++) {
        ascends &= extents[i].offset >= end;
        end = extents[i].offset + extents[i].size;
        if (extents[i].offset < batch->low)
            batch->low = extents[i].offset;
        if (end > batch->high)
            batch->high = end;
    }
    batch->in_any_order = ascends;
}

static int touches_one_in_flight(const struct restorer *restorer, const struct batch *batch)
{
    for (size_t i = restorer->done; i < restorer->applied; i++) {
        const struct batch *other = &restorer->batches[i % BATCHES_MAX];
        if (other->pending && other->low < batch->high && batch->low < other->high)
            return 1;
    }
    return 0;
}

static int drain_device(struct restorer *restorer)
{
    while (restorer->device_requests) {
        int rc = reap(restorer);
        if (rc)
            return rc;
    }
    return 0;
}

static int write_extent(struct restorer *restorer, struct batch *batch, const struct qrep_undo_extent *extent, const uint8_t *payload)
{
    struct qrep_restore_job *job = restorer->job;
    int rc;

    if (extent->kind == QREP_UNDO_ZERO) {
        rc = job->is_file ? drain_device(restorer) : 0; /* see punch.h */
        if (rc)
            return rc;
        int64_t written = qrep_make_zero(job->device_fd, extent->offset, extent->size, &restorer->punch, &restorer->zero_room);
        if (written < 0 && qrep_is_medium_error((int)-written))
            written = put_back_or_find(restorer, NULL, extent->size, extent->offset);
        return written < 0 ? fail(restorer, batch, (int)written) : 0;
    }
    while ((rc = qrep_ring_write(restorer->ring, DEVICE_FILE, payload, extent->size, extent->offset,
                                 (uint64_t)(batch - restorer->batches))) == -EBUSY)
        if ((rc = reap(restorer)))
            return rc;
    if (rc)
        return fail(restorer, batch, rc);
    batch->pending++;
    batch->asked += extent->size;
    restorer->device_requests++;
    return 0;
}

/* Last to first: where extents of one batch overlap, the first-logged one is what stays. */
static int write_batch(struct restorer *restorer, struct batch *batch)
{
    const struct qrep_undo_batch *head = (const void *)batch->data;
    const struct qrep_undo_extent *extents = (const void *)(head + 1);
    const uint8_t *payload = batch->data + qrep_undo_payload_offset(head->extent_count) + head->payload_size;
    int rc = 0;

    batch->applied = 1;
    batch->asked = batch->moved = 0;
    for (uint32_t i = head->extent_count; rc == 0 && i-- > 0;) {
        if (extents[i].kind == QREP_UNDO_DATA)
            payload -= extents[i].size;
        rc = write_extent(restorer, batch, &extents[i], payload);
        if (rc == 0 && !batch->in_any_order)
            rc = drain_device(restorer);
        restorer->job->restored += extents[i].size;
    }
    return rc;
}

/* Apply in order what has been read, until one has to wait. */
static int apply_batches(struct restorer *restorer)
{
    while (restorer->applied < restorer->asked) {
        struct batch *batch = &restorer->batches[restorer->applied % BATCHES_MAX];
        if (batch->pending)
            return 0;
        int rc = batch->checked ? 0 : check_batch(restorer, batch);
        if (rc)
            return fail(restorer, batch, rc);
        if (!batch->checked)
            measure(batch);
        batch->checked = 1;
        if (touches_one_in_flight(restorer, batch))
            return 0;
        rc = write_batch(restorer, batch);
        if (rc)
            return rc;
        restorer->applied++;
        qrep_crashpoint("undo-restore-batch");
    }
    return 0;
}

static int release_batches(struct restorer *restorer)
{
    for (; restorer->done < restorer->applied; restorer->done++) {
        struct batch *batch = &restorer->batches[restorer->done % BATCHES_MAX];
        if (batch->pending)
            return 0;
        if (batch->moved != batch->asked)
            return fail(restorer, batch, -ENOSPC);
        qrep_window_release(&restorer->window, batch->window_end);
    }
    return 0;
}

static int restore_all(struct restorer *restorer)
{
    while (restorer->done < restorer->job->count) {
        int rc = ask_batches(restorer);
        if (rc == 0)
            rc = apply_batches(restorer);
        if (rc == 0)
            rc = release_batches(restorer);
        if (rc == 0 && qrep_ring_in_flight(restorer->ring))
            rc = reap(restorer);
        if (rc)
            return rc;
    }
    return 0;
}

/* Where all batches fit at once there is no need for more: memory that is never used takes longer to get than a few batches to put back. */
static size_t window_size(const struct qrep_restore_job *job)
{
    uint64_t size = QREP_PAGE_SIZE;

    for (size_t i = 0; i < job->count && size < WINDOW_SIZE; i++)
        size += job->batches[i].size < WINDOW_SIZE ? qrep_align_up(job->batches[i].size, QREP_PAGE_SIZE) : WINDOW_SIZE;
    return size < WINDOW_SIZE ? (size_t)size : WINDOW_SIZE;
}

int qrep_undo_restore(struct qrep_restore_job *job)
{
    struct qrep_ring_options options = {.backend = job->backend, .entries = RING_ENTRIES};
    size_t window = window_size(job);
    struct restorer restorer = {.job = job, .punch = job->punch};
    int files[] = {[DEVICE_FILE] = job->device_fd, [UNDO_FILE] = job->undo_fd};

    job->restored = 0;
    job->failed = QREP_UNDO_NO_PLACE;
    int rc = qrep_arena_open(&restorer.arena, window + ZERO_ROOM);
    if (rc == 0)
        rc = qrep_ring_open(&restorer.ring, &options);
    if (rc == 0)
        rc = qrep_ring_register_files(restorer.ring, files, 2);
    if (rc == 0) {
        rc = qrep_ring_register_buffers(restorer.ring, restorer.arena.base, restorer.arena.size);
        restorer.window = (struct qrep_window){.base = restorer.arena.base, .size = window};
        restorer.zero_room = (struct qrep_zero_room){.base = restorer.arena.base + window, .size = ZERO_ROOM};
        if (rc >= 0)
            rc = restore_all(&restorer);
    }
    qrep_ring_close(restorer.ring); /* a drain, also after a failure (R12) */
    qrep_arena_close(&restorer.arena);
    return rc;
}
