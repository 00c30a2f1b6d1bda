/* What the lanes of one run share, and what one lane is. A lane is one thread, one ring, one arena and one connection.
 *
 * Lanes take granules from one shared cursor, so the slowest connection never holds the others back. Python fills these structures, starts one
 * thread per lane that calls qrep_source_lane() or qrep_target_lane() without the GIL, reads the counters while they run, and joins. */
#ifndef QREP_LANE_H
#define QREP_LANE_H

#include "badlist.h"
#include "bucket.h"
#include "common.h"
#include "nice.h"
#include "undo_reach.h"
#include "wire.h"
#include <stdatomic.h>
#include <sys/uio.h>

/* ---- how a lane's bytes travel ---- */

/* Blocking callbacks for what is not a plain socket: TLS (Python's ssl; the callback takes the GIL) . */
struct qrep_stream {
    void *context;
    /* Send all of it. 0 or -errno. */
    int (*send)(void *context, const struct iovec *iov, unsigned count);
    /* Fill all of it. 0; -ENODATA at the end of the stream before the first byte; -ECONNRESET in the middle; -errno. */
    int (*receive)(void *context, void *data, size_t size);
};

enum qrep_connection_kind {
    QREP_CONNECTION_NONE = 0,   /* source lane: scan only, nothing is sent */
    QREP_CONNECTION_SOCKET = 1, /* a plain stream socket, driven through the ring */
    QREP_CONNECTION_STREAM = 2, /* callbacks */
    QREP_CONNECTION_PIPES = 3,  /* two descriptors (ssh): blocking readv/writev */
};

struct qrep_connection {
    uint32_t kind;
    uint32_t index;   /* connection number inside the session, goes into every frame */
    int receive_fd;   /* SOCKET: the socket; PIPES: the reading end */
    int send_fd;      /* SOCKET: the same, or another one that takes what is sent; PIPES: the writing end */
    int zero_copy;    /* SOCKET: 1 try SEND_ZC and fall back when the kernel says `copied`; 0 plain */
    struct qrep_stream stream;
    struct qrep_bucket *bucket; /* of this connection alone; NULL: unlimited. Wire bytes are taken before they are sent */
    uint32_t record_size;       /* what carries the stream cuts it into records of so many bytes (TLS: 16384); 0: it does not */
    uint32_t record_overhead;   /* bytes that each record has on the wire beside them */
    /* Of this connection alone; counted by its lane, read by anyone at any time. */
    _Atomic uint64_t sent, received; /* wire bytes */
    atomic_int ended;                /* target: its END came and all of it is written; set before the source can know */
};

/* ---- failures: the first one wins, the others see `stop` ---- */

enum qrep_failure_kind {
    QREP_FAILURE_NONE = 0,
    QREP_FAILURE_READ,       /* a device read failed (source), see the bad extents; or a before-image could not be read (target) */
    QREP_FAILURE_WRITE,      /* a device write failed */
    QREP_FAILURE_UNDO_WRITE, /* the undo store did not take a batch */
    QREP_FAILURE_UNDO_SPACE, /* the undo limit or its file system is full */
    QREP_FAILURE_CONNECTION, /* the stream ended or failed */
    QREP_FAILURE_FRAME,      /* a frame was refused: error is what qrep_frame_check or qrep_runs_check said */
    QREP_FAILURE_DIGEST,     /* what arrived is not what was announced */
    QREP_FAILURE_VALUE,      /* the granule after applying is not what the source says: the maps have diverged */
    QREP_FAILURE_MAP,        /* the leaves file could not be written */
    QREP_FAILURE_SHRUNK,     /* the device ended before its size */
    QREP_FAILURE_MEMORY,     /* arena or ring could not be set up */
};

struct qrep_failure {
    atomic_uint claimed; /* 0, then 1 by the first to fail */
    atomic_uint kind;    /* set last: valid when not NONE */
    int32_t error;       /* positive errno, or 0 */
    uint32_t lane;
    uint64_t granule;    /* UINT64_MAX: none in particular */
};

/* ---- what source lanes and target lanes have in common ---- */

struct qrep_run_counters { /* bytes unless said otherwise; monotone, read by Python at any time */
    _Atomic uint64_t read, hashed, zero, changed, sent, received, written, undo, granules_done, frames;
    _Atomic uint64_t copies; /* of leaves that travel, or came, as copies of others */
    _Atomic uint64_t read_shared; /* source: bytes that another run has read and hashed for this one */
    _Atomic uint64_t packed, packed_sent; /* source: data of frames that travel packed, and what of it travels */
    _Atomic uint64_t zc_notified, zc_copied; /* notifications */
    _Atomic uint64_t wait_device_ns, wait_network_ns, wait_limit_ns, wait_nice_ns, busy_ns; /* summed over lanes: what the lane waited for */
};

struct qrep_run_base {
    struct qrep_geometry geometry;
    uint64_t granules;
    uint64_t attempt;
    uint64_t session;
    uint8_t key[QREP_DIGEST_SIZE];
    uint32_t sector_size;  /* of the device */
    uint32_t features;     /* QREP_FEATURE_* of wire.h: what this session's frames may use */
    uint32_t rehearsal;    /* 1: the run measures its connections: a source reads nothing, a target keeps nothing, all else is as ever */
    int leaves_fd;         /* the map's `leaves` file, or -1: leaf values are not kept */
    const uint8_t *base_states; /* [granules], the committed map, overlaid by what a resumed attempt has applied */
    const uint8_t *base_values; /* [granules][32] */
    uint8_t *fresh_states;      /* [granules], starts as a copy of base; a lane writes the entries of its own granules only */
    uint8_t *fresh_values;      /* [granules][32] */
    uint8_t *marked;            /* [granules], starts as 0; 1: some frames sent or applied; 2: the whole pass of this granule sent or applied.
                                   Source: set when the last frame has been handed over. Target: set when its writes have completed. */
    atomic_int stop;            /* set by anyone: lanes drain their I/O and return */
    struct qrep_failure failure;
    struct qrep_run_counters counters;
};

