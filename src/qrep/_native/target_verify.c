#include "target_verify.h"

#include "blake3.h"
#include "disk.h"
#include "leafpage.h"
#include "twins.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int qrep_assembly_open(struct qrep_assembly *assembly, const struct qrep_run_base *run, uint32_t frame_limit)
{
    size_t leaves = run->geometry.granule_size / run->geometry.leaf_size;

    memset(assembly, 0, sizeof *assembly);
    assembly->run = run;
    assembly->values = malloc(leaves * QREP_DIGEST_SIZE);
    assembly->page = malloc(leaves * QREP_DIGEST_SIZE);
    assembly->replaced = malloc(leaves);
    assembly->offsets = malloc((frame_limit / run->geometry.leaf_size + 1) * sizeof *assembly->offsets);
    if (assembly->values && assembly->page && assembly->replaced && assembly->offsets)
        return 0;
    qrep_assembly_close(assembly);
    return -ENOMEM;
}

void qrep_assembly_close(struct qrep_assembly *assembly)
{
    free(assembly->values);
    free(assembly->page);
    free(assembly->replaced);
    free(assembly->offsets);
    memset(assembly, 0, sizeof *assembly);
}

static uint64_t leaf_offset(const struct qrep_assembly *assembly, uint32_t leaf)
{
    const struct qrep_geometry *geometry = &assembly->run->geometry;
    return assembly->granule * geometry->granule_size + (uint64_t)leaf * geometry->leaf_size;
}

static int open_granule(struct qrep_assembly *assembly, uint64_t granule)
{
    if (assembly->open)
        return assembly->granule == granule ? 0 : -EPROTO;
    assembly->open = 1;
    assembly->granule = granule;
    assembly->mark = assembly->run->marked[granule];
    assembly->leaves = qrep_granule_leaves(&assembly->run->geometry, granule);
    assembly->replaced_count = 0;
    memset(assembly->replaced, 0, assembly->leaves);
    return 0;
}

/* Claim leaves for this pass. A second claim would let two writes of one place be in flight at once, in either order. */
static int claim_leaves(struct qrep_assembly *assembly, uint32_t first, uint32_t count)
{
    if (memchr(assembly->replaced + first, 1, count))
        return -EPROTO;
    memset(assembly->replaced + first, 1, count);
    assembly->replaced_count += count;
    return 0;
}

static int verify_full(struct qrep_assembly *assembly, const struct qrep_frame_header *header, const uint8_t *data)
{
    uint32_t leaf_size = assembly->run->geometry.leaf_size;
    uint8_t value[QREP_DIGEST_SIZE];
    int rc = claim_leaves(assembly, header->first_leaf, (header->data_size + leaf_size - 1) / leaf_size);
    if (rc)
        return rc;
    qrep_blake3_subtree(data, header->data_size, leaf_offset(assembly, header->first_leaf), leaf_size,
                        assembly->values + (size_t)header->first_leaf * QREP_DIGEST_SIZE, value);
    return memcmp(value, header->digest, sizeof value) ? -EILSEQ : 0;
}

static void zero_leaves(const struct qrep_assembly *assembly, uint32_t first, uint32_t count, uint8_t *values)
{
    const struct qrep_geometry *geometry = &assembly->run->geometry;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = leaf_offset(assembly, first + i), left = geometry->size - offset;
        uint64_t size = left < geometry->leaf_size ? left : geometry->leaf_size;
        qrep_blake3_zero_subtree(size, offset, geometry->leaf_size, NULL, values + (size_t)i * QREP_DIGEST_SIZE);
    }
}

/* The chaining values of `data` into `values`; returns how many leaves there were. */
static uint32_t hash_runs(struct qrep_assembly *assembly, const struct qrep_frame_header *header, const uint8_t *data,
                          const struct qrep_wire_run *runs, uint8_t *values)
{
    uint32_t leaf_size = assembly->run->geometry.leaf_size, size = (uint32_t)qrep_frame_leaf_bytes(header, &assembly->run->geometry);
    uint32_t whole = size / leaf_size, leaves = 0;

    for (uint32_t i = 0; i < header->run_count; i++)
        if (!(runs[i].count & QREP_RUN_ZERO))
            for (uint32_t k = 0; k < qrep_run_leaves(&runs[i]); k++)
                assembly->offsets[leaves++] = leaf_offset(assembly, runs[i].first + k);
    if (whole)
        qrep_blake3_gather(data, whole, leaf_size, assembly->offsets, values);
    if (leaves > whole) { /* the short last leaf of the device */
        size_t done = (size_t)whole * leaf_size;
        qrep_blake3_subtree(data + done, size - done, assembly->offsets[whole], leaf_size, NULL,
                            values + (size_t)whole * QREP_DIGEST_SIZE);
    }
    return leaves;
}

