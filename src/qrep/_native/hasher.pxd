# BLAKE3 for the lanes: the C functions of blake3.h, which says what each of them promises.
from libc.stdint cimport uint8_t, uint64_t


cdef extern from "blake3.h" nogil:
    enum: QREP_CHUNK_SIZE
    int qrep_blake3_select(const char *isa)
    const char *qrep_blake3_isa()
    int qrep_blake3_status()
    void qrep_blake3_subtree(const void *data, size_t size, uint64_t offset, size_t leaf_size, uint8_t *leaves,
                             uint8_t *value)
    void qrep_blake3_gather(const void *data, size_t count, size_t leaf_size, const uint64_t *offsets, uint8_t *values)
    void qrep_blake3_merge(const uint8_t *values, size_t count, int root, uint8_t *scratch, uint8_t *value)
    size_t qrep_blake3_root_unit(uint64_t size, size_t granule_size, size_t leaf_size)
    int qrep_blake3_root(uint64_t size, size_t node_size, const uint8_t *values, uint8_t *scratch, uint8_t *root)
    void qrep_blake3_hash(const void *data, size_t size, uint8_t *digest)
    void qrep_blake3_keyed(const uint8_t *key, const void *data, size_t size, uint8_t *digest)
    void qrep_blake3_zero_subtree(uint64_t size, uint64_t offset, size_t leaf_size, uint8_t *leaves, uint8_t *value)
    int qrep_blake3_self_test()


cdef extern from "hashstream.h" nogil:
    struct qrep_hashstream:
        uint64_t pieces
    void qrep_hashstream_start(qrep_hashstream *stream)
    void qrep_hashstream_add(qrep_hashstream *stream, const void *data, size_t size)
    void qrep_hashstream_end(qrep_hashstream *stream, uint8_t *digest)
