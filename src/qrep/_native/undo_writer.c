#include "undo_writer.h"

#include "blake3.h"
#include "flush.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FLUSH_WAIT_MS 5000

void qrep_undo_writer_start(struct qrep_undo_writer *writer, struct qrep_target_run *run)
{
    memset(writer, 0, sizeof *writer);
    writer->run = run;
}

/* Take the next segment of the file for this lane, its blocks allocated: a full file system shows here, before anything is overwritten. */
static int take_segment(struct qrep_undo_writer *writer)
{
    struct qrep_target_run *run = writer->run;
    uint64_t position = atomic_load(&run->undo_next);

    do {
        if (position > run->undo_limit || run->undo_limit - position < QREP_UNDO_SEGMENT_SIZE)
            return -ENOSPC;
    } while (!atomic_compare_exchange_weak(&run->undo_next, &position, position + QREP_UNDO_SEGMENT_SIZE));

    int rc;
    do
        rc = fallocate(run->undo_fd, 0, (off_t)position, QREP_UNDO_SEGMENT_SIZE) ? -errno : 0;
    while (rc == -EINTR);
    if (rc == -EDQUOT || rc == -EFBIG)
        return -ENOSPC;
    if (rc && rc != -EOPNOTSUPP) /* not offered: then the batch's own write is what meets a full file system, still before any overwrite */
        return rc;
    writer->next = position;
    writer->end = position + QREP_UNDO_SEGMENT_SIZE;
    writer->flushed_until = 0;
    return 0;
}

int qrep_undo_build(struct qrep_undo_writer *writer, uint8_t *payload, uint64_t payload_size, const struct qrep_undo_extent *extents,
                    uint32_t count, struct qrep_undo_place *place)
{
    struct qrep_target_run *run = writer->run;
    uint64_t front = qrep_undo_payload_offset(count);
    uint64_t size = qrep_undo_batch_size(count, payload_size);

    if (writer->end - writer->next < size) {
        int rc = take_segment(writer);
        if (rc)
            return rc;
    }

    uint8_t *start = payload - front;
    uint64_t table_end = sizeof(struct qrep_undo_batch) + qrep_undo_batch_table_size(count);
    struct qrep_undo_batch batch = {
        .extent_count = count,
        .attempt = run->base.attempt,
        /* Taken after the before-image was read and before its place is overwritten: whoever reads what this lane is about to write gets a higher
         * number, and the lowest number of a leaf always belongs to its committed content. */
        .sequence = atomic_fetch_add(&run->undo_sequence, 1),
        .position = writer->next,
        .payload_size = payload_size,
        .flushed = writer->flushed_until,
    };
    memcpy(batch.base_id, run->base_id, QREP_ID_SIZE);
    qrep_blake3_hash(payload, payload_size, batch.digest);
    qrep_undo_batch_seal(&batch, extents);
    memcpy(start, &batch, sizeof batch);
    memcpy(start + sizeof batch, extents, qrep_undo_batch_table_size(count));
    memset(start + table_end, 0, front - table_end);
    memset(payload + payload_size, 0, size - front - payload_size);

    unsigned slot = writer->built % QREP_UNDO_BATCHES_MAX;
    writer->ends[slot] = writer->next + size;
    writer->complete[slot] = 0;
    *place = (struct qrep_undo_place){.start = start, .size = size, .position = writer->next, .number = writer->built++};
    writer->next += size;
    return 0;
}

void qrep_undo_written(struct qrep_undo_writer *writer, uint64_t number)
{
    writer->complete[number % QREP_UNDO_BATCHES_MAX] = 1;
    while (writer->written < writer->built && writer->complete[writer->written % QREP_UNDO_BATCHES_MAX])
        writer->written++;
}

static void set_flushed(struct qrep_undo_writer *writer, uint64_t flushed)
{
    struct qrep_target_run *run = writer->run;

    if (flushed <= writer->flushed)
        return;
    for (uint64_t number = writer->flushed; run->undo_reach && number < flushed; number++)
        qrep_undo_reach_set(run->undo_reach, run->undo_reach_size, writer->ends[number % QREP_UNDO_BATCHES_MAX]);
    atomic_fetch_add(&run->undo_flushed, flushed - writer->flushed);
    writer->flushed = flushed; /* from here on their frames may be written */
    uint64_t end = writer->ends[(flushed - 1) % QREP_UNDO_BATCHES_MAX];
    if (end <= writer->next && end > writer->end - QREP_UNDO_SEGMENT_SIZE)
        writer->flushed_until = end; /* of the current segment, not the one before */
}

int qrep_undo_flush_begin(struct qrep_undo_writer *writer)
{
    struct qrep_target_run *run = writer->run;

    if (writer->own_flush)
        return 0;
    if (writer->awaited > writer->flushed && atomic_load(&run->flushes_done) > writer->ticket)
        set_flushed(writer, writer->awaited); /* another lane's flush, begun after these were written, was ours as well */
    if (writer->written == writer->flushed)
        return 0;
    if (writer->awaited <= writer->flushed) {
        writer->awaited = writer->written;
        writer->ticket = atomic_load(&run->flushes_started);
    }
    unsigned idle = 0;
    if (!atomic_compare_exchange_strong(&run->flush_busy, &idle, 1))
        return 0;
    atomic_fetch_add(&run->flushes_started, 1);
    writer->own_flush = 1;
    writer->covered = writer->written;
    return 1;
}

void qrep_undo_flush_done(struct qrep_undo_writer *writer, int64_t result)
{
    struct qrep_target_run *run = writer->run;

    if (result < 0)
        qrep_flush_failed("the undo store", (int)-result); /* flush_busy stays taken: no other lane can believe a later success */
    atomic_store(&run->flushes_done, atomic_load(&run->flushes_started));
    atomic_store(&run->flush_busy, 0);
    writer->own_flush = 0;
    set_flushed(writer, writer->covered);
}

/* One at a time: a failure is told to one of two flushes of the same descriptor, and the other would believe that it went well. */
static int take_flush(struct qrep_target_run *run)
{
    struct timespec pause = {.tv_nsec = 1000000};
    unsigned idle = 0;

    for (int waited = 0; !atomic_compare_exchange_strong(&run->flush_busy, &idle, 1); waited++) {
        if (waited == FLUSH_WAIT_MS)
            return 0;
        nanosleep(&pause, NULL);
        idle = 0;
    }
    return 1;
}

void qrep_undo_settle(struct qrep_undo_writer *writer)
{
    struct qrep_target_run *run = writer->run;
    uint64_t unflushed = 0;

    for (uint64_t number = writer->flushed; number < writer->built; number++)
        unflushed += writer->complete[number % QREP_UNDO_BATCHES_MAX];
    if (unflushed == 0 || writer->own_flush || !take_flush(run))
        return;
    if (fdatasync(run->undo_fd))
        qrep_flush_failed("the undo store", errno);
    atomic_store(&run->flush_busy, 0);
    atomic_fetch_add(&run->undo_flushed, unflushed);
}
