#include "punch.h"

#include "compare.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int qrep_pread_all(int fd, void *data, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(fd, (uint8_t *)data + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got ? -errno : -ENODATA;
        done += (size_t)got;
    }
    return 0;
}

int qrep_pwrite_all(int fd, const void *data, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t put = pwrite(fd, (const uint8_t *)data + done, size - done, (off_t)(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put ? -errno : -ENODATA;
        done += (size_t)put;
    }
    return 0;
}

static int punch_range(int fd, uint64_t offset, uint64_t size)
{
    int rc;
    do
        rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)size) ? -errno : 0;
    while (rc == -EINTR);
    return rc;
}

/* 1: every byte reads as zero; 0: not; -errno. */
static int reads_zero(int fd, uint64_t offset, uint64_t size, const struct qrep_zero_room *room)
{
    for (uint64_t done = 0; done < size;) {
        size_t part = size - done < room->size ? (size_t)(size - done) : room->size;
        int rc = qrep_pread_all(fd, room->base, part, offset + done);
        if (rc)
            return rc;
        if (!qrep_is_zero(room->base, part))
            return 0;
        done += part;
    }
    return 1;
}

int64_t qrep_make_zero(int fd, uint64_t offset, uint64_t size, int *punch, const struct qrep_zero_room *room)
{
    if (*punch) {
        int rc = punch_range(fd, offset, size);
        if (rc == 0) {
            rc = reads_zero(fd, offset, size, room);
            if (rc)
                return rc > 0 ? 0 : rc;
        } else if (rc == -EIO) {
            return rc;
        }
        *punch = 0; /* not offered (-EOPNOTSUPP, -ENODEV, ...), or what it leaves behind is not zero */
    }
    memset(room->base, 0, size < room->size ? (size_t)size : room->size);
    for (uint64_t done = 0; done < size;) {
        size_t part = size - done < room->size ? (size_t)(size - done) : room->size;
        int rc = qrep_pwrite_all(fd, room->base, part, offset + done);
        if (rc)
            return rc;
        done += part;
    }
    return (int64_t)size;
}

uint64_t qrep_next_data(int fd, uint64_t offset, uint64_t end)
{
    off_t at = lseek(fd, (off_t)offset, SEEK_DATA);
    if (at < 0)
        return errno == ENXIO ? end : offset; /* ENXIO: no data from here to the end of the file */
    return (uint64_t)at < end ? (uint64_t)at : end;
}
