/* Source lane, the short way through the first two stages: of a granule of which only some leaves may have changed, those are read and hashed.
 *
 * The other leaves' values come from the map: a page of leaf values that merges to the granule's value in the base (R8), or the base's word that all
 * of the granule is zero. Whatever is missing or goes wrong on this way, the whole granule is read instead: that costs reading, never truth. */
#include "source_parts.h"

#include "blake3.h"
#include "disk.h"
#include "leafpage.h"

#include <string.h>

#define GATHER_LEAVES 256u /* values that are computed in one call; half a page of offsets on the stack */

/* Each run of leaves is one read, and none is to be in the way of others for long. */
static uint32_t leaves_per_read(const struct source_lane *lane)
{
    const struct qrep_nice *nice = lane->run->nice;
    uint32_t piece = nice ? atomic_load_explicit(&nice->piece_size, memory_order_relaxed) : 0, leaf_size = lane->run->base.geometry.leaf_size;

    return piece == 0 ? lane->granule_leaves : piece > leaf_size ? piece / leaf_size : 1;
}

/* Fill slot->wanted with the parts of run->wanted inside this granule. Returns how many leaves that is, 0 if the list is not one. */
static uint32_t find_wanted(struct source_lane *lane, struct source_slot *slot)
{
    const struct qrep_source_run *run = lane->run;
    uint64_t start = slot->granule * lane->granule_leaves, end = start + qrep_granule_leaves(&run->base.geometry, slot->granule);
    uint64_t low = 0, high = run->wanted_count, reached = start;
    uint32_t leaves = 0, most = leaves_per_read(lane);

    while (low < high) { /* the first span that ends behind `start` */
        uint64_t middle = low + (high - low) / 2;
        if (run->wanted[middle].first + run->wanted[middle].count > start)
            high = middle;
        else
            low = middle + 1;
    }
    slot->wanted_count = 0;
    for (; low < run->wanted_count && run->wanted[low].first < end; low++) {
        uint64_t from = run->wanted[low].first, to = from + run->wanted[low].count;
        from = from < start ? start : from;
        to = to > end ? end : to;
        if (from < reached || from >= to)
            return 0;
        for (reached = to; from < to; from += most) {
            uint32_t count = (uint32_t)(to - from < most ? to - from : most);
            slot->wanted[slot->wanted_count++] = (struct qrep_leaf_run){.first = (uint32_t)(from - start), .count = count};
            leaves += count;
        }
    }
    return leaves;
}

static size_t run_bytes(const struct source_lane *lane, const struct source_slot *slot, const struct qrep_leaf_run *run)
{
    size_t leaf_size = lane->run->base.geometry.leaf_size, start = run->first * leaf_size, end = start + run->count * leaf_size;
    return (end < slot->size ? end : slot->size) - start;
}

/* Keep up to lane->leaf_reads reads in flight. */
int source_leaves_on(struct source_lane *lane, struct source_slot *slot)
{
    const struct qrep_run_base *base = &lane->run->base;

    if (slot->short_read)
        return 0;
    for (; slot->wanted_next < slot->wanted_count && slot->reads_left < lane->leaf_reads; slot->wanted_next++) {
        const struct qrep_leaf_run *run = &slot->wanted[slot->wanted_next];
        uint64_t start = (uint64_t)run->first * base->geometry.leaf_size;
        int rc = source_read_queue(lane, slot, start, qrep_align_up(run_bytes(lane, slot, run), base->sector_size), slot->wanted_next);
        if (rc <= 0)
            return rc;
    }
    return 0;
}

int source_leaves_start(struct source_lane *lane, struct source_slot *slot)
{
    const struct qrep_run_base *base = &lane->run->base;
    const struct qrep_geometry *geometry = &base->geometry;
    uint8_t state = slot->unknown ? QREP_STATE_UNKNOWN : base->base_states[slot->granule];
    uint32_t leaves = find_wanted(lane, slot);

    slot->leaves_only = LEAVES_ALL;
    if (leaves == 0 || leaves == qrep_granule_leaves(geometry, slot->granule) || base->sector_size > geometry->leaf_size)
        return 0;
    if ((state & QREP_STATE_MASK) == QREP_STATE_ZERO) {
        memset(slot->data, 0, slot->size);
        slot->leaves_only = LEAVES_IN_ZEROES;
    } else if (source_base_page(lane, slot->granule, state, slot->leaves)) {
        slot->leaves_only = LEAVES_IN_PAGE;
    } else {
        slot->page_lost = (state & QREP_STATE_PAGE) != 0;
        return 0;
    }
    slot->state = SLOT_READING;
    slot->read_error = 0;
    slot->short_read = 0;
    slot->hashed = 0;
    slot->parts = 0;
    slot->run_next = slot->run_count = 0;
    slot->wanted_next = slot->wanted_hashed = 0;
    int rc = source_leaves_on(lane, slot);
    return rc ? rc : 1;
}

