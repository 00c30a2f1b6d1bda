/* Source lane, third stage: runs of leaves become frames. Nothing is copied but leaf values, for the digest of a run table. What travels twice in a
 * frame travels once (twins.h). */
#include "source_parts.h"

#include "blake3.h"
#include "twins.h"

#include <string.h>

#define RUNS_SPARE 64 /* a frame is begun while there is room for at least so many runs */
/* And where copies split them, for a piece of leaves of 4 KiB of which every other one is a copy. */
#define RUNS_SPARE_SPLIT 512

static const struct qrep_geometry *geometry_of(const struct source_lane *lane) { return &lane->run->base.geometry; }

/* Leaves of one FULL frame; its place is a multiple of that. */
static uint32_t frame_leaves(const struct source_lane *lane, const struct source_slot *slot)
{
    return source_frame_size(lane, slot) / geometry_of(lane)->leaf_size;
}

/* Does `run` cover a whole aligned piece from leaf `first` on? The last piece of a granule may be shorter. */
static int covers_piece(const struct source_lane *lane, const struct source_slot *slot, const struct qrep_leaf_run *run, uint32_t first)
{
    uint32_t leaves = qrep_granule_leaves(geometry_of(lane), slot->granule), piece = frame_leaves(lane, slot);
    uint32_t end = first + piece < leaves ? first + piece : leaves;

    return !run->zero && first % piece == 0 && first >= run->first && first < leaves && run->first + run->count >= end;
}

static size_t leaf_bytes(const struct source_lane *lane, const struct source_slot *slot, uint32_t first, uint32_t count)
{
    uint32_t leaf_size = geometry_of(lane)->leaf_size;
    size_t start = (size_t)first * leaf_size, end = start + (size_t)count * leaf_size;

    return (end < slot->size ? end : slot->size) - start;
}

/* The first `count` leaves of the next run are framed. */
static void eat_run(struct source_slot *slot, uint32_t count)
{
    struct qrep_leaf_run *run = &slot->runs[slot->run_next];

    run->first += count;
    run->count -= count;
    if (run->count == 0)
        slot->run_next++;
}

static void add_iov(struct source_batch *batch, const void *data, size_t size)
{
    batch->iov[batch->iov_count++] = (struct iovec){(void *)data, size};
}

static struct qrep_frame_header *begin_frame(struct source_batch *batch, enum qrep_frame_kind kind, uint64_t granule)
{
    struct qrep_frame_header *header = &batch->headers[batch->frame_count++];

    memset(header, 0, sizeof *header);
    header->kind = kind;
    header->granule = granule;
    add_iov(batch, header, sizeof *header);
    return header;
}

static struct qrep_frame_header *frame_full(struct source_lane *lane, struct source_slot *slot, struct source_batch *batch, uint32_t first, uint32_t count)
{
    struct qrep_frame_header *header = begin_frame(batch, QREP_FRAME_FULL, slot->granule);

    header->first_leaf = first;
    header->data_size = (uint32_t)leaf_bytes(lane, slot, first, count);
    /* The piece's value is a node over leaf values that are known: no second pass over the data. */
    qrep_blake3_merge(slot->leaves + (size_t)first * QREP_DIGEST_SIZE, count, 0, lane->scratch, header->digest);
    add_iov(batch, slot->data + (size_t)first * geometry_of(lane)->leaf_size, header->data_size);
    return header;
}

/* Into the table: the whole piece that is next. */
static uint32_t take_piece(struct source_lane *lane, struct source_slot *slot, struct qrep_wire_run *table)
{
    uint32_t first = slot->runs[slot->run_next].first, leaves = qrep_granule_leaves(geometry_of(lane), slot->granule);
    uint32_t count = leaves - first < frame_leaves(lane, slot) ? leaves - first : frame_leaves(lane, slot);

    table[0] = (struct qrep_wire_run){first, count};
    eat_run(slot, count);
    return 1;
}

/* How many leaves of `run` the frame under way may take: room for its data, and a stop where a FULL frame can go on. */
static uint32_t leaves_to_take(const struct source_lane *lane, const struct source_slot *slot, const struct qrep_leaf_run *run, size_t data_size)
{
    if (run->zero)
        return run->count;
    uint32_t room = (uint32_t)((source_frame_size(lane, slot) - data_size) / geometry_of(lane)->leaf_size);
    uint32_t boundary = (run->first / frame_leaves(lane, slot) + 1) * frame_leaves(lane, slot);
    uint32_t count = run->count < room ? run->count : room;
    if (covers_piece(lane, slot, run, boundary) && run->first + count > boundary)
        count = boundary - run->first;
    return count;
}

/* Into the table: the runs that are next, up to a piece that may go as a FULL frame. */
static uint32_t take_runs(struct source_lane *lane, struct source_slot *slot, struct qrep_wire_run *table, uint32_t run_room, uint32_t data_room)
{
    size_t data_size = 0;
    uint32_t runs = 0, data_runs = 0;

    while (slot->run_next < slot->run_count && runs < run_room && data_runs < data_room) {
        const struct qrep_leaf_run *run = &slot->runs[slot->run_next];
        if (runs && covers_piece(lane, slot, run, run->first))
            break; /* a FULL frame is next */
        uint32_t count = leaves_to_take(lane, slot, run, data_size);
        if (count == 0)
            break; /* this frame is full */
        table[runs++] = (struct qrep_wire_run){run->first, count | (run->zero ? QREP_RUN_ZERO : 0)};
        if (!run->zero) {
            data_size += leaf_bytes(lane, slot, run->first, count);
            data_runs++;
        }
        int whole = count == run->count;
        eat_run(slot, count);
        if (!whole)
            break; /* the rest would touch what this frame holds of it */
    }
    return runs;
}

