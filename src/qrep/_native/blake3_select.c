/* Which BLAKE3 kernel is used, and whether it can be believed. */
#include "blake3_kernel.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct qrep_blake3_kernel *const kernels[] = { /* widest first */
#if defined(__x86_64__)
    &qrep_blake3_avx512, &qrep_blake3_avx2, &qrep_blake3_sse41,
#elif defined(__aarch64__)
    &qrep_blake3_neon,
#endif
    &qrep_blake3_portable,
};
/* Known everywhere, so that asking for another machine's kernel is "absent", not "unknown". */
static const char *const known_names[] = {"avx512", "avx2", "sse41", "neon", "portable"};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

const struct qrep_blake3_kernel *qrep_blake3_kernel = &qrep_blake3_portable;
static int load_status;

int qrep_blake3_select(const char *isa)
{
    if (!isa)
        isa = getenv("QREP_ISA");
    for (size_t i = 0; i < COUNT(kernels); i++)
        if ((!isa || !strcmp(isa, kernels[i]->name)) && kernels[i]->supported()) {
            qrep_blake3_kernel = kernels[i];
            return (int)kernels[i]->widths[0].lanes;
        }
    for (size_t i = 0; i < COUNT(known_names); i++)
        if (!strcmp(isa, known_names[i])) /* isa is set: without it the portable kernel was taken */
            return -ENOTSUP;
    return -EINVAL;
}

__attribute__((constructor)) static void select_at_load(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init(); /* constructors may run before libgcc's own */
#endif
    int rc = qrep_blake3_select(NULL);
    load_status = rc < 0 ? rc : 0;
}

const char *qrep_blake3_isa(void) { return qrep_blake3_kernel->name; }

int qrep_blake3_status(void) { return load_status; }

/* 31 chunks use every width of every kernel and the scalar tail once. The digest is the published one of the first
 * 31744 bytes of the test-vector input (byte i is i % 251); tests/golden/digests.json holds the others. */
enum { VECTOR_SIZE = 31744, LEAF_SIZE = 4096, LEAVES = (VECTOR_SIZE + LEAF_SIZE - 1) / LEAF_SIZE };
static const uint8_t vector_digest[32] = {
    0x62, 0xb6, 0x96, 0x0e, 0x1a, 0x44, 0xbc, 0xc1, 0xeb, 0x1a, 0x61, 0x1a, 0x8d, 0x62, 0x35, 0xb6,
    0xb4, 0xb7, 0x8f, 0x32, 0xe7, 0xab, 0xc4, 0xfb, 0x4c, 0x6c, 0xdc, 0xce, 0x94, 0x89, 0x5c, 0x47,
};

/* Past 2^32 chunks, so that the high half of the counters is tested too. Aligned to 32 KiB, as the subtree must be. */
#define SELF_TEST_OFFSET ((uint64_t)LEAF_SIZE << 34)

struct self_test_result {
    uint8_t digest[32], leaves[LEAVES][32], value[32], gathered[LEAVES - 1][32], merged[32], zero[32];
};

static void run_self_test(const uint8_t *data, struct self_test_result *out)
{
    uint64_t offsets[LEAVES - 1];
    uint8_t scratch[LEAVES][32];
    for (size_t i = 0; i < COUNT(offsets); i++)
        offsets[i] = SELF_TEST_OFFSET + i * LEAF_SIZE;
    qrep_blake3_hash(data, VECTOR_SIZE, out->digest);
    qrep_blake3_subtree(data, VECTOR_SIZE, SELF_TEST_OFFSET, LEAF_SIZE, out->leaves[0], out->value);
    qrep_blake3_gather(data, COUNT(offsets), LEAF_SIZE, offsets, out->gathered[0]);
    qrep_blake3_merge(out->leaves[0], LEAVES, 0, scratch[0], out->merged);
    qrep_blake3_zero_subtree(VECTOR_SIZE, SELF_TEST_OFFSET, LEAF_SIZE, NULL, out->zero);
}

int qrep_blake3_self_test(void)
{
    static uint8_t data[VECTOR_SIZE];
    struct self_test_result fast, reference;
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i % 251);

    const struct qrep_blake3_kernel *in_use = qrep_blake3_kernel;
    run_self_test(data, &fast);
    qrep_blake3_kernel = &qrep_blake3_scalar;
    run_self_test(data, &reference);
    qrep_blake3_kernel = in_use;

    int good = !memcmp(fast.digest, vector_digest, 32) && !memcmp(&fast, &reference, sizeof fast) &&
               !memcmp(fast.value, fast.merged, 32) && !memcmp(fast.leaves, fast.gathered, sizeof fast.gathered);
    return good ? 0 : -EBADMSG;
}