/* ---- source ---- */

#define QREP_WORK_HOLE 0x8000000000000000ull    /* work item: known to be a hole; zero without reading */
#define QREP_WORK_UNKNOWN 0x4000000000000000ull /* work item: send every leaf whatever the base says (a resumed live run's partial granule) */
#define QREP_WORK_LEAVES 0x2000000000000000ull /* work item: only leaves in `wanted` may differ from the base; all of it, if the base has no page for it */

/* Whether data travels packed, where that was agreed on (QREP_FEATURE_ZSTD). */
enum qrep_packing {
    QREP_PACKING_OFF = 0,
    QREP_PACKING_AUTO, /* where it is faster end to end, by what was measured */
    QREP_PACKING_ON,   /* whatever gets smaller: bytes on the wire are what counts */
};

/* Leaves of the volume, counted from its start. */
struct qrep_leaf_span {
    uint64_t first, count;
};

struct qrep_source_run {
    struct qrep_run_base base;
    const uint64_t *work; /* granule indexes with the flags above, or NULL: all granules in order */
    uint64_t work_count;
    const struct qrep_leaf_span *wanted; /* ascending, disjoint, not empty; for items with QREP_WORK_LEAVES */
    uint64_t wanted_count;
    _Atomic uint64_t cursor;   /* index of the next work item; a rehearsal goes round for ever, until stop or lane_stop */
    atomic_uint lanes;         /* that run now */
    uint32_t frame_size;       /* bytes of data per FULL frame, power of two, leaf_size..QREP_FRAME_DATA_MAX */
    uint32_t slots;            /* granule buffers per lane, >= 2 (1 is allowed, for measuring what pipelining gives) */
    uint32_t io_size;          /* bytes per read request; 0: a whole granule */
    uint32_t ring_backend;     /* enum qrep_ring_backend */
    uint32_t packing;          /* enum qrep_packing */
    struct qrep_bad_list bad;  /* what could not be read */
    struct qrep_share *share;  /* share.h: with whom granules are read; NULL: alone */
    uint32_t share_member;
    struct qrep_nice *nice;    /* how much may be read; NULL: as much as goes, and lanes take the CPU as anybody does */
};

/* Run one lane to the end of the work, `stop` or `*lane_stop` (then it finishes the granules it has taken and ends its stream in order).
 * device_fd: O_DIRECT, read only. What cannot be read is recorded in `bad`, its granule as UNKNOWN, and the lane goes on (INV-Z): of such
 * a granule the leaves that could be read are sent, the last frame says PARTS, and it is marked 1. One that sends nothing skips the granule.
 * Returns 0, or -errno after recording the failure. All its I/O is complete when it returns. */
int qrep_source_lane(struct qrep_source_run *run, int device_fd, struct qrep_connection *connection, uint32_t lane, atomic_int *lane_stop);

/* ---- target ---- */

struct qrep_target_run {
    struct qrep_run_base base;
    int undo_fd;               /* O_DIRECT, or -1: nothing was ever committed, there is nothing to go back to */
    uint32_t punch;            /* 1: zero runs are deallocated where they are not zero already; 0: zeroes are written */
    uint8_t base_id[QREP_ID_SIZE];
    _Atomic uint64_t undo_next;     /* offset of the next free segment in the undo file */
    uint64_t undo_limit;            /* bytes the undo file may take */
    _Atomic uint64_t undo_sequence; /* of the next batch */
    _Atomic uint64_t undo_flushed;  /* batches of this session that are flushed: only what they cover may have been overwritten (R3) */
    uint32_t slots;                 /* frame buffers per lane, >= 2 */
    uint32_t ring_backend;
    uint32_t is_file;               /* 1: an image file, holes can be seen with SEEK_DATA */
    struct qrep_bad_list bad;       /* what could not be written */
    uint32_t frame_limit;           /* bytes of data a frame may carry, leaf_size..QREP_FRAME_DATA_MAX; what every buffer is sized by */
    /* One flush of the undo store at a time, whichever lane issues it: a flush that fails is reported once, and a second one in flight beside it
     * could succeed without the data being there. `started` is counted before the flush is issued, `done` after it succeeded (undo_writer.h). */
    atomic_uint flush_busy;
    _Atomic uint64_t flushes_started, flushes_done;
    struct qrep_undo_reach *undo_reach; /* NULL: nobody looks at sync points while this run writes */
    uint64_t undo_reach_size;           /* bytes */
};

/* A device that does not take more than this, or in more than QREP_BAD_EXTENTS_MAX places, is no device with a few bad blocks. */
#define QREP_UNWRITABLE_MAX (256u << 10)

/* Serve one connection to its END, `stop`, or a failure. A block that the medium does not take is halved down to the sector and recorded in `bad`, its
 * granule stays marked 1, and the lane goes on; beyond the bounds above, and for every other error of a write, it fails. device_fd: O_DIRECT, read and write, claimed (R1).
 * A failed flush of the undo store ends the process at once (R2). Returns 0 after END was answered, else -errno with the failure recorded;
 * all its device I/O is complete either way (R12). */
int qrep_target_lane(struct qrep_target_run *run, int device_fd, struct qrep_connection *connection, uint32_t lane, atomic_int *lane_stop);

/* Record a failure, set `stop`. Returns -error. */
int qrep_fail(struct qrep_run_base *run, enum qrep_failure_kind kind, int error, uint32_t lane, uint64_t granule);

#endif