/* A frame of the `count` runs that are in place in the batch, `copies` leaves of which are copies. */
static struct qrep_frame_header *frame_runs(struct source_lane *lane, struct source_slot *slot, struct source_batch *batch, uint32_t count, uint32_t copies)
{
    struct qrep_frame_header *header = begin_frame(batch, QREP_FRAME_RUNS, slot->granule);
    struct qrep_wire_run *table = batch->runs + batch->run_count;
    uint8_t *values = (uint8_t *)(table + count);

    header->run_count = count;
    header->copy_leaves = copies;
    add_iov(batch, table, count * sizeof *table);
    batch->run_count += count;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t first = table[i].first, leaves = qrep_run_leaves(&table[i]);
        if (qrep_run_has_data(&table[i])) {
            size_t size = leaf_bytes(lane, slot, first, leaves);
            add_iov(batch, slot->data + (size_t)first * geometry_of(lane)->leaf_size, size);
            header->data_size += (uint32_t)size;
        }
        if (!(table[i].count & QREP_RUN_ZERO)) {
            memcpy(values, slot->leaves + (size_t)first * QREP_DIGEST_SIZE, (size_t)leaves * QREP_DIGEST_SIZE);
            values += (size_t)leaves * QREP_DIGEST_SIZE;
        }
    }
    qrep_blake3_hash(table, (size_t)(values - (uint8_t *)table), header->digest);
    return header;
}

/* The next frame: a whole piece as FULL, else runs; where leaves are copies, runs in any case, for that is smaller. */
static struct qrep_frame_header *frame_next(struct source_lane *lane, struct source_slot *slot, struct source_batch *batch)
{
    const struct qrep_leaf_run *run = &slot->runs[slot->run_next];
    struct qrep_wire_run *table = batch->runs + batch->run_count;
    uint32_t run_room = SOURCE_BATCH_RUNS - batch->run_count, data_room = SOURCE_BATCH_IOVECS - batch->iov_count - 2; /* header and table */
    uint32_t copies = 0, whole = (uint32_t)covers_piece(lane, slot, run, run->first);
    uint32_t count = whole ? take_piece(lane, slot, table) : take_runs(lane, slot, table, run_room, data_room);

    if (lane->twins.from && qrep_twins_find(&lane->twins, slot->data, slot->size, table, count))
        count = qrep_twins_split(&lane->twins, table, count, run_room, data_room, &copies);
    if (whole && !copies)
        return frame_full(lane, slot, batch, table[0].first, table[0].count);
    source_count(&lane->run->base.counters.copies, (uint64_t)copies * geometry_of(lane)->leaf_size);
    return frame_runs(lane, slot, batch, count, copies);
}

static int has_room(const struct source_lane *lane, const struct source_batch *batch)
{
    uint32_t spare = lane->twins.from ? RUNS_SPARE_SPLIT : RUNS_SPARE;
    return batch->frame_count < SOURCE_BATCH_FRAMES && batch->data_size < SOURCE_BATCH_DATA && batch->iov_count + spare <= SOURCE_BATCH_IOVECS &&
           batch->run_count + 2 * spare <= SOURCE_BATCH_RUNS && source_pack_has_room(lane, batch);
}

void source_frame_slot(struct source_lane *lane, struct source_slot *slot, struct source_batch *batch)
{
    batch->granule = slot->granule;
    batch->span = 1;
    do {
        uint32_t first_iov = batch->iov_count;
        struct qrep_frame_header *header = frame_next(lane, slot, batch);
        first_iov += header->kind == QREP_FRAME_FULL ? 1 : 2; /* behind the header, and the table */
        lane->pack.data_bytes += header->data_size;
        if (slot->packing > SOURCE_PLAIN)
            source_pack_frame(lane, slot, batch, header, first_iov);
        batch->data_size += header->data_size;
        if (slot->run_next == slot->run_count) {
            header->flags |= QREP_FRAME_LAST | (slot->parts ? QREP_FRAME_PARTS : QREP_FRAME_VALUE);
            if (!slot->parts)
                memcpy(header->granule_value, slot->value, QREP_DIGEST_SIZE);
        }
        qrep_frame_seal(header, &lane->outgoing);
        batch->finishes = slot->run_next == slot->run_count;
        batch->full = batch->finishes || !has_room(lane, batch) || (lane->pack.packer && slot->packing == SOURCE_UNDECIDED);
    } while (!batch->full && slot->packing <= SOURCE_PLAIN); /* packing takes its time: the lane looks up after each frame */
}

void source_frame_zero(struct source_lane *lane, uint64_t granule, uint64_t span, struct source_batch *batch)
{
    struct qrep_frame_header *header = begin_frame(batch, QREP_FRAME_ZERO, granule);

    header->flags = QREP_FRAME_LAST;
    header->span = (uint32_t)span;
    qrep_frame_seal(header, &lane->outgoing);
    batch->granule = granule;
    batch->span = span;
    batch->finishes = batch->full = 1;
}

void source_frame_end(struct source_lane *lane, struct source_batch *batch)
{
    qrep_frame_seal(begin_frame(batch, QREP_FRAME_END, 0), &lane->outgoing);
}
