#include "twins.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PROBES_MAX 32u /* at most half of the table is in use: nobody who does not choose his samples comes so far */
#define VAIN_SPARE 16u /* comparisons in vain that a frame may cost, beside one for so many of its leaves: */
#define VAIN_SHARE 16u

struct qrep_twins_seen {
    uint32_t tag;  /* of the sample */
    uint16_t leaf; /* QREP_TWINS_NONE: free */
    uint16_t reserved;
};

int qrep_twins_open(struct qrep_twins *twins, const struct qrep_geometry *geometry)
{
    uint32_t leaves = geometry->granule_size / geometry->leaf_size;

    memset(twins, 0, sizeof *twins);
    twins->leaf_size = geometry->leaf_size;
    twins->granule_leaves = leaves;
    twins->from = malloc(leaves * sizeof *twins->from);
    twins->runs = malloc(leaves * sizeof *twins->runs);
    twins->samples = malloc(leaves * sizeof *twins->samples);
    twins->seen = malloc(2 * (size_t)leaves * sizeof *twins->seen);
    if (twins->from && twins->runs && twins->samples && twins->seen)
        return 0;
    qrep_twins_close(twins);
    return -ENOMEM;
}

void qrep_twins_close(struct qrep_twins *twins)
{
    free(twins->from);
    free(twins->runs);
    free(twins->samples);
    free(twins->seen);
    memset(twins, 0, sizeof *twins);
}

static uint64_t word_at(const uint8_t *leaf, size_t offset)
{
    uint64_t word;
    memcpy(&word, leaf + offset, sizeof word);
    return word;
}

static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Of the beginning, which the zero test has just had in the cache: what is not there costs more than the rest of the search. Leaves that begin with
 * nothing but one word over and over are told apart by what comes later. */
static uint64_t sample_leaf(const uint8_t *leaf, size_t size)
{
    uint64_t a = word_at(leaf, 0), b = word_at(leaf, 40), c = word_at(leaf, 200), d = word_at(leaf, 248);
    uint64_t sample = fold(a ^ 0x9e3779b97f4a7c15ull, b ^ 0xbf58476d1ce4e5b9ull) + fold(c ^ 0x94d049bb133111ebull, d ^ 0x2545f4914f6cdd1dull);

    if (a == b && c == d)
        sample += fold(word_at(leaf, size / 2) ^ 0xd6e8feb86659fd93ull, word_at(leaf, size - 8) ^ 0xa0761d6478bd642full);
    return fold(sample ^ 0xe7037ed1a0b428dbull, 0x8ebc6af09c88c6e3ull);
}

/* Whole leaves of a run. */
static uint32_t whole_leaves(const struct qrep_twins *twins, size_t size, const struct qrep_wire_run *run)
{
    uint32_t whole = (uint32_t)(size / twins->leaf_size);
    return run->first + run->count <= whole ? run->count : whole - run->first;
}

static uint32_t sample_runs(struct qrep_twins *twins, const uint8_t *data, size_t size, const struct qrep_wire_run *runs, uint32_t run_count)
{
    uint32_t sampled = 0;

    for (uint32_t i = 0; i < run_count; i++) {
        if (runs[i].count & QREP_RUN_ZERO)
            continue;
        uint32_t count = whole_leaves(twins, size, &runs[i]);
        for (uint32_t k = 0; k < runs[i].count; k++)
            twins->from[runs[i].first + k] = QREP_TWINS_NONE;
        for (uint32_t k = 0; k < count; k++)
            twins->samples[sampled++] = sample_leaf(data + (size_t)(runs[i].first + k) * twins->leaf_size, twins->leaf_size);
    }
    return sampled;
}

