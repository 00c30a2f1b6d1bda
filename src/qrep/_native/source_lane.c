/* The source lane: one loop that keeps reads in flight, the hash busy and the connection fed, and knows what it waits for. */
#include "source_parts.h"

#include "disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COMPLETIONS_ROOM 64
#define STOP_POLL_NS (QREP_STOP_POLL_MS * 1000000ull)
#define YIELD_POLL_NS 5000000ull /* a lane that left the rest to others looks again so often */
#define SHARED_POLL_NS 500000ull  /* and one that waits for what another run reads */
#define LEAF_READS 32 /* in flight for one slot of which only some leaves are read */
#define PART_READS 32 /* the same for all of a slot in pieces, where a limiter says how large they are */
#define RING_SPARE 64 /* requests beside the reads: the answer, a send, and notifications that are outstanding */

/* ---- set-up ---- */

static int has_connection(const struct source_lane *lane) { return lane->connection->kind != QREP_CONNECTION_NONE; }
static int has_socket(const struct source_lane *lane) { return lane->connection->kind == QREP_CONNECTION_SOCKET; }

static int check_run(const struct qrep_source_run *run)
{
    const struct qrep_geometry *geometry = &run->base.geometry;

    if (qrep_geometry_check(geometry) || run->base.granules != qrep_granules(geometry))
        return -EINVAL;
    if (run->frame_size < geometry->leaf_size || run->frame_size > QREP_FRAME_DATA_MAX || (run->frame_size & (run->frame_size - 1)))
        return -EINVAL;
    if (run->slots < 1 || run->slots > 256 || run->base.sector_size < 512 || geometry->granule_size % run->base.sector_size)
        return -EINVAL;
    if (run->io_size % run->base.sector_size)
        return -EINVAL;
    for (uint64_t i = 0, end = 0; i < run->wanted_count; end = run->wanted[i].first + run->wanted[i].count, i++) /* so that no sum below can overflow */
        if (run->wanted[i].first < end || run->wanted[i].count > UINT64_MAX - run->wanted[i].first)
            return -EINVAL;
    return 0;
}

static int open_ring(struct source_lane *lane)
{
    struct qrep_source_run *run = lane->run;
    uint32_t reads = run->slots * (lane->part_reads > lane->leaf_reads ? lane->part_reads : lane->leaf_reads);
    if (reads > 4096 - RING_SPARE)
        return -EINVAL;
    struct qrep_ring_options options = {.backend = run->ring_backend, .entries = reads + RING_SPARE};
    /* Threads: every read may be under way, and a send and a receive each block one. */
    options.threads = reads + 2 < 4 ? 4 : reads + 2 > 64 ? 64 : reads + 2;
    int rc = qrep_ring_open(&lane->ring, &options);
    if (rc)
        return rc;
    int files[SOURCE_FILES] = {
        [SOURCE_FILE_DEVICE] = lane->device_fd,
        [SOURCE_FILE_SEND] = lane->connection->send_fd,
        [SOURCE_FILE_RECEIVE] = lane->connection->receive_fd,
    };
    rc = qrep_ring_register_files(lane->ring, files, has_socket(lane) ? SOURCE_FILES : 1);
    if (rc)
        return rc;
    rc = qrep_ring_register_buffers(lane->ring, lane->arena.base, lane->arena.size);
    return rc < 0 ? rc : 0;
}

/* Bytes that no compression on the way makes fewer (xorshift64), and that no lane shares with another. */
static void fill_slot(uint8_t *data, size_t size, uint64_t seed)
{
    uint64_t word = seed * 0x9e3779b97f4a7c15ull | 1;

    for (size_t i = 0; i + sizeof word <= size; i += sizeof word) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        memcpy(data + i, &word, sizeof word);
    }
}

static int open_slots(struct source_lane *lane)
{
    uint32_t leaves = lane->granule_leaves;

    for (uint32_t i = 0; i < lane->run->slots; i++) {
        struct source_slot *slot = &lane->slots[i];
        slot->data = lane->arena.base + (size_t)i * lane->run->base.geometry.granule_size;
        slot->leaves = calloc(leaves, QREP_DIGEST_SIZE);
        slot->runs = calloc(leaves, sizeof *slot->runs);
        slot->missing = calloc(leaves, 1);
        if (lane->run->wanted_count)
            slot->wanted = calloc(leaves, sizeof *slot->wanted);
        if (!slot->leaves || !slot->runs || !slot->missing || (lane->run->wanted_count && !slot->wanted))
            return -ENOMEM;
        if (lane->run->base.rehearsal)
            fill_slot(slot->data, lane->run->base.geometry.granule_size, (uint64_t)lane->lane * lane->run->slots + i + 1);
    }
    return 0;
}

