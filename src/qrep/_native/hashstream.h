/* Plain BLAKE3 of bytes that lie in several places: a header and its table, the records of a manifest, states and values of a map.
 *
 * Folds whole pieces into a stack of chaining values as they come, so it needs this structure and nothing else. */
#ifndef QREP_HASHSTREAM_H
#define QREP_HASHSTREAM_H

#include "common.h"

#define QREP_HASHSTREAM_PIECE 16384 /* 16 chunks: one pass of the widest kernel */
#define QREP_HASHSTREAM_DEPTH 50    /* log2(2^64 bytes / piece) */

struct qrep_hashstream {
    uint64_t pieces; /* folded into the stack */
    uint32_t depth;  /* entries of the stack */
    uint32_t used;   /* bytes waiting in `piece` */
    uint8_t stack[QREP_HASHSTREAM_DEPTH][QREP_DIGEST_SIZE];
    uint8_t piece[QREP_HASHSTREAM_PIECE];
};

void qrep_hashstream_start(struct qrep_hashstream *stream);
void qrep_hashstream_add(struct qrep_hashstream *stream, const void *data, size_t size);
/* The digest of all that was added; the stream must be started again before the next use. */
void qrep_hashstream_end(struct qrep_hashstream *stream, uint8_t digest[QREP_DIGEST_SIZE]);

#endif
