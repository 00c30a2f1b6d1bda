#include "medium.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static uint8_t *zeroes(uint64_t size)
{
    void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return map == MAP_FAILED ? NULL : map;
}

int medium_open(struct medium *medium, uint64_t size)
{
    if (size == 0 || size % POWER_PAGE)
        return -EINVAL;
    uint64_t pages = size / POWER_PAGE;
    *medium = (struct medium){.size = size, .view = zeroes(size), .durable = zeroes(size), .saved = zeroes(size), .differs = zeroes(pages), .used = zeroes(pages)};
    medium->end = &medium->first;
    return medium->view && medium->durable && medium->saved && medium->differs && medium->used ? 0 : -ENOMEM;
}

/* Whole pages of zeroes are given back to the kernel, so that a sparse disk stays one. */
static void put(uint8_t *image, uint64_t offset, uint64_t size, const uint8_t *data)
{
    if (data) {
        memcpy(image + offset, data, size);
        return;
    }
    uint64_t first = (offset + POWER_PAGE - 1) / POWER_PAGE * POWER_PAGE, last = (offset + size) / POWER_PAGE * POWER_PAGE;
    if (last <= first || madvise(image + first, last - first, MADV_DONTNEED)) {
        memset(image + offset, 0, size);
        return;
    }
    memset(image + offset, 0, first - offset);
    memset(image + last, 0, offset + size - last);
}

static void mark(uint8_t *pages, uint64_t offset, uint64_t size)
{
    memset(pages + offset / POWER_PAGE, 1, (offset + size - 1) / POWER_PAGE - offset / POWER_PAGE + 1);
}

static void make_durable(struct medium *medium, uint64_t offset, uint64_t size, const uint8_t *data)
{
    put(medium->durable, offset, size, data);
    mark(medium->used, offset, size);
}

static uint64_t cost(const struct unflushed *entry) { return sizeof *entry + (entry->data ? entry->size : 0); }

static void drop_first(struct medium *medium)
{
    struct unflushed *gone = medium->first;

    medium->first = gone->next;
    if (medium->first == NULL)
        medium->end = &medium->first;
    medium->unflushed_bytes -= cost(gone);
    free(gone->data);
    free(gone);
}

static void settle_first(struct medium *medium)
{
    make_durable(medium, medium->first->offset, medium->first->size, medium->first->data);
    drop_first(medium);
}

static int remember(struct medium *medium, uint64_t offset, uint64_t size, const void *data)
{
    struct unflushed *entry = malloc(sizeof *entry);
    uint8_t *copy = data ? malloc(size) : NULL;

    if (entry == NULL || (data && copy == NULL)) {
        free(entry);
        free(copy);
        return -ENOMEM;
    }
    if (data)
        memcpy(copy, data, size);
    *entry = (struct unflushed){.offset = offset, .size = size, .data = copy};
    medium->unflushed_bytes += cost(entry);
    *medium->end = entry;
    medium->end = &entry->next;
    while (medium->unflushed_bytes > POWER_UNFLUSHED_MAX)
        settle_first(medium);
    return 0;
}

int medium_write(struct medium *medium, uint64_t offset, uint64_t size, const void *data)
{
    if (size == 0 || offset > medium->size || size > medium->size - offset)
        return -EINVAL;
    if (!medium->dead) {
        int rc = remember(medium, offset, size, data);
        if (rc)
            return rc;
    }
    put(medium->view, offset, size, data);
    mark(medium->differs, offset, size);
    return 0;
}

void medium_flush(struct medium *medium)
{
    while (medium->first)
        settle_first(medium);
}

void medium_forget(struct medium *medium)
{
    while (medium->first)
        drop_first(medium);
}

/* splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
static uint64_t draw(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

struct cut medium_cut(struct medium *medium, uint64_t seed, unsigned keep_percent)
{
    struct cut cut = {0};

    for (; medium->first; drop_first(medium)) {
        struct unflushed *write = medium->first;
        for (uint64_t done = 0, part; done < write->size; done += part) {
            uint64_t at = write->offset + done;
            part = POWER_SECTOR - at % POWER_SECTOR;
            if (part > write->size - done)
                part = write->size - done;
            if (draw(&seed) % 100 < keep_percent) {
                make_durable(medium, at, part, write->data ? write->data + done : NULL);
                cut.kept++;
            } else {
                cut.lost++;
            }
        }
    }
    medium->dead = 1;
    return cut;
}

void medium_power_on(struct medium *medium)
{
    for (uint64_t page = 0; page < medium->size / POWER_PAGE; page++) {
        if (medium->differs[page])
            memcpy(medium->view + page * POWER_PAGE, medium->durable + page * POWER_PAGE, POWER_PAGE);
        medium->differs[page] = 0;
    }
    medium->dead = 0;
}

void medium_save(struct medium *medium)
{
    for (uint64_t page = 0; page < medium->size / POWER_PAGE; page++)
        if (medium->used[page])
            memcpy(medium->saved + page * POWER_PAGE, medium->durable + page * POWER_PAGE, POWER_PAGE);
}

void medium_restore(struct medium *medium)
{
    medium_forget(medium);
    for (uint64_t page = 0; page < medium->size / POWER_PAGE; page++)
        if (medium->used[page]) {
            memcpy(medium->durable + page * POWER_PAGE, medium->saved + page * POWER_PAGE, POWER_PAGE);
            medium->differs[page] = 1;
        }
    medium_power_on(medium);
}
