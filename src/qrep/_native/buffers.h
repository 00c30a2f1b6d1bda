/* The arena of a lane: one aligned, pre-faulted, huge-page-backed mapping, cut into equal slots.
 *
 * A slot has one owner at a time: the lane, the kernel (a read, write, receive or zero-copy send in flight), or a Python view. */
#ifndef QREP_BUFFERS_H
#define QREP_BUFFERS_H

#include "common.h"

struct qrep_arena {
    uint8_t *base;     /* aligned to 2 MiB */
    size_t size;       /* bytes, a multiple of 2 MiB */
    int huge;          /* 1: the kernel was asked for huge pages and accepted */
};

/* Map, advise and touch `size` bytes (rounded up to 2 MiB). 0 or -errno; on failure *arena is all zero. */
int qrep_arena_open(struct qrep_arena *arena, size_t size);
/* Unmap. Harmless on a zeroed arena. No request may still name this memory. */
void qrep_arena_close(struct qrep_arena *arena);

#endif
