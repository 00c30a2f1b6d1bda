/* The arena: memory that the kernel can pin in 2 MiB pieces and that never faults in the hot path. */
#include "buffers.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_SIZE ((size_t)2 << 20)

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* mmap() aligns to 4 KiB: map one huge page more, then give back what sticks out on both sides. */
static uint8_t *map_aligned(size_t size)
{
    uint8_t *wide = mmap(NULL, size + HUGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (wide == MAP_FAILED)
        return NULL;
    uint8_t *base = (uint8_t *)qrep_align_up((uintptr_t)wide, HUGE_SIZE);
    size_t before = (size_t)(base - wide);
    if (before > 0)
        munmap(wide, before);
    if (before < HUGE_SIZE)
        munmap(base + size, HUGE_SIZE - before);
    return base;
}

int qrep_arena_open(struct qrep_arena *arena, size_t size)
{
    memset(arena, 0, sizeof *arena);
    if (size == 0 || size > SIZE_MAX / 2)
        return -EINVAL;
    size = qrep_align_up(size, HUGE_SIZE);
    uint8_t *base = map_aligned(size);
    if (base == NULL)
        return -ENOMEM;
    int huge = madvise(base, size, MADV_HUGEPAGE) == 0;
    /* Not inherited by a child: a zero-copy send in flight would otherwise see copy-on-write move the page away. */
    madvise(base, size, MADV_DONTFORK);
    if (madvise(base, size, MADV_POPULATE_WRITE) != 0) {
        if (errno != EINVAL) {
            int rc = -errno; /* no memory: say so now, not by SIGBUS or the OOM killer in the middle of a run */
            munmap(base, size);
            return rc;
        }
        memset(base, 0, size);
    }
    arena->base = base;
    arena->size = size;
    arena->huge = huge;
    return 0;
}

void qrep_arena_close(struct qrep_arena *arena)
{
    if (arena->base != NULL)
        munmap(arena->base, arena->size);
    memset(arena, 0, sizeof *arena);
}
