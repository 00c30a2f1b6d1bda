/* Salvage: halve what fails, keep what succeeds, name what is left. */
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
    int writing;
    uint64_t left; /* bytes that may be bad before the rest is taken for bad as well */
    int full; /* the last extent was stretched to the end: nothing more to find */
};

/* Errors of the call, the process or the whole device: smaller reads would not do better. */
static int is_hopeless(int error)
{
    return error == EINVAL || error == EBADF || error == EFAULT || error == ENOMEM || error == ENODEV || error == ENXIO || error == EISDIR ||
           error == ESPIPE || error == EPERM || error == EACCES;
}

int qrep_is_medium_error(int error)
{
    return error == EIO || error == ENODATA || error == EREMOTEIO || error == EILSEQ || error == ETIMEDOUT; /* as the block layer maps them */
}

static ssize_t transfer(const struct salvage *salvage, uint64_t offset, size_t size)
{
    uint8_t *data = salvage->data + (offset - salvage->start);
    return salvage->writing ? pwrite(salvage->descriptor, data, size, (off_t)offset) : pread(salvage->descriptor, data, size, (off_t)offset);
}

/* 0 when all of it was read or written, else a positive errno. */
static int transfer_whole(struct salvage *salvage, uint64_t offset, size_t size)
{
    size_t reached = 0;
    while (reached < size) {
        ssize_t got = transfer(salvage, offset + reached, size - reached);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0)
            return ENXIO; /* the end of the device lies inside the range */
        /* Direct I/O goes on from whole sectors; what stops within its first sector goes nowhere. */
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

    if (size > salvage->left) {
        size = salvage->end - offset;
        salvage->full = 1;
    } else {
        salvage->left -= size;
    }
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
    int error = transfer_whole(salvage, offset, size);
    if (error == 0)
        return 0;
    if (salvage->writing ? !qrep_is_medium_error(error) : is_hopeless(error))
        return -error;
    if (size <= salvage->sector_size) {
        report(salvage, offset, size, error);
        return 0;
    }
    size_t half = (size / salvage->sector_size + 1) / 2 * salvage->sector_size;
    int rc = salvage_range(salvage, offset, half);
    return rc < 0 ? rc : salvage_range(salvage, offset + half, size - half);
}

static int salvage_all(struct salvage *salvage)
{
    uint64_t offset = salvage->start, size = salvage->end - salvage->start;
    size_t sector_size = salvage->sector_size;

    if (sector_size < 512 || (sector_size & (sector_size - 1)) != 0 || size == 0 || size % sector_size != 0 || offset % sector_size != 0 ||
        offset > INT64_MAX - size || salvage->room == 0)
        return -EINVAL;
    int rc = salvage_range(salvage, offset, (size_t)size);
    return rc < 0 ? rc : (int)salvage->count;
}

int qrep_salvage_read(int descriptor, void *data, size_t size, uint64_t offset, size_t sector_size, struct qrep_bad_extent *bad,
                      unsigned room)
{
    struct salvage salvage = {descriptor, sector_size, data, offset, offset + size, bad, room, 0, 0, UINT64_MAX, 0};
    return salvage_all(&salvage);
}

int qrep_salvage_write(int descriptor, const void *data, size_t size, uint64_t offset, size_t sector_size, uint64_t limit,
                       struct qrep_bad_extent *bad, unsigned room)
{
    struct salvage salvage = {descriptor, sector_size, (uint8_t *)data, offset, offset + size, bad, room, 0, 1, limit, 0}; /* read only, then */
    return salvage_all(&salvage);
}
