/* What every C file of the native layer may use: errno conventions, alignment, byte order, crash points.
 *
 * Functions return 0, a count, or -errno. Sizes and offsets are bytes unless the name says otherwise. */
#ifndef QREP_COMMON_H
#define QREP_COMMON_H

#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "qrep's layouts are little-endian and are used in place; a big-endian port needs swaps in wire.h and disk.h"
#endif

#define QREP_DIGEST_SIZE 32
#define QREP_ID_SIZE 16
#define QREP_PAGE_SIZE 4096 /* alignment of every O_DIRECT buffer, offset and size in qrep's own files */

static inline uint64_t qrep_align_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

/* Kill this process with SIGKILL here if QREP_CRASH=name:n asks for the n-th passage of `name`; name:n:stop stops it there.
 * Inert otherwise: one load and one predicted branch. Compiled in release, because what is tested must be what ships. */
void qrep_crashpoint(const char *name);

#endif
