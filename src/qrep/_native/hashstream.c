#include "hashstream.h"

#include "blake3.h"

#include <string.h>

void qrep_hashstream_start(struct qrep_hashstream *stream)
{
    stream->pieces = 0;
    stream->depth = 0;
    stream->used = 0;
}

static void merge_top(struct qrep_hashstream *stream, int root, uint8_t value[QREP_DIGEST_SIZE])
{
    uint8_t pair[2][QREP_DIGEST_SIZE];
    memcpy(pair[0], stream->stack[--stream->depth], QREP_DIGEST_SIZE);
    memcpy(pair[1], value, QREP_DIGEST_SIZE);
    qrep_blake3_merge(pair[0], 2, root, pair[0], value);
}

/* Fold a whole piece that is known not to be the last: as many merges as its ordinal has trailing zero bits, which keeps the
 * stack at one entry per set bit of `pieces` and is exactly BLAKE3's largest power of two on the left. */
static void fold(struct qrep_hashstream *stream, const uint8_t *piece)
{
    uint8_t value[QREP_DIGEST_SIZE];
    qrep_blake3_subtree(piece, QREP_HASHSTREAM_PIECE, stream->pieces * QREP_HASHSTREAM_PIECE, QREP_HASHSTREAM_PIECE, NULL, value);
    stream->pieces++;
    for (uint64_t ordinal = stream->pieces; (ordinal & 1) == 0; ordinal >>= 1)
        merge_top(stream, 0, value);
    memcpy(stream->stack[stream->depth++], value, QREP_DIGEST_SIZE);
}

void qrep_hashstream_add(struct qrep_hashstream *stream, const void *data, size_t size)
{
    const uint8_t *from = data;
    while (size) {
        if (stream->used == QREP_HASHSTREAM_PIECE) { /* only now is it certain that more follows */
            fold(stream, stream->piece);
            stream->used = 0;
        }
        while (stream->used == 0 && size > QREP_HASHSTREAM_PIECE) {
            fold(stream, from);
            from += QREP_HASHSTREAM_PIECE;
            size -= QREP_HASHSTREAM_PIECE;
        }
        size_t take = QREP_HASHSTREAM_PIECE - stream->used;
        if (take > size)
            take = size;
        memcpy(stream->piece + stream->used, from, take);
        stream->used += take;
        from += take;
        size -= take;
    }
}

void qrep_hashstream_end(struct qrep_hashstream *stream, uint8_t digest[QREP_DIGEST_SIZE])
{
    if (stream->depth == 0) {
        qrep_blake3_hash(stream->piece, stream->used, digest);
        return;
    }
    qrep_blake3_subtree(stream->piece, stream->used, stream->pieces * QREP_HASHSTREAM_PIECE, QREP_HASHSTREAM_PIECE, NULL, digest);
    while (stream->depth > 1)
        merge_top(stream, 0, digest);
    merge_top(stream, 1, digest);
}
