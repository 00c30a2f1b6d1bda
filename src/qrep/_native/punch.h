/* Making a range of a device or image file zero, with proof: deallocated where that works, read back, and written where it does not.
 *
 * These calls block. On an image file the caller has none of its own direct I/O to that file in flight: fallocate(2) waits for all of it, and a
 * ring that completes requests only when asked (DEFER_TASKRUN) would never complete them. */
#ifndef QREP_PUNCH_H
#define QREP_PUNCH_H

#include "common.h"

struct qrep_zero_room { /* memory to read back into and to write zeroes from */
    uint8_t *base;      /* page aligned */
    size_t size;        /* bytes, a multiple of the sector size, at least 4096 */
};

/* Make [offset, offset + size) of `fd` (O_DIRECT) read as zeroes. *punch: 1 tries to deallocate first, and is set to 0 for good when the device
 * does not offer it or did not give zeroes. The room's contents are lost. Returns the bytes of zeroes that had to be written (0: deallocated and read
 * back as zero), or -errno. */
int64_t qrep_make_zero(int fd, uint64_t offset, uint64_t size, int *punch, const struct qrep_zero_room *room);

/* First place in [offset, end) that an image file holds data at, or `end`: everything before it is a hole and reads as zero.
 * `offset` itself where the file system cannot tell. Moves the descriptor's file position. */
uint64_t qrep_next_data(int fd, uint64_t offset, uint64_t end);

/* pread/pwrite of all `size` bytes, EINTR and short transfers continued. 0; -ENODATA at the end of the device; -errno. */
int qrep_pread_all(int fd, void *data, size_t size, uint64_t offset);
int qrep_pwrite_all(int fd, const void *data, size_t size, uint64_t offset);

#endif
