/* Inside a target lane: what a frame in flight is, and the stages it goes through. Shared by target_lane.c (the loop), target_receive.c,
 * target_frame.c (what a frame covers), target_apply.c (from before-image to write) and target_requests.c; nobody else includes it.
 *
 *   RECEIVING -> ARRIVED -> [ LOOKING -> LOGGING -> LOGGED -> WRITING ]* -> DONE
 *
 * The bracket is passed once per piece: so much of the frame as the room for before-images holds. A frame of data is one piece; a long run of
 * zeroes may be several. */
#ifndef QREP_TARGET_STAGES_H
#define QREP_TARGET_STAGES_H

#include "buffers.h"
#include "lane_common.h"
#include "pack.h"
#include "ring.h"
#include "target_verify.h"
#include "undo_writer.h"
#include "window.h"

#define QREP_TARGET_FRAMES 128 /* in flight per lane; each has at most one undo batch that is not flushed yet */
_Static_assert(QREP_TARGET_FRAMES <= QREP_UNDO_BATCHES_MAX, "a batch per frame");
#define QREP_TARGET_PASSES 256 /* > frames in flight plus the open one */

enum { TARGET_DEVICE = 0, TARGET_UNDO = 1, TARGET_RECEIVE = 2, TARGET_SEND = 3, TARGET_FILES = 4 }; /* registered files */

enum target_stage {
    TARGET_RECEIVING,
    TARGET_ARRIVED, /* whole, runs checked; waits for room and for older frames of the same granule */
    TARGET_LOOKING, /* before-images are being read */
    TARGET_LOGGING, /* their batch is being written */
    TARGET_LOGGED,  /* waits for the flush that covers the batch */
    TARGET_WRITING,
    TARGET_DONE,
    TARGET_FREE, /* done and counted in its pass; its memory goes back once it is the oldest */
};

/* A place in what a frame covers. */
struct target_cursor {
    uint32_t run;    /* index; a FULL and a ZERO frame are one run */
    uint32_t data;   /* bytes of the frame's data before this place */
    uint64_t within; /* bytes into the run */
};

/* A range of the device that a frame replaces. */
struct target_extent {
    uint64_t offset;
    uint64_t size;
    const uint8_t *data; /* NULL: with zeroes */
};

struct target_range {
    uint64_t offset;
    uint64_t size;
};

/* One pass over a granule (or over the granules of a ZERO frame): done when its last frame has come and all its frames are written. */
struct target_pass {
    uint64_t granule;
    uint32_t span;
    uint32_t frames; /* in flight */
    int closed;      /* the last frame has come */
    int parts;       /* and it said that leaves are missing */
    int finished;
    struct qrep_granule_result result; /* valid once closed */
};

struct target_frame {
    struct qrep_frame_header header;
    enum target_stage stage;
    unsigned pending;      /* requests in flight */
    uint64_t asked, moved; /* bytes of this stage's requests; equal when all went whole */
    struct qrep_wire_run *runs; /* RUNS: the table, its leaf values behind it */
    uint8_t *data;
    const uint8_t *packed;       /* PACKED, until it is unpacked into `data`: one of lane->packed; else NULL */
    uint8_t *old;                /* before-images of the piece; qrep_undo_front_room() bytes in front of it; NULL: none are looked at */
    uint32_t room;               /* bytes there, whole leaves */
    struct target_range *clear;  /* ranges of the piece that must become zero and are not */
    uint32_t clear_count;
    struct target_cursor piece, piece_end;
    uint64_t batch;      /* number, valid in LOGGING and LOGGED */
    uint64_t pass;       /* number */
    int marked;          /* its granules are marked as touched */
    int refused;         /* WRITING: the medium did not take a write of this piece */
    uint64_t window_end; /* what to release when this frame is the oldest and done */
};

struct target_lane {
    struct qrep_target_run *run;
    struct qrep_connection *connection;
    int device_fd;
    uint32_t index;
    atomic_int *lane_stop;
    int failed; /* 0 or the -errno to return; nothing new is started then */

