# Giving up rights (sandbox.h).
from libc.stdint cimport uint32_t


cdef extern from "<sys/types.h>" nogil:
    ctypedef unsigned uid_t
    ctypedef unsigned gid_t


cdef extern from "sandbox.h" nogil:
    struct qrep_sandbox:
        uid_t uid
        gid_t gid
        const char *empty_root
        uint32_t files
        uint32_t storage
    struct qrep_sandbox_state:
        const char *failed
        int landlock
        uint32_t empty_root
        uint32_t unprivileged
    int qrep_sandbox_enter(const qrep_sandbox *wanted, qrep_sandbox_state *state)
    int qrep_sandbox_landlock_version()
    int qrep_sandbox_has_filter()
