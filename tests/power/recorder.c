#include "recorder.h"

#include <errno.h>
#include <limits.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static FILE *make(const char *directory, const char *name, const char *suffix)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof path, "%s/%s.%s", directory, name, suffix);
    return length > 0 && (size_t)length < sizeof path ? fopen(path, "w") : NULL;
}

int recorder_open(struct recorder *recorder, const char *directory, const char *name)
{
    *recorder = (struct recorder){.records = make(directory, name, "log"), .data = make(directory, name, "data")};
    return recorder->records && recorder->data ? 0 : -errno;
}

static int empty(FILE *file)
{
    if (fflush(file) || ftruncate(fileno(file), 0))
        return -errno;
    rewind(file);
    return 0;
}

int recorder_start(struct recorder *recorder, int on, int with_data)
{
    int rc = empty(recorder->records);
    if (rc == 0)
        rc = empty(recorder->data);
    recorder->count = recorder->data_size = 0;
    recorder->on = on, recorder->with_data = with_data, recorder->overflow = 0;
    return rc;
}

void recorder_add(struct recorder *recorder, struct record record, const void *data)
{
    if (!recorder->on || record.kind == KIND_READ)
        return;
    if (recorder->count == RECORDS_MAX || recorder->data_size + record.size > RECORDED_DATA_MAX) {
        recorder->overflow = 1;
        return;
    }
    record.data_at = NO_DATA;
    if (recorder->with_data && data) {
        if (fwrite(data, 1, record.size, recorder->data) != record.size)
            recorder->overflow = 1;
        record.data_at = recorder->data_size;
        recorder->data_size += record.size;
    }
    if (fwrite(&record, sizeof record, 1, recorder->records) != 1)
        recorder->overflow = 1;
    recorder->count++;
}

int recorder_sync(struct recorder *recorder) { return fflush(recorder->records) || fflush(recorder->data) ? -errno : 0; }
