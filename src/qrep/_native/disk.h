/* The bytes on disk that qrep owns: superblock, undo store, digest map. One home of this fact (docs/DISK_FORMAT.md tells the write order).
 *
 * Little-endian, fixed width, versioned, reserved bytes zero. Every structure carries a BLAKE3 over itself that is checked before
 * any field is believed; later versions keep it as the last 32 bytes. `features` are incompatible feature bits: an unknown one
 * means hands off. */
#ifndef QREP_DISK_H
#define QREP_DISK_H

#include "common.h"

#define QREP_DISK_VERSION 1

/* ---- target superblock: two slots of one sector, the valid one with the higher sequence wins (R4) ---- */

#define QREP_SUPERBLOCK_MAGIC 0x4b4c425352455051ull /* "QPERSBLK" */
#define QREP_SUPERBLOCK_SLOT_DISTANCE 4096          /* slot A at 0, slot B here, so that no sector or page holds both */
#define QREP_HISTORY_MAX 12

enum qrep_role { QREP_ROLE_REPLICA = 1, QREP_ROLE_PRIMARY = 2 };
enum qrep_open_kind { QREP_OPEN_NONE = 0, QREP_OPEN_RUN = 1, QREP_OPEN_ROLLBACK = 2 };

struct qrep_superblock {
    uint64_t magic;
    uint16_t version;
    uint8_t role;
    uint8_t open_kind;
    uint32_t features;
    uint64_t sequence;
    uint64_t size;                             /* bytes of the volume */
    uint32_t leaf_size;
    uint32_t granule_size;
    uint8_t volume_id[QREP_ID_SIZE];
    uint8_t committed_id[QREP_ID_SIZE];        /* T; all zero: nothing was ever committed */
    uint64_t committed_counter;                /* for people */
    uint64_t max_epoch;                        /* the highest session number ever accepted */
    uint8_t open_new_id[QREP_ID_SIZE];         /* valid when open_kind is not NONE; its base is committed_id */
    uint64_t open_attempt;
    uint8_t history[QREP_HISTORY_MAX][QREP_ID_SIZE]; /* earlier committed ids, newest first */
    uint8_t reserved[176];
    uint8_t checksum[QREP_DIGEST_SIZE];        /* BLAKE3 of the 480 bytes before */
};
_Static_assert(offsetof(struct qrep_superblock, volume_id) == 40, "superblock layout");
_Static_assert(offsetof(struct qrep_superblock, history) == 112, "superblock layout");
_Static_assert(offsetof(struct qrep_superblock, checksum) == 480, "superblock layout");
_Static_assert(sizeof(struct qrep_superblock) == 512, "one sector");

/* ---- undo file: one per generation; the way back from `new_id` to `base_id` ---- */

#define QREP_UNDO_MAGIC 0x4f444e5550455251ull       /* "QREPUNDO" */
#define QREP_UNDO_BATCH_MAGIC 0x4843544250455251ull /* "QREPBTCH" */
#define QREP_UNDO_SEGMENT_SIZE (16u << 20)          /* a lane takes whole segments; a batch never crosses one */
#define QREP_UNDO_EXTENTS_MAX 16384u

#define QREP_UNDO_COPY_OFFSET 4096u

struct qrep_undo_header { /* at offset 0; a copy at QREP_UNDO_COPY_OFFSET once the generation is prepared; the first segment starts at QREP_UNDO_SEGMENT_SIZE */
    uint64_t magic;
    uint16_t version;
    uint16_t reserved0;
    uint32_t features;
    uint8_t volume_id[QREP_ID_SIZE];
    uint8_t base_id[QREP_ID_SIZE];
    uint8_t new_id[QREP_ID_SIZE];
    uint64_t attempt;
    uint64_t size;
    uint32_t leaf_size;
    uint32_t granule_size;
    uint64_t batches;                   /* in the copy: how many there are at least; else 0 */
    uint8_t checksum[QREP_DIGEST_SIZE]; /* BLAKE3 of the 96 bytes before */
};
_Static_assert(offsetof(struct qrep_undo_header, checksum) == 96, "undo header layout");
_Static_assert(sizeof(struct qrep_undo_header) == 128, "undo header layout");

enum qrep_undo_kind { QREP_UNDO_DATA = 1, QREP_UNDO_ZERO = 2 };

