/* Source lane, beside the third stage: whether the data of a granule travels packed (pack.h), how strongly, and the packing itself.
 *
 * The question is put once for every granule, when its first frame is made: how long does a byte of its data take?
 *
 *     plain     busy and wire
 *     packed    busy + cost(level) and wire / ratio(level)
 *
 * busy is what this lane spends on a byte beside packing and waiting for its connection; wire is how long a byte occupies the connection, rate limits
 * included. On a socket, which sends while the lane works, the larger of the two counts; where sending blocks the lane, their sum. So a fast
 * connection, a busy CPU and data that does not get smaller all speak against it, each by what it was measured to cost. busy, wire and cost are sums that
 * fade; the ratio comes from a sample of the granule itself. Where the CPU is what everybody lacks, the target, too, the sum says nothing of it: so what came
 * of packing is compared with what plain data was like, and if it was no better, the lane lets it be for a while.
 *
 * What is packed lies in a room of its batch, and is the kernel's as long as the batch is. */
#include "source_parts.h"

#include <stdlib.h>
#include <string.h>

#define WORTH_IT 1.1         /* how many times faster it must be */
#define FADE_BYTES (32 << 20) /* of data, or of the wire, */
#define FADE_NS 2000000000.0  /* and this time: what is older counts half */
#define KNOWN_BYTES (64 << 10) /* of the wire: with less there is no measure yet; */
#define KNOWN_NS 250000000.0   /* nor before plain data was seen for so long, or half of COMPARE_BYTES of it */
#define SAMPLE_PARTS 4
#define SAMPLE_PART (16u << 10)
#define SAMPLE_SIZE (SAMPLE_PARTS * SAMPLE_PART)
#define SAMPLE_LEAST (256u << 10) /* a granule that sends less is packed without a sample: what does not get smaller there costs little */
#define RATIO_LEAST 1.15      /* of a sample */
#define RATIO_LEAST_ALWAYS (20.0 / 19) /* the same where bytes count; also what one frame must save */
#define RATIO_HOPED 4.0       /* with which it must be worth its while before a sample is taken at all */
#define COST_FADE 0.9
#define COST_JUMP 4.0        /* one step counts as no more than so many times what was expected: the lane may have lost its CPU meanwhile */
#define RECOVER 0.95         /* of what it is slower by, at each granule that is not packed: it may be over */
#define COMPARE_BYTES (32 << 20) /* of data, plain and packed, before what came of either is compared */
#define SHY_GRANULES 8       /* travel plain after packing was found to be no faster; then twice as many, and so on */
#define SHY_MAX 512

/* Ratios are those to the sample's; costs in ns per byte are where the measure begins (bench/by_hand.md, pack). */
static const struct level {
    int level;
    double ratio, cost;
} levels[] = {{-3, 1.0, 1.5}, {1, 1.12, 2.0}, {3, 1.16, 3.0}};
#define LEVELS (sizeof levels / sizeof *levels)
#define SAMPLE_LEVEL 0

int source_pack_open(struct source_lane *lane)
{
    struct source_packing *pack = &lane->pack;
    const struct qrep_source_run *run = lane->run;

    if (run->packing == QREP_PACKING_OFF || !(run->base.features & QREP_FEATURE_ZSTD) || lane->batch_count == 0)
        return 0;
    if (lane->batch_count < 2)
        lane->batch_count = 2; /* the next frames are packed while a batch is sent */
    pack->frame_size = run->frame_size < SOURCE_PACK_SIZE ? run->frame_size : SOURCE_PACK_SIZE;
    if (pack->frame_size < run->base.geometry.leaf_size)
        pack->frame_size = run->base.geometry.leaf_size;
    pack->slower = pack->better = 1.0;
    pack->ratio = 2.0;
    pack->since_ns = qrep_now_ns();
    if (lane->connection->bucket) { /* what is known before anything is measured */
        uint64_t rate = qrep_bucket_rate(lane->connection->bucket);
        pack->rate_known = rate != QREP_RATE_UNLIMITED;
        pack->wire_bytes = rate ? KNOWN_BYTES : 0;
        pack->wire_ns = rate ? KNOWN_BYTES * 1e9 / (double)rate : 0;
    }
    pack->shy_next = SHY_GRANULES;
    pack->packer = qrep_packer_open();
    pack->gather = malloc(pack->frame_size > SAMPLE_SIZE ? pack->frame_size : SAMPLE_SIZE);
    pack->room = malloc((size_t)lane->batch_count * SOURCE_PACK_ROOM);
    return pack->packer && pack->gather && pack->room ? 0 : -1;
}

void source_pack_close(struct source_lane *lane)
{
    qrep_packer_close(lane->pack.packer);
    free(lane->pack.gather);
    free(lane->pack.room);
}

uint32_t source_frame_size(const struct source_lane *lane, const struct source_slot *slot)
{
    return slot->packing > 0 ? lane->pack.frame_size : lane->run->frame_size;
}

/* ---- what is measured ---- */

