/* Socket options of data connections, and why. Each sets what the kernel grants and says so; only a call that cannot be made fails. */
#ifndef QREP_SOCKETS_H
#define QREP_SOCKETS_H

#include "common.h"

#define QREP_CONGESTION_SIZE 16 /* TCP_CA_NAME_MAX of the kernel */
#define QREP_NEAR_RTT_US 2000   /* a LAN; the handshake measured it */
#define QREP_ZERO_COPY_SNDBUF ((int)8 << 20)

struct qrep_socket_state {
    char congestion[QREP_CONGESTION_SIZE]; /* in use afterwards, NUL-terminated */
    uint32_t rtt_us;                       /* as the kernel estimates it now */
    uint32_t near;                         /* 1: rtt below QREP_NEAR_RTT_US */
    uint32_t send_buffer;                  /* bytes, as the kernel accounts them */
};

/* Prepare a connected TCP socket: no delay, give up after user_timeout_ms without an ack (0: the system's way), and cubic where the peer is
 * near: bbr, the default of some systems, halves the speed of loopback and LAN (bench/RESULTS.md, send). Where cubic is not permitted reno takes
 * the place of bbr. A connection that began with bbr stays paced all the same (protocol/unpaced.py). zero_copy: also a send buffer of 8 MiB; else it is left to the kernel's tuning. 0 or -errno; *state is valid on 0. */
int qrep_socket_tune(int descriptor, unsigned user_timeout_ms, int zero_copy, struct qrep_socket_state *state);

/* 1: a connected TCP socket whose other end is less than QREP_NEAR_RTT_US away; 0; or -errno. */
int qrep_socket_is_near(int descriptor);

/* Let the kernel space packets at this rate (SO_MAX_PACING_RATE); 0: no limit. Smoothing, not the limiter: the token bucket is exact and
 * costs half the CPU. 0 or -errno. */
int qrep_socket_pace(int descriptor, uint64_t rate_bytes_per_s);

/* SEND_ZC charges a whole huge page per fragment to the send buffer; below 8 MiB it stalls (2.55 GB/s at the default, 0.024 at 1 MiB).
 * Returns the bytes granted (the kernel doubles what is asked), or -errno. */
int qrep_socket_zero_copy_buffer(int descriptor);

#endif