int source_leaves_read(struct source_lane *lane, struct source_slot *slot, uint32_t part, int64_t result)
{
    size_t wanted = run_bytes(lane, slot, &slot->wanted[part]);

    if (result < 0 || (uint64_t)result < wanted)
        slot->short_read = 1;
    else
        source_count(&lane->run->base.counters.read, wanted);
    slot->reads_left--;
    if (!slot->short_read && slot->wanted_next < slot->wanted_count)
        return source_leaves_on(lane, slot);
    if (slot->reads_left)
        return 0;
    if (slot->short_read)
        return source_read_whole(lane, slot); /* which names what cannot be read */
    slot->state = SLOT_READ;
    return 0;
}

/* The values of a run of leaves. values: room for run->count. */
static void hash_run(const struct source_lane *lane, const struct source_slot *slot, const struct qrep_leaf_run *run, uint8_t *values)
{
    size_t leaf_size = lane->run->base.geometry.leaf_size;
    const uint8_t *data = slot->data + run->first * leaf_size;
    uint64_t offset = slot->granule * lane->run->base.geometry.granule_size + run->first * leaf_size;
    size_t size = run_bytes(lane, slot, run), whole = size / leaf_size, done = 0;
    uint64_t offsets[GATHER_LEAVES];

    while (done < whole) {
        size_t count = whole - done < GATHER_LEAVES ? whole - done : GATHER_LEAVES;
        for (size_t i = 0; i < count; i++)
            offsets[i] = offset + (done + i) * leaf_size;
        qrep_blake3_gather(data + done * leaf_size, count, leaf_size, offsets, values + done * QREP_DIGEST_SIZE);
        done += count;
    }
    if (size % leaf_size) /* the last leaf of a device */
        qrep_blake3_subtree(data + whole * leaf_size, size % leaf_size, offset + whole * leaf_size, leaf_size, NULL, values + whole * QREP_DIGEST_SIZE);
}

/* Hash a wanted run, add what of it differs to slot->runs, and note its values in the page. */
static void take_run(struct source_lane *lane, struct source_slot *slot, const struct qrep_leaf_run *run)
{
    size_t leaf_size = lane->run->base.geometry.leaf_size, size = run_bytes(lane, slot, run);
    uint8_t *known = slot->leaves + (size_t)run->first * QREP_DIGEST_SIZE;
    struct qrep_leaf_run *found = slot->runs + slot->run_count, *last = slot->run_count ? found - 1 : NULL;

    hash_run(lane, slot, run, lane->scratch);
    size_t count = qrep_compare_leaves(lane->scratch, known, run->count, slot->data + run->first * leaf_size, size, leaf_size, found);
    for (size_t i = 0; i < count; i++)
        found[i].first += run->first;
    /* The runs of a frame are maximal: spans that touch are one. */
    if (count && last && last->zero == found->zero && last->first + last->count == found->first) {
        last->count += found->count;
        memmove(found, found + 1, --count * sizeof *found);
    }
    slot->run_count += (uint32_t)count;
    memcpy(known, lane->scratch, (size_t)run->count * QREP_DIGEST_SIZE);
    source_count(&lane->run->base.counters.hashed, size);
}

int source_leaves_hash(struct source_lane *lane, struct source_slot *slot)
{
    size_t done = 0;

    while (slot->wanted_hashed < slot->wanted_count) {
        const struct qrep_leaf_run *run = &slot->wanted[slot->wanted_hashed++];
        take_run(lane, slot, run);
        done += run_bytes(lane, slot, run);
        if (lane->piece_size && done >= SOURCE_PIECE_SIZE && slot->wanted_hashed < slot->wanted_count) {
            lane->hashing = slot;
            return 0;
        }
    }
    lane->hashing = NULL;
    qrep_leaves_merge(slot->leaves, qrep_granule_leaves(&lane->run->base.geometry, slot->granule), slot->value);
    return 1;
}