static void open_stream(struct source_lane *lane)
{
    const struct qrep_run_base *base = &lane->run->base;

    lane->outgoing = (struct qrep_wire_state){
        .geometry = base->geometry, .attempt = base->attempt, .session = base->session, .connection = lane->connection->index,
        .features = base->features,
    };
    memcpy(lane->outgoing.key, base->key, sizeof base->key);
    lane->incoming = lane->outgoing; /* the other direction counts on its own */
    lane->incoming.connection |= QREP_FRAME_ANSWER;
    lane->zero_copy = has_socket(lane) && lane->connection->zero_copy;
}

static int open_lane(struct source_lane *lane)
{
    struct qrep_source_run *run = lane->run;
    const struct qrep_geometry *geometry = &run->base.geometry;
    int rc = check_run(run);
    if (rc)
        return rc;

    lane->granule_leaves = geometry->granule_size / geometry->leaf_size;
    lane->io_size = run->io_size && run->io_size < geometry->granule_size ? run->io_size : geometry->granule_size;
    lane->reads_per_granule = (geometry->granule_size + lane->io_size - 1) / lane->io_size;
    lane->part_reads = run->nice && lane->reads_per_granule < PART_READS ? PART_READS : lane->reads_per_granule;
    if (lane->part_reads > (4096 - RING_SPARE) / run->slots && lane->part_reads > lane->reads_per_granule)
        lane->part_reads = lane->reads_per_granule;
    if (run->wanted_count)
        lane->leaf_reads = LEAF_READS < (4096 - RING_SPARE) / run->slots ? LEAF_READS : (4096 - RING_SPARE) / run->slots;
    /* With zero copy a sent batch waits for its notification while others go out. */
    lane->batch_count = has_connection(lane) ? (has_socket(lane) && lane->connection->zero_copy ? run->slots + 2 : 1) : 0;
    if (source_pack_open(lane))
        return -ENOMEM;
    lane->zero_room = 2 * run->slots + 8;
    lane->cursor_first = atomic_load_explicit(&run->cursor, memory_order_relaxed);
    lane->started_ns = qrep_now_ns();
    if (run->nice)
        qrep_bucket_init(&lane->nice_bucket, QREP_RATE_UNLIMITED, 0, &run->nice->bucket, lane->started_ns);
    open_stream(lane);

    lane->slots = calloc(run->slots, sizeof *lane->slots);
    lane->queue = calloc(run->slots, sizeof *lane->queue);
    lane->zero_runs = calloc(lane->zero_room, sizeof *lane->zero_runs);
    lane->base_leaves = calloc(lane->granule_leaves, QREP_DIGEST_SIZE);
    lane->scratch = calloc(lane->granule_leaves, QREP_DIGEST_SIZE);
    lane->bad = calloc(QREP_BAD_EXTENTS_MAX, sizeof *lane->bad);
    lane->piece = calloc(SOURCE_BATCH_IOVECS, sizeof *lane->piece);
    lane->batches = calloc(lane->batch_count + 1, sizeof *lane->batches); /* + 1: calloc(0) may be NULL */
    if (!lane->slots || !lane->queue || !lane->zero_runs || !lane->base_leaves || !lane->scratch || !lane->bad || !lane->piece || !lane->batches)
        return -ENOMEM;
    if (has_connection(lane) && (run->base.features & QREP_FEATURE_COPIES) && (rc = qrep_twins_open(&lane->twins, geometry)) != 0)
        return rc;
    rc = qrep_arena_open(&lane->arena, (size_t)run->slots * geometry->granule_size);
    if (rc == 0)
        rc = open_slots(lane);
    return rc ? rc : open_ring(lane);
}

static void close_lane(struct source_lane *lane)
{
    qrep_ring_close(lane->ring); /* R12: waits for everything in flight, so that the memory below is ours again */
    for (; lane->nice_reads; lane->nice_reads--)
        qrep_nice_read_ended(lane->run->nice, 0, 0);
    if (lane->nice_bucket.parent)
        qrep_bucket_close(&lane->nice_bucket);
    for (uint32_t i = 0; lane->slots && i < lane->run->slots; i++)
        source_give_up(lane, &lane->slots[i]);
    qrep_arena_close(&lane->arena);
    for (uint32_t i = 0; lane->slots && i < lane->run->slots; i++) {
        free(lane->slots[i].leaves);
        free(lane->slots[i].runs);
        free(lane->slots[i].missing);
        free(lane->slots[i].wanted);
    }
    free(lane->slots);
    free(lane->queue);
    free(lane->zero_runs);
    qrep_twins_close(&lane->twins);
    free(lane->base_leaves);
    free(lane->scratch);
    free(lane->bad);
    free(lane->piece);
    free(lane->batches);
    source_pack_close(lane);
}

