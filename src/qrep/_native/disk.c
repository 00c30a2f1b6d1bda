#include "disk.h"

#include "blake3.h"
#include "hashstream.h"
#include "wire.h"

#include <errno.h>
#include <string.h>

#define SECTOR_SIZE 512u

static int is_zero(const void *bytes, size_t size)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i < size; i++)
        if (at[i])
            return 0;
    return 1;
}

static int same_digest(const void *bytes, size_t size, const uint8_t *digest)
{
    uint8_t fresh[QREP_DIGEST_SIZE];
    qrep_blake3_hash(bytes, size, fresh);
    return memcmp(fresh, digest, QREP_DIGEST_SIZE) == 0;
}

/* Version and features come after the checksum: the checksum stays the last 32 bytes of every later version of a structure, so
 * that "newer" is never mistaken for "damaged". */
static int check_version(uint32_t version, uint32_t features)
{
    if (version == 0)
        return -EBADMSG;
    return version > QREP_DISK_VERSION || features ? -ENOTSUP : 0;
}

static int check_geometry(uint64_t size, uint32_t leaf_size, uint32_t granule_size)
{
    struct qrep_geometry geometry = {.size = size, .leaf_size = leaf_size, .granule_size = granule_size};
    return qrep_geometry_check(&geometry) == 0 ? 0 : -EBADMSG;
}

/* ---- superblock ---- */

void qrep_superblock_seal(struct qrep_superblock *block)
{
    block->magic = QREP_SUPERBLOCK_MAGIC;
    block->version = QREP_DISK_VERSION;
    qrep_blake3_hash(block, offsetof(struct qrep_superblock, checksum), block->checksum);
}

static int check_open(const struct qrep_superblock *block)
{
    switch (block->open_kind) {
    case QREP_OPEN_NONE:
        return is_zero(block->open_new_id, QREP_ID_SIZE) && block->open_attempt == 0 ? 0 : -EBADMSG;
    case QREP_OPEN_RUN:
    case QREP_OPEN_ROLLBACK:
        return is_zero(block->open_new_id, QREP_ID_SIZE) ? -EBADMSG : 0;
    default:
        return -EBADMSG;
    }
}

int qrep_superblock_check(const struct qrep_superblock *block)
{
    if (block->magic != QREP_SUPERBLOCK_MAGIC || !same_digest(block, offsetof(struct qrep_superblock, checksum), block->checksum))
        return -EBADMSG;
    int rc = check_version(block->version, block->features);
    if (rc)
        return rc;
    if (block->role != QREP_ROLE_REPLICA && block->role != QREP_ROLE_PRIMARY)
        return -EBADMSG;
    if (check_open(block) || check_geometry(block->size, block->leaf_size, block->granule_size))
        return -EBADMSG;
    if (is_zero(block->volume_id, QREP_ID_SIZE) || !is_zero(block->reserved, sizeof block->reserved))
        return -EBADMSG;
    for (unsigned i = 1; i < QREP_HISTORY_MAX; i++) /* newest first: nothing older than a gap */
        if (is_zero(block->history[i - 1], QREP_ID_SIZE) && !is_zero(block->history[i], QREP_ID_SIZE))
            return -EBADMSG;
    return 0;
}

/* ---- undo ---- */

void qrep_undo_header_seal(struct qrep_undo_header *header)
{
    header->magic = QREP_UNDO_MAGIC;
    header->version = QREP_DISK_VERSION;
    qrep_blake3_hash(header, offsetof(struct qrep_undo_header, checksum), header->checksum);
}

int qrep_undo_header_check(const struct qrep_undo_header *header)
{
    if (header->magic != QREP_UNDO_MAGIC || !same_digest(header, offsetof(struct qrep_undo_header, checksum), header->checksum))
        return -EBADMSG;
    int rc = check_version(header->version, header->features);
    if (rc)
        return rc;
    if (header->reserved0 || check_geometry(header->size, header->leaf_size, header->granule_size))
        return -EBADMSG;
    if (is_zero(header->volume_id, QREP_ID_SIZE) || is_zero(header->new_id, QREP_ID_SIZE))
        return -EBADMSG;
    return memcmp(header->base_id, header->new_id, QREP_ID_SIZE) == 0 ? -EBADMSG : 0;
}

static void batch_checksum(const struct qrep_undo_batch *batch, const struct qrep_undo_extent *extents, uint8_t *checksum)
{
    struct qrep_hashstream stream;
    qrep_hashstream_start(&stream);
    qrep_hashstream_add(&stream, batch, offsetof(struct qrep_undo_batch, checksum));
    qrep_hashstream_add(&stream, extents, (size_t)batch->extent_count * sizeof *extents);
    qrep_hashstream_end(&stream, checksum);
}

void qrep_undo_batch_seal(struct qrep_undo_batch *batch, const struct qrep_undo_extent *extents)
{
    batch->magic = QREP_UNDO_BATCH_MAGIC;
    batch->version = QREP_DISK_VERSION;
    batch_checksum(batch, extents, batch->checksum);
}

int qrep_undo_batch_peek(const struct qrep_undo_batch *batch, uint64_t position, uint64_t available)
{
    if (available < QREP_PAGE_SIZE || batch->magic != QREP_UNDO_BATCH_MAGIC)
        return -ENOENT;
    if (batch->version != QREP_DISK_VERSION || batch->reserved || batch->position != position)
        return -EBADMSG;
    if (batch->extent_count == 0 || batch->extent_count > QREP_UNDO_EXTENTS_MAX)
        return -EBADMSG;
    if (batch->payload_size % SECTOR_SIZE || batch->payload_size > QREP_UNDO_SEGMENT_SIZE || batch->flushed > position)
        return -EBADMSG;
    return qrep_undo_batch_size(batch->extent_count, batch->payload_size) > available ? -EBADMSG : 0;
}