static void fade(double *amount, double *bytes, double fresh, double fresh_bytes)
{
    double keep = FADE_BYTES / (FADE_BYTES + fresh_bytes) * FADE_NS / (FADE_NS + fresh);

    *amount = *amount * keep + fresh;
    *bytes = *bytes * keep + fresh_bytes;
}

void source_pack_asked(struct source_lane *lane)
{
    if (lane->pack.packer && lane->pack.asked_ns == 0)
        lane->pack.asked_ns = qrep_now_ns();
}

void source_pack_sent(struct source_lane *lane, size_t size)
{
    struct source_packing *pack = &lane->pack;

    if (pack->asked_ns == 0)
        return;
    fade(&pack->wire_ns, &pack->wire_bytes, (double)(qrep_now_ns() - pack->asked_ns), (double)size);
    pack->asked_ns = 0;
}

void source_pack_waited(struct source_lane *lane, uint64_t ns)
{
    if (lane->sending)
        lane->pack.idle_ns += ns;
}

/* What the lane did since the last granule. */
static void look_back(struct source_packing *pack)
{
    uint64_t now_ns = qrep_now_ns(), elapsed = now_ns - pack->since_ns, idle = pack->idle_ns + pack->pack_ns;

    if (pack->data_bytes == 0)
        return; /* the time since counts for what comes of it */
    fade(&pack->busy_ns, &pack->busy_bytes, elapsed > idle ? (double)(elapsed - idle) : 0, (double)pack->data_bytes);
    fade(&pack->came[pack->mode].ns, &pack->came[pack->mode].bytes, (double)elapsed, (double)pack->data_bytes);
    pack->since_ns = now_ns;
    pack->idle_ns = pack->pack_ns = pack->data_bytes = 0;
}

/* ---- the question ---- */

static double time_of(const struct source_lane *lane, double busy, double wire)
{
    if (lane->connection->kind != QREP_CONNECTION_SOCKET)
        return busy + wire;
    return busy > wire ? busy : wire;
}

/* The level that is fastest with a sample's ratio, and its time per byte. */
static uint32_t best_level(const struct source_lane *lane, double busy, double wire, double ratio, double *time)
{
    const struct source_packing *pack = &lane->pack;
    uint32_t best = 0;

    for (uint32_t i = 0; i < LEVELS; i++) {
        double each = time_of(lane, busy + levels[i].cost * pack->slower, wire / (ratio * levels[i].ratio * pack->better));
        if (i == 0 || each < *time) {
            *time = each;
            best = i;
        }
    }
    return best;
}

static uint64_t data_of(const struct source_lane *lane, const struct source_slot *slot, const struct qrep_leaf_run *run)
{
    struct qrep_wire_run bounds = {run->first, run->count};

    return run->zero ? 0 : qrep_run_bytes(&lane->run->base.geometry, slot->granule, &bounds);
}

/* Pieces from all over what the slot sends, at most SAMPLE_PARTS; how many bytes. */
static size_t take_sample(const struct source_lane *lane, const struct source_slot *slot, uint64_t data_bytes, uint8_t *sample)
{
    const struct qrep_geometry *geometry = &lane->run->base.geometry;
    uint64_t before = 0;
    size_t size = 0;
    uint32_t part = 0;

    for (uint32_t i = slot->run_next; i < slot->run_count && part < SAMPLE_PARTS; i++) {
        const struct qrep_leaf_run *run = &slot->runs[i];
        uint64_t bytes = data_of(lane, slot, run);
        for (; part < SAMPLE_PARTS; part++) {
            uint64_t place = data_bytes * (2 * part + 1) / (2 * SAMPLE_PARTS);
            if (place >= before + bytes)
                break;
            uint64_t within = place - before, left = bytes - within;
            size_t take = left < SAMPLE_PART ? (size_t)left : SAMPLE_PART;
            memcpy(sample + size, slot->data + (uint64_t)run->first * geometry->leaf_size + within, take);
            size += take;
        }
        before += bytes;
    }
    return size;
}

/* How many times smaller the data of this slot gets: 1 if it does not. */
static double sample_ratio(struct source_lane *lane, const struct source_slot *slot, uint64_t data_bytes, int level)
{
    struct source_packing *pack = &lane->pack;
    uint8_t packed[SAMPLE_SIZE];
    size_t size = take_sample(lane, slot, data_bytes, pack->gather), done;

    done = qrep_pack(pack->packer, level, pack->gather, size, packed, size);
    return done ? (double)size / (double)done : 1.0;
}

/* 1: it was tried, and it was no faster. */
static int is_shy(struct source_packing *pack)
{
    struct source_came *plain = &pack->came[0], *packed = &pack->came[1];

    if (pack->shy_left) {
        pack->shy_left--;
        return 1;
    }
    if (plain->bytes < COMPARE_BYTES / 2 || packed->bytes < COMPARE_BYTES / 2) /* the sums fade, so they approach what is asked for */
        return 0;
    if (packed->ns * plain->bytes < plain->ns * packed->bytes) {
        pack->shy_next = SHY_GRANULES;
        return 0;
    }
    pack->shy_left = pack->shy_next;
    pack->shy_next = pack->shy_next < SHY_MAX ? 2 * pack->shy_next : SHY_MAX;
    memset(pack->came, 0, sizeof pack->came); /* both are to be seen anew */
    return 1;
}

