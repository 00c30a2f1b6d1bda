#include "leafpage.h"

#include "blake3.h"
#include "disk.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* Two levels of at most 128 nodes reach the 16384 leaves of the largest granule with two pages of stack. */
#define MERGE_WIDTH 128u

void qrep_leaves_merge(const uint8_t *leaves, uint32_t count, uint8_t value[QREP_DIGEST_SIZE])
{
    uint8_t nodes[MERGE_WIDTH * QREP_DIGEST_SIZE], scratch[MERGE_WIDTH * QREP_DIGEST_SIZE];
    uint32_t node_count = 0;

    for (uint32_t first = 0; first < count; first += MERGE_WIDTH) {
        uint32_t width = count - first < MERGE_WIDTH ? count - first : MERGE_WIDTH;
        qrep_blake3_merge(leaves + (size_t)first * QREP_DIGEST_SIZE, width, 0, scratch, nodes + node_count++ * QREP_DIGEST_SIZE);
    }
    qrep_blake3_merge(nodes, node_count, 0, scratch, value);
}

int qrep_leaf_page_read(int fd, const struct qrep_geometry *geometry, uint64_t granule, uint8_t state, const uint8_t value[QREP_DIGEST_SIZE],
                        uint8_t *leaves)
{
    if (fd < 0 || !(state & QREP_STATE_PAGE) || (state & QREP_STATE_MASK) != QREP_STATE_HASHED)
        return 0;

    uint32_t count = qrep_granule_leaves(geometry, granule);
    size_t size = (size_t)count * QREP_DIGEST_SIZE;
    uint64_t offset = qrep_leaf_page_offset(geometry->leaf_size, geometry->granule_size, granule, state & QREP_STATE_SLOT);
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(fd, leaves + done, size - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            return 0; /* the file ends here: no such page */
        done += (size_t)got;
    }

    uint8_t merged[QREP_DIGEST_SIZE];
    qrep_leaves_merge(leaves, count, merged);
    return memcmp(merged, value, QREP_DIGEST_SIZE) == 0;
}

int qrep_leaf_page_write(int fd, const struct qrep_geometry *geometry, uint64_t granule, int slot, const uint8_t *leaves, uint32_t count)
{
    static const uint8_t zeroes[QREP_PAGE_SIZE];
    size_t size = (size_t)count * QREP_DIGEST_SIZE;
    size_t padded = qrep_align_up(size, QREP_PAGE_SIZE);
    uint64_t offset = qrep_leaf_page_offset(geometry->leaf_size, geometry->granule_size, granule, slot);

    for (size_t done = 0; done < padded;) {
        struct iovec iov[2];
        int parts = 0;
        if (done < size)
            iov[parts++] = (struct iovec){(void *)(leaves + done), size - done};
        size_t from = done < size ? size : done;
        if (from < padded)
            iov[parts++] = (struct iovec){(void *)zeroes, padded - from};
        ssize_t put = pwritev(fd, iov, parts, (off_t)(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return put ? -errno : -EIO; /* nothing was taken: asked again it might be so for ever */
        done += (size_t)put;
    }
    return 0;
}