/* ---- completions ---- */

static int answer_received(struct source_lane *lane, int64_t result)
{
    if (result != (int64_t)sizeof lane->answer)
        return qrep_fail(&lane->run->base, QREP_FAILURE_CONNECTION, result < 0 ? (int)-result : ECONNRESET, lane->lane, UINT64_MAX);
    return source_check_answer(lane);
}

static int reap(struct source_lane *lane, uint64_t wait_ns)
{
    struct qrep_completion done[COMPLETIONS_ROOM];
    int count = qrep_ring_wait(lane->ring, done, COMPLETIONS_ROOM, wait_ns), rc = 0;

    if (count < 0)
        return qrep_fail(&lane->run->base, QREP_FAILURE_READ, -count, lane->lane, UINT64_MAX);
    /* Of those that were delivered none may be dropped, whatever the first of them says. */
    for (int i = 0; i < count; i++) {
        int each = 0;
        switch ((enum source_tag)(done[i].tag >> 56)) {
        case SOURCE_TAG_READ:
            each = source_read_done(lane, done[i].tag, done[i].result);
            break;
        case SOURCE_TAG_SEND:
            each = source_send_done(lane, done[i].tag, done[i].result, done[i].flags);
            break;
        case SOURCE_TAG_ANSWER:
            each = answer_received(lane, done[i].result);
            break;
        }
        rc = rc ? rc : each;
    }
    return rc;
}

/* ---- the loop ---- */

static struct source_slot *find_slot(struct source_lane *lane, enum source_slot_state state)
{
    for (uint32_t i = 0; i < lane->run->slots; i++)
        if (lane->slots[i].state == state)
            return &lane->slots[i];
    return NULL;
}

/* Wait for the next completion, or for the rate, and note for what: a granule that is being read is what is missing, else the
 * limit that is set, else the network. */
static int wait_for_something(struct source_lane *lane)
{
    struct qrep_run_counters *counters = &lane->run->base.counters;
    uint64_t started_ns = qrep_now_ns(), wait_ns = STOP_POLL_NS;
    int limited = lane->limit_until_ns > started_ns, shared = find_slot(lane, SLOT_WAITING) != NULL;
    int nice = lane->nice_until_ns > started_ns;
    _Atomic uint64_t *waited = nice && lane->nice_reads == 0 ? &counters->wait_nice_ns
                               : shared || find_slot(lane, SLOT_READING) ? &counters->wait_device_ns
                               : limited                     ? &counters->wait_limit_ns
                                                             : &counters->wait_network_ns;

    if (limited && lane->limit_until_ns - started_ns < wait_ns)
        wait_ns = lane->limit_until_ns - started_ns;
    if (lane->yield_until_ns && wait_ns > YIELD_POLL_NS)
        wait_ns = YIELD_POLL_NS;
    if (shared && wait_ns > SHARED_POLL_NS)
        wait_ns = SHARED_POLL_NS;
    if (nice && lane->nice_until_ns - started_ns < wait_ns)
        wait_ns = lane->nice_until_ns - started_ns;
    int rc = 0;
    if (qrep_ring_in_flight(lane->ring)) {
        rc = reap(lane, wait_ns);
    } else if (limited || shared || nice || lane->yield_until_ns) { /* else nothing is waited for: a blocking connection took all there was, and there is room for more work */
        struct timespec pause = {0, (long)wait_ns};
        nanosleep(&pause, NULL);
    }
    uint64_t waited_ns = qrep_now_ns() - started_ns;
    source_count(waited, waited_ns);
    source_pack_waited(lane, waited_ns);
    lane->waited_ns += waited_ns;
    return rc;
}

static int is_stopped(const struct source_lane *lane) { return atomic_load_explicit(&lane->run->base.stop, memory_order_relaxed); }

/* What is queued is the kernel's before the hash takes the CPU. The connection may have taken a small frame at once: then its slot is free, and what is to be
 * read into it is under way during this hash, too, not only after it. */
static int start_all(struct source_lane *lane)
{
    int sending = lane->sending != NULL, rc = reap(lane, 0);

    if (rc || !sending || lane->sending)
        return rc;
    rc = source_fill(lane);
    return rc ? rc : reap(lane, 0);
}

