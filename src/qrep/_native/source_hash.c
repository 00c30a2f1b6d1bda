/* Source lane, second stage: a granule in memory becomes a state, a value, and the runs of leaves that the target does not have. */
#include "source_parts.h"

#include "blake3.h"
#include "disk.h"
#include "leafpage.h"

#include <errno.h>
#include <string.h>

/* What the target holds of a granule, as far as this work item may rely on it. */
static uint8_t base_state(const struct source_lane *lane, uint64_t granule, int unknown)
{
    return unknown ? QREP_STATE_UNKNOWN : lane->run->base.base_states[granule];
}

static int is_scan_only(const struct source_lane *lane) { return lane->connection->kind == QREP_CONNECTION_NONE; }

static void announce_zero(struct source_lane *lane, uint64_t granule)
{
    if (lane->zero_count) {
        struct source_zero_run *newest = &lane->zero_runs[(lane->zero_first + lane->zero_count - 1) % lane->zero_room];
        /* Reads complete in any order, so the run may grow at either end. */
        int after = newest->granule + newest->span == granule, before = granule + 1 == newest->granule;
        if ((after || before) && newest->span < SOURCE_ZERO_SPAN_MAX) {
            newest->granule -= (uint64_t)before;
            newest->span++;
            return;
        }
    }
    /* source_fill() takes work only while there is a place for whatever can come of it. */
    lane->zero_runs[(lane->zero_first + lane->zero_count++) % lane->zero_room] = (struct source_zero_run){granule, 1};
}

int source_zero(struct source_lane *lane, uint64_t granule, int unknown)
{
    struct qrep_run_base *base = &lane->run->base;
    uint64_t size = qrep_granule_bytes(&base->geometry, granule);

    source_count(&base->counters.zero, size);
    source_count(&base->counters.granules_done, 1);
    if ((base_state(lane, granule, unknown) & QREP_STATE_MASK) == QREP_STATE_ZERO)
        return 0;
    /* As the target will have it, without a value: the manifest is over both (R7). */
    if (base->fresh_states[granule] & QREP_STATE_VALUE) /* else there is none to clear, and its memory is left alone */
        memset(base->fresh_values + granule * QREP_DIGEST_SIZE, 0, QREP_DIGEST_SIZE);
    base->fresh_states[granule] = QREP_STATE_ZERO;
    source_count(&base->counters.changed, size);
    if (!is_scan_only(lane))
        announce_zero(lane, granule);
    return 0;
}

static int write_page(struct source_lane *lane, struct source_slot *slot, uint32_t leaves)
{
    struct qrep_run_base *base = &lane->run->base;
    uint8_t state = QREP_STATE_HASHED | QREP_STATE_VALUE;

    if (base->leaves_fd >= 0) {
        int other = !(base->base_states[slot->granule] & QREP_STATE_SLOT);
        int rc = qrep_leaf_page_write(base->leaves_fd, &base->geometry, slot->granule, other, slot->leaves, leaves);
        if (rc)
            return qrep_fail(base, QREP_FAILURE_MAP, -rc, lane->lane, slot->granule);
        qrep_crashpoint("source-leaf-page");
        state |= QREP_STATE_PAGE | (other ? QREP_STATE_SLOT : 0);
    }
    memcpy(base->fresh_values + slot->granule * QREP_DIGEST_SIZE, slot->value, QREP_DIGEST_SIZE);
    base->fresh_states[slot->granule] = state;
    return 0;
}

/* Of the runs, only what could be read. */
static void leave_out_missing(struct source_lane *lane, struct source_slot *slot)
{
    struct qrep_leaf_run *found = (struct qrep_leaf_run *)lane->scratch; /* [leaves] digests, which are larger */
    uint32_t count = slot->run_count;

    memcpy(found, slot->runs, count * sizeof *found);
    slot->run_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct qrep_leaf_run *open = NULL;
        for (uint32_t leaf = found[i].first; leaf < found[i].first + found[i].count; leaf++) {
            if (slot->missing[leaf]) {
                open = NULL;
            } else if (open) {
                open->count++;
            } else {
                open = &slot->runs[slot->run_count++];
                *open = (struct qrep_leaf_run){.first = leaf, .count = 1, .zero = found[i].zero};
            }
        }
    }
}

/* A page that cannot be read is a page that is not believed: it costs bandwidth. An attempt that is resumed again and again over newer images writes
 * its pages to either slot, so the other one is looked at, too: what merges to the value is the page, wherever it lies (R8). */
int source_base_page(struct source_lane *lane, uint64_t granule, uint8_t state, uint8_t *leaves)
{
    struct qrep_run_base *base = &lane->run->base;
    const uint8_t *value = base->base_values + granule * QREP_DIGEST_SIZE;

    for (int slots = 0; slots < 2; slots++, state ^= QREP_STATE_SLOT)
        if (qrep_leaf_page_read(base->leaves_fd, &base->geometry, granule, state, value, leaves) == 1)
            return 1;
    return 0;
}

/* Fill slot->runs with what the target does not have. */
static void find_runs(struct source_lane *lane, struct source_slot *slot, uint8_t state, uint32_t leaves)
{
    struct qrep_run_base *base = &lane->run->base;
    const uint8_t *known = source_base_page(lane, slot->granule, state, lane->base_leaves) ? lane->base_leaves : NULL;

    slot->run_next = 0;
    slot->run_count = (uint32_t)qrep_compare_leaves(slot->leaves, known, leaves, slot->data, slot->size, base->geometry.leaf_size, slot->runs);
    if ((state & QREP_STATE_MASK) == QREP_STATE_ZERO) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < slot->run_count; i++)
            if (!slot->runs[i].zero)
                slot->runs[kept++] = slot->runs[i];
        slot->run_count = kept;
    }
    if (slot->parts)
        leave_out_missing(lane, slot);
}

