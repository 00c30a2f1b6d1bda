/* A disk with a volatile write cache: a FUSE filesystem of one file, "disk", over which the test puts a loop device.
 *
 *     powerdisk DIRECTORY NAME SIZE DESCRIPTOR    mounts DIRECTORY/NAME, logs to DIRECTORY/NAME.log and .data, is told what to do over DESCRIPTOR
 *
 * One thread: a request is carried out when it comes, so their order is that of the log. Ends when DESCRIPTOR is closed.
 */
#define FUSE_USE_VERSION 35
#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_INODE 2
#define NAME "disk"
#define MAX_IO (1u << 20)

static struct disk disk;

static void answer_request(struct disk *of, void *owner, const struct record *record, int error)
{
    fuse_req_t request = owner;

    if (error)
        fuse_reply_err(request, error);
    else if (record->kind == KIND_READ)
        fuse_reply_buf(request, (const char *)of->medium.view + record->offset, record->size);
    else if (record->kind == KIND_WRITE)
        fuse_reply_write(request, record->size);
    else
        fuse_reply_err(request, 0);
}

/* ---- the filesystem ---- */

static struct stat attributes(fuse_ino_t inode)
{
    if (inode == FUSE_ROOT_ID)
        return (struct stat){.st_ino = inode, .st_mode = S_IFDIR | 0700, .st_nlink = 2};
    return (struct stat){.st_ino = inode, .st_mode = S_IFREG | 0600, .st_nlink = 1, .st_size = (off_t)disk.medium.size};
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = FILE_INODE, .attr = attributes(FILE_INODE), .attr_timeout = 3600.0, .entry_timeout = 3600.0};

    if (parent != FUSE_ROOT_ID || strcmp(name, NAME))
        fuse_reply_err(request, ENOENT);
    else
        fuse_reply_entry(request, &entry);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
    (void)info;
    struct stat found = attributes(inode);
    fuse_reply_attr(request, &found, 3600.0);
}

static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
    (void)inode;
    info->direct_io = 1;
    fuse_reply_open(request, info);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *info)
{
    (void)inode, (void)info;
    uint64_t left = (uint64_t)offset < disk.medium.size ? disk.medium.size - (uint64_t)offset : 0;
    disk_take(&disk, request, KIND_READ, left ? (uint64_t)offset : 0, size < left ? size : left, NULL);
}

static void on_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t size, off_t offset, struct fuse_file_info *info)
{
    (void)inode, (void)info;
    disk_take(&disk, request, KIND_WRITE, (uint64_t)offset, size, data);
}

static void on_fsync(fuse_req_t request, fuse_ino_t inode, int datasync, struct fuse_file_info *info)
{
    (void)inode, (void)datasync, (void)info;
    disk_take(&disk, request, KIND_FLUSH, 0, 0, NULL);
}

/* What a loop device makes of discards and of writes of zeroes. */
static void on_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t size, struct fuse_file_info *info)
{
    (void)inode, (void)info;
    int zeroing = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    if (!zeroing || offset < 0 || size <= 0)
        fuse_reply_err(request, EOPNOTSUPP);
    else
        disk_take(&disk, request, KIND_ZERO, (uint64_t)offset, (uint64_t)size, NULL);
}

static void on_init(void *user, struct fuse_conn_info *connection)
{
    (void)user;
    connection->max_write = MAX_IO;
    connection->max_background = PARKED_MAX / 4;
}

static const struct fuse_lowlevel_ops OPERATIONS = {
    .init = on_init, .lookup = on_lookup, .getattr = on_getattr, .open = on_open, .read = on_read, .write = on_write, .fsync = on_fsync,
    .fallocate = on_fallocate,
};

/* Take every request that waits. 0, or a negative number at the end of the mount. */
static int take_waiting(struct fuse_session *session)
{
    static struct fuse_buf buffer;
    int got = 0;

    while (disk.parked_count < PARKED_MAX && (!disk.held || disk.cutting) && (got = fuse_session_receive_buf(session, &buffer)) > 0)
        fuse_session_process_buf(session, &buffer);
    return got == 0 || (got < 0 && got != -EAGAIN && got != -EINTR) ? -1 : 0;
}

/* 0, or -1 once nobody is there to give commands. */
static int command(struct fuse_session *session, int control)
{
    struct request request;
    struct answer answer = {0};
    ssize_t got = recv(control, &request, sizeof request, 0);

    if (got <= 0)
        return -1;
    if (got == sizeof request && request.command == COMMAND_CUT) {
        disk.cutting = 1;
        take_waiting(session);
    }
    answer.rc = got == sizeof request ? disk_obey(&disk, &request, answer.values) : -EINVAL;
    return send(control, &answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer ? 0 : -1;
}

static void serve(struct fuse_session *session, int control)
{
    for (;;) {
        struct pollfd waits[] = {{.fd = control, .events = POLLIN}, {.fd = disk.held ? -1 : fuse_session_fd(session), .events = POLLIN}};
        if (poll(waits, 2, -1) < 0 && errno != EINTR)
            return;
        if (waits[0].revents && command(session, control))
            return;
        if (waits[1].revents && !disk.held && take_waiting(session))
            return;
    }
}

int main(int count, char **words)
{
    char point[PATH_MAX];
    char *options[] = {words[0], "-o", "fsname=powerdisk"};
    struct fuse_args arguments = FUSE_ARGS_INIT(3, options);

    if (count != 5 || snprintf(point, sizeof point, "%s/%s", words[1], words[2]) >= (int)sizeof point)
        return 2;
    int control = atoi(words[4]);
    disk.answer = answer_request;
    if (medium_open(&disk.medium, strtoull(words[3], NULL, 10)) || recorder_open(&disk.recorder, words[1], words[2]))
        return 1;
    struct fuse_session *session = fuse_session_new(&arguments, &OPERATIONS, sizeof OPERATIONS, NULL);
    if (session == NULL || fuse_session_mount(session, point))
        return 1;
    int descriptor = fuse_session_fd(session);
    fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
    serve(session, control);
    disk_land(&disk);
    fuse_session_unmount(session);
    fuse_session_destroy(session);
    return 0;
}
