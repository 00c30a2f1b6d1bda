#include "disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int failing(struct fault *fault)
{
    if (fault->in == 0 || --fault->in)
        return 0;
    if (fault->flags & FAIL_STICKY)
        fault->in = 1;
    return fault->error;
}

static int flush(struct disk *disk, int error)
{
    if (error && (disk->faults[KIND_FLUSH].flags & FAIL_LOSE))
        medium_forget(&disk->medium);
    if (!error && !disk->lying)
        medium_flush(&disk->medium);
    return error;
}

static int carry_out(struct disk *disk, struct record record, const uint8_t *data)
{
    struct medium *medium = &disk->medium;
    int changes = record.kind == KIND_WRITE || record.kind == KIND_ZERO;

    if (medium->dead) /* whoever asks is dead, too, or the kernel; reads have to find what it wrote */
        return changes ? -medium_write(medium, record.offset, record.size, data) : 0;
    int error = failing(&disk->faults[record.kind]);
    if (record.kind == KIND_FLUSH)
        error = flush(disk, error);
    else if (changes && !error)
        error = -medium_write(medium, record.offset, record.size, data);
    record.done = now_ns();
    record.error = (uint32_t)error;
    recorder_add(&disk->recorder, record, data);
    return error;
}

static int park(struct disk *disk, void *owner, struct record record, const void *data)
{
    uint8_t *copy = data ? malloc(record.size) : NULL;

    if (disk->parked_count == PARKED_MAX || (data && copy == NULL)) {
        free(copy);
        return -ENOMEM;
    }
    if (data)
        memcpy(copy, data, record.size);
    disk->parked[disk->parked_count++] = (struct parked){owner, record, copy};
    return 0;
}

static int comes_due(uint64_t *in) { return *in && --*in == 0; }

/* Whether a request that came is not carried out now. */
static int has_to_wait(struct disk *disk, enum kind kind)
{
    if (comes_due(&disk->hold_in[kind]))
        disk->held = 1;
    int detained = kind == KIND_WRITE && comes_due(&disk->detain_in);
    return detained || disk->held || disk->cutting;
}

void disk_take(struct disk *disk, void *owner, enum kind kind, uint64_t offset, uint64_t size, const void *data)
{
    struct record record = {.begun = now_ns(), .offset = offset, .size = size, .kind = kind};

    if (!disk->medium.dead)
        disk->counts[kind]++;
    if (has_to_wait(disk, kind)) {
        if (park(disk, owner, record, data))
            disk->answer(disk, owner, &record, ENOMEM);
        return;
    }
    disk->answer(disk, owner, &record, carry_out(disk, record, data));
}

unsigned disk_land(struct disk *disk)
{
    unsigned count = disk->parked_count;

    for (unsigned i = 0; i < count; i++) {
        struct parked *parked = &disk->parked[i];
        disk->answer(disk, parked->owner, &parked->record, carry_out(disk, parked->record, parked->data));
        free(parked->data);
    }
    disk->parked_count = 0;
    return count;
}

/* No requester is alive any more: what waits was under way, and is a part of what may have reached the medium; no flush among it has happened. */
static struct cut cut(struct disk *disk, uint64_t seed, unsigned keep_percent)
{
    for (unsigned i = 0; i < disk->parked_count; i++) {
        const struct parked *parked = &disk->parked[i];
        if (parked->record.kind == KIND_WRITE || parked->record.kind == KIND_ZERO)
            medium_write(&disk->medium, parked->record.offset, parked->record.size, parked->data);
    }
    struct cut result = medium_cut(&disk->medium, seed, keep_percent);
    disk_land(disk);
    memset(disk->faults, 0, sizeof disk->faults);
    memset(disk->hold_in, 0, sizeof disk->hold_in);
    disk->cutting = disk->held = 0;
    disk->detain_in = 0;
    return result;
}

static void count(const struct disk *disk, uint64_t *values)
{
    memcpy(values, disk->counts, sizeof disk->counts);
    values[KINDS] = disk->medium.unflushed_bytes;
    values[KINDS + 1] = disk->parked_count;
    values[KINDS + 2] = (uint64_t)disk->recorder.overflow;
    values[KINDS + 3] = (uint64_t)disk->held;
}

int64_t disk_obey(struct disk *disk, const struct request *request, uint64_t *values)
{
    const uint64_t *a = request->arguments;
    struct cut result;

    switch (request->command) {
    case COMMAND_HOLD:
        disk->held = a[0] != 0;
        if (!disk->held)
            disk_land(disk);
        return 0;
    case COMMAND_HOLD_AT:
        if (a[0] >= KINDS)
            return -EINVAL;
        disk->hold_in[a[0]] = a[1];
        return 0;
    case COMMAND_CUT:
        result = cut(disk, a[0], (unsigned)a[1]);
        values[0] = result.kept, values[1] = result.lost;
        return 0;
    case COMMAND_POWER_ON:
        medium_power_on(&disk->medium);
        return 0;
    case COMMAND_FAIL:
        if (a[0] >= KINDS)
            return -EINVAL;
        disk->faults[a[0]] = (struct fault){.in = a[1], .error = (int)a[2], .flags = (unsigned)a[3]};
        return 0;
    case COMMAND_DETAIN:
        disk->detain_in = a[0];
        return 0;
    case COMMAND_LAND:
        values[0] = disk_land(disk);
        return 0;
    case COMMAND_LIE:
        disk->lying = a[0] != 0;
        return 0;
    case COMMAND_COUNT:
        count(disk, values);
        return 0;
    case COMMAND_RECORD:
        return recorder_start(&disk->recorder, a[0] != 0, a[0] == 2);
    case COMMAND_SYNC:
        return recorder_sync(&disk->recorder);
    case COMMAND_SAVE:
        medium_save(&disk->medium);
        return 0;
    case COMMAND_RESTORE:
        medium_restore(&disk->medium);
        return 0;
    default:
        return -EINVAL;
    }
}
