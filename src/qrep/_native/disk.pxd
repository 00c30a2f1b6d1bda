# The bytes on disk: the C of disk.h, which says what each field and function means.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "disk.h" nogil:
    enum:
        QREP_DISK_VERSION
        QREP_SUPERBLOCK_SLOT_DISTANCE
        QREP_HISTORY_MAX
        QREP_ROLE_REPLICA
        QREP_ROLE_PRIMARY
        QREP_OPEN_NONE
        QREP_OPEN_RUN
        QREP_OPEN_ROLLBACK
        QREP_UNDO_SEGMENT_SIZE
        QREP_UNDO_COPY_OFFSET
        QREP_UNDO_EXTENTS_MAX
        QREP_UNDO_DATA
        QREP_UNDO_ZERO
        QREP_STATE_MASK
        QREP_STATE_UNKNOWN
        QREP_STATE_HASHED
        QREP_STATE_ZERO
        QREP_STATE_SLOT
        QREP_STATE_VALUE
        QREP_STATE_PAGE
    uint64_t QREP_SUPERBLOCK_MAGIC
    uint64_t QREP_UNDO_MAGIC
    uint64_t QREP_UNDO_BATCH_MAGIC
    uint64_t QREP_MAP_MAGIC
    uint64_t QREP_UNDO_NO_PLACE

    struct qrep_superblock:
        uint64_t magic
        uint16_t version
        uint8_t role
        uint8_t open_kind
        uint32_t features
        uint64_t sequence
        uint64_t size
        uint32_t leaf_size
        uint32_t granule_size
        uint8_t *volume_id
        uint8_t *committed_id
        uint64_t committed_counter
        uint64_t max_epoch
        uint8_t *open_new_id
        uint64_t open_attempt
        uint8_t (*history)[16]
        uint8_t *checksum

    struct qrep_undo_header:
        uint64_t magic
        uint16_t version
        uint32_t features
        uint8_t *volume_id
        uint8_t *base_id
        uint8_t *new_id
        uint64_t attempt
        uint64_t size
        uint32_t leaf_size
        uint32_t granule_size
        uint64_t batches

    struct qrep_undo_extent:
        uint64_t offset
        uint32_t size
        uint32_t kind

    struct qrep_undo_batch:
        uint64_t magic
        uint32_t version
        uint32_t extent_count
        uint8_t *base_id
        uint64_t attempt
        uint64_t sequence
        uint64_t position
        uint64_t payload_size
        uint64_t flushed
        uint8_t *digest

    struct qrep_map_header:
        uint64_t magic
        uint16_t version
        uint32_t features
        uint8_t *volume_id
        uint8_t *tag
        uint8_t *base
        uint64_t counter
        uint64_t size
        uint32_t leaf_size
        uint32_t granule_size
        uint64_t granules
        uint8_t *root
        uint8_t *digest

    struct qrep_undo_scan:
        const uint8_t *segment
        uint64_t size
        uint64_t position
        uint64_t device_size
        uint64_t attempt
        uint8_t *base_id
        uint64_t cursor
        uint64_t gap
        uint64_t damaged

    uint64_t qrep_leaf_page_size(uint32_t leaf_size, uint32_t granule_size)
    uint64_t qrep_leaf_page_offset(uint32_t leaf_size, uint32_t granule_size, uint64_t granule, int slot)
    uint64_t qrep_map_values_offset(uint64_t granules)
    uint64_t qrep_map_size(uint64_t granules)
    void qrep_superblock_seal(qrep_superblock *block)
    int qrep_superblock_check(const qrep_superblock *block)
    void qrep_undo_header_seal(qrep_undo_header *header)
    int qrep_undo_header_check(const qrep_undo_header *header)
    void qrep_undo_batch_seal(qrep_undo_batch *batch, const qrep_undo_extent *extents)
    int qrep_undo_batch_peek(const qrep_undo_batch *batch, uint64_t position, uint64_t available)
    int qrep_undo_batch_check(const qrep_undo_batch *batch, const qrep_undo_extent *extents, uint64_t device_size)
    uint64_t qrep_undo_payload_offset(uint32_t extent_count)
    uint64_t qrep_undo_batch_size(uint32_t extent_count, uint64_t payload_size)
    int qrep_undo_scan_next(qrep_undo_scan *scan, const qrep_undo_batch **found)
    void qrep_map_header_seal(qrep_map_header *header)
    int qrep_map_header_check(const qrep_map_header *header, uint64_t file_size)
    void qrep_map_digest(const uint8_t *states, const uint8_t *values, uint64_t granules, uint8_t *digest)
    int qrep_map_body_check(const qrep_map_header *header, const uint8_t *states, const uint8_t *values)
