# Frames of a data connection: the C of wire.h, which says what each function promises, and their Python faces.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "wire.h" nogil:
    enum:
        QREP_WIRE_MAGIC
        QREP_WIRE_VERSION
        QREP_FRAME_DATA_MAX
        QREP_FRAME_RUNS_MAX
        QREP_FRAME_FULL
        QREP_FRAME_RUNS
        QREP_FRAME_ZERO
        QREP_FRAME_END
        QREP_FRAME_LAST
        QREP_FRAME_VALUE
        QREP_FRAME_PARTS
        QREP_FRAME_PACKED
    uint32_t QREP_FEATURE_COPIES
    uint32_t QREP_FEATURE_ZSTD
    uint32_t QREP_RUN_ZERO  # beyond the range of a C enum
    uint32_t QREP_RUN_COPY
    uint32_t QREP_RUN_FROM_SHIFT
    uint32_t QREP_FRAME_ANSWER

    struct qrep_frame_header:
        uint32_t magic
        uint16_t version
        uint16_t kind
        uint32_t flags
        uint32_t run_count
        uint64_t granule
        uint64_t attempt
        uint64_t session
        uint64_t sequence
        uint32_t data_size
        uint32_t first_leaf
        uint32_t copy_leaves
        uint8_t *digest
        uint8_t *granule_value
        uint32_t span
        uint32_t connection
        uint8_t *tag

    struct qrep_wire_run:
        uint32_t first
        uint32_t count

    struct qrep_geometry:
        uint64_t size
        uint32_t leaf_size
        uint32_t granule_size

    struct qrep_wire_state:
        qrep_geometry geometry
        uint64_t attempt
        uint64_t session
        uint64_t sequence
        uint32_t connection
        uint32_t features
        uint8_t *key

    uint32_t qrep_frame_bytes(const qrep_frame_header *header)
    uint64_t qrep_granules(const qrep_geometry *geometry)
    uint64_t qrep_granule_bytes(const qrep_geometry *geometry, uint64_t granule)
    uint32_t qrep_granule_leaves(const qrep_geometry *geometry, uint64_t granule)
    int qrep_geometry_check(const qrep_geometry *geometry)
    uint32_t qrep_run_leaves(const qrep_wire_run *run)
    uint32_t qrep_run_from(const qrep_wire_run *run)
    void qrep_frame_seal(qrep_frame_header *header, qrep_wire_state *state)
    int qrep_frame_check(const qrep_frame_header *header, qrep_wire_state *state)
    int qrep_runs_check(const qrep_frame_header *header, const qrep_wire_run *runs, const qrep_geometry *geometry)
    uint64_t qrep_run_bytes(const qrep_geometry *geometry, uint64_t granule, const qrep_wire_run *run)
    void qrep_manifest(const uint8_t *marked, const uint8_t *states, const uint8_t *values, uint64_t granules,
                       uint64_t *count, uint8_t *manifest)


# Names as in hello and state.
cdef inline int feature_bits(object names, uint32_t *bits) except -1:
    """Raises ValueError for a name that frames know nothing of."""
    known = {"copies": QREP_FEATURE_COPIES, "zstd": QREP_FEATURE_ZSTD}
    bits[0] = 0
    for name in names:
        if name not in known:
            raise ValueError(f"features: {name!r} is not one of {', '.join(known)}")
        bits[0] |= <uint32_t>known[name]
    return 0


cdef class Geometry:
    cdef qrep_geometry geometry  # checked; never changes


cdef class FrameWriter:
    cdef qrep_wire_state state
    cdef int seal(self, qrep_frame_header *header, qrep_wire_run *runs, object digest, unsigned flags, object value, uint32_t packed) except -1


cdef class FrameReader:
    cdef qrep_wire_state state
