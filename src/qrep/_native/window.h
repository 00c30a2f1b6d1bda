/* Room for frames in flight: an arena used as a ring, in which blocks of any size are taken in order and given back in order.
 *
 * Many small frames or a few large ones are in flight in the same memory, so that a thousand changed leaves keep a device as busy as one
 * full granule does. Positions only grow; a block never wraps. */
#ifndef QREP_WINDOW_H
#define QREP_WINDOW_H

#include "common.h"

struct qrep_window {
    uint8_t *base;
    uint64_t size; /* bytes; a block of at most size / 2 always fits an empty window */
    uint64_t head; /* everything below is free */
    uint64_t tail; /* where the next block starts, unless it would wrap */
};

/* Take `size` bytes aligned to QREP_PAGE_SIZE, or NULL when they do not fit now. */
static inline void *qrep_window_take(struct qrep_window *window, uint64_t size)
{
    uint64_t need = qrep_align_up(size, QREP_PAGE_SIZE);
    uint64_t start = window->tail, at = start % window->size;

    if (window->head == window->tail) { /* empty: start over, so that nothing is lost to the wrap */
        window->head = window->tail = start = qrep_align_up(start, window->size);
        at = 0;
    }
    if (at + need > window->size) {
        start += window->size - at;
        at = 0;
    }
    if (need > window->size || start + need - window->head > window->size)
        return NULL;
    window->tail = start + need;
    return window->base + at;
}

/* Give back everything up to `position`, a value that `tail` had (it may have started over since). */
static inline void qrep_window_release(struct qrep_window *window, uint64_t position)
{
    if (position > window->head)
        window->head = position;
}

#endif
