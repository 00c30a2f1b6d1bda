/* The contexts that take their memory from the caller are in the part of zstd.h that is only for who links it statically, and so do we. */
#define ZSTD_STATIC_LINKING_ONLY
#include "pack.h"

#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <zstd.h>

#if ZSTD_VERSION_NUMBER < 10400
#error "zstd 1.4 or later is needed"
#endif

struct qrep_packer {
    ZSTD_CCtx *context; /* inside `memory` */
    void *memory;
};

struct qrep_unpacker {
    ZSTD_DCtx *context;
    void *memory;
};

struct qrep_packer *qrep_packer_open(void)
{
    struct qrep_packer *packer = calloc(1, sizeof *packer);
    size_t size = ZSTD_estimateCCtxSize(QREP_PACK_LEVEL_MAX); /* of every level up to it, for sources of any size */

    if (packer == NULL)
        return NULL;
    packer->memory = malloc(size);
    packer->context = packer->memory ? ZSTD_initStaticCCtx(packer->memory, size) : NULL;
    if (packer->context)
        return packer;
    qrep_packer_close(packer);
    return NULL;
}

void qrep_packer_close(struct qrep_packer *packer)
{
    if (packer)
        free(packer->memory);
    free(packer);
}

size_t qrep_pack(struct qrep_packer *packer, int level, const void *data, size_t size, void *packed, size_t room)
{
    size_t done = ZSTD_compressCCtx(packer->context, packed, room, data, size, level);
    return ZSTD_isError(done) ? 0 : done; /* of a context that has its memory, "no room" is the only error there is */
}

struct qrep_unpacker *qrep_unpacker_open(void)
{
    struct qrep_unpacker *unpacker = calloc(1, sizeof *unpacker);
    size_t size = ZSTD_estimateDCtxSize();

    if (unpacker == NULL)
        return NULL;
    unpacker->memory = malloc(size);
    unpacker->context = unpacker->memory ? ZSTD_initStaticDCtx(unpacker->memory, size) : NULL;
    if (unpacker->context)
        return unpacker;
    qrep_unpacker_close(unpacker);
    return NULL;
}

void qrep_unpacker_close(struct qrep_unpacker *unpacker)
{
    if (unpacker)
        free(unpacker->memory);
    free(unpacker);
}

int qrep_unpack(struct qrep_unpacker *unpacker, const void *packed, size_t packed_size, void *data, size_t size)
{
    ZSTD_frameHeader header;

    if (ZSTD_getFrameHeader(&header, packed, packed_size) != 0 || header.frameType != ZSTD_frame)
        return -EPROTO;
    if (header.frameContentSize != size || header.windowSize > QREP_FRAME_DATA_MAX || header.dictID)
        return -EPROTO;
    if (ZSTD_findFrameCompressedSize(packed, packed_size) != packed_size) /* an error is larger than any size */
        return -EPROTO;
    return ZSTD_decompressDCtx(unpacker->context, data, size, packed, packed_size) == size ? 0 : -EPROTO;
}
