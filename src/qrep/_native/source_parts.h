/* Inside a source lane: what its stages share. A granule walks through them in this order:
 *
 *   source_shared.c  several runs over one image: who reads a granule for all of them
 *   source_read.c    cursor -> reads in flight -> the granule is in its slot (or its bad extents are recorded)
 *   source_leaves.c  the same and the hash for granules of which only some leaves need a look
 *   source_hash.c    zero test -> leaf values and granule value -> compared with the map -> leaf page, and the runs that differ
 *   source_frames.c  runs -> frames, in batches that one send can carry
 *   source_pack.c    whether a granule's data travels packed, and packing it
 *   source_send.c    batches -> connection, at the rate that is allowed
 *   source_lane.c    the loop, and what it waits for
 *
 * A slot's bytes are hashed and sent from where they were read (INV-H); it is not read into again before the last send that names it completed and,
 * with zero copy, was notified. Everything is allocated when the lane opens. */
#ifndef QREP_SOURCE_PARTS_H
#define QREP_SOURCE_PARTS_H

#include "buffers.h"
#include "compare.h"
#include "lane.h"
#include "lane_common.h"
#include "pack.h"
#include "ring.h"
#include "share.h"
#include "twins.h"

/* A send in flight makes progress only when the lane looks at its ring, so hashing looks up after each piece. Pieces of this size cost under 1 %
 * (bench/RESULTS.md, hash). */
#define SOURCE_PIECE_SIZE (1u << 20)
#define SOURCE_PIECES_MAX 64 /* of the largest granule */

#define SOURCE_BATCH_FRAMES 64
#define SOURCE_BATCH_IOVECS 1024 /* what one sendmsg takes */
#define SOURCE_BATCH_RUNS QREP_FRAME_RUNS_MAX
#define SOURCE_BATCH_DATA (8u << 20) /* no new frame is begun beyond this: a stop is heard between batches */
#define SOURCE_FRAME_LEAVES_MAX (QREP_FRAME_DATA_MAX / 4096)

/* Bytes of data of a frame that is to be packed, at most (bench/by_hand.md, pack): the lane looks up between two of them. */
#define SOURCE_PACK_SIZE (256u << 10)
#define SOURCE_PACK_ROOM (4u << 20) /* of a batch, for packed data */
_Static_assert(SOURCE_PACK_ROOM >= QREP_FRAME_DATA_MAX, "room for a leaf of any size");

#define SOURCE_ZERO_SPAN_MAX 4096u /* granules per ZERO frame, so that progress shows */

enum source_slot_state {
    SLOT_FREE = 0,
    SLOT_WAITING, /* another run reads its granule, or will have room for it soon */
    SLOT_READING, /* its reads are in flight: the kernel's */
    SLOT_READ,    /* the lane's, to be hashed */
    SLOT_SENDING, /* queued for framing, or named by batches */
};

/* How a granule of which only some leaves need a look is dealt with. */
enum source_leaves_only {
    LEAVES_ALL = 0,   /* it is not: all of it is read */
    LEAVES_IN_PAGE,   /* slot->leaves holds the base's page, in which the values of `wanted` are replaced */
    LEAVES_IN_ZEROES, /* the base has it as zero, so what is not read is filled with zeroes, and all of it is hashed */
};

/* Where a granule comes from when runs read together. */
enum source_shared {
    SHARED_NOT = 0,
    SHARED_PUBLISH, /* this lane reads it, and others wait for it */
    SHARED_HASHED,  /* another run has read and hashed it */
};

/* Of a slot's `packing`; more: 1 + index of the level. Undecided: nothing is known of the connection yet; the next frame travels plain. */
enum { SOURCE_UNDECIDED = -1, SOURCE_PLAIN = 0 };

