/* Taking frames off the connection: header, table, data and the next header, each checked before it is used. Inside a target lane only. */
#ifndef QREP_TARGET_RECEIVE_H
#define QREP_TARGET_RECEIVE_H

#include "target_stages.h"

/* Bytes of window that one frame's table and data take at most. */
uint64_t qrep_receive_room_max(const struct target_lane *lane);

/* Look at what has arrived and ask for more, if there is room. A socket is read through the ring and this does not wait; a STREAM or PIPES is read
 * here and blocks. 1: a frame or header was taken; 0: nothing new; or -errno, recorded. The end of the stream sets lane->lost. */
int qrep_lane_receive(struct target_lane *lane);

/* Check the digest of an arrived frame, the value of its granule if it is the last one, and start it; the next frame is asked for first, so that it is
 * received meanwhile. Leaves the frame ARRIVED while it has to wait. 0 or -errno, recorded. */
int qrep_frame_accept(struct target_lane *lane, struct target_frame *frame);

#endif
