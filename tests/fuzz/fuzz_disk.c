/* Feeds the loaders of superblock, undo store and digest map what a damaged or hostile disk may hold, and uses what they let
 * through as recovery would, on heap blocks of exactly the size they may touch.
 *
 * Input: one byte that chooses the record, one that chooses whether its checksum is repaired (mostly), its bytes. For an undo segment: a
 * list of batch descriptions, laid out as pages, because no fuzzer finds the second page of anything by itself.
 * QREP_FUZZ_CANARY=1, 2 or 3 leaves out one check here, in the harness: the proof that the harness can fail. */
#include "blake3.h"
#include "disk.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512
#define PAGES 12
#define DEVICE_SIZE (256u << 10)
#define POSITION ((uint64_t)QREP_UNDO_SEGMENT_SIZE * 3)
#define ATTEMPT 7
#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

#if QREP_FUZZ_CANARY == 1
#define qrep_undo_batch_peek(batch, position, available) ((batch)->magic == QREP_UNDO_BATCH_MAGIC ? 0 : -ENOENT)
#elif QREP_FUZZ_CANARY == 2
#define qrep_undo_batch_check(batch, extents, device_size) 0
#elif QREP_FUZZ_CANARY == 3
#define qrep_map_header_check(header, file_size) ((header)->granules < 1000 ? 0 : -EBADMSG)
#elif defined QREP_FUZZ_CANARY
#error "no such canary"
#endif

static int is_check_result(int rc) { return rc == 0 || rc == -EBADMSG || rc == -ENOTSUP; }

static void *copy(const uint8_t *data, size_t size, size_t wanted)
{
    uint8_t *room = calloc(1, wanted);
    memcpy(room, data, size < wanted ? size : wanted);
    return room;
}

static void load_superblock(const uint8_t *data, size_t size, int repair)
{
    struct qrep_superblock *block = copy(data, size, sizeof *block);
    if (repair)
        qrep_superblock_seal(block);
    int rc = qrep_superblock_check(block);
    EXPECT(is_check_result(rc));
    if (rc == 0) {
        EXPECT(block->open_kind <= QREP_OPEN_ROLLBACK && block->size >= 2 * (uint64_t)block->leaf_size);
        EXPECT(repair || block->version == QREP_DISK_VERSION);
    }
    free(block);
}

static void load_undo_header(const uint8_t *data, size_t size, int repair)
{
    struct qrep_undo_header *header = copy(data, size, sizeof *header);
    if (repair)
        qrep_undo_header_seal(header);
    int rc = qrep_undo_header_check(header);
    EXPECT(is_check_result(rc));
    EXPECT(rc || header->granule_size / header->leaf_size >= 2);
    free(header);
}

static void load_map(const uint8_t *data, size_t size, int repair)
{
    /* The file is what follows the header; whoever reads it allocates by its size and trusts the header's count only if they agree. */
    struct qrep_map_header *header = copy(data, size, sizeof *header);
    size_t body_size = size > sizeof *header ? size - sizeof *header : 0;
    uint8_t *body = copy(data + sizeof *header, body_size, body_size);
    if (repair) {
        struct qrep_geometry geometry = {header->size, header->leaf_size, header->granule_size};
        uint64_t granules = header->granules;
        if (qrep_geometry_check(&geometry) == 0 && granules == qrep_granules(&geometry) && granules < body_size &&
            qrep_map_size(granules) == sizeof *header + body_size)
            qrep_map_digest(body, body + qrep_align_up(granules, QREP_DIGEST_SIZE), granules, header->digest);
        qrep_map_header_seal(header);
    }
    int rc = qrep_map_header_check(header, sizeof *header + body_size);
    EXPECT(is_check_result(rc));
    if (rc == 0) {
        const uint8_t *values = body + qrep_map_values_offset(header->granules) - sizeof *header;
        if (qrep_map_body_check(header, body, values) == 0)
            for (uint64_t granule = 0; granule < header->granules; granule++)
                EXPECT((body[granule] & QREP_STATE_MASK) != 3);
    }
    free(body);
    free(header);
}

struct description {
    uint32_t extent_count, payload_size;
    uint16_t flushed_sectors, version;
    uint8_t position_off, attempt_off, spoil, pages_on;
};
_Static_assert(sizeof(struct description) == 16, "description layout");
enum { SPOIL_CHECKSUM = 1, SPOIL_DIGEST = 2, SPOIL_PAYLOAD = 4 };

/* Lay one batch at `at`, sealed when it fits; returns the bytes of input used. */
static size_t lay_batch(uint8_t *segment, size_t at, const uint8_t *data, size_t size, const struct description *want)
{
    struct qrep_undo_batch *batch = (void *)(segment + at);
    struct qrep_undo_extent *extents = (void *)(batch + 1);
    size_t room = PAGES * QREP_PAGE_SIZE - at - sizeof *batch;
    uint64_t table = qrep_undo_batch_table_size(want->extent_count);
    size_t take = table < size ? table : size;
    if (take > room)
        take = room;
    memcpy(extents, data, take);
    batch->extent_count = want->extent_count;
    batch->payload_size = want->payload_size;
    batch->attempt = ATTEMPT + want->attempt_off;
    batch->position = POSITION + at + want->position_off;
    batch->flushed = POSITION + (uint64_t)want->flushed_sectors * SECTOR;
    batch->magic = QREP_UNDO_BATCH_MAGIC;
    batch->version = QREP_DISK_VERSION;
    if (table <= room) {
        uint64_t payload = at + qrep_undo_payload_offset(want->extent_count);
        if (payload + want->payload_size <= PAGES * QREP_PAGE_SIZE)
            qrep_blake3_hash(segment + payload, want->payload_size, batch->digest);
        batch->digest[0] ^= (want->spoil & SPOIL_DIGEST) != 0;
        qrep_undo_batch_seal(batch, extents);
        if (want->version)
            batch->version = want->version;
        batch->checksum[0] ^= (want->spoil & SPOIL_CHECKSUM) != 0;
    }
    return take;
}

