#include "badlist.h"

#include <sched.h>
#include <string.h>

static void lock(struct qrep_bad_list *list)
{
    while (atomic_exchange_explicit(&list->lock, 1, memory_order_acquire))
        sched_yield();
}

static void unlock(struct qrep_bad_list *list) { atomic_store_explicit(&list->lock, 0, memory_order_release); }

static int touches(const struct qrep_bad_extent *before, const struct qrep_bad_extent *after)
{
    return before->error == after->error && before->offset + before->size == after->offset;
}

/* Granules come in any order, so one may close the gap between two. 1: there was no place for it. */
static unsigned add(struct qrep_bad_list *bad, const struct qrep_bad_extent *extent)
{
    struct qrep_bad_extent *list = bad->extents;
    uint32_t at = 0;

    while (at < bad->count && list[at].offset < extent->offset)
        at++;
    bad->bytes += extent->size;
    int joins_before = at > 0 && touches(&list[at - 1], extent);
    int joins_after = at < bad->count && touches(extent, &list[at]);
    if (joins_before && joins_after) {
        list[at - 1].size += extent->size + list[at].size;
        memmove(&list[at], &list[at + 1], (--bad->count - at) * sizeof *list);
    } else if (joins_before) {
        list[at - 1].size += extent->size;
    } else if (joins_after) {
        list[at].offset = extent->offset;
        list[at].size += extent->size;
    } else if (bad->count < QREP_BAD_EXTENTS_MAX) {
        memmove(&list[at + 1], &list[at], (bad->count++ - at) * sizeof *list);
        list[at] = *extent;
    } else {
        if (at > 0) {
            uint64_t end = extent->offset + extent->size, known = list[at - 1].offset + list[at - 1].size;
            list[at - 1].size = (end > known ? end : known) - list[at - 1].offset;
        } else {
            list[0].size = list[0].offset + list[0].size - extent->offset;
            list[0].offset = extent->offset;
        }
        return 1;
    }
    return 0;
}

unsigned qrep_bad_list_add(struct qrep_bad_list *list, const struct qrep_bad_extent *extents, unsigned count)
{
    unsigned homeless = 0;

    lock(list);
    for (unsigned i = 0; i < count; i++)
        homeless += add(list, &extents[i]);
    unlock(list);
    return homeless;
}

int qrep_bad_list_touches(struct qrep_bad_list *list, uint64_t offset, uint64_t size)
{
    int found = 0;

    lock(list);
    for (uint32_t i = 0; i < list->count && !found; i++)
        found = list->extents[i].offset < offset + size && offset < list->extents[i].offset + list->extents[i].size;
    unlock(list);
    return found;
}
