/* Loaded with LD_PRELOAD: the n-th call of one kind on one class of files fails, in the way that is asked for; all calls are counted.
 *
 * A file's class is told by patterns on its path below a root. What is under test is the shipping code with the libc calls it makes; the ring has to be
 * the one of threads, for what io_uring does nobody can stand between. Counts and what happened lie in shared memory, so that they outlive the process;
 * whether a process is watched at all is its own (a fork begins unwatched). */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CLASSES = 8, PATTERNS = 32, PARTS = 64, SECTOR = 512, PAGE = 4096, LARGE = 1 << 20 };
enum op { READ, WRITE, FLUSH, DIRFLUSH, ALLOCATE, TRUNCATE, RENAME, OPEN, CREATE, UNLINK, MKDIR, OPS };
enum how { FAIL, LATE, TORN, SHORT, ZERO, LOSE, BLANK };
/* FAIL: nothing is done. LATE: all of it is done, and an error told. TORN: half of a write is done, and an error told. SHORT: half is done and told.
 * ZERO: nothing is done, and 0 told. LOSE: of a flush: what was written since the last one is gone. BLANK, of a defect: an error is not told, and a
 * read brings zeroes. */
enum lasting { ONCE, ALWAYS, PLACE }; /* PLACE: whatever touches the first sector that the n-th one touched */

struct shared {
    atomic_uint counts[CLASSES][OPS];
    atomic_uint hits, voids;   /* voids: it was the n-th one, and too small for what was to be done */
    atomic_uint after[OPS];    /* calls of each kind on files of the same side that came after a flush that failed */
    atomic_int flush_failed;
    uint64_t place_offset, place_size; /* of the n-th read or write */
};

static struct shared *shared;
static char root[PATH_MAX];
static size_t root_length;
static struct { char text[64]; int class; } patterns[PATTERNS];
static int pattern_count;
static unsigned sides; /* bit per class: those of the target's */

static atomic_int active;
static struct { int class, op, how, error, lasting; unsigned nth; } armed;
static struct { atomic_int known; dev_t device; ino_t inode; off_t offset; } place;

#define REAL(result, name, ...) static result (*real_##name)(__VA_ARGS__)
REAL(ssize_t, readv, int, const struct iovec *, int);
REAL(ssize_t, writev, int, const struct iovec *, int);
REAL(ssize_t, preadv64, int, const struct iovec *, int, off_t);
REAL(ssize_t, pwritev64, int, const struct iovec *, int, off_t);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, fallocate64, int, int, off_t, off_t);
REAL(int, ftruncate64, int, off_t);
REAL(int, renameat, int, const char *, int, const char *);
REAL(int, unlinkat, int, const char *, int);
REAL(int, mkdirat, int, const char *, mode_t);
REAL(int, openat64, int, const char *, int, ...);

__attribute__((constructor)) static void resolve(void)
{
#define FIND(name) real_##name = (__typeof__(real_##name))dlsym(RTLD_NEXT, #name)
    FIND(readv); FIND(writev); FIND(preadv64); FIND(pwritev64); FIND(fsync); FIND(fdatasync); FIND(fallocate64); FIND(ftruncate64);
    FIND(renameat); FIND(unlinkat); FIND(mkdirat); FIND(openat64);
}

/* --- how it is told what to do -------------------------------------------------------------------------------------------------- */

/* Once, in the process that forks. Returns the shared memory. directory: the root; nothing outside of it is looked at. */
void *iofail_start(const char *directory)
{
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    root_length = strlen(directory);
    memcpy(root, directory, root_length + 1);
    pattern_count = 0;
    sides = 0;
    return shared == MAP_FAILED ? NULL : shared;
}

/* The first pattern (fnmatch, on the path below the root) that fits tells the class. */
void iofail_class(const char *text, int class, int is_target)
{
    snprintf(patterns[pattern_count].text, sizeof patterns[0].text, "%s", text);
    patterns[pattern_count++].class = class;
    sides |= (unsigned)(is_target != 0) << class;
}

/* In the process that is to be watched, from now on. nth 0: only count. */
void iofail_arm(int class, int op, unsigned nth, int how, int error, int lasting)
{
    memset(shared, 0, sizeof *shared);
    armed.class = class, armed.op = op, armed.nth = nth, armed.how = how, armed.error = error, armed.lasting = lasting;
    atomic_store(&active, 1);
}

void iofail_disarm(void) { atomic_store(&active, 0); }

/* --- which file ------------------------------------------------------------------------------------------------------------------ */

static int class_of(const char *path)
{
    if (shared == NULL || strncmp(path, root, root_length) != 0 || path[root_length] != '/')
        return -1;
    for (int i = 0; i < pattern_count; i++)
        if (fnmatch(patterns[i].text, path + root_length + 1, 0) == 0)
            return patterns[i].class;
    return -1;
}

