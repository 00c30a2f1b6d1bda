/* Feeds the frame decoder what a peer may send, and uses what it lets through as a lane would: every length that passed the
 * checks moves sectors in a shadow of exactly the size it may touch, so a check that is missing is a sanitizer report.
 *
 * Input: 16 bytes that choose the volume and what is repaired, 128 bytes of header, the run table. The tag and the identity are
 * repaired in most inputs; a fuzzer cannot guess them and would never get behind them. Behind the table of a PACKED frame stands what travels; a short input
 * is what travels alone.
 * QREP_FUZZ_CANARY=1, 2 or 3 leaves out one check here, in the harness: the proof that the harness can fail. */
#include "blake3.h"
#include "pack.h"
#include "twins.h"
#include "wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SECTOR 512
#define EXPECT(condition) ((condition) ? (void)0 : __builtin_trap())

#if QREP_FUZZ_CANARY == 1
#define qrep_runs_check(header, runs, geometry) 0
#elif QREP_FUZZ_CANARY == 2 /* believes every header that has a right tag */
static int believing_check(const struct qrep_frame_header *header, struct qrep_wire_state *state)
{
    int rc = qrep_frame_check(header, state);
    int believed = header->kind == QREP_FRAME_FULL && !(header->flags & QREP_FRAME_PACKED) && header->granule < qrep_granules(&state->geometry);
    return rc == -EPROTO && believed ? 0 : rc;
}
#define qrep_frame_check believing_check
#elif QREP_FUZZ_CANARY == 3 /* a run that ends in the short leaf counts as whole */
#define qrep_run_bytes(geometry, granule, run) ((uint64_t)qrep_run_leaves(run) * (geometry)->leaf_size)
#elif defined QREP_FUZZ_CANARY
#error "no such canary"
#endif

struct choice {
    uint8_t leaf_bits, granule_bits, size_bits, repair;
    uint32_t noise;
    uint64_t size;
};
_Static_assert(sizeof(struct choice) == 16, "choice layout");

enum { KEEP_TAG = 1, KEEP_IDENTITY = 2, LAST_GRANULE = 4, FIT_DATA = 8, AGREED = 16, FIT_PACKED = 32 };

/* Make the announced size what the table of a small frame adds up to, and the announced copies, so that whole tables get through; only leaves that
 * exist count. */
static uint32_t fit_data(const struct qrep_geometry *geometry, uint64_t granule, uint32_t run_count, const uint8_t *table, size_t size,
                         uint32_t *copy_leaves)
{
    uint64_t end = qrep_granule_bytes(geometry, granule), sum = 0;
    struct qrep_wire_run run;
    for (uint32_t i = 0; i < run_count && (i + 1) * sizeof run <= size; i++) {
        memcpy(&run, table + i * sizeof run, sizeof run);
        uint64_t from = (uint64_t)run.first * geometry->leaf_size;
        uint64_t to = from + (uint64_t)qrep_run_leaves(&run) * geometry->leaf_size;
        if (run.count & QREP_RUN_COPY)
            *copy_leaves += qrep_run_leaves(&run);
        else if (!(run.count & QREP_RUN_ZERO) && from < end)
            sum += (to < end ? to : end) - from;
    }
    return (uint32_t)sum;
}

/* As a lane unpacks: into room for what the header promises and nothing more. What travels comes from the input, the end of it is missing if that is short. */
static void use_packed(const uint8_t *data, size_t size, uint32_t packed_size, uint32_t bytes)
{
    static struct qrep_unpacker *unpacker;
    uint8_t *packed = malloc(packed_size), *unpacked = malloc(bytes);

    if (!unpacker)
        unpacker = qrep_unpacker_open();
    memset(packed, 0, packed_size);
    memcpy(packed, data, size < packed_size ? size : packed_size);
    int rc = qrep_unpack(unpacker, packed, packed_size, unpacked, bytes);
    EXPECT(rc == 0 || rc == -EPROTO);
    free(packed);
    free(unpacked);
}

