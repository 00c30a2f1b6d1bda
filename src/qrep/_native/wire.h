/* The bytes of a data connection: frames from source to target. One home of this fact; the control connection speaks msgpack
 * (protocol/messages.py).
 *
 * A frame is a header, then its run table, then its data. The header carries a keyed tag over its first 128 bytes, checked before
 * any of its lengths is used; the tag's key is fresh for every session and travels on the control connection, so a frame of another
 * session, attempt or connection cannot pass (R6). Everything is little-endian; reserved bytes are zero and checked. */
#ifndef QREP_WIRE_H
#define QREP_WIRE_H

#include "common.h"

#define QREP_WIRE_MAGIC 0x50455251u /* "QREP" */
#define QREP_WIRE_VERSION 1

#define QREP_FRAME_DATA_MAX (4u << 20) /* bytes of data in one frame */
#define QREP_FRAME_RUNS_MAX 16384u     /* run table entries in one frame */

enum qrep_frame_kind {
    QREP_FRAME_FULL = 1, /* an aligned power-of-two run of leaves (the last of a device may be short); digest is its chaining value; no run table */
    QREP_FRAME_RUNS = 2, /* a run table and the data of its runs that carry any, back to back; digest is BLAKE3 of the table followed by
                            the chaining values of the leaves that are not zero, copies included, in order */
    QREP_FRAME_ZERO = 3, /* `span` whole granules from `granule` on are all zero; no table, no data, digest zero */
    QREP_FRAME_END = 4,  /* nothing follows on this connection; the target answers with an END of its own when all is written */
};

/* In `connection` of what the target says: without it, the END of a connection that carried nothing could be sent back as its own answer. */
#define QREP_FRAME_ANSWER 0x80000000u

#define QREP_FRAME_LAST 1u  /* flags: the last frame of its granule in this pass */
#define QREP_FRAME_PARTS 4u /* flags: with LAST, not with VALUE, not of a ZERO frame: the pass ends here and leaves of the granule that differ may be
                               missing, because the source could not read them; it stays applied in part (INV-Z) */
#define QREP_FRAME_PACKED 8u /* flags: of FULL and RUNS, where both ends have QREP_FEATURE_ZSTD: the data is one zstd frame (pack.h) of data_size bytes, and
                                `span` says how many it is once unpacked: more than data_size. The run table and the digest are as without. */
#define QREP_FRAME_VALUE 2u /* flags: granule_value holds the chaining value of the granule once this frame is applied; not with a span > 1 */

struct qrep_frame_header {
    uint32_t magic;
    uint16_t version;
    uint16_t kind;
    uint32_t flags;
    uint32_t run_count; /* entries of the run table, RUNS only */
    uint64_t granule;   /* index */
    uint64_t attempt;
    uint64_t session;
    uint64_t sequence;   /* 0, 1, 2, ... on this connection, in each direction */
    uint32_t data_size;  /* bytes of data after the table, as they travel */
    union {
        uint32_t first_leaf;  /* FULL: index of the first leaf inside the granule */
        uint32_t copy_leaves; /* RUNS: leaves in copy runs; more than none only with QREP_FEATURE_COPIES */
    };
    uint8_t digest[QREP_DIGEST_SIZE];
    uint8_t granule_value[QREP_DIGEST_SIZE]; /* valid with VALUE, else zero */
    uint32_t span;                           /* ZERO: granules, >= 1; PACKED: bytes of data once unpacked; else 0 */
    uint32_t connection;                     /* index of the connection inside its session, so that frames cannot change streams; from the target
                                                with QREP_FRAME_ANSWER, so that they cannot change direction */
    uint8_t tag[QREP_DIGEST_SIZE];           /* BLAKE3 keyed with the session key, over the 128 bytes before */
};
_Static_assert(sizeof(struct qrep_frame_header) == 160, "frame header layout");
_Static_assert(offsetof(struct qrep_frame_header, granule) == 16, "frame header layout");
_Static_assert(offsetof(struct qrep_frame_header, data_size) == 48, "frame header layout");
_Static_assert(offsetof(struct qrep_frame_header, digest) == 56, "frame header layout");
_Static_assert(offsetof(struct qrep_frame_header, span) == 120, "frame header layout");
_Static_assert(offsetof(struct qrep_frame_header, tag) == 128, "frame header layout");

/* Bytes of data that the leaves of a FULL or RUNS frame are made of. */
static inline uint32_t qrep_frame_bytes(const struct qrep_frame_header *header)
{
    return header->flags & QREP_FRAME_PACKED ? header->span : header->data_size;
}

#define QREP_RUN_ZERO 0x80000000u
#define QREP_RUN_COPY 0x40000000u
#define QREP_RUN_FROM_SHIFT 16

