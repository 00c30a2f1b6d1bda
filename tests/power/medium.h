/* The medium of a disk with a volatile write cache: what a read finds, what is durable, and the writes in between, in their order.
 *
 * A write is seen by reads at once and becomes durable by a flush. A power cut decides for every 512-byte sector of every write since the last flush
 * whether it reached the medium, so a write may be torn, and an older write of a place may survive a newer one. All sizes and offsets in bytes.
 */
#ifndef POWER_MEDIUM_H
#define POWER_MEDIUM_H

#include <stdint.h>

#define POWER_SECTOR 512u
#define POWER_PAGE 4096u
#define POWER_UNFLUSHED_MAX (256u << 20) /* a cache is not larger; then it makes its oldest writes durable by itself */

struct unflushed {
    struct unflushed *next;
    uint64_t offset, size;
    uint8_t *data; /* NULL: zeroes */
};

struct medium {
    uint64_t size;
    uint8_t *view, *durable;
    uint8_t *differs; /* a byte per page: view and durable may not be the same there */
    uint8_t *used;    /* a byte per page: it was ever durable, or is saved */
    uint8_t *saved;   /* what medium_save() found */
    struct unflushed *first, **end;
    uint64_t unflushed_bytes;
    int dead; /* from a cut until power is back: what is written now is seen, and never becomes durable */
};

struct cut {
    uint64_t kept, lost; /* sectors of unflushed writes */
};

/* All zeroes. size: a multiple of POWER_PAGE. 0 or -errno. It lives as long as the process. */
int medium_open(struct medium *medium, uint64_t size);

/* data NULL: zeroes. Inside the medium, or -EINVAL; any length. 0 or -errno, then nothing was written. */
int medium_write(struct medium *medium, uint64_t offset, uint64_t size, const void *data);

/* Everything written so far is durable. */
void medium_flush(struct medium *medium);

/* Reads go on finding what was written since the last flush, and it will never be durable (a page cache after a failed flush). */
void medium_forget(struct medium *medium);

/* The power goes: each sector of each unflushed write was made durable with a probability of keep_percent, drawn from seed. */
struct cut medium_cut(struct medium *medium, uint64_t seed, unsigned keep_percent);

/* The power is back: reads find what is durable, nothing else. */
void medium_power_on(struct medium *medium);

/* Remember what is durable, or what is seen is again what was durable then, and nothing is unflushed. */
void medium_save(struct medium *medium);
void medium_restore(struct medium *medium);

#endif
