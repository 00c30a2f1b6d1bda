#include "share.h"

#include "disk.h"
#include "lane_common.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define READING_PART 5u /* of the patience: so long a granule may take whoever reads it; its lane may be held up by a peer that takes nothing */

enum entry_state { ENTRY_FREE = 0, ENTRY_READING, ENTRY_READY };
enum wish { WISH_NONE = 0, WISH_BASE, WISH_DATA }; /* what a run will ask of a granule; DATA: whatever its base says */

struct entry {
    enum entry_state state;
    int zero, has_data;
    uint32_t users; /* that copy from it just now */
    uint64_t granule, left; /* left: a bit for each run that still wants it */
    uint8_t *data, *leaves; /* allocated at first use */
    uint8_t value[QREP_DIGEST_SIZE];
};

struct member {
    struct qrep_source_run *run; /* NULL: none */
    uint8_t *wishes;             /* [granules], none of them below `next` */
    uint64_t next;
    int alone;                   /* it kept the others for too long */
    uint64_t kept_ns;
};

struct qrep_share {
    struct qrep_geometry geometry;
    uint64_t granules, patience_ns;
    pthread_mutex_t lock;
    struct member members[QREP_SHARE_RUNS_MAX];
    struct entry *entries; /* [entry_count] */
    uint32_t entry_count;
    uint64_t stalled_since_ns, stalled_by; /* the window is full; a bit for each run that it is full for */
};

struct qrep_share *qrep_share_open(const struct qrep_geometry *geometry, uint32_t entries, uint64_t patience_ns)
{
    struct qrep_share *share = calloc(1, sizeof *share);

    if (share == NULL)
        return NULL;
    share->geometry = *geometry;
    share->granules = qrep_granules(geometry);
    share->patience_ns = patience_ns;
    share->entry_count = entries;
    share->entries = calloc(entries, sizeof *share->entries);
    if (share->entries == NULL || pthread_mutex_init(&share->lock, NULL)) {
        free(share->entries);
        free(share);
        return NULL;
    }
    return share;
}

void qrep_share_close(struct qrep_share *share)
{
    if (share == NULL)
        return;
    for (uint32_t i = 0; i < share->entry_count; i++) {
        free(share->entries[i].data);
        free(share->entries[i].leaves);
    }
    free(share->entries);
    pthread_mutex_destroy(&share->lock);
    free(share);
}

/* ---- who takes part ---- */

static void note_wishes(uint8_t *wishes, const struct qrep_source_run *run)
{
    for (uint64_t i = 0; i < run->work_count; i++) {
        uint64_t item = run->work ? run->work[i] : i, granule = item & ~(QREP_WORK_HOLE | QREP_WORK_UNKNOWN | QREP_WORK_LEAVES);
        if (granule < run->base.granules && !(item & (QREP_WORK_HOLE | QREP_WORK_LEAVES)))
            wishes[granule] = item & QREP_WORK_UNKNOWN ? WISH_DATA : WISH_BASE;
    }
}

int qrep_share_join(struct qrep_share *share, struct qrep_source_run *run)
{
    if (memcmp(&share->geometry, &run->base.geometry, sizeof share->geometry) || run->share)
        return -EINVAL;
    uint8_t *wishes = calloc(share->granules, 1);
    if (wishes == NULL)
        return -ENOMEM;
    note_wishes(wishes, run);

    int rc = -EBUSY;
    pthread_mutex_lock(&share->lock);
    for (uint32_t i = 0; i < QREP_SHARE_RUNS_MAX && rc; i++)
        if (share->members[i].run == NULL) {
            share->members[i] = (struct member){.run = run, .wishes = wishes};
            run->share = share;
            run->share_member = i;
            rc = 0;
        }
    pthread_mutex_unlock(&share->lock);
    if (rc)
        free(wishes);
    return rc;
}

/* ---- with the lock held ---- */

static void free_if_done(struct qrep_share *share, struct entry *entry)
{
    if (entry->state != ENTRY_READY || entry->left || entry->users)
        return;
    entry->state = ENTRY_FREE;
    if (share->stalled_since_ns == 0)
        return;
    uint64_t waited_ns = qrep_now_ns() - share->stalled_since_ns;
    for (uint32_t i = 0; i < QREP_SHARE_RUNS_MAX; i++)
        if (share->stalled_by >> i & 1)
            share->members[i].kept_ns += waited_ns;
    share->stalled_since_ns = 0;
}

static void forget_member(struct qrep_share *share, uint32_t member)
{
    for (uint32_t i = 0; i < share->entry_count; i++) {
        share->entries[i].left &= ~(1ull << member);
        free_if_done(share, &share->entries[i]);
    }
}