static int run_granules(struct source_lane *lane)
{
    for (;;) {
        if (is_stopped(lane))
            return -ECANCELED;
        int rc = source_fill(lane);
        if (rc == 0)
            rc = source_pump(lane);
        if (rc)
            return rc;
        if (source_frame_ahead(lane, 1)) { /* the connection is never to wait for packing */
            rc = reap(lane, 0);
            if (rc)
                return rc;
            continue;
        }
        struct source_slot *slot = lane->hashing ? lane->hashing : find_slot(lane, SLOT_READ);
        if (slot) {
            rc = start_all(lane);
            lane->timed_from_ns = 0; /* when what is in flight completes is not seen meanwhile */
            if (rc == 0)
                rc = source_hash(lane, slot);
        } else if (source_frame_ahead(lane, 0)) {
            rc = reap(lane, 0);
        } else if (lane->work_done && !find_slot(lane, SLOT_READING) && !find_slot(lane, SLOT_WAITING) && source_idle(lane)) {
            return 0;
        } else {
            rc = wait_for_something(lane);
        }
        if (rc)
            return rc;
    }
}

static int wait_answer(struct source_lane *lane)
{
    if (!has_socket(lane)) {
        uint64_t started_ns = qrep_now_ns();
        int rc = qrep_connection_receive(lane->connection, &lane->answer, sizeof lane->answer, &lane->run->base.stop);
        uint64_t waited_ns = qrep_now_ns() - started_ns;
        source_count(&lane->run->base.counters.wait_network_ns, waited_ns);
        lane->waited_ns += waited_ns;
        if (rc)
            return rc == -ECANCELED ? rc : qrep_fail(&lane->run->base, QREP_FAILURE_CONNECTION, -rc, lane->lane, UINT64_MAX);
        return source_check_answer(lane);
    }
    while (!lane->answered) {
        int rc = is_stopped(lane) ? -ECANCELED : wait_for_something(lane);
        if (rc)
            return rc;
    }
    return 0;
}

static int end_stream(struct source_lane *lane)
{
    int rc = source_send_end(lane);

    while (rc == 0 && !source_idle(lane)) {
        rc = is_stopped(lane) ? -ECANCELED : wait_for_something(lane);
        if (rc == 0)
            rc = source_pump(lane); /* the rate may have kept END back */
    }
    if (rc)
        return rc;
    qrep_crashpoint("source-end");
    return wait_answer(lane);
}

static int run_lane(struct source_lane *lane)
{
    if (has_socket(lane)) {
        /* From the start, so that a peer that goes away is noticed while there is nothing to send. */
        lane->answer_iov = (struct iovec){&lane->answer, sizeof lane->answer};
        int rc = qrep_ring_receive(lane->ring, SOURCE_FILE_RECEIVE, &lane->answer_iov, 1, source_tag(SOURCE_TAG_ANSWER, 0, 0));
        if (rc)
            return qrep_fail(&lane->run->base, QREP_FAILURE_CONNECTION, -rc, lane->lane, UINT64_MAX);
    }
    int rc = run_granules(lane);
    if (rc == 0 && has_connection(lane))
        rc = end_stream(lane);
    return rc;
}

int qrep_source_lane(struct qrep_source_run *run, int device_fd, struct qrep_connection *connection, uint32_t lane_index, atomic_int *lane_stop)
{
    struct source_lane lane = {.run = run, .connection = connection, .lane_stop = lane_stop, .device_fd = device_fd, .lane = lane_index};
    uint64_t started_ns = qrep_now_ns();
    int saved_flags[2];
    int rc = open_lane(&lane);

    if (rc) {
        rc = qrep_fail(&run->base, QREP_FAILURE_MEMORY, -rc, lane_index, UINT64_MAX);
    } else if ((rc = qrep_connection_begin(connection, saved_flags)) != 0) {
        rc = qrep_fail(&run->base, QREP_FAILURE_CONNECTION, -rc, lane_index, UINT64_MAX);
    } else {
        atomic_fetch_add(&run->lanes, 1);
        if (run->nice)
            qrep_thread_yield(&lane.thread_class);
        rc = run_lane(&lane);
        if (run->nice)
            qrep_thread_restore(&lane.thread_class);
        atomic_fetch_sub(&run->lanes, 1);
        qrep_connection_end(connection, saved_flags);
    }
    if (connection->bucket)
        qrep_bucket_leave(connection->bucket);
    if (rc)
        qrep_connection_abort(connection); /* so that what is in flight on it completes */
    close_lane(&lane);
    source_count(&run->base.counters.busy_ns, qrep_now_ns() - started_ns - lane.waited_ns);
    return rc;
}
