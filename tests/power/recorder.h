/* The log of what a disk was asked to do, in two files: records of one length, and the bytes of the writes. */
#ifndef POWER_RECORDER_H
#define POWER_RECORDER_H

#include <stdint.h>
#include <stdio.h>

#define RECORDS_MAX (4u << 20)
#define RECORDED_DATA_MAX ((uint64_t)2 << 30)
#define NO_DATA UINT64_MAX

enum kind { KIND_READ, KIND_WRITE, KIND_FLUSH, KIND_ZERO, KINDS };

/* Little endian, as the machine has it; device.py reads it. Stamps are CLOCK_MONOTONIC in ns, which all disks of a machine share. */
struct record {
    uint64_t begun;  /* when it was asked for */
    uint64_t done;   /* when it was carried out; later only for a write that was detained */
    uint64_t offset, size;
    uint64_t data_at; /* in the file of data; NO_DATA: none was kept */
    uint32_t kind, error;
};
_Static_assert(sizeof(struct record) == 48, "device.py knows these 48 bytes");

struct recorder {
    FILE *records, *data;
    uint64_t count, data_size;
    int on, with_data, overflow; /* overflow: something is missing in it */
};

/* Make both files in `directory`: NAME.log and NAME.data. 0 or -errno. */
int recorder_open(struct recorder *recorder, const char *directory, const char *name);

/* Begin anew, empty. 0 or -errno. */
int recorder_start(struct recorder *recorder, int on, int with_data);

/* data NULL: zeroes, or nothing. Reads are not recorded. */
void recorder_add(struct recorder *recorder, struct record record, const void *data);

/* Everything is in the files. 0 or -errno. */
int recorder_sync(struct recorder *recorder);

uint64_t now_ns(void);

#endif
