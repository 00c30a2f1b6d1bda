/* Reading and writing round a bad spot: what fails is halved down to the sector, so that exactly what is bad is known. */
#ifndef QREP_SALVAGE_H
#define QREP_SALVAGE_H

#include "common.h"

struct qrep_bad_extent {
    uint64_t offset; /* bytes on the device, sector aligned */
    uint64_t size;   /* bytes */
    int32_t error;   /* positive errno */
    uint32_t reserved;
};

/* Read [offset, offset+size) of `descriptor` (O_DIRECT) into `data`, halving every part that fails until it is one sector.
 * Unreadable sectors are reported, merged when they touch, and their bytes in `data` are left undefined: never zeroes by promise.
 * Returns the number of bad extents (0: all of it was readable after all), at most `room`, the last one then covering the rest;
 * or -errno for a call that cannot be made (bad alignment, end of device inside). */
int qrep_salvage_read(int descriptor, void *data, size_t size, uint64_t offset, size_t sector_size,
                      struct qrep_bad_extent *bad, unsigned room);

/* 1: an error (positive errno) of places of a medium, as opposed to one of the call, the process, the space or the whole device. */
int qrep_is_medium_error(int error);

/* The same for writing: what can be written of `data` is. After `limit` bytes of bad sectors the rest is taken for bad and not tried. An error that is
 * not of the medium is returned. */
int qrep_salvage_write(int descriptor, const void *data, size_t size, uint64_t offset, size_t sector_size, uint64_t limit,
                       struct qrep_bad_extent *bad, unsigned room);

#endif