/* As a lane spreads copies: each leaf of the data has its number in front, and must be found where the table says. Then the table is plain. */
static void use_copies(const struct qrep_frame_header *header, const struct qrep_wire_run *runs, const struct qrep_geometry *geometry)
{
    uint32_t leaves = qrep_granule_leaves(geometry, header->granule), leaf_size = geometry->leaf_size, number = 0, place = 0;
    uint8_t *data = malloc(qrep_frame_leaf_bytes(header, geometry));
    uint32_t *places = malloc(leaves * sizeof *places), *carried = malloc(leaves * sizeof *carried), end = 0;
    struct qrep_wire_run *plain = malloc(header->run_count * sizeof *plain);
    struct qrep_frame_header unpacked = *header;

    unpacked.data_size = qrep_frame_bytes(header);
    unpacked.flags &= ~QREP_FRAME_PACKED;
    for (uint64_t offset = 0; offset < unpacked.data_size; offset += leaf_size, number++)
        memcpy(data + offset, &number, sizeof number);
    qrep_copies_spread(&unpacked, runs, geometry, data, places);
    number = 0;
    for (uint32_t i = 0; i < header->run_count; i++)
        for (uint32_t k = 0; k < qrep_run_leaves(&runs[i]) && !(runs[i].count & QREP_RUN_ZERO); k++, place++) {
            uint32_t found, expected = runs[i].count & QREP_RUN_COPY ? carried[qrep_run_from(&runs[i]) + k] : (carried[runs[i].first + k] = number++);
            memcpy(&found, data + (uint64_t)place * leaf_size, sizeof found);
            EXPECT(found == expected);
        }
    memcpy(plain, runs, header->run_count * sizeof *plain);
    uint64_t bytes = qrep_frame_leaf_bytes(&unpacked, geometry);
    qrep_copies_forget(&unpacked, plain, geometry);
    EXPECT(unpacked.data_size == bytes && unpacked.copy_leaves == 0 && qrep_runs_check(&unpacked, plain, geometry) == 0);
    for (uint32_t i = 0; i < unpacked.run_count; end = plain[i].first + (plain[i].count & ~QREP_RUN_ZERO), i++)
        EXPECT(!(plain[i].count & QREP_RUN_COPY) && plain[i].first >= end);
    free(data);
    free(places);
    free(carried);
    free(plain);
}

static void use_full(const struct qrep_frame_header *header, const struct qrep_geometry *geometry, uint8_t *sectors, const uint8_t *data, size_t size)
{
    EXPECT(qrep_frame_bytes(header) % SECTOR == 0);
    memset(sectors + (uint64_t)header->first_leaf * geometry->leaf_size / SECTOR, 1, qrep_frame_bytes(header) / SECTOR);
    if (header->flags & QREP_FRAME_PACKED)
        use_packed(data, size, header->data_size, qrep_frame_bytes(header));
}

