/* The seccomp filter of the sandbox, as a table by name: the numbers are the compiler's, of the machine this is built for. */
#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#else
#define MACHINE 0
#endif

int qrep_sandbox_has_filter(void) { return MACHINE != 0; }

/* What a relay of sockets asks of the kernel once everything is loaded. No open, stat or exec, no process, no ptrace, no io_uring. */
static const uint16_t allowed[] = {
    /* streams */
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_recvfrom, SYS_sendto, SYS_recvmsg, SYS_sendmsg, SYS_shutdown, SYS_close,
    SYS_accept4, SYS_bind, SYS_listen, SYS_connect, SYS_getsockname, SYS_getpeername, SYS_getsockopt, SYS_setsockopt, SYS_ppoll,
    /* memory */
    SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk,
    /* threads and time */
    SYS_futex, SYS_set_robust_list, SYS_exit, SYS_exit_group, SYS_gettid, SYS_getpid, SYS_sched_yield, SYS_clock_gettime, SYS_clock_nanosleep,
    SYS_nanosleep, SYS_gettimeofday, SYS_restart_syscall, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack,
    SYS_getrandom, SYS_sched_getaffinity,
#ifdef SYS_rseq
    SYS_rseq,
#endif
#ifdef SYS_poll
    SYS_poll, SYS_accept,
#endif
};

/* Instead of sockets of its own: the files that a server of storage was handed. It neither opens nor connects anything. */
static const uint16_t storage_allowed[] = {
    SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2, SYS_lseek, SYS_fdatasync, SYS_fallocate,
};
static const uint16_t storage_refused[] = {SYS_socket, SYS_socketpair, SYS_connect, SYS_bind, SYS_listen};

/* Where one argument decides. Kernel and C library take these as int: the low half is what counts. */
enum test { EQUAL, ANY_BIT, NO_BIT };
struct checked {
    uint16_t number;
    uint8_t argument;
    uint8_t test;
    uint32_t value;
};
static const struct checked checked[] = {
    {SYS_socket, 0, EQUAL, AF_INET},       {SYS_socket, 0, EQUAL, AF_INET6},      {SYS_socketpair, 0, EQUAL, AF_UNIX},
    {SYS_ioctl, 1, EQUAL, FIONBIO},        {SYS_clone, 0, ANY_BIT, CLONE_THREAD}, /* a thread, never a process */
    {SYS_fcntl, 1, EQUAL, F_GETFL},        {SYS_fcntl, 1, EQUAL, F_SETFL},        {SYS_fcntl, 1, EQUAL, F_DUPFD_CLOEXEC},
    {SYS_fcntl, 1, EQUAL, F_GETFD},        {SYS_fcntl, 1, EQUAL, F_SETFD}, /* not F_SETOWN, F_SETSIG: those signal other processes */
    {SYS_mmap, 2, NO_BIT, PROT_EXEC},      {SYS_mprotect, 2, NO_BIT, PROT_EXEC},  /* nothing that was written is ever run */
};

#define ALLOWED (sizeof allowed / sizeof *allowed)
#define CHECKED (sizeof checked / sizeof *checked)
#define STORAGE_ALLOWED (sizeof storage_allowed / sizeof *storage_allowed)
#define STORAGE_REFUSED (sizeof storage_refused / sizeof *storage_refused)
#define LINES (24 + 2 * (ALLOWED + STORAGE_ALLOWED + STORAGE_REFUSED) + 5 * CHECKED)
#define LOAD(field) ((struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field)))
#define JUMP(how, value, yes, no) ((struct sock_filter)BPF_JUMP(BPF_JMP | (how) | BPF_K, (value), (yes), (no)))
#define RETURN(what) ((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, (what)))
#define REFUSE (SECCOMP_RET_ERRNO | EPERM)

/* The low half of argument n, little-endian (common.h). */
static uint32_t argument_offset(unsigned n) { return (uint32_t)(offsetof(struct seccomp_data, args) + 8 * n); }

static unsigned add_checked(struct sock_filter *line, const struct checked *check)
{
    static const uint16_t how[] = {[EQUAL] = BPF_JEQ, [ANY_BIT] = BPF_JSET, [NO_BIT] = BPF_JSET};
    int inverted = check->test == NO_BIT;
    line[0] = JUMP(BPF_JEQ, check->number, 0, 4); /* another call: behind these five lines */
    line[1] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, argument_offset(check->argument));
    line[2] = JUMP(how[check->test], check->value, inverted ? 1 : 0, inverted ? 0 : 1);
    line[3] = RETURN(SECCOMP_RET_ALLOW);
    line[4] = LOAD(nr); /* not so: another line of the same call may still allow it */
    return 5;
}

int qrep_sandbox_filter(int storage)
{
    struct sock_filter lines[LINES];
    unsigned count = 0;
    if (MACHINE == 0)
        return -EOPNOTSUPP;
    lines[count++] = LOAD(arch);
    lines[count++] = JUMP(BPF_JEQ, MACHINE, 1, 0);
    lines[count++] = RETURN(SECCOMP_RET_KILL_PROCESS);
    lines[count++] = LOAD(nr);
    /* x86-64's second set of numbers, x32, starts at 2^30; nobody here uses it. */
    lines[count++] = JUMP(BPF_JGE, 0x40000000u, 0, 1);
    lines[count++] = RETURN(SECCOMP_RET_KILL_PROCESS);
    /* clone3 hides its flags behind a pointer; without it the C library takes clone. */
    lines[count++] = JUMP(BPF_JEQ, 435, 0, 1);
    lines[count++] = RETURN(SECCOMP_RET_ERRNO | ENOSYS);
    /* A signal (abort) goes to ourselves only. */
    lines[count++] = JUMP(BPF_JEQ, SYS_tgkill, 0, 4);
    lines[count++] = LOAD(args[0]);
    lines[count++] = JUMP(BPF_JEQ, (uint32_t)getpid(), 0, 1);
    lines[count++] = RETURN(SECCOMP_RET_ALLOW);
    lines[count++] = RETURN(REFUSE);
    for (size_t i = 0; storage && i < STORAGE_REFUSED; i++) {
        lines[count++] = JUMP(BPF_JEQ, storage_refused[i], 0, 1);
        lines[count++] = RETURN(REFUSE);
    }
    for (size_t i = 0; storage && i < STORAGE_ALLOWED; i++) {
        lines[count++] = JUMP(BPF_JEQ, storage_allowed[i], 0, 1);
        lines[count++] = RETURN(SECCOMP_RET_ALLOW);
    }
    /* No protocol but TCP and the default of a type (0): the kernel would load SCTP and its like for whoever asks. */
    lines[count++] = JUMP(BPF_JEQ, SYS_socket, 0, 4);
    lines[count++] = LOAD(args[2]);
    lines[count++] = JUMP(BPF_JSET, ~(uint32_t)IPPROTO_TCP, 0, 1);
    lines[count++] = RETURN(REFUSE);
    lines[count++] = LOAD(nr);
    for (size_t i = 0; i < ALLOWED; i++) {
        lines[count++] = JUMP(BPF_JEQ, allowed[i], 0, 1);
        lines[count++] = RETURN(SECCOMP_RET_ALLOW);
    }
    for (size_t i = 0; i < CHECKED; i++)
        count += add_checked(lines + count, &checked[i]);
    lines[count++] = RETURN(REFUSE);
    struct sock_fprog program = {.len = (unsigned short)count, .filter = lines};
    /* TSYNC: the threads that a library may have started are under it, too. */
    long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    return rc == 0 ? 0 : rc > 0 ? -EBUSY : -errno;
}
