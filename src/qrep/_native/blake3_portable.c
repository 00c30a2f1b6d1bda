/* The four-lane kernel in the compilers' vector extension: SSE2 on x86-64, NEON on aarch64, plain words elsewhere. */
#include "blake3_kernel.h"

#include <string.h>

typedef uint32_t v4 __attribute__((vector_size(16)));

static inline __attribute__((always_inline)) void load4(v4 m[16], const uint8_t *data, size_t stride)
{
    for (int i = 0; i < 4; i++) {
        v4 row[4];
        for (int r = 0; r < 4; r++)
            memcpy(&row[r], data + stride * r + 16 * i, 16);
        v4 low01 = PICK(v4, row[0], row[1], 0, 4, 1, 5), low23 = PICK(v4, row[2], row[3], 0, 4, 1, 5);
        v4 high01 = PICK(v4, row[0], row[1], 2, 6, 3, 7), high23 = PICK(v4, row[2], row[3], 2, 6, 3, 7);
        m[4 * i] = PICK(v4, low01, low23, 0, 1, 4, 5);
        m[4 * i + 1] = PICK(v4, low01, low23, 2, 3, 6, 7);
        m[4 * i + 2] = PICK(v4, high01, high23, 0, 1, 4, 5);
        m[4 * i + 3] = PICK(v4, high01, high23, 2, 3, 6, 7);
    }
}

#define V v4
#define L 4
#define FN(name) name##_portable
#define ROTATE(v, n) ((v) >> (n) | (v) << (32 - (n)))
#define ROT16(v) ROTATE(v, 16)
#define ROT12(v) ROTATE(v, 12)
#define ROT8(v) ROTATE(v, 8)
#define ROT7(v) ROTATE(v, 7)
#define LOAD(m, p, stride) load4(m, p, stride)
#define EVEN(a, b) PICK(v4, a, b, 0, 2, 4, 6)
#define ODD(a, b) PICK(v4, a, b, 1, 3, 5, 7)
#include "blake3_kernel.inc"

static int always(void) { return 1; }

const struct qrep_blake3_kernel qrep_blake3_portable = {
    "portable", always, {WIDTH(4, portable)},
};

#if defined(__aarch64__)
const struct qrep_blake3_kernel qrep_blake3_neon = {
    "neon", always, {WIDTH(4, portable)},
};
#endif

const struct qrep_blake3_kernel qrep_blake3_scalar = {.name = "scalar", .supported = always};