static int decide(struct source_lane *lane, struct source_slot *slot)
{
    struct source_packing *pack = &lane->pack;
    int always = lane->run->packing == QREP_PACKING_ON;
    uint64_t data_bytes = 0;

    for (uint32_t i = slot->run_next; i < slot->run_count; i++)
        data_bytes += data_of(lane, slot, &slot->runs[i]);
    int seen = pack->rate_known || pack->came[0].bytes >= COMPARE_BYTES / 2 || pack->came[0].ns >= KNOWN_NS;
    int known = seen && pack->wire_bytes >= KNOWN_BYTES;
    if (data_bytes == 0)
        return SOURCE_PLAIN;
    if (!known && !always)
        return SOURCE_UNDECIDED;

    double busy = pack->busy_bytes ? pack->busy_ns / pack->busy_bytes : 0, wire = known ? pack->wire_ns / pack->wire_bytes : 0;
    double plain = time_of(lane, busy, wire), packed;
    best_level(lane, busy, wire, RATIO_HOPED, &packed);
    if (!always && (plain <= WORTH_IT * packed || is_shy(pack)))
        return SOURCE_PLAIN;
    double ratio = pack->ratio;
    if (data_bytes >= SAMPLE_LEAST) {
        /* Where bytes count, of the level that packs: the fast ones find repetitions only, not that few of all byte values are used. */
        ratio = sample_ratio(lane, slot, data_bytes, levels[always ? LEVELS - 1 : SAMPLE_LEVEL].level);
        if (ratio < (always ? RATIO_LEAST_ALWAYS : RATIO_LEAST))
            return SOURCE_PLAIN;
        pack->ratio = COST_FADE * pack->ratio + (1 - COST_FADE) * ratio;
    }
    slot->sampled = ratio;
    if (always)
        return LEVELS; /* bytes count, not time */
    uint32_t best = best_level(lane, busy, wire, ratio, &packed);
    return plain > WORTH_IT * packed ? (int)best + 1 : SOURCE_PLAIN;
}

void source_pack_decide(struct source_lane *lane, struct source_slot *slot)
{
    struct source_packing *pack = &lane->pack;

    slot->packing = SOURCE_PLAIN;
    if (pack->packer == NULL)
        return;
    look_back(pack);
    slot->packing = decide(lane, slot);
    pack->mode = slot->packing > SOURCE_PLAIN;
    if (!pack->mode)
        pack->slower = 1 + RECOVER * (pack->slower - 1);
}

/* ---- packing ---- */

static const void *gathered(struct source_lane *lane, const struct iovec *iov, uint32_t count)
{
    uint8_t *place = lane->pack.gather;

    if (count == 1)
        return iov->iov_base;
    for (uint32_t i = 0; i < count; i++) {
        memcpy(place, iov[i].iov_base, iov[i].iov_len);
        place += iov[i].iov_len;
    }
    return lane->pack.gather;
}

int source_pack_has_room(const struct source_lane *lane, const struct source_batch *batch)
{
    return batch->packed_size + lane->pack.frame_size <= SOURCE_PACK_ROOM;
}

void source_pack_frame(struct source_lane *lane, struct source_slot *slot, struct source_batch *batch, struct qrep_frame_header *header, uint32_t first_iov)
{
    struct source_packing *pack = &lane->pack;
    const struct level *level = &levels[slot->packing - 1];
    uint8_t *place = pack->room + (size_t)(batch - lane->batches) * SOURCE_PACK_ROOM + batch->packed_size;
    uint32_t size = header->data_size;

    if (size == 0)
        return;
    uint64_t started_ns = qrep_now_ns();
    const void *data = gathered(lane, batch->iov + first_iov, batch->iov_count - first_iov);
    size_t done = qrep_pack(pack->packer, level->level, data, size, place, size - size / 20); /* one that saves less than a twentieth travels plain */
    uint64_t took_ns = qrep_now_ns() - started_ns;

    pack->pack_ns += took_ns;
    double slower = (double)took_ns / (size * level->cost), most = COST_JUMP * pack->slower;
    pack->slower = COST_FADE * pack->slower + (1 - COST_FADE) * (slower < most ? slower : most);
    if (done == 0)
        return;
    pack->better = COST_FADE * pack->better + (1 - COST_FADE) * size / (done * slot->sampled * level->ratio);
    batch->iov_count = first_iov;
    batch->iov[batch->iov_count++] = (struct iovec){place, done};
    batch->packed_size += done;
    header->flags |= QREP_FRAME_PACKED;
    header->span = size;
    header->data_size = (uint32_t)done;
    source_count(&lane->run->base.counters.packed, size);
    source_count(&lane->run->base.counters.packed_sent, done);
}