    struct qrep_ring *ring;
    struct qrep_arena arena;
    struct qrep_window window;
    struct qrep_assembly assembly;
    struct qrep_undo_writer undo;
    struct qrep_undo_extent *extents; /* scratch for one table: leaves of a piece */
    uint32_t frame_limit;             /* a multiple of the leaf */
    struct qrep_unpacker *unpacker;   /* NULL: no frame is PACKED */
    uint8_t *packed[2];               /* [frame_limit] each: one is unpacked while the next frame arrives in the other */
    unsigned packed_next;
    int punch;
    unsigned file_requests; /* reads and writes of the device in flight */

    struct target_frame frames[QREP_TARGET_FRAMES];
    uint64_t first, count; /* frames [first, first + count) are in flight, index modulo QREP_TARGET_FRAMES */
    struct target_pass passes[QREP_TARGET_PASSES];
    uint64_t pass_first, pass_next; /* numbers; pass_first: the oldest that is not finished */

    struct qrep_wire_state wire;     /* of what is received */
    struct qrep_frame_header incoming; /* the next frame's header; checked while have_header */
    int have_header;
    int receiving;          /* a receive is in flight: of `incoming` alone, or of the newest frame (RECEIVING) and `incoming` */
    int arrived;            /* it completed, with receive_result, and was not looked at yet */
    int64_t receive_result; /* bytes, or -errno */
    size_t receive_size;
    struct iovec iov[3];
    int ended;              /* END has come */
    int answered;           /* the END of this side is sent */
    int lost;               /* errno of the connection, or 0; what has arrived whole is still applied */
    uint64_t waited_ns;
};

enum { TARGET_OP_READ, TARGET_OP_UNDO, TARGET_OP_WRITE, TARGET_OP_FLUSH, TARGET_OP_RECEIVE, TARGET_OP_SEND };

/* target_requests.c. Record the lane's first failure; returns its -errno. */
int qrep_target_fail(struct target_lane *lane, enum qrep_failure_kind kind, int error, uint64_t granule);
/* Start one request for `frame` (NULL: none), reaping while the ring is full. 0 or -errno of the ring, recorded. */
int qrep_target_request(struct target_lane *lane, struct target_frame *frame, unsigned op, void *data, size_t size, uint64_t offset);
/* Deliver completions, waiting at most wait_ns for the first. Only books them; stages move in qrep_frame_advance(). 0 or -errno, recorded. */
int qrep_target_reap(struct target_lane *lane, uint64_t wait_ns);
/* R12: see everything in flight complete. After a failure the connection is shut down first. */
void qrep_target_drain(struct target_lane *lane);

/* target_frame.c. The next range at `cursor`, at most `limit` bytes of it; moves the cursor on. 0 at the end of the frame. */
int qrep_frame_next(const struct target_lane *lane, const struct target_frame *frame, struct target_cursor *cursor, uint64_t limit,
                    struct target_extent *extent);
/* The next range before `end`. */
int qrep_frame_next_until(const struct target_lane *lane, const struct target_frame *frame, struct target_cursor *cursor,
                          const struct target_cursor *end, struct target_extent *extent);
/* Bytes of the frame whose before-images must be read: all of it when they are kept, else its zero runs. */
uint64_t qrep_frame_old_bytes(const struct target_lane *lane, const struct target_frame *frame);
/* Set piece_end so that the before-images of the piece fit frame->room. */
void qrep_frame_cut_piece(const struct target_lane *lane, struct target_frame *frame);
int qrep_frame_at_end(const struct target_lane *lane, const struct target_frame *frame);

/* target_apply.c. Take the frame's room for before-images: 1, or 0 when the window has none now. */
int qrep_frame_take_room(struct target_lane *lane, struct target_frame *frame);
/* Bytes of window that takes at most. */
uint64_t qrep_frame_room_max(const struct target_lane *lane);
/* First piece of a frame that was verified. */
int qrep_frame_start(struct target_lane *lane, struct target_frame *frame);
/* Move a frame on as far as it can go without waiting. 0 or -errno, recorded. */
int qrep_frame_advance(struct target_lane *lane, struct target_frame *frame);

#endif