static struct entry *find_entry(struct qrep_share *share, uint64_t granule)
{
    for (uint32_t i = 0; i < share->entry_count; i++)
        if (share->entries[i].state != ENTRY_FREE && share->entries[i].granule == granule)
            return &share->entries[i];
    return NULL;
}

/* The first granule that somebody still has to ask for. */
static uint64_t lowest_wish(struct qrep_share *share)
{
    uint64_t lowest = share->granules;

    for (uint32_t i = 0; i < QREP_SHARE_RUNS_MAX; i++) {
        struct member *member = &share->members[i];
        if (member->run == NULL || member->alone)
            continue;
        while (member->next < share->granules && member->wishes[member->next] == WISH_NONE)
            member->next++;
        lowest = member->next < lowest ? member->next : lowest;
    }
    return lowest;
}

/* Room for this granule. The last place is for the lowest wish alone: a run whose slots all wait for room cannot come to what is ahead of them. */
static struct entry *free_entry(struct qrep_share *share, uint64_t granule)
{
    struct entry *found = NULL;

    for (uint32_t i = 0; i < share->entry_count; i++)
        if (share->entries[i].state == ENTRY_FREE) {
            if (found)
                return found;
            found = &share->entries[i];
        }
    return found && granule == lowest_wish(share) ? found : NULL;
}

/* A bit for each other run that will come to this granule. */
static uint64_t others_want(const struct qrep_share *share, uint32_t member, uint64_t granule)
{
    uint64_t found = 0;

    for (uint32_t i = 0; i < QREP_SHARE_RUNS_MAX; i++)
        if (i != member && share->members[i].run && !share->members[i].alone && share->members[i].wishes[granule] != WISH_NONE)
            found |= 1ull << i;
    return found;
}

/* The window is full: for whom, since when, and who has had patience enough. */
static void note_stall(struct qrep_share *share)
{
    uint64_t now_ns = qrep_now_ns();

    if (share->stalled_since_ns == 0) {
        const struct entry *oldest = NULL;
        for (uint32_t i = 0; i < share->entry_count; i++)
            if (share->entries[i].state == ENTRY_READY && (oldest == NULL || share->entries[i].granule < oldest->granule))
                oldest = &share->entries[i];
        if (oldest == NULL)
            return;
        share->stalled_since_ns = now_ns;
        share->stalled_by = oldest->left;
        return;
    }
    uint64_t by = share->stalled_by, since_ns = share->stalled_since_ns;
    for (uint32_t i = 0; i < QREP_SHARE_RUNS_MAX; i++)
        if (by >> i & 1 && share->members[i].run && share->members[i].kept_ns + (now_ns - since_ns) > share->patience_ns) {
            share->members[i].alone = 1;
            forget_member(share, i);
        }
}

static int needs_data(const struct qrep_source_run *run, uint64_t granule, int unknown, const uint8_t *value)
{
    const uint8_t hashed = QREP_STATE_HASHED | QREP_STATE_VALUE;

    return unknown || (run->base.base_states[granule] & (QREP_STATE_MASK | QREP_STATE_VALUE)) != hashed ||
           memcmp(run->base.base_values + granule * QREP_DIGEST_SIZE, value, QREP_DIGEST_SIZE) != 0;
}

/* ---- asked by lanes ---- */

void qrep_share_leave(struct qrep_source_run *run)
{
    struct qrep_share *share = run->share;

    if (share == NULL)
        return;
    pthread_mutex_lock(&share->lock);
    uint8_t *wishes = share->members[run->share_member].wishes;
    share->members[run->share_member] = (struct member){0};
    share->stalled_by &= ~(1ull << run->share_member);
    forget_member(share, run->share_member);
    run->share = NULL;
    pthread_mutex_unlock(&share->lock);
    free(wishes);
}

/* Copy what a READY entry holds; the lock is held before and after. */
static enum qrep_share_answer take_entry(struct qrep_share *share, struct entry *entry, struct qrep_source_run *run, int unknown, uint8_t *data,
                                         uint8_t *leaves, uint8_t *value)
{
    uint64_t bit = 1ull << run->share_member;
    int mine = (entry->left & bit) != 0, wants_data = !entry->zero && needs_data(run, entry->granule, unknown, entry->value);

    entry->left &= ~bit;
    if (!mine || (wants_data && !entry->has_data)) {
        free_if_done(share, entry);
        return QREP_SHARE_OWN;
    }
    int zero = entry->zero;
    if (!zero) {
        entry->users++;
        pthread_mutex_unlock(&share->lock);
        memcpy(leaves, entry->leaves, (size_t)qrep_granule_leaves(&share->geometry, entry->granule) * QREP_DIGEST_SIZE);
        memcpy(value, entry->value, QREP_DIGEST_SIZE);
        if (wants_data)
            memcpy(data, entry->data, qrep_granule_bytes(&share->geometry, entry->granule));
        pthread_mutex_lock(&share->lock);
        entry->users--;
    }
    free_if_done(share, entry);
    return zero ? QREP_SHARE_ZERO : QREP_SHARE_TAKEN;
}