static int path_of(int fd, char *path)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = '\0';
    return size > 0;
}

static int class_of_fd(int fd)
{
    char path[PATH_MAX];
    return path_of(fd, path) ? class_of(path) : -1;
}

static int class_of_name(int directory, const char *name)
{
    char path[2 * PATH_MAX];
    if (name[0] == '/')
        return class_of(name);
    if (directory == AT_FDCWD || !path_of(directory, path))
        return -1;
    size_t end = strlen(path);
    snprintf(path + end, sizeof path - end, "/%s", name);
    return class_of(path);
}

/* --- what was written since the last flush, for LOSE -------------------------------------------------------------------------------- */

struct piece {
    struct piece *next;
    dev_t device;
    ino_t inode;
    off_t offset, old_size;
    size_t size;
    uint8_t data[];
};
static struct piece *pieces; /* newest first */
static pthread_mutex_t pieces_lock = PTHREAD_MUTEX_INITIALIZER;

static int reopened(int fd, int flags)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return real_openat64(AT_FDCWD, link, flags | O_CLOEXEC);
}

static void remember(int fd, int class, off_t offset, size_t size)
{
    struct stat status;
    if ((armed.how != LOSE && armed.how != BLANK) || armed.class != class || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return;
    struct piece *piece = calloc(1, sizeof *piece + size);
    int again = reopened(fd, O_RDONLY);
    *piece = (struct piece){ .device = status.st_dev, .inode = status.st_ino, .offset = offset, .old_size = status.st_size, .size = size };
    struct iovec whole = { piece->data, size };
    if (again >= 0) {
        real_preadv64(again, &whole, 1, offset);
        close(again);
    }
    pthread_mutex_lock(&pieces_lock);
    piece->next = pieces;
    pieces = piece;
    pthread_mutex_unlock(&pieces_lock);
}

static void settle(int fd, int lost)
{
    struct stat status;
    if (pieces == NULL || fstat(fd, &status) < 0)
        return;
    int again = lost ? reopened(fd, O_RDWR) : -1;
    pthread_mutex_lock(&pieces_lock);
    for (struct piece **each = &pieces; *each != NULL;) {
        struct piece *piece = *each;
        if (piece->device != status.st_dev || piece->inode != status.st_ino) {
            each = &piece->next;
            continue;
        }
        if (again >= 0) {
            struct iovec whole = { piece->data, piece->size };
            real_pwritev64(again, &whole, 1, piece->offset);
            real_ftruncate64(again, piece->old_size);
        }
        *each = piece->next;
        free(piece);
    }
    pthread_mutex_unlock(&pieces_lock);
    if (again >= 0)
        close(again);
}

/* --- is it this one --------------------------------------------------------------------------------------------------------------- */

static int is_same_place(int fd, off_t offset, size_t size)
{
    struct stat status;
    return atomic_load(&place.known) && offset >= 0 && fstat(fd, &status) == 0 && status.st_dev == place.device && status.st_ino == place.inode &&
           offset < place.offset + SECTOR && offset + (off_t)size > place.offset;
}

/* Count, and say whether this call is to fail. offset, size: of a read or write, else -1, 0. */
static int fails(int class, int op, int fd, off_t offset, size_t size)
{
    unsigned number = atomic_fetch_add(&shared->counts[class][op], 1) + 1;
    if (atomic_load(&shared->flush_failed) && sides >> armed.class & sides >> class & 1)
        atomic_fetch_add(&shared->after[op], 1);
    if (class != armed.class || op != armed.op || armed.nth == 0)
        return 0;
    int hit = number == armed.nth || (armed.lasting == ALWAYS && number > armed.nth) || (armed.lasting == PLACE && is_same_place(fd, offset, size));
    if (!hit)
        return 0;
    if (number == armed.nth && offset >= 0) {
        struct stat status;
        shared->place_offset = (uint64_t)offset;
        shared->place_size = size;
        if (fstat(fd, &status) == 0) {
            place.device = status.st_dev, place.inode = status.st_ino, place.offset = offset;
            atomic_store(&place.known, 1);
        }
    }
    atomic_fetch_add(&shared->hits, 1);
    return 1;
}

static int told(void)
{
    errno = armed.error;
    return -1;
}

/* What has no parts: it fails before or after it is done. */
#define SIMPLE(class, op, call)                                                                                                                \
    do {                                                                                                                                       \
        int class_ = atomic_load(&active) ? (class) : -1;                                                                                      \
        if (class_ < 0 || !fails(class_, (op), -1, -1, 0))                                                                                     \
            return call;                                                                                                                       \
        if (armed.how == BLANK)                                                                                                                \
            return 0;                                                                                                                          \
        if (armed.how == LATE)                                                                                                                 \
            (void)(call);                                                                                                                      \
        return told();                                                                                                                         \
    } while (0)

/* --- reads and writes ---------------------------------------------------------------------------------------------------------------- */

/* A segment of undo is 16 MiB, most of it a hole. What lies in one is zero without being moved: of memory that is thrown away the same is true. */
static ssize_t read_segment(int fd, uint8_t *data, size_t size, off_t offset)
{
    off_t file_end = lseek(fd, 0, SEEK_END), end = offset + (off_t)size;
    if (end > file_end)
        end = file_end;
    if (end <= offset)
        return 0;
    madvise(data, size / PAGE * PAGE, MADV_DONTNEED);
    for (off_t at = offset; at < end;) {
        off_t start = lseek(fd, at, SEEK_DATA);
        if (start < 0 || start >= end)
            break;
        off_t stop = lseek(fd, start, SEEK_HOLE);
        if (stop > end)
            stop = end;
        struct iovec part = { data + (start - offset), (size_t)(stop - start) };
        ssize_t got = real_preadv64(fd, &part, 1, start);
        if (got != stop - start)
            return -1;
        at = stop;
    }
    return end - offset;
}

static ssize_t moved(int op, int fd, const struct iovec *iov, int count, off_t offset)
{
    if (op == READ && count == 1 && iov->iov_len >= LARGE && offset >= 0 && (uintptr_t)iov->iov_base % PAGE == 0 && class_of_fd(fd) >= 0)
        return read_segment(fd, iov->iov_base, iov->iov_len, offset);
    if (offset < 0)
        return op == READ ? real_readv(fd, iov, count) : real_writev(fd, iov, count);
    return op == READ ? real_preadv64(fd, iov, count, offset) : real_pwritev64(fd, iov, count, offset);
}

static ssize_t moved_part(int op, int fd, const struct iovec *iov, int count, off_t offset, size_t size)
{
    struct iovec part[PARTS];
    int used = 0;
    for (; used < count && used < PARTS && size > 0; used++) {
        part[used] = iov[used];
        if (part[used].iov_len > size)
            part[used].iov_len = size;
        size -= part[used].iov_len;
    }
    return moved(op, fd, part, used, offset);
}

static ssize_t transfer(int op, int fd, const struct iovec *iov, int count, off_t offset)
{
    int class = atomic_load(&active) ? class_of_fd(fd) : -1;
    if (class < 0)
        return moved(op, fd, iov, count, offset);
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += iov[i].iov_len;
    off_t here = offset < 0 ? lseek(fd, 0, SEEK_CUR) : offset;
    if (op == WRITE)
        remember(fd, class, here, size);
    if (!fails(class, op, fd, here, size))
        return moved(op, fd, iov, count, offset);
    /* What is short every time must still come to a page in the end: direct I/O goes on from there only. */
    size_t unit = !(fcntl(fd, F_GETFL) & O_DIRECT) ? 1 : armed.lasting == ALWAYS ? PAGE : SECTOR;
    size_t half = size / 2 / unit * unit;
    switch (armed.how) {
    case LATE:
        moved(op, fd, iov, count, offset);
        return told();
    case TORN:
        if (half > 0)
            moved_part(op, fd, iov, count, offset, half);
        return told();
    case SHORT:
        if (half > 0)
            return moved_part(op, fd, iov, count, offset, half);
        atomic_fetch_add(&shared->voids, 1);
        return moved(op, fd, iov, count, offset);
    case ZERO:
        return 0;
    case BLANK:
        if (op == READ)
            for (int i = 0; i < count; i++)
                memset(iov[i].iov_base, 0, iov[i].iov_len);
        return (ssize_t)size;
    default:
        return told();
    }
}

ssize_t read(int fd, void *data, size_t size)
{
    struct iovec whole = { data, size };
    return transfer(READ, fd, &whole, 1, -1);
}

ssize_t write(int fd, const void *data, size_t size)
{
    struct iovec whole = { (void *)data, size };
    return transfer(WRITE, fd, &whole, 1, -1);
}

ssize_t pread64(int fd, void *data, size_t size, off_t offset)
{
    struct iovec whole = { data, size };
    return transfer(READ, fd, &whole, 1, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset)
{
    struct iovec whole = { (void *)data, size };
    return transfer(WRITE, fd, &whole, 1, offset);
}

ssize_t pread(int fd, void *data, size_t size, off_t offset) { return pread64(fd, data, size, offset); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }
ssize_t readv(int fd, const struct iovec *iov, int count) { return transfer(READ, fd, iov, count, -1); }
ssize_t writev(int fd, const struct iovec *iov, int count) { return transfer(WRITE, fd, iov, count, -1); }
ssize_t preadv64(int fd, const struct iovec *iov, int count, off_t offset) { return transfer(READ, fd, iov, count, offset); }
ssize_t pwritev64(int fd, const struct iovec *iov, int count, off_t offset) { return transfer(WRITE, fd, iov, count, offset); }
ssize_t preadv(int fd, const struct iovec *iov, int count, off_t offset) { return transfer(READ, fd, iov, count, offset); }
ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t offset) { return transfer(WRITE, fd, iov, count, offset); }
/* Python's os.preadv and os.pwritev; nothing here gives flags. */
ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags) { return transfer(READ, fd, iov, count, offset); }
ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags) { return transfer(WRITE, fd, iov, count, offset); }

