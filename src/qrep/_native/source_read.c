/* Source lane, first stage: work from the shared cursor, reads in flight, and what happens when one fails. */
#include "source_parts.h"

#include "disk.h"

#include <errno.h>
#include <string.h>

#define WORK_FLAGS (QREP_WORK_HOLE | QREP_WORK_UNKNOWN | QREP_WORK_LEAVES)

static uint64_t work_item(const struct qrep_source_run *run, uint64_t index) { return run->work ? run->work[index] : index; }

/* The slot holds what it was filled with when the lane opened. */
static int rehearse_read(struct source_slot *slot)
{
    slot->read_error = 0;
    slot->short_read = 0;
    slot->hashed = 0;
    slot->state = SLOT_READ;
    return 0;
}

/* Take the next work item; of holes, the whole run of consecutive granules, so that one ZERO frame can carry it. Returns how many, 0 at the end. */
static uint64_t take_work(struct qrep_source_run *run, uint64_t *item)
{
    uint64_t first, count;

    if (run->base.rehearsal) {
        *item = atomic_fetch_add_explicit(&run->cursor, 1, memory_order_relaxed) % run->base.granules;
        return 1;
    }
    first = atomic_load_explicit(&run->cursor, memory_order_relaxed);
    do {
        if (first >= run->work_count)
            return 0;
        *item = work_item(run, first);
        count = 1;
        if (*item & QREP_WORK_HOLE)
            while (count < SOURCE_ZERO_SPAN_MAX && first + count < run->work_count && work_item(run, first + count) == *item + count)
                count++;
    } while (!atomic_compare_exchange_weak_explicit(&run->cursor, &first, first + count, memory_order_relaxed, memory_order_relaxed));
    return count;
}

/* Whether this lane takes another granule now. All lanes take from one cursor, so only near the end can a slow one keep the others waiting: it leaves what
 * is left to them if they will be through with all of that, each of them with one more that it has just begun, before this lane is through with what it
 * holds and one more. Speeds go by what was taken since this lane began, its own by what it is through with. One that holds nothing waits no longer than one
 * granule takes it, because the others may fail. */
static int may_take(struct source_lane *lane)
{
    uint64_t cursor = atomic_load_explicit(&lane->run->cursor, memory_order_relaxed), count = lane->run->work_count;
    uint32_t others = atomic_load_explicit(&lane->run->lanes, memory_order_relaxed) - 1, held = 0;
    uint64_t yield_until_ns = lane->yield_until_ns;

    lane->yield_until_ns = 0;
    for (uint32_t i = 0; i < lane->run->slots; i++)
        held += lane->slots[i].state != SLOT_FREE;
    if (cursor >= count || atomic_load_explicit(lane->lane_stop, memory_order_relaxed) || lane->taken == 0 || others == 0 || lane->run->base.rehearsal)
        return 1;
    double done = lane->taken > held ? (double)(lane->taken - held) : 0.5, others_took = (double)(cursor - lane->cursor_first - lane->taken);
    if ((held + 1) * others_took <= done * ((double)(count - cursor) + others))
        return 1;
    if (held)
        return 0;
    uint64_t now_ns = qrep_now_ns();
    lane->yield_until_ns = yield_until_ns ? yield_until_ns : now_ns + (now_ns - lane->started_ns) / lane->taken;
    if (now_ns < lane->yield_until_ns)
        return 0;
    lane->yield_until_ns = 0;
    return 1;
}

int source_read_queue(struct source_lane *lane, struct source_slot *slot, size_t start, size_t size, uint32_t part)
{
    struct qrep_source_run *run = lane->run;
    uint64_t tag = source_tag(SOURCE_TAG_READ, part, (uint32_t)(slot - lane->slots));

    if (run->nice) {
        uint64_t now_ns = qrep_now_ns(), wait_ns = qrep_nice_take(run->nice, &lane->nice_bucket, size, now_ns);
        lane->nice_until_ns = wait_ns ? now_ns + wait_ns : 0;
        if (wait_ns)
            return 0;
        if (lane->timed_from_ns == 0 && lane->nice_reads == 0) {
            lane->timed_tag = tag;
            lane->timed_from_ns = now_ns;
        }
        qrep_nice_read_begun(run->nice);
        lane->nice_reads++;
    }
    int rc = qrep_ring_read(lane->ring, SOURCE_FILE_DEVICE, slot->data + start, size, slot->granule * run->base.geometry.granule_size + start, tag);
    if (rc)
        return qrep_fail(&run->base, QREP_FAILURE_READ, -rc, lane->lane, slot->granule);
    slot->reads_left++;
    return 1;
}

