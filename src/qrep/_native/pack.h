/* zstd, for the data of frames (wire.h, PACKED) and for nothing else: exactly one zstd frame that says how long its content is, without a dictionary, with a
 * window of QREP_FRAME_DATA_MAX at most. Both directions work in memory that is allocated once, when a lane opens; what a peer sends cannot make it more. */
#ifndef QREP_PACK_H
#define QREP_PACK_H

#include "common.h"

#define QREP_PACK_LEVEL_MIN (-50)
#define QREP_PACK_LEVEL_MAX 3

struct qrep_packer;
/* NULL: no memory. close() takes NULL. */
struct qrep_packer *qrep_packer_open(void);
void qrep_packer_close(struct qrep_packer *packer);
/* Pack `size` bytes, 1 to QREP_FRAME_DATA_MAX, into `room` bytes at `packed`. Returns how many it took, 0 if they do not fit there. */
size_t qrep_pack(struct qrep_packer *packer, int level, const void *data, size_t size, void *packed, size_t room);

struct qrep_unpacker;
struct qrep_unpacker *qrep_unpacker_open(void);
void qrep_unpacker_close(struct qrep_unpacker *unpacker);
/* Unpack into exactly `size` bytes. What `packed` says of itself is checked before anything is unpacked: one frame, whole, nothing behind it, `size` bytes
 * of content, no dictionary, no larger window. 0; -EPROTO: it is not so, or does not unpack; `data` may then hold anything. */
int qrep_unpack(struct qrep_unpacker *unpacker, const void *packed, size_t packed_size, void *data, size_t size);

#endif
