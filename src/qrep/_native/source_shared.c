/* Source lane, between the work list and the reads: several runs over one frozen image, of which one reads each granule and the others take what it hashed. */
#include "source_parts.h"

int source_begin(struct source_lane *lane, struct source_slot *slot)
{
    struct qrep_source_run *run = lane->run;

    if (run->share == NULL)
        return source_read_whole(lane, slot);
    if (slot->state != SLOT_WAITING)
        slot->waiting_since_ns = qrep_now_ns();
    switch (qrep_share_claim(run, slot->granule, (int)slot->unknown, slot->waiting_since_ns, slot->data, slot->leaves, slot->value)) {
    case QREP_SHARE_OWN:
        return source_read_whole(lane, slot);
    case QREP_SHARE_READ:
        slot->shared = SHARED_PUBLISH;
        return source_read_whole(lane, slot);
    case QREP_SHARE_WAIT:
        slot->state = SLOT_WAITING;
        return 0;
    case QREP_SHARE_ZERO:
        slot->state = SLOT_FREE;
        source_count(&run->base.counters.read_shared, slot->size);
        return source_zero(lane, slot->granule, (int)slot->unknown);
    case QREP_SHARE_TAKEN:
        break;
    }
    source_count(&run->base.counters.read_shared, slot->size);
    slot->shared = SHARED_HASHED;
    slot->leaves_only = LEAVES_ALL;
    slot->parts = 0;
    slot->hashed = slot->size;
    slot->state = SLOT_READ;
    return 0;
}

void source_hand_on(struct source_lane *lane, struct source_slot *slot, const uint8_t *leaves)
{
    if (slot->shared != SHARED_PUBLISH)
        return;
    slot->shared = SHARED_NOT;
    qrep_share_publish(lane->run, slot->granule, slot->data, leaves, slot->value);
}

void source_give_up(struct source_lane *lane, struct source_slot *slot)
{
    if (slot->shared != SHARED_PUBLISH)
        return;
    slot->shared = SHARED_NOT;
    qrep_share_abandon(lane->run, slot->granule);
}
