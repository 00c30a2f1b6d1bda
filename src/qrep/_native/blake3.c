/* The BLAKE3 tree: splitting, tails, merging and roots. Full power-of-two subtrees go to the kernel in use. */
#include "blake3_kernel.h"

#include <errno.h>
#include <string.h>

const uint32_t qrep_blake3_iv[8] = {
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
};

/* The scalar loops read the chunks of a zero subtree from here. */
static const uint8_t zero_chunk[QREP_CHUNK_SIZE];

static inline uint32_t rotate_right(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* One block: chaining value in, chaining value (or the first 32 bytes of the root's output) out. */
static void compress(uint32_t value[8], const uint8_t block[BLOCK_SIZE], uint64_t counter, uint32_t size, uint32_t flags)
{
    uint32_t m[16], s[16];
    memcpy(m, block, sizeof m);
    memcpy(s, value, 32);
    memcpy(s + 8, qrep_blake3_iv, 16);
    s[12] = (uint32_t)counter;
    s[13] = (uint32_t)(counter >> 32);
    s[14] = size;
    s[15] = flags;
#define G(a, b, c, d, x, y) \
    s[a] += s[b] + m[x]; s[d] = rotate_right(s[d] ^ s[a], 16); s[c] += s[d]; s[b] = rotate_right(s[b] ^ s[c], 12); \
    s[a] += s[b] + m[y]; s[d] = rotate_right(s[d] ^ s[a], 8); s[c] += s[d]; s[b] = rotate_right(s[b] ^ s[c], 7);
    BLAKE3_ROUNDS(BLAKE3_ONE_BY_ONE)
#undef G
    for (int i = 0; i < 8; i++)
        value[i] = s[i] ^ s[i + 8];
}

/* One chunk of 0..1024 bytes. extra_flags: ROOT if it is the whole message. */
static void hash_chunk(const struct qrep_blake3_job *job, const uint8_t *data, size_t size, uint64_t counter,
                       uint32_t extra_flags, uint8_t digest[32])
{
    uint32_t value[8], flags = job->flags | CHUNK_START;
    memcpy(value, job->key, 32);
    for (; size > BLOCK_SIZE; size -= BLOCK_SIZE, data += BLOCK_SIZE) {
        compress(value, data, counter, BLOCK_SIZE, flags);
        flags = job->flags;
    }
    uint8_t last[BLOCK_SIZE] = {0};
    if (size)
        memcpy(last, data, size);
    compress(value, last, counter, (uint32_t)size, flags | CHUNK_END | extra_flags);
    memcpy(digest, value, 32);
}

static void hash_parent(const struct qrep_blake3_job *job, const uint8_t children[BLOCK_SIZE], uint32_t extra_flags,
                        uint8_t digest[32])
{
    uint32_t value[8];
    memcpy(value, job->key, 32);
    compress(value, children, 0, BLOCK_SIZE, job->flags | PARENT | extra_flags);
    memcpy(digest, value, 32);
}

/* The left child of a node takes the largest power of two of bytes that leaves something for the right. size > 1. */
static uint64_t left_size(uint64_t size) { return 1ull << (63 - __builtin_clzll(size - 1)); }

static void hash_node(const struct qrep_blake3_job *job, const uint8_t *data, uint64_t size, uint64_t counter,
                      uint8_t *leaves, uint8_t value[32])
{
    uint64_t leaf_size = (uint64_t)QREP_CHUNK_SIZE << job->leaf_level;
    if (leaves && size <= leaf_size) { /* the node is one leaf (the last one may be short) */
        hash_node(job, data, size, counter, NULL, value);
        memcpy(leaves, value, 32);
        return;
    }
    if (size >= QREP_CHUNK_SIZE && (size & (size - 1)) == 0) {
        size_t chunks = size / QREP_CHUNK_SIZE;
        for (const struct qrep_blake3_width *width = job->kernel->widths; width->lanes; width++)
            if (chunks >= width->lanes) {
                (job->zeros ? width->zeros : width->subtree)(job, data, chunks, counter, leaves, value);
                return;
            }
    }
    if (size <= QREP_CHUNK_SIZE) {
        hash_chunk(job, data, size, counter, 0, value);
        return;
    }
    uint64_t left = left_size(size);
    uint8_t children[BLOCK_SIZE];
    hash_node(job, data, left, counter, leaves, children);
    hash_node(job, job->zeros ? data : data + left, size - left, counter + left / QREP_CHUNK_SIZE,
              leaves ? leaves + left / leaf_size * 32 : NULL, children + 32);
    hash_parent(job, children, 0, value);
}

static struct qrep_blake3_job plain_job(size_t leaf_size)
{
    struct qrep_blake3_job job = {
        .kernel = qrep_blake3_kernel,
        .leaf_level = (unsigned)__builtin_ctzll(leaf_size / QREP_CHUNK_SIZE),
    };
    memcpy(job.key, qrep_blake3_iv, 32);
    return job;
}

static void hash_whole(const struct qrep_blake3_job *job, const uint8_t *data, size_t size, uint8_t digest[32])
{
    if (size <= QREP_CHUNK_SIZE) {
        hash_chunk(job, data, size, 0, ROOT, digest);
        return;
    }
    /* The children of the top node come out as its two leaves; its own value, made without ROOT, is of no use. */
    struct qrep_blake3_job halves = *job;
    halves.leaf_level = (unsigned)__builtin_ctzll(left_size(size) / QREP_CHUNK_SIZE);
    uint8_t children[BLOCK_SIZE], value[32];
    hash_node(&halves, data, size, 0, children, value);
    hash_parent(job, children, ROOT, digest);
}

void qrep_blake3_hash(const void *data, size_t size, uint8_t digest[32])
{
    struct qrep_blake3_job job = plain_job(QREP_CHUNK_SIZE);
    hash_whole(&job, data, size, digest);
}

void qrep_blake3_keyed(const uint8_t key[32], const void *data, size_t size, uint8_t digest[32])
{
    struct qrep_blake3_job job = plain_job(QREP_CHUNK_SIZE);
    memcpy(job.key, key, 32);
    job.flags = KEYED_HASH;
    hash_whole(&job, data, size, digest);
}

void qrep_blake3_subtree(const void *data, size_t size, uint64_t offset, size_t leaf_size, uint8_t *leaves,
                         uint8_t value[32])
{
    struct qrep_blake3_job job = plain_job(leaf_size);
    hash_node(&job, data, size, offset / QREP_CHUNK_SIZE, leaves, value);
}

void qrep_blake3_zero_subtree(uint64_t size, uint64_t offset, size_t leaf_size, uint8_t *leaves, uint8_t value[32])
{
    struct qrep_blake3_job job = plain_job(leaf_size);
    job.zeros = 1;
    hash_node(&job, zero_chunk, size, offset / QREP_CHUNK_SIZE, leaves, value);
}

void qrep_blake3_gather(const void *data, size_t count, size_t leaf_size, const uint64_t *offsets, uint8_t *values)
{
    struct qrep_blake3_job job = plain_job(leaf_size);
    const uint8_t *bytes = data;
    size_t done = 0;
    for (const struct qrep_blake3_width *width = job.kernel->widths; width->lanes; width++)
        if (leaf_size / QREP_CHUNK_SIZE <= width->lanes)
            done += width->gather(&job, bytes + done * leaf_size, count - done, offsets + done, values + 32 * done);
    for (; done < count; done++)
        hash_node(&job, bytes + done * leaf_size, leaf_size, offsets[done] / QREP_CHUNK_SIZE, NULL, values + 32 * done);
}

void qrep_blake3_merge(const uint8_t *values, size_t count, int root, uint8_t *scratch, uint8_t value[32])
{
    struct qrep_blake3_job job = plain_job(QREP_CHUNK_SIZE);
    const uint8_t *row = values;
    /* Pairing row by row, an odd last node moving up unchanged, gives BLAKE3's shape: the left part is always full. */
    while (count > 2) {
        size_t pairs = count / 2, done = 0;
        for (const struct qrep_blake3_width *width = job.kernel->widths; width->lanes; width++)
            done += width->parents(&job, row + 64 * done, pairs - done, scratch + 32 * done);
        for (; done < pairs; done++)
            hash_parent(&job, row + 64 * done, 0, scratch + 32 * done);
        if (count & 1)
            memmove(scratch + 32 * pairs, row + 64 * pairs, 32);
        count = pairs + (count & 1);
        row = scratch;
    }
    if (count == 2)
        hash_parent(&job, row, root ? ROOT : 0, value);
    else
        memmove(value, row, 32);
}

size_t qrep_blake3_root_unit(uint64_t size, size_t granule_size, size_t leaf_size)
{
    return size > granule_size ? granule_size : size > leaf_size ? leaf_size : QREP_CHUNK_SIZE;
}

int qrep_blake3_root(uint64_t size, size_t node_size, const uint8_t *values, uint8_t *scratch, uint8_t root[32])
{
    if (size <= node_size)
        return -EINVAL;
    qrep_blake3_merge(values, (size - 1) / node_size + 1, 1, scratch, root);
    return 0;
}