/* What recovery does with extents that passed: put the payload back where they say. */
static void restore(const struct qrep_undo_batch *batch, const uint8_t *payload, uint8_t *device)
{
    const struct qrep_undo_extent *extents = (const void *)(batch + 1);
    uint64_t used = 0;
    for (uint32_t i = 0; i < batch->extent_count; i++) {
        memset(device + extents[i].offset / SECTOR, 1, extents[i].size / SECTOR);
        if (extents[i].kind != QREP_UNDO_DATA)
            continue;
        for (uint32_t byte = 0; byte < extents[i].size; byte += SECTOR)
            device[extents[i].offset / SECTOR] ^= payload[used + byte + SECTOR - 1];
        used += extents[i].size;
    }
    EXPECT(used == batch->payload_size);
}

/* The batch at the start of `segment + at` by hand, as a lane's self-check or a careful reader does; 1 if it is one of ours. */
static int load_batch(const uint8_t *segment, size_t at, uint8_t *device)
{
    const struct qrep_undo_batch *batch = (const void *)(segment + at);
    uint8_t digest[QREP_DIGEST_SIZE];
    int rc = qrep_undo_batch_peek(batch, POSITION + at, PAGES * QREP_PAGE_SIZE - at);
    EXPECT(rc == 0 || rc == -EBADMSG || rc == -ENOENT);
    if (rc || batch->attempt != ATTEMPT || qrep_undo_batch_check(batch, (const void *)(batch + 1), DEVICE_SIZE))
        return 0;
    const uint8_t *payload = segment + at + qrep_undo_payload_offset(batch->extent_count);
    qrep_blake3_hash(payload, batch->payload_size, digest);
    if (memcmp(digest, batch->digest, sizeof digest))
        return 0;
    restore(batch, payload, device);
    return 1;
}

static void scan_segment(const uint8_t *data, size_t size)
{
    uint8_t *segment = aligned_alloc(16, PAGES * QREP_PAGE_SIZE);
    uint8_t *device = calloc(1, DEVICE_SIZE / SECTOR);
    struct description want;
    memset(segment, 0, PAGES * QREP_PAGE_SIZE);
    for (size_t page = 0; size >= sizeof want && page < PAGES; page += 1 + want.pages_on % 4) {
        memcpy(&want, data, sizeof want);
        data += sizeof want, size -= sizeof want;
        size_t used = lay_batch(segment, page * QREP_PAGE_SIZE, data, size, &want);
        data += used, size -= used;
        if (want.spoil & SPOIL_PAYLOAD && page + 1 < PAGES)
            segment[(page + 1) * QREP_PAGE_SIZE] ^= 1;
    }

    struct qrep_undo_scan scan = {
        .segment = segment, .size = PAGES * QREP_PAGE_SIZE, .position = POSITION, .device_size = DEVICE_SIZE, .attempt = ATTEMPT,
        .gap = QREP_UNDO_NO_PLACE, .damaged = QREP_UNDO_NO_PLACE,
    };
    const struct qrep_undo_batch *found;
    uint64_t at = 0, flushed = 0;
    int damage = 0;
    uint64_t gap = QREP_UNDO_NO_PLACE;
    /* The same by hand must say the same. */
    while (at < PAGES * QREP_PAGE_SIZE) {
        if (!load_batch(segment, at, device)) {
            if (gap == QREP_UNDO_NO_PLACE)
                gap = POSITION + at;
            at += QREP_PAGE_SIZE;
            continue;
        }
        EXPECT(qrep_undo_scan_next(&scan, &found) == 1 && found == (const void *)(segment + at));
        flushed = found->flushed;
        damage |= gap < flushed;
        at += qrep_undo_batch_size(found->extent_count, found->payload_size);
        EXPECT(scan.cursor == at && at <= PAGES * QREP_PAGE_SIZE);
    }
    EXPECT(qrep_undo_scan_next(&scan, &found) == 0);
    EXPECT(scan.gap == gap && damage == (scan.damaged != QREP_UNDO_NO_PLACE));
    EXPECT(!damage || scan.damaged == gap);
    free(device);
    free(segment);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    int repair = data[1] % 8 != 0;
    switch (data[0] % 4) {
    case 0:
        load_superblock(data + 2, size - 2, repair);
        break;
    case 1:
        load_undo_header(data + 2, size - 2, repair);
        break;
    case 2:
        load_map(data + 2, size - 2, repair);
        break;
    default:
        scan_segment(data + 2, size - 2);
    }
    return 0;
}