/* One that was queued completed. */
static void note_read(struct source_lane *lane, uint64_t tag, int64_t result)
{
    uint64_t latency_ns = 0;

    if (lane->run->nice == NULL)
        return;
    if (lane->timed_from_ns && lane->timed_tag == tag) {
        latency_ns = qrep_now_ns() - lane->timed_from_ns;
        lane->timed_from_ns = 0;
    }
    lane->nice_reads--;
    qrep_nice_read_ended(lane->run->nice, result > 0 ? (uint64_t)result : 0, latency_ns);
}

static void choose_read_size(const struct source_lane *lane, struct source_slot *slot)
{
    const struct qrep_source_run *run = lane->run;
    uint32_t piece = run->nice ? atomic_load_explicit(&run->nice->piece_size, memory_order_relaxed) : 0;

    slot->read_size = lane->io_size;
    if (piece && piece < slot->read_size)
        slot->read_size = piece > run->base.sector_size ? piece : run->base.sector_size;
    slot->part_count = (slot->size + slot->read_size - 1) / slot->read_size;
}

int source_read_on(struct source_lane *lane, struct source_slot *slot)
{
    const struct qrep_run_base *base = &lane->run->base;
    /* An image file may end inside a sector: direct reads ask for all of it and get what is there. */
    uint64_t size = qrep_align_up(slot->size, base->sector_size);

    if (slot->read_error || slot->short_read)
        return 0;
    if (slot->part_next == 0)
        choose_read_size(lane, slot); /* it may be another one than when it was asked for the last time */
    for (; slot->part_next < slot->part_count && slot->reads_left < lane->part_reads; slot->part_next++) {
        uint64_t start = (uint64_t)slot->part_next * slot->read_size;
        int rc = source_read_queue(lane, slot, start, size - start < slot->read_size ? size - start : slot->read_size, slot->part_next);
        if (rc <= 0)
            return rc;
    }
    return 0;
}

int source_read_whole(struct source_lane *lane, struct source_slot *slot)
{
    slot->leaves_only = LEAVES_ALL;
    slot->state = SLOT_READING;
    slot->read_error = 0;
    slot->short_read = 0;
    slot->hashed = 0;
    slot->parts = 0;
    slot->part_next = slot->read_counted = 0;
    return source_read_on(lane, slot);
}

/* Whatever a full set of slots can add must have its place, and one granule more. */
static int has_zero_room(const struct source_lane *lane) { return lane->zero_count + lane->run->slots + 2 <= lane->zero_room; }

/* Announce what was taken of holes, as far as there is room: where the base has every other granule of them as zero, each granule is a run of its own. */
static int fill_holes(struct source_lane *lane)
{
    int rc = 0;

    for (; lane->hole_count && rc == 0 && has_zero_room(lane); lane->hole_count--)
        rc = source_zero(lane, lane->hole++, lane->hole_unknown);
    return rc;
}

int source_fill(struct source_lane *lane)
{
    struct qrep_source_run *run = lane->run;
    int rc = fill_holes(lane);

    for (uint32_t i = 0; i < run->slots && rc == 0; i++)
        if (lane->slots[i].state == SLOT_WAITING && has_zero_room(lane))
            rc = source_begin(lane, &lane->slots[i]);
        else if (run->nice && lane->slots[i].state == SLOT_READING)
            rc = lane->slots[i].leaves_only ? source_leaves_on(lane, &lane->slots[i]) : source_read_on(lane, &lane->slots[i]);
    for (uint32_t i = 0; i < run->slots && !lane->work_done && rc == 0; i++) {
        struct source_slot *slot = &lane->slots[i];
        while (slot->state == SLOT_FREE && !lane->work_done && rc == 0 && has_zero_room(lane) && may_take(lane)) {
            uint64_t item, count = 0;
            if (!atomic_load_explicit(lane->lane_stop, memory_order_relaxed))
                count = take_work(run, &item);
            if (count == 0) {
                lane->work_done = 1;
                break;
            }
            lane->taken += count;
            uint64_t granule = item & ~WORK_FLAGS;
            if (granule >= run->base.granules || count > run->base.granules - granule)
                return qrep_fail(&run->base, QREP_FAILURE_READ, EINVAL, lane->lane, granule);
            if (item & QREP_WORK_HOLE) {
                lane->hole = granule;
                lane->hole_count = count;
                lane->hole_unknown = (item & QREP_WORK_UNKNOWN) != 0;
                rc = fill_holes(lane);
                continue;
            }
            slot->granule = granule;
            slot->unknown = (item & QREP_WORK_UNKNOWN) != 0;
            slot->size = (uint32_t)qrep_granule_bytes(&run->base.geometry, granule);
            slot->page_lost = 0;
            slot->shared = SHARED_NOT;
            int begun = item & QREP_WORK_LEAVES ? source_leaves_start(lane, slot) : 0;
            rc = begun < 0 ? begun : begun ? 0 : run->base.rehearsal ? rehearse_read(slot) : source_begin(lane, slot);
        }
    }
    return rc;
}

