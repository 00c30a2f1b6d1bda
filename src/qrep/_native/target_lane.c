/* The receiving lane: one loop that receives frame n + 1 while frame n is hashed and frames before it are looked at, logged, flushed and written. */
#include "blake3.h"
#include "target_receive.h"
#include "target_stages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RING_ENTRIES 1024
#define STOP_POLL_NS ((uint64_t)QREP_STOP_POLL_MS * 1000000u)
/* How soon to ask again whether another lane's flush of the undo store has ended; a flush takes no less. */
#define FLUSH_POLL_NS 100000u

/* ---- frames ---- */

static void count_frame_in_pass(struct target_lane *lane, struct target_frame *frame)
{
    frame->stage = TARGET_FREE;
    lane->passes[frame->pass % QREP_TARGET_PASSES].frames--;
    atomic_fetch_add_explicit(&lane->run->base.counters.frames, 1, memory_order_relaxed);
}

static void finish_pass(struct target_lane *lane, struct target_pass *pass)
{
    struct qrep_run_base *run = &lane->run->base;

    for (uint64_t granule = pass->granule; granule < pass->granule + pass->span; granule++) {
        uint64_t start = granule * run->geometry.granule_size;
        if (pass->parts || qrep_bad_list_touches(&lane->run->bad, start, run->geometry.granule_size))
            continue; /* INV-Z: marked 1, and nothing is claimed of it */
        if ((pass->result.state | run->fresh_states[granule]) & QREP_STATE_VALUE) /* else there is none, and its memory is left alone */
            memcpy(run->fresh_values + granule * QREP_DIGEST_SIZE, pass->result.value, QREP_DIGEST_SIZE);
        run->fresh_states[granule] = pass->result.state;
        /* Whoever reads the mark while lanes run (a checkpoint) finds what it claims. */
        __atomic_store_n(&run->marked[granule], 2, __ATOMIC_RELEASE);
    }
    atomic_fetch_add_explicit(&run->counters.granules_done, pass->span, memory_order_relaxed);
    pass->finished = 1;
}

static void finish_passes(struct target_lane *lane)
{
    for (uint64_t number = lane->pass_first; number < lane->pass_next; number++) {
        struct target_pass *pass = &lane->passes[number % QREP_TARGET_PASSES];
        if (!pass->finished && pass->closed && pass->frames == 0)
            finish_pass(lane, pass);
        if (pass->finished && number == lane->pass_first)
            lane->pass_first++;
    }
}

static int flush_undo(struct target_lane *lane)
{
    if (lane->run->undo_fd < 0 || !qrep_undo_flush_begin(&lane->undo))
        return 0;
    return qrep_target_request(lane, NULL, TARGET_OP_FLUSH, NULL, 0, 0);
}

/* Move every frame as far as it goes without waiting. 1: something may move again at once; 0; or -errno. */
static int advance(struct target_lane *lane)
{
    int rc = flush_undo(lane), done = 0;

    for (uint64_t i = lane->first; rc == 0 && i < lane->first + lane->count; i++) {
        struct target_frame *frame = &lane->frames[i % QREP_TARGET_FRAMES];
        rc = frame->stage == TARGET_ARRIVED ? qrep_frame_accept(lane, frame) : qrep_frame_advance(lane, frame);
        if (rc == 0 && frame->stage == TARGET_DONE) {
            count_frame_in_pass(lane, frame);
            done = 1;
        }
    }
    if (done)
        finish_passes(lane);
    for (; lane->count && lane->frames[lane->first % QREP_TARGET_FRAMES].stage == TARGET_FREE; lane->first++, lane->count--)
        qrep_window_release(&lane->window, lane->frames[lane->first % QREP_TARGET_FRAMES].window_end);

    uint64_t flushed = lane->undo.flushed;
    if (rc == 0)
        rc = flush_undo(lane);
    return rc ? rc : done || lane->undo.flushed != flushed;
}

/* ---- the loop ---- */

static int is_stopped(const struct target_lane *lane)
{
    return atomic_load_explicit(&lane->run->base.stop, memory_order_relaxed) ||
           (lane->lane_stop && atomic_load_explicit(lane->lane_stop, memory_order_relaxed));
}

/* All of this connection is written: say so. */
static int answer_end(struct target_lane *lane)
{
    struct qrep_wire_state state = lane->wire;

    if (lane->assembly.open) /* the last frame of a granule is missing */
        return qrep_target_fail(lane, QREP_FAILURE_FRAME, EPROTO, lane->assembly.granule);
    memset(&lane->incoming, 0, sizeof lane->incoming); /* nothing comes any more; the memory outlives the request */
    lane->incoming.kind = QREP_FRAME_END;
    state.sequence = 0; /* of this direction */
    state.connection |= QREP_FRAME_ANSWER;
    qrep_frame_seal(&lane->incoming, &state);
    lane->iov[0] = (struct iovec){&lane->incoming, sizeof lane->incoming};
    qrep_crashpoint("target-end");
    atomic_store(&lane->connection->ended, 1);
    if (lane->connection->kind != QREP_CONNECTION_SOCKET) {
        int rc = qrep_connection_send(lane->connection, lane->iov, 1, &lane->run->base.stop);
        return rc ? qrep_target_fail(lane, QREP_FAILURE_CONNECTION, -rc, UINT64_MAX) : 0;
    }
    int rc = qrep_target_request(lane, NULL, TARGET_OP_SEND, lane->iov, 1, 0);
    while (rc == 0 && !lane->answered) {
        if (is_stopped(lane))
            return lane->failed = -ECANCELED;
        rc = qrep_target_reap(lane, STOP_POLL_NS);
    }
    return rc;
}

