#include "sandbox.h"

#include <errno.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Landlock as of version 7; the numbers are those of the kernel on every machine, older headers lack them. */
#define LANDLOCK_CREATE_RULESET 444
#define LANDLOCK_RESTRICT_SELF 446
#define LANDLOCK_VERSION 1u

struct landlock_ruleset {
    uint64_t files;
    uint64_t network; /* version 4 */
    uint64_t scoped;  /* version 6 */
};

#define LANDLOCK_FILES_V1 ((1ull << 13) - 1) /* execute, write, read, list, remove, make: bits 0..12 */
#define LANDLOCK_REFER (1ull << 13)          /* version 2 */
#define LANDLOCK_TRUNCATE (1ull << 14)       /* version 3 */
#define LANDLOCK_IOCTL (1ull << 15)          /* version 5 */
#define LANDLOCK_SCOPES 3ull                 /* abstract unix sockets and signals of others */

int qrep_sandbox_landlock_version(void)
{
    long version = syscall(LANDLOCK_CREATE_RULESET, NULL, 0, LANDLOCK_VERSION);
    return version > 0 ? (int)version : 0;
}

/* No right is granted to any file. The version in force, 0: none here, or -errno. */
static int landlock(void)
{
    int version = qrep_sandbox_landlock_version();
    if (version == 0)
        return 0;
    struct landlock_ruleset ruleset = {.files = LANDLOCK_FILES_V1};
    size_t size = sizeof ruleset.files;
    if (version >= 2)
        ruleset.files |= LANDLOCK_REFER;
    if (version >= 3)
        ruleset.files |= LANDLOCK_TRUNCATE;
    if (version >= 5)
        ruleset.files |= LANDLOCK_IOCTL;
    if (version >= 6) {
        ruleset.scoped = LANDLOCK_SCOPES;
        size = sizeof ruleset;
    }
    int descriptor = (int)syscall(LANDLOCK_CREATE_RULESET, &ruleset, size, 0);
    if (descriptor < 0)
        return -errno;
    int rc = syscall(LANDLOCK_RESTRICT_SELF, descriptor, 0) == 0 ? version : -errno;
    close(descriptor);
    return rc;
}

static int limit(int resource, uint64_t value)
{
    struct rlimit both = {.rlim_cur = value, .rlim_max = value};
    return setrlimit(resource, &both) == 0 ? 0 : -errno;
}

/* A directory that is removed while we stand in it: empty, and nothing can be made there. */
static int enter_empty_root(const char *base)
{
    char path[4096];
    int length = snprintf(path, sizeof path, "%s/empty.XXXXXX", base);
    if (length < 0 || (size_t)length >= sizeof path)
        return -ENAMETOOLONG;
    if (mkdtemp(path) == NULL)
        return -errno;
    int rc = chdir(path) == 0 ? 0 : -errno;
    if (rmdir(path) != 0 && rc == 0)
        rc = -errno;
    if (rc == 0 && chroot(".") != 0)
        rc = -errno;
    return rc;
}

static int change_user(const struct qrep_sandbox *wanted)
{
    if (setgroups(0, NULL) != 0)
        return -errno;
    if (setresgid(wanted->gid, wanted->gid, wanted->gid) != 0)
        return -errno;
    return 0;
}

/* Nothing that a later exec, were there one, could give back. Only for who may: it takes CAP_SETPCAP. */
static int empty_bounding_set(void)
{
    for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++)
        if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0)
            return -errno;
    unsigned long bits = SECBIT_NOROOT | SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED | SECBIT_KEEP_CAPS_LOCKED;
    return prctl(PR_SET_SECUREBITS, bits, 0, 0, 0) == 0 ? 0 : -errno;
}

static int drop_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
    memset(none, 0, sizeof none);
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0)
        return -errno;
    return syscall(SYS_capset, &header, none) == 0 ? 0 : -errno;
}

#define STEP(name, call)                                                                                                                  \
    do {                                                                                                                                  \
        int step_rc = (call);                                                                                                             \
        if (step_rc < 0) {                                                                                                                \
            state->failed = (name);                                                                                                       \
            return step_rc;                                                                                                               \
        }                                                                                                                                 \
    } while (0)

int qrep_sandbox_enter(const struct qrep_sandbox *wanted, struct qrep_sandbox_state *state)
{
    memset(state, 0, sizeof *state);
    int root = geteuid() == 0;
    STEP("no core dumps", limit(RLIMIT_CORE, 0));
    STEP("limit of descriptors", limit(RLIMIT_NOFILE, wanted->files));
    if (root && wanted->empty_root != NULL) {
        STEP("empty root directory", enter_empty_root(wanted->empty_root));
        state->empty_root = 1;
    }
    if (root)
        STEP("bounding set of capabilities", empty_bounding_set());
    if (root && wanted->uid != 0) {
        STEP("groups", change_user(wanted));
        STEP("user", setresuid(wanted->uid, wanted->uid, wanted->uid) == 0 ? 0 : -errno);
        state->unprivileged = 1;
    }
    STEP("capabilities", drop_capabilities());
    STEP("no new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? 0 : -errno);
    STEP("no dump", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 ? 0 : -errno); /* after the user was changed, which sets it anew */
    state->landlock = landlock();
    STEP("Landlock", state->landlock);
    STEP("seccomp", qrep_sandbox_filter(wanted->storage != 0));
    return 0;
}
