/* The content of a retained sync point, read while the device under it is being overwritten.
 *
 * A view has the device and the undo files that lead from what the device holds back to the point, oldest first. Of a range the oldest before-image
 * counts: the first file that has one, in it the lowest sequence; where there is none, the device. Two counters make that right at any moment:
 *
 *   marks (undo_reach.h)  The device is read first, then the marks of the files that still grow. What of it was overwritten by then was logged, flushed
 *                         and marked before, and its before-image takes its place.
 *   epoch                 Goes up whenever the list of files changes: before the first write that a new file covers, and before a file goes, whose
 *                         before-images are all back on the device by then. A read during which it changed is done again over the new list.
 *
 * Indexed are batches (one per frame, 48 bytes each), not leaves. Headers and tables are checked whenever they are read, a payload the first time that
 * anything of it is used. Any number of threads may read; the list is changed by one at a time. */
#ifndef QREP_UNDO_VIEW_H
#define QREP_UNDO_VIEW_H

#include "undo_reach.h"

#define QREP_VIEW_PIECE (1u << 20)        /* read in one go; a longer read is cut */
#define QREP_VIEW_BATCHES_MAX (8u << 20)  /* 384 MiB of index: a view of more is refused */

struct qrep_undo_view;

/* epoch: shared memory that outlives the view. align: of the device, a power of two from 512 to 4096. cell_size: of the index, a power of two.
 * device_fd stays the caller's. 0 or -errno. */
int qrep_undo_view_open(struct qrep_undo_view **view, int device_fd, uint64_t size, uint32_t align, uint64_t cell_size, const _Atomic uint64_t *epoch);
/* Keep the first `count` files and forget the others. */
void qrep_undo_view_keep(struct qrep_undo_view *view, uint32_t count);
/* Add the file after those that are there and index it. header: base, attempt, size and batches are used. reach: NULL for a file that grows no more, of
 * which every flushed batch must be there, and header->batches of them at least. undo_fd, which is O_DIRECT or not, and reach stay the caller's and
 * outlive their place in the view.
 * 0; -EBADMSG: a flushed batch is missing; -E2BIG: too many batches; -errno. After a failure the file is not in the list. */
int qrep_undo_view_add(struct qrep_undo_view *view, int undo_fd, const struct qrep_undo_header *header, const struct qrep_undo_reach *reach, size_t reach_size);
/* The list is the one of this epoch. */
void qrep_undo_view_set_epoch(struct qrep_undo_view *view, uint64_t epoch);
/* offset, size: multiples of 512 inside the volume. 0; -ESTALE: the list is not the present one; -EBADMSG: a before-image is damaged; -EOVERFLOW: the
 * undo file outgrew its marks; -errno of reading. On failure the content of `data` is undefined. */
int qrep_undo_view_read(struct qrep_undo_view *view, uint8_t *data, uint64_t size, uint64_t offset);
/* Batches indexed, for people. */
uint64_t qrep_undo_view_batches(const struct qrep_undo_view *view);
void qrep_undo_view_close(struct qrep_undo_view *view);

#endif