struct source_slot {
    enum source_slot_state state;
    enum source_shared shared;
    uint64_t waiting_since_ns; /* valid in WAITING */
    uint8_t *data;
    uint8_t *leaves;            /* [leaves], valid once hashed */
    struct qrep_leaf_run *runs; /* [leaves]; what is still to be framed, eaten from the front */
    uint32_t run_next, run_count;
    enum source_leaves_only leaves_only;
    uint32_t page_lost; /* only some leaves were wanted, and the page they would go into is not there: it is written anew */
    struct qrep_leaf_run *wanted; /* [leaves], valid unless LEAVES_ALL; NULL in a run that reads whole granules */
    uint32_t wanted_count, wanted_next, wanted_hashed; /* runs: all, submitted, hashed */
    uint64_t granule;
    uint32_t size;    /* bytes of the granule */
    uint32_t unknown; /* the work item said: whatever the base says */
    uint32_t reads_left; /* in flight */
    uint32_t read_size, part_next, part_count; /* all of it is read in parts of read_size; those below part_next were queued */
    uint32_t read_counted; /* bytes of it that counters.read has already */
    int read_error; /* the first, positive; 0: none */
    int short_read; /* the device ended inside */
    uint32_t parts;   /* leaves could not be read: those of `missing`, whose bytes are undefined */
    uint8_t *missing; /* [leaves], valid with parts */
    uint32_t hashed; /* bytes; whole pieces */
    int packing;     /* valid in SENDING */
    double sampled;  /* the ratio of its sample, valid with a level */
    uint32_t batches; /* alive that name this slot's data, framed or sent */
    uint8_t value[QREP_DIGEST_SIZE];
    uint8_t pieces[SOURCE_PIECES_MAX][QREP_DIGEST_SIZE];
};

/* Frames that go out with one send, or in pieces of it when the rate says so. Headers and tables are its own memory, data is the slot's. */
struct source_batch {
    struct source_slot *slot; /* NULL: ZERO or END frames */
    uint64_t granule, span;   /* what it marks; span 0: nothing */
    int finishes;             /* holds the last frame of its granules */
    int full;                 /* no other frame goes into it */
    int busy;
    uint32_t notify_left;
    uint32_t frame_count, iov_count, run_count;
    size_t data_size;   /* on the wire */
    size_t packed_size; /* of its room for packed data */
    struct qrep_iov_cursor unsent;
    struct qrep_frame_header headers[SOURCE_BATCH_FRAMES];
    struct iovec iov[SOURCE_BATCH_IOVECS];
    /* Run tables, one after the other; behind the newest the values of its leaves, until its digest is computed. */
    struct qrep_wire_run runs[SOURCE_BATCH_RUNS + SOURCE_FRAME_LEAVES_MAX * QREP_DIGEST_SIZE / sizeof(struct qrep_wire_run)];
};

struct source_zero_run {
    uint64_t granule, span;
};

/* Time and data, sums that fade. */
struct source_came {
    double ns, bytes;
};

/* What packing costs and brings, by what was seen (source_pack.c). Times in ns, sums that fade. */
struct source_packing {
    struct qrep_packer *packer; /* NULL: nothing is packed */
    uint32_t frame_size;        /* bytes of data of a frame that is to be packed */
    uint8_t *gather;            /* [frame_size]: data that lies apart, in one piece; or a sample */
    uint8_t *room;              /* [batch_count][SOURCE_PACK_ROOM] */
    double wire_ns, wire_bytes; /* the connection was occupied for so long, by so much */
    double busy_ns, busy_bytes; /* the lane worked for so long, on so much data */
    double slower, better;      /* of the costs and ratios that levels[] begins with */
    double ratio;               /* of samples */
    struct source_came came[2]; /* of plain and of packed granules: all the time there was, and their data */
    int mode;                   /* which of them is going on */
    int rate_known;             /* a limit was in force from the start */
    uint32_t shy_left, shy_next; /* granules that are not packed because that was no faster; the next time */
    uint64_t asked_ns;          /* when the piece under way was first to be sent; 0: there is none */
    uint64_t since_ns;          /* of the last granule; since then: */
    uint64_t idle_ns, pack_ns, data_bytes;
};

