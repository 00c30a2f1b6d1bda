#include "twins.h"

#include <string.h>

void qrep_copies_spread(const struct qrep_frame_header *header, const struct qrep_wire_run *runs, const struct qrep_geometry *geometry, uint8_t *data,
                        uint32_t *places)
{
    size_t leaf_size = geometry->leaf_size, packed = header->data_size, spread = qrep_frame_leaf_bytes(header, geometry);
    uint32_t place = 0;

    for (uint32_t i = 0; i < header->run_count; i++)
        if (qrep_run_has_data(&runs[i]))
            for (uint32_t k = 0; k < runs[i].count; k++)
                places[runs[i].first + k] = place++;
    /* From the end: what a run is spread to lies at or behind where the data before it ends, so what is still to be moved, or copied from, is where it
     * came. Once nothing is left to insert everything before is in its place. */
    for (uint32_t i = header->run_count; i > 0 && spread != packed; i--) {
        const struct qrep_wire_run *run = &runs[i - 1];
        size_t size = qrep_run_bytes(geometry, header->granule, run);
        if (run->count & QREP_RUN_ZERO)
            continue;
        spread -= size;
        if (run->count & QREP_RUN_COPY) {
            memcpy(data + spread, data + places[qrep_run_from(run)] * leaf_size, size);
        } else {
            packed -= size;
            memmove(data + spread, data + packed, size);
        }
    }
}

void qrep_copies_forget(struct qrep_frame_header *header, struct qrep_wire_run *runs, const struct qrep_geometry *geometry)
{
    uint32_t kept = 0;

    header->data_size = (uint32_t)qrep_frame_leaf_bytes(header, geometry);
    header->copy_leaves = 0;
    for (uint32_t i = 0; i < header->run_count; i++) {
        struct qrep_wire_run run = {runs[i].first, qrep_run_leaves(&runs[i]) | (runs[i].count & QREP_RUN_ZERO)};
        struct qrep_wire_run *last = kept ? &runs[kept - 1] : NULL;
        if (last && !((last->count | run.count) & QREP_RUN_ZERO) && last->first + last->count == run.first)
            last->count += run.count;
        else
            runs[kept++] = run;
    }
    header->run_count = kept;
}
