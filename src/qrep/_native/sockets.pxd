# Socket options (sockets.h).
from libc.stdint cimport uint32_t, uint64_t


cdef extern from "sockets.h" nogil:
    enum:
        QREP_ZERO_COPY_SNDBUF
    struct qrep_socket_state:
        char congestion[16]
        uint32_t rtt_us
        uint32_t near
        uint32_t send_buffer
    int qrep_socket_tune(int descriptor, unsigned user_timeout_ms, int zero_copy, qrep_socket_state *state)
    int qrep_socket_is_near(int descriptor)
    int qrep_socket_pace(int descriptor, uint64_t rate_bytes_per_s)
    int qrep_socket_zero_copy_buffer(int descriptor)
