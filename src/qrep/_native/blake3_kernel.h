/* What the BLAKE3 tree (blake3.c), its kernels (blake3_portable.c, blake3_x86.c) and their template share.
 *
 * A kernel is up to three widths of the same template, widest first: the narrow ones hash subtrees that would leave the
 * lanes of the wide one empty. Numbers and names are those of the BLAKE3 paper, sections 2.1 to 2.5. */
#ifndef QREP_BLAKE3_KERNEL_H
#define QREP_BLAKE3_KERNEL_H

#include "blake3.h"

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8, KEYED_HASH = 16 };

#define BLOCK_SIZE 64
#define BLOCKS_PER_CHUNK (QREP_CHUNK_SIZE / BLOCK_SIZE)
#define TREE_LEVELS 54 /* 2^64 bytes are 2^54 chunks */

extern const uint32_t qrep_blake3_iv[8];

struct qrep_blake3_kernel;

/* What stays the same over one tree. */
struct qrep_blake3_job {
    const struct qrep_blake3_kernel *kernel;
    uint32_t key[8];      /* the IV, or the key of a keyed hash */
    uint32_t flags;       /* 0 or KEYED_HASH: part of every compression */
    unsigned leaf_level;  /* a leaf is 2^leaf_level chunks */
    int zeros;            /* every byte is zero and none is read */
};

struct qrep_blake3_width {
    unsigned lanes; /* 0 ends the list */

    /* A subtree of `chunks` full chunks, a power of two >= lanes, the first of which has number `counter`.
     * leaves: NULL, or room for every leaf (then a leaf is smaller than the subtree). */
    void (*subtree)(const struct qrep_blake3_job *job, const uint8_t *data, size_t chunks, uint64_t counter,
                    uint8_t *leaves, uint8_t value[32]);

    /* The same where every byte is zero; `data` is ignored. */
    void (*zeros)(const struct qrep_blake3_job *job, const uint8_t *data, size_t chunks, uint64_t counter,
                  uint8_t *leaves, uint8_t value[32]);

    /* Leaves of at most `lanes` chunks, back to back, each at its own device offset. Takes as many as fill the lanes;
     * returns how many that were. */
    size_t (*gather)(const struct qrep_blake3_job *job, const uint8_t *data, size_t count, const uint64_t *offsets,
                     uint8_t *values);

    /* `count` parents of 2 * count values. Takes as many as fill the lanes; returns how many. `values` may be `children`. */
    size_t (*parents)(const struct qrep_blake3_job *job, const uint8_t *children, size_t count, uint8_t *values);
};

#define WIDTH(lanes, instance) {lanes, subtree_##instance, zeros_##instance, gather_##instance, parents_##instance}

struct qrep_blake3_kernel {
    const char *name;
    int (*supported)(void); /* by this CPU */
    struct qrep_blake3_width widths[4];
};

extern const struct qrep_blake3_kernel qrep_blake3_portable;
#if defined(__x86_64__)
extern const struct qrep_blake3_kernel qrep_blake3_sse41, qrep_blake3_avx2, qrep_blake3_avx512;
#elif defined(__aarch64__)
extern const struct qrep_blake3_kernel qrep_blake3_neon;
#endif

/* The scalar reference kernel has no widths: a job that names it goes through the plain loops of blake3.c alone. */
extern const struct qrep_blake3_kernel qrep_blake3_scalar;

/* The kernel in use (blake3_select.c). */
extern const struct qrep_blake3_kernel *qrep_blake3_kernel;

/* The seven rounds as calls of FOUR(b0..b3, c0..c3, d0..d3, x0, y0, .. x3, y3): a column or a diagonal step, that is
 * G(a, b, c, d, x, y) four times, of state words a = 0..3, b, c, d and message words x and y. */
#define BLAKE3_ROUND(FOUR, m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15) \
    FOUR(4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, m0, m1, m2, m3, m4, m5, m6, m7) \
    FOUR(5, 6, 7, 4, 10, 11, 8, 9, 15, 12, 13, 14, m8, m9, m10, m11, m12, m13, m14, m15)
#define BLAKE3_ROUNDS(FOUR) \
    BLAKE3_ROUND(FOUR, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15) \
    BLAKE3_ROUND(FOUR, 2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8) \
    BLAKE3_ROUND(FOUR, 3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1) \
    BLAKE3_ROUND(FOUR, 10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6) \
    BLAKE3_ROUND(FOUR, 12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4) \
    BLAKE3_ROUND(FOUR, 9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7) \
    BLAKE3_ROUND(FOUR, 11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13)

/* FOUR as one G after the other; G is the user's. */
#define BLAKE3_ONE_BY_ONE(b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, x0, y0, x1, y1, x2, y2, x3, y3) \
    G(0, b0, c0, d0, x0, y0) G(1, b1, c1, d1, x1, y1) G(2, b2, c2, d2, x2, y2) G(3, b3, c3, d3, x3, y3)

/* Lanes picked by number from the concatenation a:b. gcc has its own spelling until version 12. */
#if defined(__clang__)
#define PICK(V, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(V, a, b, ...) __builtin_shuffle(a, b, (V){__VA_ARGS__})
#endif

#endif