struct qrep_undo_extent { /* what a range of the device held before it was overwritten */
    uint64_t offset; /* bytes on the device */
    uint32_t size;   /* bytes, multiple of 512 */
    uint32_t kind;   /* DATA: its bytes follow in order in the payload; ZERO: it was zero */
}; /* restored last to first, so that inside a batch too the first-logged content wins */
_Static_assert(sizeof(struct qrep_undo_extent) == 16, "undo extent layout");

struct qrep_undo_batch { /* then the extent table, zeroes to a multiple of 4096, the payload, zeroes to one again; batches lie back to back from the
                            start of their segment, so that a missing one is seen */
    uint64_t magic;
    uint32_t version;
    uint32_t extent_count;
    uint8_t base_id[QREP_ID_SIZE];
    uint64_t attempt;
    uint64_t sequence;     /* global order of logging inside the attempt: restored in descending order, so the first-logged content wins */
    uint64_t position;     /* own offset in the undo file: a batch copied elsewhere is not a batch */
    uint64_t payload_size; /* bytes, DATA extents only */
    uint64_t flushed;      /* every batch of this segment that ends at or below this offset was flushed before this one was written */
    uint64_t reserved;
    uint8_t digest[QREP_DIGEST_SIZE];   /* BLAKE3 of the payload */
    uint8_t checksum[QREP_DIGEST_SIZE]; /* BLAKE3 of the 112 bytes before, followed by the extent table */
};
_Static_assert(offsetof(struct qrep_undo_batch, digest) == 80, "undo batch layout");
_Static_assert(sizeof(struct qrep_undo_batch) == 144, "undo batch layout");

/* ---- digest map: `root` (and `pending`), replaced atomically by rename; `leaves`, two slots of a page per granule ---- */

#define QREP_MAP_MAGIC 0x50414d5050455251ull /* "QREPPMAP" */

/* state byte of a granule */
#define QREP_STATE_MASK 0x03u
#define QREP_STATE_UNKNOWN 0u /* R9: a value of its own */
#define QREP_STATE_HASHED 1u  /* value is its chaining value */
#define QREP_STATE_ZERO 2u    /* every byte is zero; its value may be left uncomputed */
#define QREP_STATE_SLOT 0x10u /* the leaf page is in slot 1, else in slot 0 */
#define QREP_STATE_VALUE 0x20u /* the value is known (always with HASHED) */
#define QREP_STATE_PAGE 0x40u  /* a leaf page is stored; it is believed only if it merges to the value (R8) */

struct qrep_map_header { /* then states: one byte per granule, zeroes to a multiple of 32; then values: 32 bytes per granule */
    uint64_t magic;
    uint16_t version;
    uint16_t reserved0;
    uint32_t features;
    uint8_t volume_id[QREP_ID_SIZE];
    uint8_t tag[QREP_ID_SIZE];  /* the generation this map describes */
    uint8_t base[QREP_ID_SIZE]; /* `pending` only: the generation it would follow */
    uint64_t counter;
    uint64_t size;
    uint32_t leaf_size;
    uint32_t granule_size;
    uint64_t granules;
    uint8_t root[QREP_DIGEST_SIZE];   /* plain BLAKE3 of the device, or all zero when not computed yet */
    uint8_t digest[QREP_DIGEST_SIZE]; /* BLAKE3 of states (padded) and values */
    uint64_t reserved1[8];
    uint8_t checksum[QREP_DIGEST_SIZE]; /* BLAKE3 of the 224 bytes before */
};
_Static_assert(offsetof(struct qrep_map_header, root) == 96, "map header layout");
_Static_assert(offsetof(struct qrep_map_header, checksum) == 224, "map header layout");
_Static_assert(sizeof(struct qrep_map_header) == 256, "map header layout");

/* Where the values start in a map file, and the size of the whole file. */
static inline uint64_t qrep_map_values_offset(uint64_t granules)
{
    return sizeof(struct qrep_map_header) + qrep_align_up(granules, QREP_DIGEST_SIZE);
}
static inline uint64_t qrep_map_size(uint64_t granules) { return qrep_map_values_offset(granules) + granules * QREP_DIGEST_SIZE; }

