/* BLAKE3 as the tree it is: chaining values of leaves and granules fall out of one pass over the data.
 *
 * A node is an aligned power-of-two run of 1 KiB chunks (the last one of a device may be short). Its chaining value
 * depends on its position, so a block in the wrong place is caught. The root of a device equals its plain BLAKE3. */
#ifndef QREP_BLAKE3_H
#define QREP_BLAKE3_H

#include "common.h"

#define QREP_CHUNK_SIZE 1024

/* Choose the kernel: NULL takes QREP_ISA from the environment, else the widest this CPU has. Otherwise one of
 * "avx512", "avx2", "sse41", "neon", "portable". Returns the lanes (16, 8, 4), or -ENOTSUP when the CPU or the build lacks the
 * forced kernel and -EINVAL when the name is unknown (nothing changed then). Called once before any other function (a
 * constructor does it with NULL; a bad QREP_ISA is reported by qrep_blake3_status()). Not thread-safe against hashing. */
int qrep_blake3_select(const char *isa);

/* Name of the kernel in use, never NULL. */
const char *qrep_blake3_isa(void);

/* 0, or the -errno of the selection made at load time. */
int qrep_blake3_status(void);

/* Hash `size` >= 1 bytes that start at byte `offset` of their device as a subtree that is not the root. `size` is a power
 * of two >= 1024, or anything at the end of the device; `offset` is a multiple of `size` rounded up to such a power.
 * leaf_size: bytes, a power of two >= 1024. leaves: NULL, or room for ceil(size / leaf_size) digests; digest i is the
 * chaining value of leaf i. value: the chaining value of the whole run. */
void qrep_blake3_subtree(const void *data, size_t size, uint64_t offset, size_t leaf_size, uint8_t *leaves, uint8_t value[32]);

/* The chaining values of `count` leaves of exactly `leaf_size` bytes, back to back in `data`, each at its own device offset
 * (multiples of leaf_size). Fills lanes across leaves, which hashing them one by one cannot. */
void qrep_blake3_gather(const void *data, size_t count, size_t leaf_size, const uint64_t *offsets, uint8_t *values);

/* The chaining value of `count` >= 1 sibling nodes of equal size (the last may be short), in BLAKE3's shape: the largest power of two
 * on the left. `values` holds count digests. root != 0 finalises as the root of the whole device (count >= 2 only).
 * scratch: room for count digests; may be `values` itself, which is then lost. */
void qrep_blake3_merge(const uint8_t *values, size_t count, int root, uint8_t *scratch, uint8_t value[32]);

/* The root of a device is made from the values of its top node's children: a node's own chaining value cannot become a
 * root. So it comes from the coarsest row of nodes that has at least two: granules, else leaves, else chunks. Returns the
 * node size of that row (granule_size, leaf_size or QREP_CHUNK_SIZE) for a device of `size` >= 4096 bytes. A map of a
 * one-granule volume has the leaf values anyway; for a volume of one leaf qrep_blake3_subtree with leaf_size =
 * QREP_CHUNK_SIZE gives the row. */
size_t qrep_blake3_root_unit(uint64_t size, size_t granule_size, size_t leaf_size);

/* The root of a device of `size` bytes, equal to its plain BLAKE3, from the ceil(size / node_size) values of one row of its
 * nodes. scratch as in qrep_blake3_merge. Returns 0, or -EINVAL (root untouched) if the row is one node. */
int qrep_blake3_root(uint64_t size, size_t node_size, const uint8_t *values, uint8_t *scratch, uint8_t root[32]);

/* Plain BLAKE3 of `size` >= 0 bytes. */
void qrep_blake3_hash(const void *data, size_t size, uint8_t digest[32]);

/* Keyed BLAKE3, for authentication tags of headers and small messages. */
void qrep_blake3_keyed(const uint8_t key[32], const void *data, size_t size, uint8_t digest[32]);

/* The chaining value of `size` zero bytes at `offset`, same shapes as qrep_blake3_subtree; reads no data. */
void qrep_blake3_zero_subtree(uint64_t size, uint64_t offset, size_t leaf_size, uint8_t *leaves, uint8_t value[32]);

/* Compare this kernel with the scalar reference and the published vector of a fixed input. 0, or -EBADMSG. Under a millisecond.
 * Other threads that hash meanwhile get right results, some from the scalar loops. */
int qrep_blake3_self_test(void);

#endif
