/* The x86-64 kernels: SSE4.1 (4 lanes), AVX2 (8), AVX-512 (16, with VL instances of 8 and 4 for short subtrees).
 * One file compiled without -m flags; each section raises the target for itself, blake3_select.c asks the CPU. */
#if defined(__x86_64__)

#include "blake3_kernel.h"

#include <immintrin.h>
#include <string.h>

#if defined(__clang__)
#define STRING(x) #x
#define TARGET(isa) _Pragma(STRING(clang attribute push(__attribute__((target(isa))), apply_to = function)))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define STRING(x) #x
#define TARGET(isa) _Pragma("GCC push_options") _Pragma(STRING(GCC target(isa)))
#define TARGET_END _Pragma("GCC pop_options")
#endif
#define INLINE_LOAD static inline __attribute__((always_inline)) void

typedef uint32_t v4 __attribute__((vector_size(16)));
typedef uint32_t v8 __attribute__((vector_size(32)));
typedef uint32_t v16 __attribute__((vector_size(64)));

#define SHIFTED(v, n) ((v) >> (n) | (v) << (32 - (n)))
/* Byte order that rotates every 32-bit word right by 16 and by 8: one shuffle instead of two shifts and an or. */
#define BYTES_ROT16 13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2
#define BYTES_ROT8 12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1
#define EVEN4(a, b) PICK(v4, a, b, 0, 2, 4, 6)
#define ODD4(a, b) PICK(v4, a, b, 1, 3, 5, 7)
#define EVEN8(a, b) PICK(v8, a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD8(a, b) PICK(v8, a, b, 1, 3, 5, 7, 9, 11, 13, 15)

/* ---- SSE4.1 ---- */
TARGET("sse4.1")
INLINE_LOAD load4_sse41(v4 m[16], const uint8_t *data, size_t stride)
{
    for (int i = 0; i < 4; i++) {
        __m128i row[4];
        for (int r = 0; r < 4; r++)
            row[r] = _mm_loadu_si128((const __m128i *)(data + stride * r + 16 * i));
        __m128i low01 = _mm_unpacklo_epi32(row[0], row[1]), low23 = _mm_unpacklo_epi32(row[2], row[3]);
        __m128i high01 = _mm_unpackhi_epi32(row[0], row[1]), high23 = _mm_unpackhi_epi32(row[2], row[3]);
        m[4 * i] = (v4)_mm_unpacklo_epi64(low01, low23);
        m[4 * i + 1] = (v4)_mm_unpackhi_epi64(low01, low23);
        m[4 * i + 2] = (v4)_mm_unpacklo_epi64(high01, high23);
        m[4 * i + 3] = (v4)_mm_unpackhi_epi64(high01, high23);
    }
}
#define V v4
#define L 4
#define FN(name) name##_sse41
#define ROT16(v) ((v4)_mm_shuffle_epi8((__m128i)(v), _mm_set_epi8(BYTES_ROT16)))
#define ROT12(v) SHIFTED(v, 12)
#define ROT8(v) ((v4)_mm_shuffle_epi8((__m128i)(v), _mm_set_epi8(BYTES_ROT8)))
#define ROT7(v) SHIFTED(v, 7)
#define LOAD(m, p, stride) load4_sse41(m, p, stride)
#define EVEN(a, b) EVEN4(a, b)
#define ODD(a, b) ODD4(a, b)
#include "blake3_kernel.inc"
TARGET_END

/* ---- AVX2 ---- */
TARGET("avx2")
#define V v4
#define L 4
#define FN(name) name##_avx2x4
#define ROT16(v) ((v4)_mm_shuffle_epi8((__m128i)(v), _mm_set_epi8(BYTES_ROT16)))
#define ROT12(v) SHIFTED(v, 12)
#define ROT8(v) ((v4)_mm_shuffle_epi8((__m128i)(v), _mm_set_epi8(BYTES_ROT8)))
#define ROT7(v) SHIFTED(v, 7)
#define LOAD(m, p, stride) load4_sse41(m, p, stride)
#define EVEN(a, b) EVEN4(a, b)
#define ODD(a, b) ODD4(a, b)
#include "blake3_kernel.inc"

INLINE_LOAD load8_avx2(v8 m[16], const uint8_t *data, size_t stride)
{
    for (int half = 0; half < 2; half++) {
        __m256i row[8], pair[8], quad[8];
        for (int r = 0; r < 8; r++)
            row[r] = _mm256_loadu_si256((const __m256i *)(data + stride * r + 32 * half));
        for (int i = 0; i < 4; i++) {
            pair[2 * i] = _mm256_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
            pair[2 * i + 1] = _mm256_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
        }
        for (int i = 0; i < 2; i++) { /* quad[4i + w]: words w and w + 4 of rows 4i .. 4i + 3 */
            quad[4 * i] = _mm256_unpacklo_epi64(pair[4 * i], pair[4 * i + 2]);
            quad[4 * i + 1] = _mm256_unpackhi_epi64(pair[4 * i], pair[4 * i + 2]);
            quad[4 * i + 2] = _mm256_unpacklo_epi64(pair[4 * i + 1], pair[4 * i + 3]);
            quad[4 * i + 3] = _mm256_unpackhi_epi64(pair[4 * i + 1], pair[4 * i + 3]);
        }
        for (int w = 0; w < 4; w++) {
            m[8 * half + w] = (v8)_mm256_permute2x128_si256(quad[w], quad[4 + w], 0x20);
            m[8 * half + 4 + w] = (v8)_mm256_permute2x128_si256(quad[w], quad[4 + w], 0x31);
        }
    }
}
#define V v8
#define L 8
#define FN(name) name##_avx2
#define HALF(name) name##_avx2x4
#define HALF_V v4
#define ROT16(v) ((v8)_mm256_shuffle_epi8((__m256i)(v), _mm256_set_epi8(BYTES_ROT16, BYTES_ROT16)))
#define ROT12(v) SHIFTED(v, 12)
#define ROT8(v) ((v8)_mm256_shuffle_epi8((__m256i)(v), _mm256_set_epi8(BYTES_ROT8, BYTES_ROT8)))
#define ROT7(v) SHIFTED(v, 7)
#define LOAD(m, p, stride) load8_avx2(m, p, stride)
#define EVEN(a, b) EVEN8(a, b)
#define ODD(a, b) ODD8(a, b)
#include "blake3_kernel.inc"
TARGET_END

