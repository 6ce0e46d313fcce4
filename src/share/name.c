/* What is done by name, in a folder: looking up, making, removing, renaming, linking. */
#include "share/private.h"

#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int name_look_up(struct share *share, struct node *node, struct request *request)
{
    const char *name;
    struct node *found;
    int r = request_name(request, &name);
    if (r >= 0)
        r = node_look_up(share, node, name, &found);
    return r < 0 ? r : entry_give(share, request, found);
}

int name_readlink(struct share *share, struct node *node, struct request *request)
{
    char target[PATH_MAX];
    if (node->type != S_IFLNK)
        return -EINVAL;
    ssize_t length = readlinkat(node->fd, "", target, sizeof target);
    if (length < 0)
        return -errno;
    request_give(request, target, (size_t)length);
    return 0;
}

int name_make(const struct node *folder, const char *name, int flags, mode_t mode)
{
    struct open_how how = {
        .flags = (uint64_t)(flags & ~O_TRUNC) | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
        .mode = mode & 01777, /* S4 */
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS};
    long fd = syscall(SYS_openat2, folder->fd, name, &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
}

int name_own(struct share *share, const struct node *folder, int fd,
             const struct fuse_in_header *header)
{
    struct stat status;
    if (!share->options.owners)
        return 0;
    if (fstatat(folder->fd, "", &status, AT_EMPTY_PATH) < 0)
        return -errno;
    gid_t gid = status.st_mode & S_ISGID ? (gid_t)-1 : header->gid;
    if (fchownat(fd, "", header->uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    return 0;
}

/* The reply for what was just made. */
static int made(struct share *share, struct node *folder, const char *name, struct request *request)
{
    struct node *node;
    int r = node_look_up(share, folder, name, &node);
    if (r < 0)
        return r;
    r = name_own(share, folder, node->fd, &request->header);
    if (r < 0) {
        node_forget(share, node->id, 1);
        return r;
    }
    return entry_give(share, request, node);
}

int name_symlink(struct share *share, struct node *node, struct request *request)
{
    const char *name, *target;
    int r = request_name(request, &name);
    if (r >= 0)
        r = request_text(request, &target);
    if (r < 0)
        return r;
    if (symlinkat(target, node->fd, name) < 0)
        return -errno;
    return made(share, node, name, request);
}

int name_mknod(struct share *share, struct node *node, struct request *request)
{
    struct fuse_mknod_in in;
    const char *name;
    int r = request_take_named(request, &in, sizeof in, &name);
    if (r < 0)
        return r;
    if (in.mode & S_IFMT && !S_ISREG(in.mode)) /* S3 */
        return -EPERM;
    _cleanup_fd_ int fd = name_make(node, name, O_WRONLY, in.mode);
    return fd < 0 ? fd : made(share, node, name, request);
}

int name_mkdir(struct share *share, struct node *node, struct request *request)
{
    struct fuse_mkdir_in in;
    const char *name;
    int r = request_take_named(request, &in, sizeof in, &name);
    if (r < 0)
        return r;
    if (mkdirat(node->fd, name, in.mode & 01777) < 0)
        return -errno;
    return made(share, node, name, request);
}

static int remove_name(struct node *node, struct request *request, int flags)
{
    const char *name;
    int r = request_name(request, &name);
    if (r < 0)
        return r;
    return unlinkat(node->fd, name, flags) < 0 ? -errno : 0;
}

int name_unlink(struct share *share, struct node *node, struct request *request)
{
    return remove_name(node, request, 0);
}

int name_rmdir(struct share *share, struct node *node, struct request *request)
{
    return remove_name(node, request, AT_REMOVEDIR);
}

static int rename_names(struct share *share, struct node *node, struct request *request,
                        uint64_t folder, uint32_t flags)
{
    const char *from, *to;
    int r = request_name(request, &from);
    if (r >= 0)
        r = request_name(request, &to);
    if (r < 0)
        return r;
    struct node *other = node_find(share, folder);
    if (!other)
        return -ESTALE;
    if (flags & ~(uint32_t)(RENAME_NOREPLACE | RENAME_EXCHANGE))
        return -EINVAL;
    return renameat2(node->fd, from, other->fd, to, flags) < 0 ? -errno : 0;
}

int name_rename(struct share *share, struct node *node, struct request *request)
{
    struct fuse_rename_in in;
    int r = request_take(request, &in, sizeof in);
    return r < 0 ? r : rename_names(share, node, request, in.newdir, 0);
}

int name_rename2(struct share *share, struct node *node, struct request *request)
{
    struct fuse_rename2_in in;
    int r = request_take(request, &in, sizeof in);
    return r < 0 ? r : rename_names(share, node, request, in.newdir, in.flags);
}

int name_link(struct share *share, struct node *node, struct request *request)
{
    struct fuse_link_in in;
    const char *name;
    char from[16];
    int r = request_take_named(request, &in, sizeof in, &name);
    if (r < 0)
        return r;
    struct node *old = node_find(share, in.oldnodeid);
    if (!old)
        return -ESTALE;
    /* AT_SYMLINK_FOLLOW is about the descriptor's name only: it leads to the very file, a symbolic
     * link too. */
    descriptor_name(old->fd, from);
    if (linkat(share->descriptors, from, node->fd, name, AT_SYMLINK_FOLLOW) < 0)
        return -errno;
    r = node_look_up(share, node, name, &old);
    return r < 0 ? r : entry_give(share, request, old);
}
