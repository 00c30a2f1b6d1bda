/* The rights of a process that parses what strangers send: no root, no capability, no file, no new program, no new kind of socket.
 *
 * Everything here only takes away and is for life. Call it once, with one thread: before it everything has been opened and loaded, after it
 * nothing can be. What a kernel does not have (Landlock) is told in the state; what must work and does not is an error, and the caller ends. */
#ifndef QREP_SANDBOX_H
#define QREP_SANDBOX_H

#include "common.h"

#include <sys/types.h>

struct qrep_sandbox {
    uid_t uid; /* to become, when root; 0: stay who we are */
    gid_t gid;
    const char *empty_root; /* a directory to make and remove the empty root in, when root; NULL: none */
    uint32_t files;         /* descriptors this process may have, RLIMIT_NOFILE */
    uint32_t storage;       /* 1: no new sockets at all; files that are open may be read and written at an offset */
};

struct qrep_sandbox_state {
    const char *failed;  /* the step that did not work, static storage; NULL: none */
    int landlock;        /* version of its interface in force, 0: this kernel has none */
    uint32_t empty_root; /* 1: in force */
    uint32_t unprivileged; /* 1: the user was changed */
};

/* All of it, in order: limits, empty root, groups and user, capabilities (bounding set too), no new privileges, no dump, Landlock without
 * any right, seccomp. 0 or -errno; *state is valid in both cases. After an error some rights may be gone: end the process. */
int qrep_sandbox_enter(const struct qrep_sandbox *wanted, struct qrep_sandbox_state *state);

/* The filter alone (sandbox_filter.c): an allow-list; everything else answers EPERM. Needs no_new_privs.
 * storage: as above. 0 or -errno. */
int qrep_sandbox_filter(int storage);

/* Version of Landlock's interface, 0 where there is none. */
int qrep_sandbox_landlock_version(void);

/* 1: this program has a filter for the machine it was built for. */
int qrep_sandbox_has_filter(void);

#endif
