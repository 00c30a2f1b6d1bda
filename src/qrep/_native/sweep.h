/* Whole-device loops for benchmarks and cold paths: every byte once, in order, at a queue depth, nothing looked at. */
#ifndef QREP_SWEEP_H
#define QREP_SWEEP_H

#include "ring.h"

struct qrep_sweep {
    uint64_t size;       /* bytes of the device to pass over, from offset 0 */
    uint32_t block_size; /* bytes of one request, a multiple of 4096 */
    uint32_t depth;      /* requests in flight, 1..256 */
    uint32_t backend;    /* enum qrep_ring_backend */
    uint32_t reserved;
};

/* Read. `descriptor` is O_DIRECT or not. Returns the bytes read (less than size: the device is shorter), or -errno of the first failure;
 * all I/O is complete either way. */
int64_t qrep_sweep_read(int descriptor, const struct qrep_sweep *sweep);

/* Write `pattern`, a buffer of block_size bytes, to every block, the last one cut to the size, then fdatasync. Same returns. */
int64_t qrep_sweep_write(int descriptor, const struct qrep_sweep *sweep, const void *pattern);

#endif
