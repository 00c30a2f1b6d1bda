/* A filesystem in memory that notes everything that changes it, with its data and in order: crashfs LOG PREALLOCATES MOUNTPOINT.
 *
 * One request at a time, no caches above it: what is in the log before an answer is what a process saw happen before it. A file's log number is
 * `node`, the root is 1. LOG: records of struct record, then `name_size` bytes of names ("old\0new" for a rename), then `data_size` bytes of data.
 * PREALLOCATES 0: fallocate() of blocks is not offered, as on some filesystems; files are then as small as what is in them. */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define NODES_MAX 65536
#define NAME_ROOM 128
#define FILE_ROOM ((size_t)256 << 20) /* reserved, not taken */
#define PAGE 4096
#define FREE_BLOCKS (1u << 20)

enum kind { WRITE = 1, ZERO, SIZE, SYNC, MAKE, MAKE_DIRECTORY, RENAME, REMOVE, SYNC_DIRECTORY };

struct record {
    uint32_t kind, durable; /* durable: a write that was asked to be (O_DSYNC) */
    uint64_t node, directory, offset, size;
    uint32_t name_size, data_size;
};

struct node {
    int used, is_directory, removed, opened;
    mode_t mode;
    uint64_t parent;
    char name[NAME_ROOM];
    uint8_t *data, *touched; /* touched: a byte per page */
    size_t size;
};

static struct node nodes[NODES_MAX];
static uint64_t last = 1;
static int log_fd, preallocates;

static void note(enum kind kind, uint64_t node, uint64_t directory, uint64_t offset, uint64_t size, int durable, const char *names, size_t name_size,
                 const void *data, size_t data_size)
{
    struct record record = {
        .kind = kind, .durable = (uint32_t)durable, .node = node, .directory = directory, .offset = offset, .size = size,
        .name_size = (uint32_t)name_size, .data_size = (uint32_t)data_size,
    };
    struct { const void *part; size_t size; } parts[] = {{&record, sizeof record}, {names, name_size}, {data, data_size}};
    for (size_t i = 0; i < 3; i++)
        if (parts[i].size && write(log_fd, parts[i].part, parts[i].size) != (ssize_t)parts[i].size)
            abort(); /* a log with a hole in it proves nothing */
}

static uint64_t child(uint64_t parent, const char *name, size_t size)
{
    for (uint64_t i = 1; i <= last; i++)
        if (nodes[i].used && !nodes[i].removed && nodes[i].parent == parent && strlen(nodes[i].name) == size && !memcmp(nodes[i].name, name, size))
            return i;
    return 0;
}

/* The directory of a path, and the last name of it; 0: there is none. */
static uint64_t directory_of(const char *path, const char **name)
{
    uint64_t at = 1;
    const char *slash;

    path++;
    while ((slash = strchr(path, '/')) != NULL) {
        at = child(at, path, (size_t)(slash - path));
        if (at == 0)
            return 0;
        path = slash + 1;
    }
    *name = path;
    return at;
}

static uint64_t find(const char *path)
{
    const char *name;

    if (!strcmp(path, "/"))
        return 1;
    uint64_t directory = directory_of(path, &name);
    return directory ? child(directory, name, strlen(name)) : 0;
}

static struct node *make(const char *path, mode_t mode, int is_directory, uint64_t *number, int *rc)
{
    const char *name;
    uint64_t directory = directory_of(path, &name);