/* ---- AVX-512: rotates are instructions, and 32 registers hold state and message ---- */
TARGET("avx512f,avx512vl,avx512bw,avx512dq")
INLINE_LOAD load16_avx512(v16 m[16], const uint8_t *data, size_t stride)
{
    __m512i row[16], pair[16];
    for (int r = 0; r < 16; r++)
        row[r] = _mm512_loadu_si512(data + stride * r);
    for (int i = 0; i < 8; i++) {
        pair[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
        pair[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) { /* row[4i + w]: words w, w + 4, w + 8, w + 12 of rows 4i .. 4i + 3 */
        row[4 * i] = _mm512_unpacklo_epi64(pair[4 * i], pair[4 * i + 2]);
        row[4 * i + 1] = _mm512_unpackhi_epi64(pair[4 * i], pair[4 * i + 2]);
        row[4 * i + 2] = _mm512_unpacklo_epi64(pair[4 * i + 1], pair[4 * i + 3]);
        row[4 * i + 3] = _mm512_unpackhi_epi64(pair[4 * i + 1], pair[4 * i + 3]);
    }
    for (int w = 0; w < 4; w++) { /* now 4x4 blocks of 128 bits: a and c hold words w and w + 8, b and d w + 4 and w + 12 */
        __m512i a = _mm512_shuffle_i32x4(row[w], row[4 + w], 0x88), b = _mm512_shuffle_i32x4(row[w], row[4 + w], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(row[8 + w], row[12 + w], 0x88);
        __m512i d = _mm512_shuffle_i32x4(row[8 + w], row[12 + w], 0xdd);
        m[w] = (v16)_mm512_shuffle_i32x4(a, c, 0x88);
        m[4 + w] = (v16)_mm512_shuffle_i32x4(b, d, 0x88);
        m[8 + w] = (v16)_mm512_shuffle_i32x4(a, c, 0xdd);
        m[12 + w] = (v16)_mm512_shuffle_i32x4(b, d, 0xdd);
    }
}
#define V v4
#define L 4
#define FN(name) name##_avx512x4
#define SIDE_BY_SIDE
#define ROT16(v) ((v4)_mm_ror_epi32((__m128i)(v), 16))
#define ROT12(v) ((v4)_mm_ror_epi32((__m128i)(v), 12))
#define ROT8(v) ((v4)_mm_ror_epi32((__m128i)(v), 8))
#define ROT7(v) ((v4)_mm_ror_epi32((__m128i)(v), 7))
#define LOAD(m, p, stride) load4_sse41(m, p, stride)
#define EVEN(a, b) EVEN4(a, b)
#define ODD(a, b) ODD4(a, b)
#include "blake3_kernel.inc"

#define V v8
#define L 8
#define FN(name) name##_avx512x8
#define SIDE_BY_SIDE
#define HALF(name) name##_avx512x4
#define HALF_V v4
#define ROT16(v) ((v8)_mm256_ror_epi32((__m256i)(v), 16))
#define ROT12(v) ((v8)_mm256_ror_epi32((__m256i)(v), 12))
#define ROT8(v) ((v8)_mm256_ror_epi32((__m256i)(v), 8))
#define ROT7(v) ((v8)_mm256_ror_epi32((__m256i)(v), 7))
#define LOAD(m, p, stride) load8_avx2(m, p, stride)
#define EVEN(a, b) EVEN8(a, b)
#define ODD(a, b) ODD8(a, b)
#include "blake3_kernel.inc"

#define V v16
#define L 16
#define FN(name) name##_avx512
#define SIDE_BY_SIDE
#define HALF(name) name##_avx512x8
#define HALF_V v8
#define ROT16(v) ((v16)_mm512_ror_epi32((__m512i)(v), 16))
#define ROT12(v) ((v16)_mm512_ror_epi32((__m512i)(v), 12))
#define ROT8(v) ((v16)_mm512_ror_epi32((__m512i)(v), 8))
#define ROT7(v) ((v16)_mm512_ror_epi32((__m512i)(v), 7))
#define LOAD(m, p, stride) load16_avx512(m, p, stride)
#define EVEN(a, b) PICK(v16, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD(a, b) PICK(v16, a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#include "blake3_kernel.inc"
TARGET_END

static int has_sse41(void) { return __builtin_cpu_supports("sse4.1"); }
static int has_avx2(void) { return __builtin_cpu_supports("avx2"); }
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

const struct qrep_blake3_kernel qrep_blake3_sse41 = {
    "sse41", has_sse41, {WIDTH(4, sse41)},
};
const struct qrep_blake3_kernel qrep_blake3_avx2 = {
    "avx2", has_avx2, {WIDTH(8, avx2), WIDTH(4, avx2x4)},
};
const struct qrep_blake3_kernel qrep_blake3_avx512 = {
    "avx512", has_avx512, {WIDTH(16, avx512),
                           WIDTH(8, avx512x8),
                           WIDTH(4, avx512x4)},
};

#else
typedef int qrep_blake3_x86_is_empty_here; /* ISO C wants a declaration in every file */
#endif