static void count_changed(struct source_lane *lane, const struct source_slot *slot)
{
    struct qrep_run_base *base = &lane->run->base;

    for (uint32_t i = 0; i < slot->run_count; i++) {
        struct qrep_wire_run run = {slot->runs[i].first, slot->runs[i].count};
        source_count(&base->counters.changed, qrep_run_bytes(&base->geometry, slot->granule, &run));
    }
}

/* INV-Z: a granule of which leaves could not be read has no value, so nothing is noted of it; what could be read and differs is sent. */
static void judge_parts(struct source_lane *lane, struct source_slot *slot)
{
    uint32_t leaves = qrep_granule_leaves(&lane->run->base.geometry, slot->granule);

    find_runs(lane, slot, base_state(lane, slot->granule, (int)slot->unknown), leaves);
    count_changed(lane, slot);
    if (slot->run_count == 0) {
        slot->state = SLOT_FREE;
        return;
    }
    slot->state = SLOT_SENDING;
    slot->packing = SOURCE_UNDECIDED;
    lane->queue[(lane->queue_first + lane->queue_count++) % lane->run->slots] = slot;
}

static int judge(struct source_lane *lane, struct source_slot *slot)
{
    struct qrep_run_base *base = &lane->run->base;
    uint8_t state = base_state(lane, slot->granule, (int)slot->unknown);
    const uint8_t hashed = QREP_STATE_HASHED | QREP_STATE_VALUE;

    source_count(&base->counters.granules_done, 1);
    if (slot->parts) {
        judge_parts(lane, slot);
        return 0;
    }
    uint32_t leaves = qrep_granule_leaves(&base->geometry, slot->granule);
    if ((state & (QREP_STATE_MASK | QREP_STATE_VALUE)) == hashed &&
        memcmp(slot->value, base->base_values + slot->granule * QREP_DIGEST_SIZE, QREP_DIGEST_SIZE) == 0) {
        slot->state = SLOT_FREE;
        /* A base that came as digests has no pages. With one, what changes here next time travels by the leaf. */
        return state & QREP_STATE_PAGE && !slot->page_lost ? 0 : write_page(lane, slot, leaves);
    }
    if (slot->leaves_only != LEAVES_IN_PAGE) /* else they were found as the leaves were hashed */
        find_runs(lane, slot, state, leaves);
    count_changed(lane, slot);
    int rc = write_page(lane, slot, leaves);
    if (rc)
        return rc;
    if (is_scan_only(lane)) {
        slot->state = SLOT_FREE;
        return 0;
    }
    slot->state = SLOT_SENDING;
    slot->packing = SOURCE_UNDECIDED;
    lane->queue[(lane->queue_first + lane->queue_count++) % lane->run->slots] = slot;
    return 0;
}

int source_hash(struct source_lane *lane, struct source_slot *slot)
{
    const struct qrep_geometry *geometry = &lane->run->base.geometry;
    uint64_t offset = slot->granule * geometry->granule_size;

    if (slot->shared == SHARED_HASHED)
        return judge(lane, slot);
    if (slot->leaves_only == LEAVES_IN_PAGE)
        return source_leaves_hash(lane, slot) ? judge(lane, slot) : 0;
    if (slot->hashed == 0 && slot->parts) { /* undefined bytes are hashed as zeroes, and not sent */
        for (uint32_t leaf = 0; leaf < qrep_granule_leaves(geometry, slot->granule); leaf++)
            if (slot->missing[leaf])
                memset(slot->data + (size_t)leaf * geometry->leaf_size, 0, geometry->leaf_size);
    } else if (slot->hashed == 0 && qrep_is_zero(slot->data, slot->size)) {
        slot->state = SLOT_FREE;
        source_hand_on(lane, slot, NULL);
        return source_zero(lane, slot->granule, (int)slot->unknown);
    }
    /* Undisturbed, the whole granule in one call fills the hash's lanes best. */
    if (slot->hashed == 0 && lane->piece_size == 0) {
        qrep_blake3_subtree(slot->data, slot->size, offset, geometry->leaf_size, slot->leaves, slot->value);
        slot->hashed = slot->size;
    } else {
        uint32_t piece = slot->hashed / SOURCE_PIECE_SIZE;
        uint32_t left = slot->size - slot->hashed;
        uint32_t size = left < SOURCE_PIECE_SIZE ? left : SOURCE_PIECE_SIZE;
        qrep_blake3_subtree(slot->data + slot->hashed, size, offset + slot->hashed, geometry->leaf_size,
                            slot->leaves + (size_t)(slot->hashed / geometry->leaf_size) * QREP_DIGEST_SIZE, slot->pieces[piece]);
        slot->hashed += size;
        if (slot->hashed < slot->size) {
            lane->hashing = slot;
            return 0;
        }
        qrep_blake3_merge(slot->pieces[0], piece + 1, 0, lane->scratch, slot->value);
    }
    lane->hashing = NULL;
    source_count(&lane->run->base.counters.hashed, slot->size);
    if (slot->parts)
        source_give_up(lane, slot);
    else
        source_hand_on(lane, slot, slot->leaves);
    return judge(lane, slot);
}