static enum qrep_share_answer claim(struct qrep_share *share, struct qrep_source_run *run, uint64_t granule, int unknown, uint64_t since_ns, uint8_t *data,
                                    uint8_t *leaves, uint8_t *value)
{
    struct member *member = &share->members[run->share_member];
    struct entry *entry = find_entry(share, granule);

    if (entry && entry->state == ENTRY_READY)
        return take_entry(share, entry, run, unknown, data, leaves, value);
    if (entry) {
        if (!member->alone && qrep_now_ns() - since_ns < share->patience_ns / READING_PART)
            return QREP_SHARE_WAIT;
        entry->left &= ~(1ull << run->share_member);
        return QREP_SHARE_OWN;
    }
    uint64_t others = others_want(share, run->share_member, granule);
    if (member->alone || others == 0)
        return QREP_SHARE_OWN;
    entry = free_entry(share, granule);
    if (entry == NULL) {
        note_stall(share);
        entry = free_entry(share, granule);
    }
    if (entry == NULL) /* patience has an end, also where nobody can be blamed */
        return qrep_now_ns() - since_ns > share->patience_ns ? QREP_SHARE_OWN : QREP_SHARE_WAIT;
    entry->state = ENTRY_READING;
    entry->granule = granule;
    entry->left = others;
    entry->users = 0;
    return QREP_SHARE_READ;
}

enum qrep_share_answer qrep_share_claim(struct qrep_source_run *run, uint64_t granule, int unknown, uint64_t since_ns, uint8_t *data, uint8_t *leaves,
                                        uint8_t *value)
{
    struct qrep_share *share = run->share;

    pthread_mutex_lock(&share->lock);
    enum qrep_share_answer answer = claim(share, run, granule, unknown, since_ns, data, leaves, value);
    if (answer != QREP_SHARE_WAIT)
        share->members[run->share_member].wishes[granule] = WISH_NONE;
    pthread_mutex_unlock(&share->lock);
    return answer;
}

/* Whether anybody who still wants this entry would have to send some of it. */
static int anybody_needs_data(const struct qrep_share *share, const struct entry *entry, const uint8_t *value)
{
    for (uint32_t i = 0; i < QREP_SHARE_RUNS_MAX; i++)
        if (entry->left >> i & 1 && share->members[i].run && needs_data(share->members[i].run, entry->granule, share->members[i].wishes[entry->granule] == WISH_DATA, value))
            return 1;
    return 0;
}

void qrep_share_publish(struct qrep_source_run *run, uint64_t granule, const uint8_t *data, const uint8_t *leaves, const uint8_t *value)
{
    struct qrep_share *share = run->share;
    size_t pages = (size_t)(share->geometry.granule_size / share->geometry.leaf_size) * QREP_DIGEST_SIZE;

    pthread_mutex_lock(&share->lock);
    struct entry *entry = find_entry(share, granule); /* READING: nobody else touches what it holds */
    int with_data = leaves && anybody_needs_data(share, entry, value);
    pthread_mutex_unlock(&share->lock);

    int lost = 0;
    if (leaves) {
        if (entry->leaves == NULL)
            entry->leaves = malloc(pages);
        if (with_data && entry->data == NULL)
            entry->data = malloc(share->geometry.granule_size);
        lost = entry->leaves == NULL || (with_data && entry->data == NULL);
    }
    if (leaves && !lost) {
        memcpy(entry->leaves, leaves, (size_t)qrep_granule_leaves(&share->geometry, granule) * QREP_DIGEST_SIZE);
        memcpy(entry->value, value, QREP_DIGEST_SIZE);
        if (with_data)
            memcpy(entry->data, data, qrep_granule_bytes(&share->geometry, granule));
    }
    pthread_mutex_lock(&share->lock);
    entry->zero = leaves == NULL;
    entry->has_data = with_data;
    entry->state = lost ? ENTRY_FREE : ENTRY_READY;
    free_if_done(share, entry);
    pthread_mutex_unlock(&share->lock);
}

void qrep_share_abandon(struct qrep_source_run *run, uint64_t granule)
{
    struct qrep_share *share = run->share;

    pthread_mutex_lock(&share->lock);
    find_entry(share, granule)->state = ENTRY_FREE;
    pthread_mutex_unlock(&share->lock);
}