struct source_lane {
    struct qrep_source_run *run;
    struct qrep_connection *connection;
    atomic_int *lane_stop;
    int device_fd;
    uint32_t lane;
    uint32_t granule_leaves; /* of a whole granule */
    uint32_t io_size, reads_per_granule, part_reads, leaf_reads; /* in flight for one slot at most: of all of it, or of single leaves */

    /* valid with run->nice */
    struct qrep_bucket nice_bucket;
    struct qrep_thread_class thread_class;
    uint64_t nice_until_ns; /* nothing is read before */
    uint64_t timed_tag, timed_from_ns; /* the read whose time is taken; from 0: none */
    uint32_t nice_reads;    /* in flight, of this lane */

    struct qrep_ring *ring;
    struct qrep_arena arena;
    struct source_slot *slots; /* [run->slots] */
    struct source_slot *hashing; /* begun and not finished, or NULL */
    uint8_t *base_leaves, *scratch; /* [granule_leaves] digests each */
    struct qrep_twins twins; /* open where frames may have copies */
    struct qrep_bad_extent *bad;    /* [QREP_BAD_EXTENTS_MAX] */
    int work_done;
    uint64_t taken, cursor_first, started_ns; /* work items it has taken; where the cursor was when it began, and when that was */
    uint64_t yield_until_ns;                  /* it leaves what is left to faster lanes until then; 0: it does not */
    uint64_t hole, hole_count; /* granules that were taken as holes and wait for room in zero_runs */
    int hole_unknown;

    /* Slots to frame and zero runs to announce, each in order. The newest zero run may still grow. */
    struct source_slot **queue;
    uint32_t queue_first, queue_count;
    int within_granule; /* some frames of the slot at the head are made, and not the last */
    struct source_zero_run *zero_runs;
    uint32_t zero_first, zero_count, zero_room;

    struct source_batch *batches; /* [batch_count] */
    uint32_t batch_count;
    struct source_batch *sending;
    struct source_batch *framing; /* filled with frames, before anything that is framed later; NULL: none */
    struct source_packing pack;
    size_t piece_size; /* of the send in flight; 0: none */
    struct iovec *piece; /* [SOURCE_BATCH_IOVECS] */
    uint64_t limit_until_ns; /* the bucket said: not before */
    int zero_copy;
    uint32_t notified, copied; /* the first notifications decide about zero copy */

    struct qrep_wire_state outgoing, incoming;
    struct qrep_frame_header answer;
    struct iovec answer_iov;
    int ending; /* END is framed: from now on the answer may come */
    int answered;
    uint64_t waited_ns;
};

/* What a completion belongs to: tag = kind << 56 | part << 32 | index. */
enum source_tag { SOURCE_TAG_READ = 1, SOURCE_TAG_SEND, SOURCE_TAG_ANSWER };
static inline uint64_t source_tag(enum source_tag kind, uint32_t part, uint32_t index) { return (uint64_t)kind << 56 | (uint64_t)part << 32 | index; }

enum { SOURCE_FILE_DEVICE = 0, SOURCE_FILE_SEND = 1, SOURCE_FILE_RECEIVE = 2, SOURCE_FILES = 3 }; /* registered files */

/* All of these return 0, or -errno after recording the failure. */

/* Give every free slot work and queue its reads; sets work_done at the end of the work. Holes are judged on the way. */
int source_fill(struct source_lane *lane);
/* As READ is begun, for runs that read together: the slot is READING, WAITING, READ (hashed by another) or FREE (all zero). */
int source_begin(struct source_lane *lane, struct source_slot *slot);
/* The granule of a slot is hashed (leaves NULL: it is zero), or cannot be: if others wait for it, let them know. */
void source_hand_on(struct source_lane *lane, struct source_slot *slot, const uint8_t *leaves);
void source_give_up(struct source_lane *lane, struct source_slot *slot);
/* A read completed; the slot becomes READ with its last one, or FREE if it cannot be read (recorded). */
int source_read_done(struct source_lane *lane, uint64_t tag, int64_t result);

