/* Socket options of data connections. */
#include "sockets.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

static int set_int(int descriptor, int level, int option, int value)
{
    return setsockopt(descriptor, level, option, &value, sizeof value) == 0 ? 0 : -errno;
}

static int measure_rtt(int descriptor, struct qrep_socket_state *state)
{
    struct tcp_info info;
    socklen_t size = sizeof info;
    memset(&info, 0, sizeof info);
    if (getsockopt(descriptor, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return -errno;
    state->rtt_us = info.tcpi_rtt;
    state->near = info.tcpi_rtt < QREP_NEAR_RTT_US;
    return 0;
}

int qrep_socket_is_near(int descriptor)
{
    struct qrep_socket_state state;
    int rc = measure_rtt(descriptor, &state);
    return rc ? rc : (int)state.near;
}

/* cubic. Whoever may not choose it may choose reno, which is no slower over so short a way; what only bbr is too slow for. */
static void choose_for_near(int descriptor)
{
    char congestion[QREP_CONGESTION_SIZE] = "";
    socklen_t size = sizeof congestion - 1;

    if (setsockopt(descriptor, IPPROTO_TCP, TCP_CONGESTION, "cubic", sizeof "cubic" - 1) == 0)
        return;
    if (getsockopt(descriptor, IPPROTO_TCP, TCP_CONGESTION, congestion, &size) == 0 && strncmp(congestion, "bbr", 3) == 0)
        setsockopt(descriptor, IPPROTO_TCP, TCP_CONGESTION, "reno", sizeof "reno" - 1);
}

int qrep_socket_zero_copy_buffer(int descriptor)
{
    /* FORCE passes net.core.wmem_max, with CAP_NET_ADMIN; without it the plain option gives what the system allows. */
    if (set_int(descriptor, SOL_SOCKET, SO_SNDBUFFORCE, QREP_ZERO_COPY_SNDBUF) != 0) {
        int rc = set_int(descriptor, SOL_SOCKET, SO_SNDBUF, QREP_ZERO_COPY_SNDBUF);
        if (rc < 0)
            return rc;
    }
    int granted = 0;
    socklen_t size = sizeof granted;
    return getsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &granted, &size) == 0 ? granted : -errno;
}

int qrep_socket_tune(int descriptor, unsigned user_timeout_ms, int zero_copy, struct qrep_socket_state *state)
{
    memset(state, 0, sizeof *state);
    int rc = set_int(descriptor, IPPROTO_TCP, TCP_NODELAY, 1);
    if (rc == 0)
        rc = setsockopt(descriptor, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms) == 0 ? 0 : -errno;
    if (rc == 0)
        rc = measure_rtt(descriptor, state);
    if (rc < 0)
        return rc;
    /* A failure here (not in this kernel, not permitted) is an answer: state->congestion names what is in use. */
    if (state->near)
        choose_for_near(descriptor);
    socklen_t size = QREP_CONGESTION_SIZE - 1;
    if (getsockopt(descriptor, IPPROTO_TCP, TCP_CONGESTION, state->congestion, &size) != 0)
        return -errno;
    if (zero_copy) {
        rc = qrep_socket_zero_copy_buffer(descriptor);
        if (rc < 0)
            return rc;
    }
    int send_buffer = 0;
    size = sizeof send_buffer;
    if (getsockopt(descriptor, SOL_SOCKET, SO_SNDBUF, &send_buffer, &size) != 0)
        return -errno;
    state->send_buffer = (uint32_t)send_buffer;
    return 0;
}

int qrep_socket_pace(int descriptor, uint64_t rate_bytes_per_s)
{
    uint64_t rate = rate_bytes_per_s == 0 ? UINT64_MAX : rate_bytes_per_s;
    return setsockopt(descriptor, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof rate) == 0 ? 0 : -errno;
}