static int serve(struct target_lane *lane)
{
    for (;;) {
        int moved = advance(lane);
        if (moved < 0)
            return moved;
        if (is_stopped(lane))
            return lane->failed = -ECANCELED;
        if (lane->count == 0 && lane->lost)
            return qrep_target_fail(lane, QREP_FAILURE_CONNECTION, lane->lost, UINT64_MAX);
        if (lane->count == 0 && lane->ended)
            return answer_end(lane);

        int received = qrep_lane_receive(lane);
        if (received < 0)
            return received;
        uint64_t wait_ns = moved || received ? 0 : qrep_undo_waits(&lane->undo) ? FLUSH_POLL_NS : STOP_POLL_NS;
        int rc = qrep_target_reap(lane, wait_ns);
        if (rc)
            return rc;
    }
}

/* ---- set-up ---- */

static int open_ring(struct target_lane *lane)
{
    struct qrep_target_run *run = lane->run;
    struct qrep_ring_options options = {.backend = run->ring_backend, .entries = RING_ENTRIES};
    int has_socket = lane->connection->kind == QREP_CONNECTION_SOCKET;
    int files[TARGET_FILES] = {
        [TARGET_DEVICE] = lane->device_fd,
        [TARGET_UNDO] = run->undo_fd >= 0 ? run->undo_fd : lane->device_fd,
        [TARGET_RECEIVE] = has_socket ? lane->connection->receive_fd : lane->device_fd,
        [TARGET_SEND] = has_socket ? lane->connection->send_fd : lane->device_fd,
    };
    int rc = qrep_ring_open(&lane->ring, &options);
    if (rc == 0)
        rc = qrep_ring_register_files(lane->ring, files, TARGET_FILES);
    if (rc == 0)
        rc = qrep_ring_register_buffers(lane->ring, lane->arena.base, lane->arena.size);
    return rc < 0 ? rc : 0; /* 1: not registered for RLIMIT_MEMLOCK, slower and correct */
}

static int open_lane(struct target_lane *lane)
{
    struct qrep_target_run *run = lane->run;
    uint32_t leaf_size = run->base.geometry.leaf_size;

    if (run->frame_limit < leaf_size || run->frame_limit > QREP_FRAME_DATA_MAX || run->slots < 2)
        return -EINVAL;
    lane->frame_limit = run->frame_limit / leaf_size * leaf_size;
    lane->punch = run->punch != 0;
    lane->wire = (struct qrep_wire_state){
        .geometry = run->base.geometry,
        .attempt = run->base.attempt,
        .session = run->base.session,
        .connection = lane->connection->index,
        .features = run->base.features,
    };
    memcpy(lane->wire.key, run->base.key, sizeof lane->wire.key);
    qrep_undo_writer_start(&lane->undo, run);

    int rc = qrep_assembly_open(&lane->assembly, &run->base, lane->frame_limit);
    if (rc)
        return rc;
    lane->extents = malloc((lane->frame_limit / leaf_size) * sizeof *lane->extents);
    if (lane->extents == NULL)
        return -ENOMEM;
    if (run->base.features & QREP_FEATURE_ZSTD) {
        lane->unpacker = qrep_unpacker_open();
        lane->packed[0] = malloc(lane->frame_limit);
        lane->packed[1] = malloc(lane->frame_limit);
        if (!lane->unpacker || !lane->packed[0] || !lane->packed[1])
            return -ENOMEM;
    }
    /* A rehearsal looks at nothing before it overwrites nothing. */
    uint64_t room = qrep_receive_room_max(lane) + (run->base.rehearsal ? 0 : qrep_frame_room_max(lane));
    rc = qrep_arena_open(&lane->arena, run->slots * room);
    if (rc)
        return rc;
    lane->window = (struct qrep_window){.base = lane->arena.base, .size = lane->arena.size};
    return open_ring(lane);
}

static void close_lane(struct target_lane *lane)
{
    qrep_ring_close(lane->ring);
    qrep_arena_close(&lane->arena);
    qrep_assembly_close(&lane->assembly);
    free(lane->extents);
    qrep_unpacker_close(lane->unpacker);
    free(lane->packed[0]);
    free(lane->packed[1]);
    free(lane);
}

int qrep_target_lane(struct qrep_target_run *run, int device_fd, struct qrep_connection *connection, uint32_t index, atomic_int *lane_stop)
{
    uint64_t started = qrep_now_ns();
    struct target_lane *lane = calloc(1, sizeof *lane);
    int saved[2];

    if (lane == NULL)
        return qrep_fail(&run->base, QREP_FAILURE_MEMORY, ENOMEM, index, UINT64_MAX);
    lane->run = run;
    lane->connection = connection;
    lane->device_fd = device_fd;
    lane->index = index;
    lane->lane_stop = lane_stop;

    int rc = open_lane(lane);
    if (rc == 0)
        rc = qrep_connection_begin(connection, saved);
    if (rc) {
        qrep_target_fail(lane, QREP_FAILURE_MEMORY, -rc, UINT64_MAX);
    } else {
        serve(lane);
        qrep_target_drain(lane);
        qrep_connection_end(connection, saved);
    }
    rc = lane->failed;
    atomic_fetch_add_explicit(&run->base.counters.busy_ns, qrep_now_ns() - started - lane->waited_ns, memory_order_relaxed);
    close_lane(lane);
    return rc;
}