/* Memory comes when it is touched: the volumes here need little of what a lane has. */
int madvise(void *memory, size_t size, int advice)
{
    static int (*real)(void *, size_t, int);
    if (real == NULL)
        real = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "madvise");
    return advice == MADV_POPULATE_WRITE ? 0 : real(memory, size, advice);
}

/* --- flushes -------------------------------------------------------------------------------------------------------------------------- */

static int flush(int fd, int (*real)(int))
{
    int class = atomic_load(&active) ? class_of_fd(fd) : -1;
    if (class < 0)
        return real(fd);
    struct stat status;
    int directory = fstat(fd, &status) == 0 && S_ISDIR(status.st_mode);
    if (!fails(class, directory ? DIRFLUSH : FLUSH, -1, -1, 0)) {
        int rc = real(fd);
        if (rc == 0)
            settle(fd, 0);
        return rc;
    }
    if (armed.how == LOSE)
        settle(fd, 1);
    if (armed.how == BLANK) {
        settle(fd, 1);
        return 0;
    }
    atomic_store(&shared->flush_failed, 1);
    return told();
}

int fsync(int fd) { return flush(fd, real_fsync); }
int fdatasync(int fd) { return flush(fd, real_fdatasync); }

/* --- space ---------------------------------------------------------------------------------------------------------------------------- */