int qrep_undo_batch_check(const struct qrep_undo_batch *batch, const struct qrep_undo_extent *extents, uint64_t device_size)
{
    uint8_t checksum[QREP_DIGEST_SIZE];
    uint64_t payload_size = 0;

    batch_checksum(batch, extents, checksum);
    if (memcmp(checksum, batch->checksum, QREP_DIGEST_SIZE))
        return -EBADMSG;
    for (uint32_t i = 0; i < batch->extent_count; i++) {
        const struct qrep_undo_extent *extent = &extents[i];
        if (extent->size == 0 || extent->size % SECTOR_SIZE || extent->offset % SECTOR_SIZE)
            return -EBADMSG;
        if (extent->offset > device_size || extent->size > device_size - extent->offset)
            return -EBADMSG;
        if (extent->kind != QREP_UNDO_DATA && extent->kind != QREP_UNDO_ZERO)
            return -EBADMSG;
        if (extent->kind == QREP_UNDO_DATA)
            payload_size += extent->size;
    }
    return payload_size == batch->payload_size ? 0 : -EBADMSG;
}

/* The batch at `at`, in full. 0; -ENOENT none of this attempt; -EBADMSG damaged. */
static int check_batch_at(const struct qrep_undo_scan *scan, uint64_t at, const struct qrep_undo_batch **found)
{
    const struct qrep_undo_batch *batch = (const void *)(scan->segment + at);
    int rc = qrep_undo_batch_peek(batch, scan->position + at, scan->size - at);
    if (rc)
        return rc;
    if (batch->attempt != scan->attempt || memcmp(batch->base_id, scan->base_id, QREP_ID_SIZE))
        return -ENOENT;
    rc = qrep_undo_batch_check(batch, (const void *)(batch + 1), scan->device_size);
    if (rc)
        return rc;
    if (!same_digest(scan->segment + at + qrep_undo_payload_offset(batch->extent_count), batch->payload_size, batch->digest))
        return -EBADMSG;
    *found = batch;
    return 0;
}

int qrep_undo_scan_next(struct qrep_undo_scan *scan, const struct qrep_undo_batch **found)
{
    while (scan->size - scan->cursor >= QREP_PAGE_SIZE) {
        uint64_t at = scan->cursor;
        if (check_batch_at(scan, at, found) == 0) {
            scan->cursor = at + qrep_undo_batch_size((*found)->extent_count, (*found)->payload_size);
            /* Batches lie back to back, so whatever was skipped was a batch once, and this one says it was flushed. */
            if (scan->gap < (*found)->flushed && scan->damaged == QREP_UNDO_NO_PLACE)
                scan->damaged = scan->gap;
            return 1;
        }
        if (scan->gap == QREP_UNDO_NO_PLACE)
            scan->gap = scan->position + at;
        scan->cursor = at + QREP_PAGE_SIZE;
    }
    return 0;
}

/* ---- digest map ---- */

void qrep_map_header_seal(struct qrep_map_header *header)
{
    header->magic = QREP_MAP_MAGIC;
    header->version = QREP_DISK_VERSION;
    qrep_blake3_hash(header, offsetof(struct qrep_map_header, checksum), header->checksum);
}

int qrep_map_header_check(const struct qrep_map_header *header, uint64_t file_size)
{
    if (header->magic != QREP_MAP_MAGIC || !same_digest(header, offsetof(struct qrep_map_header, checksum), header->checksum))
        return -EBADMSG;
    int rc = check_version(header->version, header->features);
    if (rc)
        return rc;
    struct qrep_geometry geometry = {.size = header->size, .leaf_size = header->leaf_size, .granule_size = header->granule_size};
    if (header->reserved0 || !is_zero(header->reserved1, sizeof header->reserved1) || qrep_geometry_check(&geometry))
        return -EBADMSG;
    if (is_zero(header->volume_id, QREP_ID_SIZE) || header->granules != qrep_granules(&geometry))
        return -EBADMSG;
    return file_size == qrep_map_size(header->granules) ? 0 : -EBADMSG;
}

void qrep_map_digest(const uint8_t *states, const uint8_t *values, uint64_t granules, uint8_t digest[QREP_DIGEST_SIZE])
{
    static const uint8_t padding[QREP_DIGEST_SIZE];
    struct qrep_hashstream stream;
    qrep_hashstream_start(&stream);
    qrep_hashstream_add(&stream, states, granules);
    qrep_hashstream_add(&stream, padding, qrep_map_values_offset(granules) - sizeof(struct qrep_map_header) - granules);
    qrep_hashstream_add(&stream, values, granules * QREP_DIGEST_SIZE);
    qrep_hashstream_end(&stream, digest);
}

int qrep_map_body_check(const struct qrep_map_header *header, const uint8_t *states, const uint8_t *values)
{
    const uint8_t known = QREP_STATE_MASK | QREP_STATE_SLOT | QREP_STATE_VALUE | QREP_STATE_PAGE;
    uint8_t digest[QREP_DIGEST_SIZE];
    qrep_map_digest(states, values, header->granules, digest);
    if (memcmp(digest, header->digest, QREP_DIGEST_SIZE))
        return -EBADMSG;
    for (uint64_t granule = 0; granule < header->granules; granule++) {
        uint8_t state = states[granule], kind = state & QREP_STATE_MASK;
        if (state & ~known || kind > QREP_STATE_ZERO)
            return -EBADMSG;
        if (kind == QREP_STATE_HASHED && !(state & QREP_STATE_VALUE))
            return -EBADMSG;
        if (kind == QREP_STATE_UNKNOWN && state & QREP_STATE_VALUE)
            return -EBADMSG;
    }
    return 0;
}