/* Bytes of one leaf page: the chaining values of a granule's leaves, zeroes to a multiple of 4096. */
static inline uint64_t qrep_leaf_page_size(uint32_t leaf_size, uint32_t granule_size)
{
    return qrep_align_up((uint64_t)(granule_size / leaf_size) * QREP_DIGEST_SIZE, QREP_PAGE_SIZE);
}
/* Where slot 0 or 1 of a granule's leaf page lies in `leaves`. */
static inline uint64_t qrep_leaf_page_offset(uint32_t leaf_size, uint32_t granule_size, uint64_t granule, int slot)
{
    return (granule * 2 + (slot ? 1 : 0)) * qrep_leaf_page_size(leaf_size, granule_size);
}

/* Seal: fill magic, version and checksum. Check: 0; -EBADMSG not ours or damaged; -ENOTSUP newer version or unknown feature. */
void qrep_superblock_seal(struct qrep_superblock *block);
int qrep_superblock_check(const struct qrep_superblock *block);
void qrep_undo_header_seal(struct qrep_undo_header *header);
int qrep_undo_header_check(const struct qrep_undo_header *header);
/* `extents` holds batch->extent_count entries; position, sequence, ids and payload digest are set by the caller. */
void qrep_undo_batch_seal(struct qrep_undo_batch *batch, const struct qrep_undo_extent *extents);
/* Check a batch found at `position` with `available` bytes from there to the end of its segment, in two steps so that no length is used unchecked:
 * first the fixed part (bounds only; then qrep_undo_batch_table_size() bytes of table may be read), then everything but the payload,
 * whose digest is the caller's to check. 0; -ENOENT no batch here; -EBADMSG damaged. */
int qrep_undo_batch_peek(const struct qrep_undo_batch *batch, uint64_t position, uint64_t available);
int qrep_undo_batch_check(const struct qrep_undo_batch *batch, const struct qrep_undo_extent *extents, uint64_t device_size);
void qrep_map_header_seal(struct qrep_map_header *header);
int qrep_map_header_check(const struct qrep_map_header *header, uint64_t file_size);
/* What header->digest holds; and the check of it and of every state byte: 0 or -EBADMSG. */
void qrep_map_digest(const uint8_t *states, const uint8_t *values, uint64_t granules, uint8_t digest[QREP_DIGEST_SIZE]);
int qrep_map_body_check(const struct qrep_map_header *header, const uint8_t *states, const uint8_t *values);

static inline uint64_t qrep_undo_batch_table_size(uint32_t extent_count) { return (uint64_t)extent_count * sizeof(struct qrep_undo_extent); }
/* Bytes from a batch's start to its payload, and to the next batch. */
static inline uint64_t qrep_undo_payload_offset(uint32_t extent_count)
{
    return qrep_align_up(sizeof(struct qrep_undo_batch) + qrep_undo_batch_table_size(extent_count), QREP_PAGE_SIZE);
}
static inline uint64_t qrep_undo_batch_size(uint32_t extent_count, uint64_t payload_size)
{
    return qrep_undo_payload_offset(extent_count) + qrep_align_up(payload_size, QREP_PAGE_SIZE);
}

/* ---- reading a segment back ---- */

#define QREP_UNDO_NO_PLACE UINT64_MAX

struct qrep_undo_scan {
    const uint8_t *segment; /* its bytes, 8-aligned, as far as the file goes */
    uint64_t size;          /* bytes of them, at most QREP_UNDO_SEGMENT_SIZE */
    uint64_t position;      /* of the segment in the undo file */
    uint64_t device_size;
    uint64_t attempt;
    uint8_t base_id[QREP_ID_SIZE];
    uint64_t cursor;  /* starts as 0 */
    uint64_t gap;     /* starts as NO_PLACE; first place in the file that holds no valid batch of the attempt: the unwritten tail, unless `damaged` */
    uint64_t damaged; /* starts as NO_PLACE; a place that a later batch says was flushed, and that holds none: the way back is lost there */
};

/* The next valid batch of base_id and attempt, payload digest included; what is invalid is stepped over in pages.
 * 1 and *found, which points into the segment; 0 at the end: only then `gap` and `damaged` are final. */
int qrep_undo_scan_next(struct qrep_undo_scan *scan, const struct qrep_undo_batch **found);

#endif