/* A segment is made longer only: tmpfs would clear 16 MiB. */
static int allocated(int fd, int mode, off_t offset, off_t size)
{
    struct stat status;
    if (mode != 0 || size < LARGE || class_of_fd(fd) < 0 || fstat(fd, &status) < 0)
        return real_fallocate64(fd, mode, offset, size);
    return status.st_size < offset + size ? real_ftruncate64(fd, offset + size) : 0;
}

int fallocate64(int fd, int mode, off_t offset, off_t size)
{
    int class = atomic_load(&active) ? class_of_fd(fd) : -1;
    if (class >= 0 && mode & FALLOC_FL_PUNCH_HOLE)
        remember(fd, class, offset, (size_t)size);
    SIMPLE(class, ALLOCATE, allocated(fd, mode, offset, size));
}

int fallocate(int fd, int mode, off_t offset, off_t size) { return fallocate64(fd, mode, offset, size); }
int ftruncate64(int fd, off_t size) { SIMPLE(class_of_fd(fd), TRUNCATE, real_ftruncate64(fd, size)); }
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

/* --- names ---------------------------------------------------------------------------------------------------------------------------- */

int renameat(int old_directory, const char *old, int new_directory, const char *new)
{
    SIMPLE(class_of_name(new_directory, new), RENAME, real_renameat(old_directory, old, new_directory, new));
}

int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }
int unlinkat(int directory, const char *name, int flags) { SIMPLE(class_of_name(directory, name), UNLINK, real_unlinkat(directory, name, flags)); }
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int mkdirat(int directory, const char *name, mode_t mode) { SIMPLE(class_of_name(directory, name), MKDIR, real_mkdirat(directory, name, mode)); }
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

static int opened(int directory, const char *name, int flags, mode_t mode)
{
    int class = atomic_load(&active) ? class_of_name(directory, name) : -1;
    if (class < 0 || !fails(class, flags & O_CREAT ? CREATE : OPEN, -1, -1, 0))
        return real_openat64(directory, name, flags, mode);
    if (armed.how == LATE) {
        int fd = real_openat64(directory, name, flags, mode);
        if (fd >= 0)
            close(fd);
    }
    return told();
}

#define MODE(last)                                                                                                                              \
    mode_t mode = 0;                                                                                                                            \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                                                        \
        va_list rest;                                                                                                                           \
        va_start(rest, last);                                                                                                                   \
        mode = va_arg(rest, mode_t);                                                                                                            \
        va_end(rest);                                                                                                                           \
    }

int openat64(int directory, const char *name, int flags, ...) { MODE(flags) return opened(directory, name, flags, mode); }
int openat(int directory, const char *name, int flags, ...) { MODE(flags) return opened(directory, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags) return opened(AT_FDCWD, name, flags, mode); }
int open(const char *name, int flags, ...) { MODE(flags) return opened(AT_FDCWD, name, flags, mode); }
