"""Builds `_uring_probe`: liburing's set-up and probe calls for `qrep probe`, where a call may cost 467 ns.

The hot path does not come here: ring_uring.c does its calls in C. liburing is linked statically, like everywhere.
"""

import os
import subprocess

from cffi import FFI


def liburing_archive():
    compiler = os.environ.get("CC", "gcc").split()
    command = [*compiler, "-print-file-name=liburing.a"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


builder = FFI()
builder.cdef("""
    struct iovec { void *iov_base; size_t iov_len; };
    struct io_uring_params { uint32_t flags; uint32_t features; ...; };
    struct io_uring { int ring_fd; ...; };
    struct io_uring_probe { ...; };

    int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *params);
    void io_uring_queue_exit(struct io_uring *ring);
    struct io_uring_probe *io_uring_get_probe_ring(struct io_uring *ring);
    int io_uring_opcode_supported(const struct io_uring_probe *probe, int opcode);
    void io_uring_free_probe(struct io_uring_probe *probe);
    int io_uring_register_buffers(struct io_uring *ring, const struct iovec *iovecs, unsigned count);
    int io_uring_register_files(struct io_uring *ring, const int *files, unsigned count);

    static const uint32_t IORING_SETUP_IOPOLL, IORING_SETUP_SQPOLL, IORING_SETUP_R_DISABLED, IORING_SETUP_COOP_TASKRUN,
        IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN;
    static const uint32_t IORING_FEAT_EXT_ARG, IORING_FEAT_NODROP, IORING_FEAT_FAST_POLL, IORING_FEAT_RSRC_TAGS;
    enum { IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READ_FIXED, IORING_OP_WRITE_FIXED, IORING_OP_FSYNC, IORING_OP_FALLOCATE,
        IORING_OP_SENDMSG, IORING_OP_RECVMSG, IORING_OP_SEND_ZC, IORING_OP_SENDMSG_ZC, IORING_OP_POLL_ADD, ... };
""")
builder.set_source(
    "qrep._native._uring_probe",
    "#include <liburing.h>\n",
    extra_objects=[liburing_archive()],
    extra_compile_args=["-D_GNU_SOURCE", "-O2", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"],  # as setup.py's
    extra_link_args=["-Wl,-z,relro,-z,now,-z,noexecstack", "-Wl,--exclude-libs,liburing.a"],
    py_limited_api=True,
)