    *rc = directory == 0 ? -ENOENT : child(directory, name, strlen(name)) ? -EEXIST : strlen(name) >= NAME_ROOM ? -ENAMETOOLONG : last + 1 == NODES_MAX ? -ENFILE : 0;
    if (*rc)
        return NULL;
    struct node *node = &nodes[++last];
    *node = (struct node){.used = 1, .is_directory = is_directory, .mode = mode, .parent = directory};
    strcpy(node->name, name);
    if (!is_directory) {
        node->data = mmap(NULL, FILE_ROOM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        node->touched = calloc(FILE_ROOM / PAGE, 1);
        if (node->data == MAP_FAILED || node->touched == NULL)
            abort();
    }
    *number = last;
    note(is_directory ? MAKE_DIRECTORY : MAKE, last, directory, 0, 0, 0, name, strlen(name), NULL, 0);
    return node;
}

static void let_go(struct node *node)
{
    if (!node->removed || node->opened || node->data == NULL)
        return;
    munmap(node->data, FILE_ROOM);
    free(node->touched);
    node->data = node->touched = NULL;
}

static int attributes(const char *path, struct stat *status, struct fuse_file_info *info)
{
    uint64_t number = info && info->fh ? info->fh : path ? find(path) : 0;
    const struct node *node = &nodes[number];

    if (number == 0)
        return -ENOENT;
    memset(status, 0, sizeof *status);
    status->st_ino = number;
    status->st_mode = node->is_directory ? S_IFDIR | node->mode : S_IFREG | node->mode;
    status->st_nlink = node->is_directory ? 2 : 1;
    status->st_size = (off_t)node->size;
    status->st_blksize = PAGE;
    for (size_t page = 0; node->touched && page * PAGE < node->size; page++)
        status->st_blocks += node->touched[page] ? PAGE / 512 : 0;
    return 0;
}

static int read_directory(const char *path, void *room, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *info, enum fuse_readdir_flags flags)
{
    uint64_t number = info->fh;

    for (uint64_t i = 2; i <= last; i++)
        if (nodes[i].used && !nodes[i].removed && nodes[i].parent == number)
            fill(room, nodes[i].name, NULL, 0, 0);
    return 0;
}

static int make_directory(const char *path, mode_t mode)
{
    uint64_t number;
    int rc;

    make(path, mode, 1, &number, &rc);
    return rc;
}

static int open_node(uint64_t number, struct fuse_file_info *info)
{
    if (number == 0)
        return -ENOENT;
    nodes[number].opened++;
    info->fh = number;
    info->direct_io = 1;
    return 0;
}

static void resize(uint64_t number, size_t size)
{
    struct node *node = &nodes[number];

    if (size < node->size)
        memset(node->data + size, 0, node->size - size);
    for (size_t page = (size + PAGE - 1) / PAGE; page * PAGE < node->size; page++)
        node->touched[page] = 0;
    node->size = size;
    note(SIZE, number, 0, 0, size, 0, NULL, 0, NULL, 0);
}

static int open_file(const char *path, struct fuse_file_info *info)
{
    uint64_t number = find(path);
    int rc = open_node(number, info);

    if (rc == 0 && info->flags & O_TRUNC && nodes[number].size)
        resize(number, 0);
    return rc;
}

static int create_file(const char *path, mode_t mode, struct fuse_file_info *info)
{
    uint64_t number;
    int rc;

    make(path, mode & 0777, 0, &number, &rc);
    return rc ? rc : open_node(number, info);
}

static int close_file(const char *path, struct fuse_file_info *info)
{
    nodes[info->fh].opened--;
    let_go(&nodes[info->fh]);
    return 0;
}

static int read_file(const char *path, char *data, size_t size, off_t offset, struct fuse_file_info *info)
{
    const struct node *node = &nodes[info->fh];

    if ((size_t)offset >= node->size)
        return 0;
    size = size < node->size - (size_t)offset ? size : node->size - (size_t)offset;
    for (size_t done = 0, part; done < size; done += part) { /* holes are not touched, so that they stay holes */
        size_t at = (size_t)offset + done;
        part = PAGE - at % PAGE < size - done ? PAGE - at % PAGE : size - done;
        if (node->touched[at / PAGE])
            memcpy(data + done, node->data + at, part);
        else
            memset(data + done, 0, part);
    }
    return (int)size;
}

static int write_file(const char *path, const char *data, size_t size, off_t offset, struct fuse_file_info *info)
{
    struct node *node = &nodes[info->fh];

    if (size == 0)
        return 0;
    if ((size_t)offset + size > FILE_ROOM)
        return -EFBIG;
    memcpy(node->data + offset, data, size);
    memset(node->touched + offset / PAGE, 1, (offset + size - 1) / PAGE - offset / PAGE + 1);
    if ((size_t)offset + size > node->size)
        node->size = (size_t)offset + size;
    note(WRITE, info->fh, 0, (uint64_t)offset, size, (info->flags & O_DSYNC) != 0, NULL, 0, data, size);
    return (int)size;
}

static int truncate_file(const char *path, off_t size, struct fuse_file_info *info)
{
    uint64_t number = info ? info->fh : find(path);

    if (number == 0)
        return -ENOENT;
    if ((size_t)size > FILE_ROOM)
        return -EFBIG;
    resize(number, (size_t)size);
    return 0;
}

static int allocate(const char *path, int mode, off_t offset, off_t size, struct fuse_file_info *info)
{
    struct node *node = &nodes[info->fh];

    if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)) {
        if ((size_t)offset >= node->size)
            return 0;
        size_t length = (size_t)size < node->size - (size_t)offset ? (size_t)size : node->size - (size_t)offset;
        memset(node->data + offset, 0, length);
        note(ZERO, info->fh, 0, (uint64_t)offset, length, 0, NULL, 0, NULL, 0);
        return 0;
    }
    if (mode != 0 || !preallocates)
        return -EOPNOTSUPP;
    if ((size_t)(offset + size) > FILE_ROOM)
        return -ENOSPC;
    if ((size_t)(offset + size) > node->size)
        resize(info->fh, (size_t)(offset + size));
    return 0;
}