/* Read all of the granule of a slot. */
int source_read_whole(struct source_lane *lane, struct source_slot *slot);
/* Queue a read of `size` bytes of a slot's granule, at `start` in it. 1: queued; 0: not now, for run->nice says so: it is asked again. */
int source_read_queue(struct source_lane *lane, struct source_slot *slot, size_t start, size_t size, uint32_t part);
/* Queue what is still to be read of a slot in SLOT_READING, as much as may be in flight. */
int source_read_on(struct source_lane *lane, struct source_slot *slot);
int source_leaves_on(struct source_lane *lane, struct source_slot *slot);
/* Begin to read the leaves of slot->granule that run->wanted names. 1: begun; 0: all of it has to be read, nothing is under way. */
int source_leaves_start(struct source_lane *lane, struct source_slot *slot);
/* Read number `part` of those completed. */
int source_leaves_read(struct source_lane *lane, struct source_slot *slot, uint32_t part, int64_t result);
/* Hash and compare them: 1: slot->leaves, value and runs are there; 0: a send was in flight, call it again. Cannot fail. */
int source_leaves_hash(struct source_lane *lane, struct source_slot *slot);
/* The leaf values of a granule in the base, from whichever slot of the map merges to its value (R8). 1: they are in `leaves`, 0: none are known. */
int source_base_page(struct source_lane *lane, uint64_t granule, uint8_t state, uint8_t *leaves);

/* Hash a READ slot: one piece if a send is in flight, else all of it. After the last piece it is FREE (nothing to send) or SENDING (queued). */
int source_hash(struct source_lane *lane, struct source_slot *slot);
/* A granule is all zero: note it, and queue a ZERO frame unless the base has it so. */
int source_zero(struct source_lane *lane, uint64_t granule, int unknown);

/* Add the next frames of `slot` to a batch that is empty, or is its and not full: one if it is packed, else all that fit. Sets batch->full, and
 * batch->finishes when they are its last. Cannot fail. */
void source_frame_slot(struct source_lane *lane, struct source_slot *slot, struct source_batch *batch);
void source_frame_zero(struct source_lane *lane, uint64_t granule, uint64_t span, struct source_batch *batch);
void source_frame_end(struct source_lane *lane, struct source_batch *batch);

/* Make frames of what is queued while a batch is being sent, if they are to be packed: 1: some were made. if_none: only if there are none yet. */
int source_frame_ahead(struct source_lane *lane, int if_none);
/* source_pack.c. Before the batches are allocated: what a lane that may pack needs. 0, or -1: no memory. */
int source_pack_open(struct source_lane *lane);
void source_pack_close(struct source_lane *lane);
/* Set slot->packing, when the first frame of it is to be made. */
void source_pack_decide(struct source_lane *lane, struct source_slot *slot);
/* Bytes of data of a frame of this slot. */
uint32_t source_frame_size(const struct source_lane *lane, const struct source_slot *slot);
int source_pack_has_room(const struct source_lane *lane, const struct source_batch *batch);
/* Pack the data of the frame just made, batch->iov from first_iov on, unless it does not get smaller; its header is sealed after this. */
void source_pack_frame(struct source_lane *lane, struct source_slot *slot, struct source_batch *batch, struct qrep_frame_header *header, uint32_t first_iov);
/* A piece is to be sent (also again, because of a rate); it is sent; the lane has waited. */
void source_pack_asked(struct source_lane *lane);
void source_pack_sent(struct source_lane *lane, size_t size);
void source_pack_waited(struct source_lane *lane, uint64_t ns);

/* Start the next send if none is in flight and the rate allows; on blocking connections, send until nothing is left to. */
int source_pump(struct source_lane *lane);
int source_send_done(struct source_lane *lane, uint64_t tag, int64_t result, uint32_t flags);
/* 1 when nothing is queued, in flight or waiting for a notification. */
int source_idle(const struct source_lane *lane);
/* Send END; then every send has completed. The answer is waited for by the loop. */
int source_send_end(struct source_lane *lane);
/* The END of the other side is in lane->answer. */
int source_check_answer(struct source_lane *lane);

static inline void source_count(_Atomic uint64_t *counter, uint64_t size) { atomic_fetch_add_explicit(counter, size, memory_order_relaxed); }

#endif
