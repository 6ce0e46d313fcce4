#include "share/private.h"

#include "base/bytes.h"
#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE_TRIES = 8 };

/* What of the guest's flags means anything here. O_APPEND is done by file_write(): a descriptor
 * that has it would put there, too, what the guest's page cache writes back to elsewhere. */
static int open_flags(uint32_t from)
{
    return (int)(from & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC));
}

static bool changes(uint32_t flags)
{
    return (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
}

int file_open(struct share *share, struct node *node, struct request *request)
{
    struct fuse_open_in in;
    int r = request_take(request, &in, sizeof in);
    if (r < 0)
        return r;
    if (share->options.read_only && changes(in.flags))
        return -EROFS;
    if (node->type == S_IFDIR)
        return -EISDIR;
    int fd = node_open(share, node, open_flags(in.flags));
    return fd < 0 ? fd : handle_give(share, request, fd, false);
}

/* What has the name already, where the guest does not mind. */
static int open_there(struct share *share, struct node *folder, const char *name, uint32_t flags)
{
    struct node *node;
    int r = node_look_up(share, folder, name, &node);
    if (r < 0)
        return r;
    r = node->type == S_IFDIR ? -EISDIR : node_open(share, node, open_flags(flags));
    node_forget(share, node->id, 1);
    return r;
}

/* Never opens by name what might be a device or a FIFO: a new file is made, or else what is there
 * is looked at first. Somebody may make and remove it meanwhile, but not for ever. */
static int open_or_make(struct share *share, struct node *folder, const char *name,
                        const struct fuse_create_in *in, const struct fuse_in_header *header)
{
    int fd = -EEXIST;
    for (int i = 0; i < CREATE_TRIES; i++) {
        fd = name_make(folder, name, open_flags(in->flags), in->mode);
        int r = fd < 0 ? 0 : name_own(share, folder, fd, header);
        if (r < 0) {
            close(fd);
            return r;
        }
        if (fd != -EEXIST || in->flags & O_EXCL)
            return fd;
        fd = open_there(share, folder, name, in->flags);
        if (fd != -ENOENT)
            return fd;
    }
    return fd;
}

int file_create(struct share *share, struct node *node, struct request *request)
{
    struct fuse_create_in in;
    const char *name;
    int r = request_take_named(request, &in, sizeof in, &name);
    if (r < 0)
        return r;
    _cleanup_fd_ int fd = open_or_make(share, node, name, &in, &request->header);
    if (fd < 0)
        return fd;
    struct node *made;
    int path = descriptor_reopen(share, fd, O_PATH);
    r = path < 0 ? path : node_enter(share, path, &made);
    if (r >= 0)
        r = entry_give(share, request, made);
    if (r < 0)
        return r;
    r = handle_give(share, request, take_fd(&fd), false);
    if (r < 0)
        node_forget(share, made->id, 1);
    return r;
}

int file_read(struct share *share, struct node *node, struct request *request)
{
    struct fuse_read_in in;
    struct handle *handle;
    int r = handle_take(share, request, false, &in, sizeof in, &handle);
    if (r < 0)
        return r;
    if (in.size > SHARE_WRITE_MAX || in.offset > INT64_MAX)
        return -EINVAL;
    /* Less than asked for is the end of the file to the guest. */
    size_t done = 0;
    while (done < in.size) {
        ssize_t n =
            pread(handle->fd, request->reply + done, in.size - done, (off_t)(in.offset + done));
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n == 0)
            break;
        done += n > 0 ? (size_t)n : 0;
    }
    request->length = done;
    return 0;
}

int file_write(struct share *share, struct node *node, struct request *request)
{
    struct fuse_write_in in;
    struct handle *handle;
    int r = handle_take(share, request, false, &in, sizeof in, &handle);
    if (r < 0)
        return r;
    if (in.size > request->left || in.offset > INT64_MAX)
        return -EINVAL;
    bool append = in.flags & O_APPEND && !(in.write_flags & FUSE_WRITE_CACHE);
    const struct iovec iov = {.iov_base = (void *)request->body, .iov_len = in.size};
    ssize_t n;
    do
        n = pwritev2(handle->fd, &iov, 1, (off_t)in.offset, append ? RWF_APPEND : 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    struct fuse_write_out out = {.size = (uint32_t)n};
    request_give(request, &out, sizeof out);
    return 0;
}

int file_release(struct share *share, struct node *node, struct request *request)
{
    return handle_release(share, request, false);
}

int file_fsync(struct share *share, struct node *node, struct request *request)
{
    return handle_sync(share, request, false);
}

int file_fallocate(struct share *share, struct node *node, struct request *request)
{
    enum { MODES = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE };
    struct fuse_fallocate_in in;
    struct handle *handle;
    int r = handle_take(share, request, false, &in, sizeof in, &handle);
    if (r < 0)
        return r;
    if (in.mode & ~(uint32_t)MODES)
        return -EOPNOTSUPP;
    if (in.offset > INT64_MAX || in.length > INT64_MAX)
        return -EINVAL;
    return fallocate(handle->fd, (int)in.mode, (off_t)in.offset, (off_t)in.length) < 0 ? -errno : 0;
}

/* Linux asks only for the two that need the file system. */
int file_lseek(struct share *share, struct node *node, struct request *request)
{
    struct fuse_lseek_in in;
    struct handle *handle;
    int r = handle_take(share, request, false, &in, sizeof in, &handle);
    if (r < 0)
        return r;
    if ((in.whence != SEEK_DATA && in.whence != SEEK_HOLE) || in.offset > INT64_MAX)
        return -EINVAL;
    off_t at = lseek(handle->fd, (off_t)in.offset, (int)in.whence);
    if (at < 0)
        return -errno;
    struct fuse_lseek_out out = {.offset = (uint64_t)at};
    request_give(request, &out, sizeof out);
    return 0;
}