struct qrep_wire_run {
    uint32_t first; /* leaf index inside the granule; ascending, runs do not overlap; two that touch differ in kind, or are copies from places that do not
                       go on from each other */
    uint32_t count; /* leaves, >= 1; with QREP_RUN_ZERO: they are zero and carry no data; with QREP_RUN_COPY: bits 0..15 leaves, bits 16..29 the
                       leaf inside the granule that the first of them is a copy of, the others of those after it: whole leaves, all of one data
                       run of this frame before this one */
};
_Static_assert(sizeof(struct qrep_wire_run) == 8, "run layout");

/* Of a run that was checked. */
static inline uint32_t qrep_run_leaves(const struct qrep_wire_run *run)
{
    return run->count & (run->count & QREP_RUN_COPY ? 0xffffu : ~QREP_RUN_ZERO);
}
static inline uint32_t qrep_run_from(const struct qrep_wire_run *run) { return run->count >> QREP_RUN_FROM_SHIFT & 0x3fffu; }
static inline int qrep_run_has_data(const struct qrep_wire_run *run) { return !(run->count & (QREP_RUN_ZERO | QREP_RUN_COPY)); }

/* What frames may use beyond the plain form of version 1: agreed on for the session (protocol/features.py), and refused where it was not. */
#define QREP_FEATURE_COPIES 1u /* RUNS: leaves that are copies of leaves of the same frame */
#define QREP_FEATURE_ZSTD 2u   /* FULL and RUNS: QREP_FRAME_PACKED */

/* The shape of a volume, which every length is checked against. */
struct qrep_geometry {
    uint64_t size;         /* bytes of the volume, a multiple of 512 below 2^63: what a block device can be, and undo extents count in sectors */
    uint32_t leaf_size;    /* bytes, power of two, 4 KiB..1 MiB */
    uint32_t granule_size; /* bytes, power of two, >= 2 leaves, <= 64 MiB */
};

static inline uint64_t qrep_granules(const struct qrep_geometry *g) { return (g->size + g->granule_size - 1) / g->granule_size; }
static inline uint64_t qrep_granule_bytes(const struct qrep_geometry *g, uint64_t granule)
{
    uint64_t left = g->size - granule * g->granule_size;
    return left < g->granule_size ? left : g->granule_size;
}
static inline uint32_t qrep_granule_leaves(const struct qrep_geometry *g, uint64_t granule)
{
    return (uint32_t)((qrep_granule_bytes(g, granule) + g->leaf_size - 1) / g->leaf_size);
}
/* Bytes of the leaves that a FULL or RUNS frame brings, copies included: at most QREP_FRAME_DATA_MAX once the header was checked. */
static inline uint64_t qrep_frame_leaf_bytes(const struct qrep_frame_header *header, const struct qrep_geometry *geometry)
{
    return qrep_frame_bytes(header) + (header->kind == QREP_FRAME_RUNS ? (uint64_t)header->copy_leaves * geometry->leaf_size : 0);
}
/* 0, or -EINVAL when the sizes are not as promised above or the volume is smaller than two leaves. */
int qrep_geometry_check(const struct qrep_geometry *geometry);

/* What the receiver of a frame expects. */
struct qrep_wire_state {
    struct qrep_geometry geometry;
    uint64_t attempt;
    uint64_t session;
    uint64_t sequence; /* of the next frame */
    uint32_t connection;
    uint32_t features; /* QREP_FEATURE_*, of the session */
    uint8_t key[QREP_DIGEST_SIZE];
};

/* Fill magic, version, identity, sequence and tag of a header whose other fields are set, and count the sequence on. */
void qrep_frame_seal(struct qrep_frame_header *header, struct qrep_wire_state *state);

/* Check a received header in full: tag first, then everything against `state`; counts the sequence on.
 * 0; -EBADMSG: tag, magic or version; -ESTALE: attempt, session, connection or sequence; -EPROTO: a field that makes no sense. */
int qrep_frame_check(const struct qrep_frame_header *header, struct qrep_wire_state *state);

/* Check a run table of header->run_count entries against the header and the geometry, before any run is used: order, bounds, that the data of its data
 * runs is exactly qrep_frame_bytes(), that its copies are header->copy_leaves, and what each is a copy of. 0 or -EPROTO. */
int qrep_runs_check(const struct qrep_frame_header *header, const struct qrep_wire_run *runs, const struct qrep_geometry *geometry);

/* Bytes of data run `run` of `granule` stands for (its last leaf may be the short one of the device). */
uint64_t qrep_run_bytes(const struct qrep_geometry *geometry, uint64_t granule, const struct qrep_wire_run *run);

/* R7: the manifest of an attempt, over all granules g with marked[g] != 0 in ascending order: BLAKE3 of {u64 granule, u64 state & 3, value[32]} each
 * (states and values as in disk.h; the value counts as zero unless state has VALUE). count: how many were marked. */
void qrep_manifest(const uint8_t *marked, const uint8_t *states, const uint8_t *values, uint64_t granules, uint64_t *count,
                   uint8_t manifest[QREP_DIGEST_SIZE]);

#endif