static int sync_file(const char *path, int data_only, struct fuse_file_info *info)
{
    note(SYNC, info->fh, 0, 0, 0, 0, NULL, 0, NULL, 0);
    return 0;
}

static int open_directory(const char *path, struct fuse_file_info *info)
{
    info->fh = find(path);
    return info->fh ? 0 : -ENOENT;
}

static int sync_directory(const char *path, int data_only, struct fuse_file_info *info)
{
    note(SYNC_DIRECTORY, info->fh, 0, 0, 0, 0, NULL, 0, NULL, 0);
    return 0;
}

static int remove_file(const char *path)
{
    uint64_t number = find(path);

    if (number == 0)
        return -ENOENT;
    struct node *node = &nodes[number];
    note(REMOVE, number, node->parent, 0, 0, 0, node->name, strlen(node->name), NULL, 0);
    node->removed = 1;
    let_go(node);
    return 0;
}

static int rename_file(const char *from, const char *to, unsigned flags)
{
    char names[2 * NAME_ROOM];
    const char *name;
    uint64_t number = find(from), directory = directory_of(to, &name), taken = find(to);

    if (number == 0 || directory == 0)
        return -ENOENT;
    if (flags || nodes[number].parent != directory || strlen(name) >= NAME_ROOM) /* nobody here asks for that */
        return -EINVAL;
    size_t size = strlen(nodes[number].name) + 1;
    memcpy(names, nodes[number].name, size);
    memcpy(names + size, name, strlen(name));
    note(RENAME, number, directory, 0, 0, 0, names, size + strlen(name), NULL, 0);
    if (taken) {
        nodes[taken].removed = 1;
        let_go(&nodes[taken]);
    }
    strcpy(nodes[number].name, name);
    return 0;
}

static int figures(const char *path, struct statvfs *status)
{
    memset(status, 0, sizeof *status);
    status->f_bsize = status->f_frsize = PAGE;
    status->f_blocks = status->f_bfree = status->f_bavail = FREE_BLOCKS;
    status->f_namemax = NAME_ROOM - 1;
    return 0;
}

static int change_mode(const char *path, mode_t mode, struct fuse_file_info *info)
{
    uint64_t number = info ? info->fh : find(path);

    if (number == 0)
        return -ENOENT;
    nodes[number].mode = mode & 07777;
    return 0;
}

static void *begin(struct fuse_conn_info *connection, struct fuse_config *config)
{
    config->hard_remove = config->nullpath_ok = 1;
    config->entry_timeout = config->attr_timeout = config->negative_timeout = 0;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = begin, .getattr = attributes, .readdir = read_directory, .mkdir = make_directory, .open = open_file, .create = create_file,
    .release = close_file, .read = read_file, .write = write_file, .truncate = truncate_file, .fallocate = allocate, .fsync = sync_file,
    .opendir = open_directory, .fsyncdir = sync_directory, .unlink = remove_file, .rename = rename_file, .statfs = figures, .chmod = change_mode,
};

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    log_fd = open(arguments[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    preallocates = arguments[2][0] == '1';
    if (log_fd < 0)
        return 1;
    nodes[1] = (struct node){.used = 1, .is_directory = 1, .mode = 0700};
    char *call[] = {arguments[0], "-f", "-s", arguments[3], NULL};
    return fuse_main(4, call, &operations, NULL);
}
