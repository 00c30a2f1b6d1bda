#include "wire.h"

#include "blake3.h"
#include "disk.h"
#include "hashstream.h"

#include <errno.h>
#include <string.h>

#define LEAF_SIZE_MIN 4096u
#define LEAF_SIZE_MAX (1u << 20)
#define GRANULE_SIZE_MAX (64u << 20)
_Static_assert(GRANULE_SIZE_MAX / LEAF_SIZE_MIN <= 1u << 14, "a leaf fits the 14 bits of a copy's place, and a count of leaves its 16");
#define SECTOR_SIZE 512u

static const uint8_t zero_digest[QREP_DIGEST_SIZE];

static int is_power_of_two(uint64_t value) { return value && (value & (value - 1)) == 0; }

static int digest_is_zero(const uint8_t *digest) { return memcmp(digest, zero_digest, QREP_DIGEST_SIZE) == 0; }

/* Time does not depend on where the difference is: a stranger on a plain path must not find a tag byte by byte. */
static int tags_differ(const uint8_t *one, const uint8_t *other)
{
    uint8_t difference = 0;
    for (size_t i = 0; i < QREP_DIGEST_SIZE; i++)
        difference |= one[i] ^ other[i];
    return difference != 0;
}

int qrep_geometry_check(const struct qrep_geometry *geometry)
{
    uint32_t leaf = geometry->leaf_size, granule = geometry->granule_size;
    if (!is_power_of_two(leaf) || leaf < LEAF_SIZE_MIN || leaf > LEAF_SIZE_MAX)
        return -EINVAL;
    if (!is_power_of_two(granule) || granule / leaf < 2 || granule > GRANULE_SIZE_MAX)
        return -EINVAL;
    if (geometry->size < 2 * (uint64_t)leaf || geometry->size > INT64_MAX || geometry->size % SECTOR_SIZE)
        return -EINVAL;
    return 0;
}

static void compute_tag(const struct qrep_frame_header *header, const uint8_t *key, uint8_t *tag)
{
    qrep_blake3_keyed(key, header, offsetof(struct qrep_frame_header, tag), tag);
}

void qrep_frame_seal(struct qrep_frame_header *header, struct qrep_wire_state *state)
{
    header->magic = QREP_WIRE_MAGIC;
    header->version = QREP_WIRE_VERSION;
    header->attempt = state->attempt;
    header->session = state->session;
    header->connection = state->connection;
    header->sequence = state->sequence++;
    compute_tag(header, state->key, header->tag);
}

/* A node of the tree: a power of two of leaves at a multiple of itself, or what the end of the device leaves of one. */
static int is_node(const struct qrep_frame_header *header, const struct qrep_geometry *geometry)
{
    uint32_t leaf = geometry->leaf_size, size = qrep_frame_bytes(header);
    if (size == 0 || size > QREP_FRAME_DATA_MAX || header->first_leaf >= qrep_granule_leaves(geometry, header->granule))
        return 0;
    uint64_t left = qrep_granule_bytes(geometry, header->granule) - (uint64_t)header->first_leaf * leaf;
    if (size > left)
        return 0;
    uint32_t count = (size + leaf - 1) / leaf, node = 1;
    while (node < count)
        node *= 2;
    if (header->first_leaf % node)
        return 0;
    if ((uint64_t)node * leaf == size)
        return 1;
    /* Not whole: only the end of the device may be the reason. */
    return size == left && header->granule == qrep_granules(geometry) - 1;
}

/* What is packed is never longer than what it stands for, and the other way round no header promises more than it may carry. */
static int packing_makes_sense(const struct qrep_frame_header *header, uint32_t features)
{
    if (!(header->flags & QREP_FRAME_PACKED))
        return header->kind == QREP_FRAME_ZERO || header->span == 0;
    return (features & QREP_FEATURE_ZSTD) && (header->kind == QREP_FRAME_FULL || header->kind == QREP_FRAME_RUNS) && header->data_size > 0 &&
           header->data_size < header->span && header->span <= QREP_FRAME_DATA_MAX;
}

static int check_fields(const struct qrep_frame_header *header, const struct qrep_wire_state *state)
{
    const struct qrep_geometry *geometry = &state->geometry;
    uint64_t granules = qrep_granules(geometry);
    int has_value = (header->flags & QREP_FRAME_VALUE) != 0;

    if (header->flags & ~(QREP_FRAME_LAST | QREP_FRAME_VALUE | QREP_FRAME_PARTS | QREP_FRAME_PACKED))
        return -EPROTO;
    if ((header->flags & QREP_FRAME_PARTS) && ((header->flags & (QREP_FRAME_LAST | QREP_FRAME_VALUE)) != QREP_FRAME_LAST || header->kind == QREP_FRAME_ZERO))
        return -EPROTO;
    if (!has_value && !digest_is_zero(header->granule_value))
        return -EPROTO;
    if (header->kind != QREP_FRAME_RUNS && header->run_count)
        return -EPROTO;
    if (header->kind != QREP_FRAME_FULL && header->first_leaf && !(header->kind == QREP_FRAME_RUNS && (state->features & QREP_FEATURE_COPIES)))
        return -EPROTO;
    if (!packing_makes_sense(header, state->features))
        return -EPROTO;
    if (header->kind != QREP_FRAME_END && header->granule >= granules)
        return -EPROTO;

    switch (header->kind) {
    case QREP_FRAME_FULL:
        return is_node(header, geometry) ? 0 : -EPROTO;
    case QREP_FRAME_RUNS:
        if (header->run_count == 0 || header->run_count > QREP_FRAME_RUNS_MAX)
            return -EPROTO;
        if (header->run_count > qrep_granule_leaves(geometry, header->granule))
            return -EPROTO;
        if (qrep_frame_leaf_bytes(header, geometry) > QREP_FRAME_DATA_MAX ||
            qrep_frame_leaf_bytes(header, geometry) > qrep_granule_bytes(geometry, header->granule))
            return -EPROTO;
        return 0;
    case QREP_FRAME_ZERO:
        if (header->span == 0 || header->span > granules - header->granule)
            return -EPROTO;
        if (header->data_size || !digest_is_zero(header->digest) || (has_value && header->span != 1))
            return -EPROTO;
        return 0;
    case QREP_FRAME_END:
        if (header->flags || header->granule || header->data_size || !digest_is_zero(header->digest))
            return -EPROTO;
        return 0;
    default:
        return -EPROTO;
    }
}

