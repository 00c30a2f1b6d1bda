/* Salvage reads: halve what fails, keep what succeeds, name what is left. */
#include "salvage.h"

#include <errno.h>
#include <unistd.h>

struct salvage {
    int descriptor;
    size_t sector_size;
    uint8_t *data;
    uint64_t start; /* device offset of data[0] */
    uint64_t end;
    struct qrep_bad_extent *bad;
    unsigned room;
    unsigned count;
    int full; /* the last extent was stretched to the end: nothing more to find */
};

/* Errors of the call, the process or the whole device: smaller reads would not do better. */
static int is_hopeless(int error)
{
    return error == EINVAL || error == EBADF || error == EFAULT || error == ENOMEM || error == ENODEV || error == ENXIO || error == EISDIR ||
           error == ESPIPE || error == EPERM || error == EACCES;
}

/* 0 when all of it was read, else a positive errno. */
static int read_whole(struct salvage *salvage, uint64_t offset, size_t size)
{
    size_t reached = 0;
    while (reached < size) {
        ssize_t got = pread(salvage->descriptor, salvage->data + (offset - salvage->start) + reached, size - reached, (off_t)(offset + reached));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0)
            return ENXIO; /* the end of the device lies inside the range */
        /* Direct reads go on from whole sectors; a read that stops within its first sector goes nowhere. */
        size_t whole = (reached + (size_t)got) / salvage->sector_size * salvage->sector_size;
        if (whole <= reached)
            return ENXIO;
        reached = whole;
    }
    return 0;
}

static void report(struct salvage *salvage, uint64_t offset, size_t size, int error)
{
    struct qrep_bad_extent *last = salvage->count ? &salvage->bad[salvage->count - 1] : NULL;
    if (last != NULL && last->offset + last->size == offset && last->error == error) {
        last->size += size;
    } else if (salvage->count < salvage->room) {
        salvage->bad[salvage->count++] = (struct qrep_bad_extent){ .offset = offset, .size = size, .error = error };
    } else {
        last->size = salvage->end - last->offset;
        salvage->full = 1;
    }
}

/* Depth is log2(size / sector_size), 24 for 8 GiB in 512 byte sectors. */
static int salvage_range(struct salvage *salvage, uint64_t offset, size_t size)
{
    if (salvage->full)
        return 0;
    int error = read_whole(salvage, offset, size);
    if (error == 0)
        return 0;
    if (is_hopeless(error))
        return -error;
    if (size <= salvage->sector_size) {
        report(salvage, offset, size, error);
        return 0;
    }
    size_t half = (size / salvage->sector_size + 1) / 2 * salvage->sector_size;
    int rc = salvage_range(salvage, offset, half);
    return rc < 0 ? rc : salvage_range(salvage, offset + half, size - half);
}

int qrep_salvage_read(int descriptor, void *data, size_t size, uint64_t offset, size_t sector_size, struct qrep_bad_extent *bad,
                      unsigned room)
{
    if (sector_size < 512 || (sector_size & (sector_size - 1)) != 0 || size == 0 || size % sector_size != 0 || offset % sector_size != 0 ||
        offset > INT64_MAX - size || room == 0)
        return -EINVAL;
    struct salvage salvage = {
        .descriptor = descriptor,
        .sector_size = sector_size,
        .data = data,
        .start = offset,
        .end = offset + size,
        .bad = bad,
        .room = room,
    };
    int rc = salvage_range(&salvage, offset, size);
    return rc < 0 ? rc : (int)salvage.count;
}
