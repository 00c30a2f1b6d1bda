/* What the test says to a disk, and its answer, over a socket of datagrams; device.py knows these bytes. */
#ifndef POWER_CONTROL_H
#define POWER_CONTROL_H

#include <stdint.h>

enum command {
    COMMAND_HOLD = 1, /* 1: take no request from now on; 0: go on with those that waited */
    COMMAND_CUT,      /* seed, keep percent -> sectors kept, lost; requests that wait are parts of it, then all are answered, and the disk is dead */
    COMMAND_POWER_ON,
    COMMAND_FAIL,   /* kind, n-th from now on, errno, FAIL_ flags; n 0: none */
    COMMAND_DETAIN, /* n-th write from now on is neither carried out nor answered; n 0: none */
    COMMAND_LAND,   /* detained writes are carried out and answered -> how many */
    COMMAND_HOLD_AT, /* kind, n-th from now on: it and all that come after it wait, as by COMMAND_HOLD; n 0: none */
    COMMAND_LIE,    /* 1: flushes say yes and do nothing */
    COMMAND_COUNT,  /* -> reads, writes, flushes, zeroes asked for, bytes not flushed, requests kept, log incomplete, held */
    COMMAND_RECORD, /* 0 off, 1 on, 2 with data; the log begins anew */
    COMMAND_SYNC,   /* the log is in its files */
    COMMAND_SAVE,
    COMMAND_RESTORE,
};

#define FAIL_STICKY 1u /* and all after it */
#define FAIL_LOSE 2u   /* of a flush: what it was to make durable will never be */

struct request {
    uint64_t command, arguments[4];
};
_Static_assert(sizeof(struct request) == 40, "device.py knows these 40 bytes");

#define ANSWERS 8
struct answer {
    int64_t rc; /* 0 or -errno */
    uint64_t values[ANSWERS];
};
_Static_assert(sizeof(struct answer) == 72, "device.py knows these 72 bytes");

#endif
