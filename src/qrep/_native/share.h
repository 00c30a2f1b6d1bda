/* One pass over a source for several runs: whoever comes to a granule first reads and hashes it, the others get its leaf values, and its bytes if they have
 * to send some of it.
 *
 * A window of granules that were read and that somebody still wants. Runs take granules in ascending order and at their own pace; where the window is
 * full the first wait for the last, but not for long: a run that has kept the others for `patience` in all reads by itself from then on. What a run is
 * given is what the reader hashed: the same bytes, which is right only where all of them read one frozen image. */
#ifndef QREP_SHARE_H
#define QREP_SHARE_H

#include "lane.h"

#define QREP_SHARE_RUNS_MAX 64

struct qrep_share; /* opaque; thread-safe */

/* entries: granules in the window, 1..1024; what they hold is allocated when it is needed. NULL: no memory. */
struct qrep_share *qrep_share_open(const struct qrep_geometry *geometry, uint32_t entries, uint64_t patience_ns);
/* Every run has left. NULL is fine. */
void qrep_share_close(struct qrep_share *share);

/* Let a run take part, before its lanes start; its work list, base states and base values stay as they are until it leaves. 0, -EINVAL for another shape,
 * -EBUSY where too many take part, -ENOMEM. */
int qrep_share_join(struct qrep_share *share, struct qrep_source_run *run);
/* Its lanes have ended: nobody waits for it any more. Once is enough, more does no harm. */
void qrep_share_leave(struct qrep_source_run *run);

enum qrep_share_answer {
    QREP_SHARE_OWN = 0, /* read it for yourself */
    QREP_SHARE_READ,    /* read it, then publish or abandon it: others wait */
    QREP_SHARE_WAIT,    /* ask again soon */
    QREP_SHARE_ZERO,    /* it is all zero */
    QREP_SHARE_TAKEN,   /* leaves and value are filled in, and data unless the value is that of the run's base */
};

/* Ask for a granule that the run has taken off its work list. unknown: the base does not count. since_ns: when this granule was asked for first.
 * data: [granule_size]; leaves: [leaves] digests; value: one digest. */
enum qrep_share_answer qrep_share_claim(struct qrep_source_run *run, uint64_t granule, int unknown, uint64_t since_ns, uint8_t *data, uint8_t *leaves,
                                        uint8_t *value);
/* What was read after READ. leaves NULL: it is all zero. */
void qrep_share_publish(struct qrep_source_run *run, uint64_t granule, const uint8_t *data, const uint8_t *leaves, const uint8_t *value);
/* It could not be read whole, or the run ends: others read it. */
void qrep_share_abandon(struct qrep_source_run *run, uint64_t granule);

#endif
