# What source lanes and target lanes share (lane.h). Counters are read while lanes run; each is one atomic load.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from .connection cimport atomic_int
from .wire cimport qrep_geometry


cdef extern from "<stdatomic.h>" nogil:
    ctypedef unsigned atomic_uint


cdef extern from "badlist.h" nogil:
    enum:
        QREP_BAD_EXTENTS_MAX

    struct qrep_bad_extent:
        uint64_t offset
        uint64_t size
        int32_t error

    struct qrep_bad_list:
        uint32_t count
        qrep_bad_extent *extents


cdef extern from "lane.h" nogil:
    enum:
        QREP_DIGEST_SIZE

    struct qrep_failure:
        atomic_uint kind
        int32_t error
        uint32_t lane
        uint64_t granule

    struct qrep_run_counters:
        uint64_t read
        uint64_t hashed
        uint64_t zero
        uint64_t changed
        uint64_t sent
        uint64_t received
        uint64_t written
        uint64_t undo
        uint64_t granules_done
        uint64_t frames
        uint64_t copies
        uint64_t read_shared
        uint64_t packed
        uint64_t packed_sent
        uint64_t zc_notified
        uint64_t zc_copied
        uint64_t wait_device_ns
        uint64_t wait_network_ns
        uint64_t wait_limit_ns
        uint64_t wait_nice_ns
        uint64_t busy_ns

    struct qrep_run_base:
        qrep_geometry geometry
        uint64_t granules
        uint64_t attempt
        uint64_t session
        uint8_t *key
        uint32_t sector_size
        uint32_t features
        uint32_t rehearsal
        int leaves_fd
        const uint8_t *base_states
        const uint8_t *base_values
        uint8_t *fresh_states
        uint8_t *fresh_values
        uint8_t *marked
        atomic_int stop
        qrep_failure failure
        qrep_run_counters counters


# Names of enum qrep_failure_kind, by number.
cdef inline object failure_of(const qrep_failure *failure):
    """None, or (kind name, errno or 0, lane, granule or None)."""
    names = ("none", "read", "write", "undo-write", "undo-space", "connection", "frame", "digest", "value", "map", "shrunk", "memory")
    cdef unsigned kind = failure.kind
    if kind == 0:
        return None
    granule = None if failure.granule == <uint64_t>-1 else failure.granule
    return names[kind], failure.error, failure.lane, granule


cdef inline list bad_extents_of(const qrep_bad_list *bad):
    """[(offset, size, errno)], ascending. Call it after the lanes."""
    return [(bad.extents[i].offset, bad.extents[i].size, bad.extents[i].error) for i in range(bad.count)]


cdef inline dict counters_of(const qrep_run_counters *counters):
    return {
        "read": counters.read, "hashed": counters.hashed, "zero": counters.zero, "changed": counters.changed,
        "sent": counters.sent, "received": counters.received, "written": counters.written, "undo": counters.undo,
        "granules_done": counters.granules_done, "frames": counters.frames,
        "copies": counters.copies, "read_shared": counters.read_shared, "packed": counters.packed, "packed_sent": counters.packed_sent,
        "zc_notified": counters.zc_notified, "zc_copied": counters.zc_copied,
        "wait_device_ns": counters.wait_device_ns, "wait_network_ns": counters.wait_network_ns,
        "wait_limit_ns": counters.wait_limit_ns, "wait_nice_ns": counters.wait_nice_ns, "busy_ns": counters.busy_ns,
    }