int qrep_frame_check(const struct qrep_frame_header *header, struct qrep_wire_state *state)
{
    uint8_t tag[QREP_DIGEST_SIZE];
    compute_tag(header, state->key, tag);
    if (tags_differ(tag, header->tag) || header->magic != QREP_WIRE_MAGIC || header->version != QREP_WIRE_VERSION)
        return -EBADMSG;
    if (header->attempt != state->attempt || header->session != state->session)
        return -ESTALE;
    if (header->connection != state->connection || header->sequence != state->sequence)
        return -ESTALE;
    int rc = check_fields(header, state);
    if (rc == 0)
        state->sequence++;
    return rc;
}

uint64_t qrep_run_bytes(const struct qrep_geometry *geometry, uint64_t granule, const struct qrep_wire_run *run)
{
    uint64_t offset = (uint64_t)run->first * geometry->leaf_size;
    uint64_t size = (uint64_t)qrep_run_leaves(run) * geometry->leaf_size;
    uint64_t left = qrep_granule_bytes(geometry, granule) - offset;
    return size < left ? size : left;
}

/* Are these `count` leaves all of one data run of runs[0, end), which have been checked? Then they are whole, for others follow them. */
static int carry_data(const struct qrep_wire_run *runs, uint32_t end, uint32_t first, uint32_t count)
{
    uint32_t low = 0, high = end; /* the last run that begins at or before `first` is before `high` */

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (runs[middle].first <= first)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0 || !qrep_run_has_data(&runs[low - 1]))
        return 0;
    return first + count <= runs[low - 1].first + runs[low - 1].count;
}

/* Run i of the table, which begins where the one before ends: may it? */
static int differs_in_kind(const struct qrep_wire_run *before, const struct qrep_wire_run *run)
{
    const uint32_t kinds = QREP_RUN_ZERO | QREP_RUN_COPY;
    if ((before->count & kinds) != (run->count & kinds))
        return 1;
    return (run->count & QREP_RUN_COPY) && qrep_run_from(before) + qrep_run_leaves(before) != qrep_run_from(run);
}

int qrep_runs_check(const struct qrep_frame_header *header, const struct qrep_wire_run *runs, const struct qrep_geometry *geometry)
{
    uint32_t leaves = qrep_granule_leaves(geometry, header->granule), end = 0; /* of the run before */
    uint64_t data_size = 0, copy_leaves = 0;

    for (uint32_t i = 0; i < header->run_count; i++) {
        const struct qrep_wire_run *run = &runs[i];
        uint32_t first = run->first, count = qrep_run_leaves(run);
        if (count == 0 || first < end || first >= leaves || count > leaves - first)
            return -EPROTO;
        if (i && first == end && !differs_in_kind(&runs[i - 1], run))
            return -EPROTO;
        if (run->count & QREP_RUN_COPY) {
            if ((run->count & QREP_RUN_ZERO) || qrep_run_bytes(geometry, header->granule, run) != (uint64_t)count * geometry->leaf_size)
                return -EPROTO;
            if (!carry_data(runs, i, qrep_run_from(run), count))
                return -EPROTO;
            copy_leaves += count;
        } else if (!(run->count & QREP_RUN_ZERO)) {
            data_size += qrep_run_bytes(geometry, header->granule, run);
        }
        end = first + count;
    }
    return data_size == qrep_frame_bytes(header) && copy_leaves == header->copy_leaves ? 0 : -EPROTO;
}

struct manifest_record {
    uint64_t granule;
    uint64_t state;
    uint8_t value[QREP_DIGEST_SIZE];
};
_Static_assert(sizeof(struct manifest_record) == 48, "manifest record layout");

void qrep_manifest(const uint8_t *marked, const uint8_t *states, const uint8_t *values, uint64_t granules, uint64_t *count,
                   uint8_t manifest[QREP_DIGEST_SIZE])
{
    struct qrep_hashstream stream;
    qrep_hashstream_start(&stream);
    *count = 0;
    for (uint64_t granule = 0; granule < granules; granule++) {
        if (!marked[granule])
            continue;
        struct manifest_record record = {.granule = granule, .state = states[granule] & QREP_STATE_MASK};
        if (states[granule] & QREP_STATE_VALUE)
            memcpy(record.value, values + granule * QREP_DIGEST_SIZE, QREP_DIGEST_SIZE);
        qrep_hashstream_add(&stream, &record, sizeof record);
        ++*count;
    }
    qrep_hashstream_end(&stream, manifest);
}
