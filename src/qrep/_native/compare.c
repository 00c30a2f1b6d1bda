/* Zero test and leaf comparison. Both stop at the first difference they can use. */
#include "compare.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Every test looks at STRIDE bytes at a time: four cache lines keep the loads ahead of the branch, and non-zero data
 * ends the test at the first. The last, possibly shorter, piece is looked at by words and bytes. */
#define STRIDE 256

static int tail_is_zero(const uint8_t *data, size_t size)
{
    uint64_t seen = 0, word;
    for (; size >= sizeof word; size -= sizeof word, data += sizeof word) {
        memcpy(&word, data, sizeof word);
        seen |= word;
    }
    for (; size; size--)
        seen |= *data++;
    return seen == 0;
}

static int is_zero_portable(const uint8_t *data, size_t size)
{
    for (; size >= STRIDE; size -= STRIDE, data += STRIDE) {
        uint64_t words[STRIDE / 8], seen = 0;
        memcpy(words, data, sizeof words);
        for (size_t i = 0; i < STRIDE / 8; i++)
            seen |= words[i];
        if (seen)
            return 0;
    }
    return tail_is_zero(data, size);
}

#if defined(__x86_64__)
static int is_zero_sse2(const uint8_t *data, size_t size) /* every x86-64 has it */
{
    for (; size >= STRIDE; size -= STRIDE, data += STRIDE) {
        __m128i seen = _mm_setzero_si128();
        for (size_t i = 0; i < STRIDE / 16; i++)
            seen = _mm_or_si128(seen, _mm_loadu_si128((const __m128i *)data + i));
        if (_mm_movemask_epi8(_mm_cmpeq_epi8(seen, _mm_setzero_si128())) != 0xffff)
            return 0;
    }
    return tail_is_zero(data, size);
}

__attribute__((target("avx2"))) static int is_zero_avx2(const uint8_t *data, size_t size)
{
    for (; size >= STRIDE; size -= STRIDE, data += STRIDE) {
        __m256i seen = _mm256_setzero_si256();
        for (size_t i = 0; i < STRIDE / 32; i++)
            seen = _mm256_or_si256(seen, _mm256_loadu_si256((const __m256i *)data + i));
        if (!_mm256_testz_si256(seen, seen))
            return 0;
    }
    return tail_is_zero(data, size);
}

__attribute__((target("avx512f"))) static int is_zero_avx512(const uint8_t *data, size_t size)
{
    for (; size >= STRIDE; size -= STRIDE, data += STRIDE) {
        __m512i seen = _mm512_setzero_si512();
        for (size_t i = 0; i < STRIDE / 64; i++)
            seen = _mm512_or_si512(seen, _mm512_loadu_si512(data + 64 * i));
        if (_mm512_test_epi64_mask(seen, seen))
            return 0;
    }
    return tail_is_zero(data, size);
}
#endif

struct zero_test {
    const char *name;
    int (*is_zero)(const uint8_t *data, size_t size);
};

static const struct zero_test zero_tests[] = { /* widest first */
#if defined(__x86_64__)
    {"avx512", is_zero_avx512}, {"avx2", is_zero_avx2}, {"sse2", is_zero_sse2},
#endif
    {"portable", is_zero_portable},
};

static const struct zero_test *zero_test = &zero_tests[sizeof zero_tests / sizeof zero_tests[0] - 1];

static int cpu_has(const char *name)
{
#if defined(__x86_64__)
    __builtin_cpu_init(); /* constructors may run before libgcc's own */
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f");
    if (!strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2");
#else
    (void)name;
#endif
    return 1; /* the others are part of their architecture; absent ones are not in the table */
}

int qrep_zero_test_select(const char *isa)
{
    for (size_t i = 0; i < sizeof zero_tests / sizeof zero_tests[0]; i++)
        if ((!isa || !strcmp(isa, zero_tests[i].name)) && cpu_has(zero_tests[i].name)) {
            zero_test = &zero_tests[i];
            return 0;
        }
    return -ENOTSUP;
}

const char *qrep_zero_test_isa(void) { return zero_test->name; }

__attribute__((constructor)) static void select_at_load(void) { qrep_zero_test_select(NULL); }

int qrep_is_zero(const void *data, size_t size) { return zero_test->is_zero(data, size); }

static int digests_differ(const uint8_t *a, const uint8_t *b)
{
    uint64_t left[4], right[4];
    memcpy(left, a, 32);
    memcpy(right, b, 32);
    return ((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]) | (left[3] ^ right[3])) != 0;
}

/* Of a leaf whose bytes went out of the cache long ago, as a rule the first word says all; it is fetched some leaves ahead. */
#define LEAVES_AHEAD 8

static int leaf_is_zero(const uint8_t *leaf, size_t size)
{
    uint64_t first = 0;

    if (size >= sizeof first)
        memcpy(&first, leaf, sizeof first);
    return first == 0 && qrep_is_zero(leaf, size);
}

size_t qrep_compare_leaves(const uint8_t *fresh, const uint8_t *base, size_t count, const uint8_t *data, size_t size,
                           size_t leaf_size, struct qrep_leaf_run *runs)
{
    size_t found = 0;
    for (size_t leaf = 0; leaf < count; leaf++) {
        if (base && !digests_differ(fresh + 32 * leaf, base + 32 * leaf))
            continue;
        size_t start = leaf * leaf_size, left = size - start;
        if (left > LEAVES_AHEAD * leaf_size)
            __builtin_prefetch(data + start + LEAVES_AHEAD * leaf_size);
        uint32_t zero = (uint32_t)leaf_is_zero(data + start, left < leaf_size ? left : leaf_size);
        struct qrep_leaf_run *last = found ? &runs[found - 1] : NULL;
        if (last && last->first + last->count == leaf && last->zero == zero)
            last->count++;
        else
            runs[found++] = (struct qrep_leaf_run){.first = (uint32_t)leaf, .count = 1, .zero = zero};
    }
    return found;
}
