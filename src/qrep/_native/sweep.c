/* Whole-device loops: keep `depth` requests in flight until the end, then drain. */
#include "sweep.h"
#include "buffers.h"

#include <errno.h>
#include <string.h>

#define DEPTH_MAX 256

struct pass {
    struct qrep_ring *ring;
    struct qrep_arena arena;
    const struct qrep_sweep *sweep;
    int writes;
    uint64_t next;  /* offset of the next block to start */
    uint64_t moved; /* bytes */
    int error;      /* -errno of the first failure */
};

static int start_block(struct pass *pass, uint64_t slot)
{
    const struct qrep_sweep *sweep = pass->sweep;
    uint64_t left = sweep->size - pass->next;
    size_t size = left < sweep->block_size ? left : sweep->block_size;
    uint8_t *data = pass->arena.base + slot * sweep->block_size;
    int rc = pass->writes ? qrep_ring_write(pass->ring, 0, data, size, pass->next, slot)
                          : qrep_ring_read(pass->ring, 0, data, size, pass->next, slot);
    pass->next += size;
    return rc;
}

static void run(struct pass *pass)
{
    struct qrep_completion done[DEPTH_MAX];
    for (uint64_t slot = 0; slot < pass->sweep->depth && pass->next < pass->sweep->size && pass->error == 0; slot++)
        pass->error = start_block(pass, slot);
    while (qrep_ring_in_flight(pass->ring) > 0) {
        int count = qrep_ring_wait(pass->ring, done, DEPTH_MAX, UINT64_MAX);
        if (count < 0) {
            pass->error = count;
            return; /* qrep_ring_close() insists on the drain */
        }
        for (int i = 0; i < count; i++) {
            if (done[i].result < 0 && pass->error == 0)
                pass->error = (int)done[i].result;
            if (done[i].result > 0)
                pass->moved += (uint64_t)done[i].result;
            if (pass->next < pass->sweep->size && pass->error == 0)
                pass->error = start_block(pass, done[i].tag);
        }
    }
}

static void flush(struct pass *pass)
{
    struct qrep_completion done;
    pass->error = qrep_ring_fsync(pass->ring, 0, 0);
    if (pass->error < 0)
        return;
    int count = qrep_ring_wait(pass->ring, &done, 1, UINT64_MAX);
    pass->error = count < 0 ? count : (int)done.result;
}

static int64_t sweep_device(int descriptor, const struct qrep_sweep *sweep, const void *pattern)
{
    if (sweep->block_size == 0 || sweep->block_size % QREP_PAGE_SIZE != 0 || sweep->depth < 1 || sweep->depth > DEPTH_MAX ||
        sweep->size > INT64_MAX)
        return -EINVAL;
    struct pass pass = { .sweep = sweep, .writes = pattern != NULL };
    struct qrep_ring_options options = { .backend = sweep->backend, .entries = sweep->depth, .threads = sweep->depth < 8 ? sweep->depth : 8 };
    pass.error = qrep_arena_open(&pass.arena, (size_t)sweep->block_size * sweep->depth);
    if (pass.error == 0)
        pass.error = qrep_ring_open(&pass.ring, &options);
    if (pass.error == 0) {
        int rc = qrep_ring_register_buffers(pass.ring, pass.arena.base, pass.arena.size);
        pass.error = rc < 0 ? rc : qrep_ring_register_files(pass.ring, &descriptor, 1);
    }
    if (pass.error == 0) {
        for (uint32_t slot = 0; pattern != NULL && slot < sweep->depth; slot++)
            memcpy(pass.arena.base + (size_t)slot * sweep->block_size, pattern, sweep->block_size);
        run(&pass);
        if (pass.writes && pass.error == 0)
            flush(&pass);
    }
    qrep_ring_close(pass.ring);
    qrep_arena_close(&pass.arena);
    return pass.error < 0 ? pass.error : (int64_t)pass.moved;
}

int64_t qrep_sweep_read(int descriptor, const struct qrep_sweep *sweep) { return sweep_device(descriptor, sweep, NULL); }

int64_t qrep_sweep_write(int descriptor, const struct qrep_sweep *sweep, const void *pattern)
{
    return pattern == NULL ? -EINVAL : sweep_device(descriptor, sweep, pattern);
}