/* INV-Z: what cannot be read is named, and neither sent nor called zero. A pass that sends nothing leaves the whole granule UNKNOWN; else the
 * leaves that could be read go on their way, and only the others are missing. Returns 1: the slot is free again. */
static int note_unreadable(struct source_lane *lane, struct source_slot *slot, unsigned bad_count)
{
    struct qrep_run_base *base = &lane->run->base;
    uint64_t start = slot->granule * base->geometry.granule_size;
    uint32_t leaf_size = base->geometry.leaf_size;

    qrep_bad_list_add(&lane->run->bad, lane->bad, bad_count);
    if (base->fresh_states[slot->granule] & QREP_STATE_VALUE)
        memset(base->fresh_values + slot->granule * QREP_DIGEST_SIZE, 0, QREP_DIGEST_SIZE);
    base->fresh_states[slot->granule] = QREP_STATE_UNKNOWN;
    if (lane->connection->kind == QREP_CONNECTION_NONE) {
        slot->state = SLOT_FREE;
        source_count(&base->counters.granules_done, 1);
        return 1;
    }
    slot->parts = 1;
    memset(slot->missing, 0, lane->granule_leaves);
    for (unsigned i = 0; i < bad_count; i++) {
        uint64_t first = (lane->bad[i].offset - start) / leaf_size, end = (lane->bad[i].offset + lane->bad[i].size - start + leaf_size - 1) / leaf_size;
        for (uint64_t leaf = first; leaf < end && leaf < lane->granule_leaves; leaf++)
            slot->missing[leaf] = 1;
    }
    return 0;
}

int source_read_done(struct source_lane *lane, uint64_t tag, int64_t result)
{
    struct qrep_run_base *base = &lane->run->base;
    struct source_slot *slot = &lane->slots[(uint32_t)tag];

    note_read(lane, tag, result);
    if (slot->leaves_only)
        return source_leaves_read(lane, slot, (uint32_t)(tag >> 32) & 0xffffff, result);
    uint64_t start = ((tag >> 32) & 0xffffff) * slot->read_size;
    /* Of the last sector only the bytes below the end of the volume are promised. */
    uint64_t wanted = slot->size - start < slot->read_size ? slot->size - start : slot->read_size;

    if (result < 0 && slot->read_error == 0)
        slot->read_error = (int)-result;
    else if (result >= 0 && (uint64_t)result < wanted)
        slot->short_read = 1;
    else if (result >= 0) {
        source_count(&base->counters.read, wanted); /* as it comes: a granule may take long, and somebody looks whether anything moves */
        slot->read_counted += (uint32_t)wanted;
    }
    slot->reads_left--;
    if (!slot->read_error && !slot->short_read && slot->part_next < slot->part_count)
        return source_read_on(lane, slot);
    if (slot->reads_left)
        return 0;

    if (slot->short_read)
        return qrep_fail(base, QREP_FAILURE_SHRUNK, ENODATA, lane->lane, slot->granule);
    if (slot->read_error) {
        int bad = qrep_salvage_read(lane->device_fd, slot->data, qrep_align_up(slot->size, base->sector_size),
                                    slot->granule * base->geometry.granule_size, base->sector_size, lane->bad, QREP_BAD_EXTENTS_MAX);
        if (bad < 0)
            return qrep_fail(base, QREP_FAILURE_READ, slot->read_error, lane->lane, slot->granule);
        if (bad > 0 && note_unreadable(lane, slot, (unsigned)bad))
            return 0;
    }
    slot->state = SLOT_READ;
    source_count(&base->counters.read, slot->size - slot->read_counted);
    return 0;
}