static int verify_runs(struct qrep_assembly *assembly, struct qrep_frame_header *header, uint8_t *data, struct qrep_wire_run *runs)
{
    uint8_t *values = (uint8_t *)(runs + header->run_count);
    uint8_t digest[QREP_DIGEST_SIZE];

    for (uint32_t i = 0; i < header->run_count; i++) {
        int rc = claim_leaves(assembly, runs[i].first, qrep_run_leaves(&runs[i]));
        if (rc)
            return rc;
    }
    if (header->copy_leaves) /* `page` is not in use before the granule's last frame */
        qrep_copies_spread(header, runs, &assembly->run->geometry, data, (uint32_t *)assembly->page);
    uint32_t leaves = hash_runs(assembly, header, data, runs, values);
    qrep_blake3_hash(runs, header->run_count * sizeof *runs + (size_t)leaves * QREP_DIGEST_SIZE, digest);
    if (memcmp(digest, header->digest, sizeof digest))
        return -EILSEQ;

    for (uint32_t i = 0; i < header->run_count; i++) {
        uint32_t count = qrep_run_leaves(&runs[i]);
        uint8_t *place = assembly->values + (size_t)runs[i].first * QREP_DIGEST_SIZE;
        if (runs[i].count & QREP_RUN_ZERO) {
            zero_leaves(assembly, runs[i].first, count, place);
        } else {
            memcpy(place, values, (size_t)count * QREP_DIGEST_SIZE);
            values += (size_t)count * QREP_DIGEST_SIZE;
        }
    }
    if (header->copy_leaves)
        qrep_copies_forget(header, runs, &assembly->run->geometry);
    return 0;
}

int qrep_frame_verify(struct qrep_assembly *assembly, struct qrep_frame_header *header, uint8_t *data, struct qrep_wire_run *runs)
{
    if (header->kind == QREP_FRAME_ZERO) /* nothing to hash; its header's tag covers all it says */
        return assembly->open ? -EPROTO : 0;
    int rc = open_granule(assembly, header->granule);
    if (rc)
        return rc;
    return header->kind == QREP_FRAME_FULL ? verify_full(assembly, header, data) : verify_runs(assembly, header, data, runs);
}

/* Complete `values` from what the granule held before: by the committed map, or as an earlier pass of this attempt left it, which is the same array.
 * 1: complete; 0: what it held is not known; -errno. */
static int overlay_base(struct qrep_assembly *assembly)
{
    const struct qrep_run_base *run = assembly->run;
    uint64_t granule = assembly->granule;
    uint8_t state = run->fresh_states[granule], value[QREP_DIGEST_SIZE];

    if (assembly->replaced_count == assembly->leaves)
        return 1;
    if (assembly->mark == 1) /* an earlier pass left it half written */
        return 0;
    if ((state & QREP_STATE_MASK) == QREP_STATE_ZERO) {
        qrep_blake3_zero_subtree(qrep_granule_bytes(&run->geometry, granule), leaf_offset(assembly, 0), run->geometry.leaf_size, assembly->page,
                                 value);
    } else {
        int rc = run->leaves_fd < 0 ? 0
                                    : qrep_leaf_page_read(run->leaves_fd, &run->geometry, granule, state,
                                                          run->fresh_values + granule * QREP_DIGEST_SIZE, assembly->page);
        if (rc <= 0)
            return rc;
    }
    for (uint32_t leaf = 0; leaf < assembly->leaves; leaf++)
        if (!assembly->replaced[leaf])
            memcpy(assembly->values + (size_t)leaf * QREP_DIGEST_SIZE, assembly->page + (size_t)leaf * QREP_DIGEST_SIZE, QREP_DIGEST_SIZE);
    return 1;
}

int qrep_granule_finish(struct qrep_assembly *assembly, const struct qrep_frame_header *header, struct qrep_granule_result *result)
{
    const struct qrep_run_base *run = assembly->run;
    uint8_t base_state = run->base_states[assembly->granule];
    int announced = (header->flags & QREP_FRAME_VALUE) != 0;

    assembly->open = 0;
    memset(result, 0, sizeof *result);
    int known = overlay_base(assembly);
    if (known < 0)
        return known;
    if (!known) {
        /* Announced, not computed: good enough for the manifest, which compares it with the source's; no page, so nothing is skipped by it. */
        if (announced) {
            result->state = QREP_STATE_HASHED | QREP_STATE_VALUE;
            memcpy(result->value, header->granule_value, QREP_DIGEST_SIZE);
        }
        return 0;
    }

    qrep_leaves_merge(assembly->values, assembly->leaves, result->value);
    if (announced && memcmp(result->value, header->granule_value, QREP_DIGEST_SIZE))
        return -EUCLEAN;
    result->state = QREP_STATE_HASHED | QREP_STATE_VALUE;
    if (run->leaves_fd < 0)
        return 0;
    int slot = (base_state & QREP_STATE_PAGE) && !(base_state & QREP_STATE_SLOT);
    int rc = qrep_leaf_page_write(run->leaves_fd, &run->geometry, assembly->granule, slot, assembly->values, assembly->leaves);
    if (rc == 0)
        result->state |= QREP_STATE_PAGE | (slot ? QREP_STATE_SLOT : 0);
    return rc;
}
