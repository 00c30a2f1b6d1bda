/* The disk between its requests and its medium: which fail, which wait, what is logged, and what it is told to do (control.h). */
#ifndef POWER_DISK_H
#define POWER_DISK_H

#include "control.h"
#include "medium.h"
#include "recorder.h"

#include <stddef.h>

#define PARKED_MAX 1024u

struct fault {
    uint64_t in; /* so many from now on; 0: not armed */
    int error;
    unsigned flags;
};

/* A request that is not answered yet. owner: whose; opaque here. data: of a write, ours. */
struct parked {
    void *owner;
    struct record record;
    uint8_t *data;
};

struct disk {
    struct medium medium;
    struct recorder recorder;
    struct fault faults[KINDS];
    uint64_t counts[KINDS], hold_in[KINDS], detain_in;
    int held, cutting, lying;
    struct parked parked[PARKED_MAX]; /* writes that are detained, what it was held at; during a cut, all that came */
    unsigned parked_count;
    void (*answer)(struct disk *disk, void *owner, const struct record *record, int error); /* once for every request; error: 0 or an errno */
};

/* A request: carried out and answered now, or kept until disk_land() or the end of a cut. data: of a write; not kept. */
void disk_take(struct disk *disk, void *owner, enum kind kind, uint64_t offset, uint64_t size, const void *data);

/* Carry out and answer all that is kept; how many. */
unsigned disk_land(struct disk *disk);

/* Obey. For COMMAND_CUT, `cutting` was set and all waiting requests were taken. 0 or -errno. values: ANSWERS of them, zero before. */
int64_t disk_obey(struct disk *disk, const struct request *request, uint64_t *values);

#endif