/* An earlier leaf that is equal to `leaf`, or QREP_TWINS_NONE; then it is noted, if there is a place. mask: of the table. vain: comparisons left. */
static uint16_t find_equal(struct qrep_twins *twins, const uint8_t *data, uint32_t leaf, uint64_t sample, uint32_t mask, uint32_t *vain)
{
    uint32_t place = (uint32_t)(sample >> 32) & mask;

    for (uint32_t probe = 0; probe < PROBES_MAX; probe++, place = (place + 1) & mask) {
        struct qrep_twins_seen *seen = &twins->seen[place];
        if (seen->leaf == QREP_TWINS_NONE) {
            *seen = (struct qrep_twins_seen){.tag = (uint32_t)sample, .leaf = (uint16_t)leaf};
            break;
        }
        if (seen->tag != (uint32_t)sample)
            continue;
        if (memcmp(data + (size_t)seen->leaf * twins->leaf_size, data + (size_t)leaf * twins->leaf_size, twins->leaf_size) == 0)
            return seen->leaf;
        if (--*vain == 0)
            break;
    }
    return QREP_TWINS_NONE;
}

uint32_t qrep_twins_find(struct qrep_twins *twins, const uint8_t *data, size_t size, const struct qrep_wire_run *runs, uint32_t run_count)
{
    uint32_t sampled = sample_runs(twins, data, size, runs, run_count), places = 4, found = 0, next = 0;
    uint32_t vain = VAIN_SPARE + sampled / VAIN_SHARE;

    if (sampled < 2)
        return 0;
    while (places < 2 * sampled)
        places *= 2;
    memset(twins->seen, 0xff, places * sizeof *twins->seen);
    for (uint32_t i = 0; i < run_count && vain; i++) {
        if (runs[i].count & QREP_RUN_ZERO)
            continue;
        uint32_t end = runs[i].first + whole_leaves(twins, size, &runs[i]);
        for (uint32_t leaf = runs[i].first; leaf < end && vain; leaf++) {
            twins->from[leaf] = find_equal(twins, data, leaf, twins->samples[next++], places - 1, &vain);
            found += twins->from[leaf] != QREP_TWINS_NONE;
        }
    }
    return found;
}

/* ---- the table ---- */

struct split {
    struct qrep_wire_run *runs;
    uint32_t count, data_runs;
};

static void add_leaf(struct split *split, uint32_t leaf, uint32_t from)
{
    struct qrep_wire_run *last = split->count ? &split->runs[split->count - 1] : NULL;

    if (last && last->first + qrep_run_leaves(last) == leaf && !(last->count & QREP_RUN_ZERO)) {
        int is_copy = (last->count & QREP_RUN_COPY) != 0;
        if (is_copy ? from != QREP_TWINS_NONE && qrep_run_from(last) + qrep_run_leaves(last) == from : from == QREP_TWINS_NONE) {
            last->count++;
            return;
        }
    }
    split->runs[split->count++] = (struct qrep_wire_run){leaf, from == QREP_TWINS_NONE ? 1 : QREP_RUN_COPY | from << QREP_RUN_FROM_SHIFT | 1};
    split->data_runs += from == QREP_TWINS_NONE;
}

uint32_t qrep_twins_split(struct qrep_twins *twins, struct qrep_wire_run *runs, uint32_t run_count, uint32_t run_room, uint32_t data_room,
                          uint32_t *copy_leaves)
{
    struct split split = {.runs = runs};

    memcpy(twins->runs, runs, run_count * sizeof *runs);
    *copy_leaves = 0;
    for (uint32_t i = 0; i < run_count; i++) {
        const struct qrep_wire_run *run = &twins->runs[i];
        uint32_t left = run_count - i; /* runs that are not begun, and the rest of this one */
        if (run->count & QREP_RUN_ZERO) {
            runs[split.count++] = *run;
            continue;
        }
        for (uint32_t leaf = run->first; leaf < run->first + run->count; leaf++) {
            /* A copy may need an entry, and the data after it another. */
            int is_room = split.count + 1 + left <= run_room && split.data_runs + left <= data_room;
            uint32_t from = is_room ? twins->from[leaf] : QREP_TWINS_NONE;
            *copy_leaves += from != QREP_TWINS_NONE;
            add_leaf(&split, leaf, from);
        }
    }
    return split.count;
}