static void use_runs(const struct qrep_frame_header *header, const struct qrep_geometry *geometry, uint8_t *sectors,
                     const uint8_t *data, size_t size)
{
    size_t table_size = (size_t)header->run_count * sizeof(struct qrep_wire_run);
    struct qrep_wire_run *runs = malloc(table_size);
    memset(runs, 0, table_size);
    memcpy(runs, data, size < table_size ? size : table_size);
    if (qrep_runs_check(header, runs, geometry) == 0) {
        uint8_t *arrived = malloc(qrep_frame_bytes(header) / SECTOR);
        uint64_t used = 0;
        memset(arrived, 2, qrep_frame_bytes(header) / SECTOR);
        if (header->flags & QREP_FRAME_PACKED && size > table_size)
            use_packed(data + table_size, size - table_size, header->data_size, qrep_frame_bytes(header));
        if (header->copy_leaves)
            use_copies(header, runs, geometry);
        for (uint32_t i = 0; i < header->run_count; i++) {
            uint64_t bytes = qrep_run_bytes(geometry, header->granule, &runs[i]);
            uint8_t *at = sectors + (uint64_t)runs[i].first * geometry->leaf_size / SECTOR;
            for (uint64_t sector = 0; sector < bytes / SECTOR; sector++)
                EXPECT(at[sector] == 0); /* no sector twice */
            if (!qrep_run_has_data(&runs[i])) {
                memset(at, 1, bytes / SECTOR);
            } else {
                memcpy(at, arrived + used / SECTOR, bytes / SECTOR);
                used += bytes;
            }
        }
        EXPECT(used == qrep_frame_bytes(header));
        free(arrived);
    }
    free(runs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct choice choice;
    struct qrep_frame_header header;
    struct qrep_wire_state state = {.attempt = 7, .session = 3, .sequence = 5, .connection = 1};

    if (size < sizeof choice + offsetof(struct qrep_frame_header, tag)) {
        if (size > 4)
            use_packed(data + 2, size - 2, (uint32_t)size - 2, ((uint32_t)data[0] << 8 | data[1]) + 1);
        return 0;
    }
    memcpy(&choice, data, sizeof choice);
    data += sizeof choice, size -= sizeof choice;
    memcpy(&header, data, offsetof(struct qrep_frame_header, tag));
    memset(header.tag, choice.repair, sizeof header.tag);
    data += offsetof(struct qrep_frame_header, tag), size -= offsetof(struct qrep_frame_header, tag);

    state.geometry.leaf_size = 1u << (choice.leaf_bits % 32);
    state.geometry.granule_size = 1u << (choice.granule_bits % 32);
    state.geometry.size = choice.size >> (choice.size_bits % 64) << 9;
    if (qrep_geometry_check(&state.geometry))
        return 0;
    uint64_t granules = qrep_granules(&state.geometry);
    if (choice.repair & AGREED)
        state.features = QREP_FEATURE_ZSTD | QREP_FEATURE_COPIES;
    if (choice.repair & LAST_GRANULE)
        header.granule = granules - 1;
    if (choice.repair & FIT_DATA && header.kind == QREP_FRAME_RUNS && header.granule < granules) {
        header.copy_leaves = 0;
        *(header.flags & QREP_FRAME_PACKED ? &header.span : &header.data_size) =
            fit_data(&state.geometry, header.granule, header.run_count, data, size, &header.copy_leaves);
    }
    if (choice.repair & FIT_PACKED && header.flags & QREP_FRAME_PACKED) {
        size_t table_size = header.kind == QREP_FRAME_RUNS ? (size_t)header.run_count * sizeof(struct qrep_wire_run) : 0;
        if (size > table_size)
            header.data_size = (uint32_t)(size - table_size);
    }
    struct qrep_wire_state sender = state;
    if (!(choice.repair & KEEP_IDENTITY))
        qrep_frame_seal(&header, &sender);
    if (!(choice.repair & KEEP_TAG))
        qrep_blake3_keyed(state.key, &header, offsetof(struct qrep_frame_header, tag), header.tag);

    uint64_t sequence = state.sequence;
    int rc = qrep_frame_check(&header, &state);
    EXPECT(rc == 0 || rc == -EBADMSG || rc == -ESTALE || rc == -EPROTO);
    EXPECT(state.sequence == sequence + (rc == 0));
    if (rc || header.kind == QREP_FRAME_END)
        return 0;

    EXPECT(header.granule < granules);
    if (header.kind == QREP_FRAME_ZERO) {
        EXPECT(header.granule + header.span <= granules);
        return 0;
    }
    uint64_t bytes = qrep_granule_bytes(&state.geometry, header.granule);
    EXPECT(bytes && bytes % SECTOR == 0 && bytes <= state.geometry.granule_size);
    uint8_t *sectors = calloc(1, bytes / SECTOR);
    if (header.kind == QREP_FRAME_FULL)
        use_full(&header, &state.geometry, sectors, data, size);
    else
        use_runs(&header, &state.geometry, sectors, data, size);
    free(sectors);
    return 0;
}
