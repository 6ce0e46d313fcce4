#include "share/private.h"

#include "base/own.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/statfs.h>
#include <unistd.h>

/* For so long the guest's kernel believes what it was told; the host may change it meanwhile. */
enum { VALID_SECONDS = 1 };

/* Two file systems in one folder may have equal inode numbers; to the guest they are one. */
static uint64_t inode_number(const struct share *share, dev_t dev, ino_t ino)
{
    return dev == share->dev ? ino : ino ^ (uint64_t)dev << 44;
}

static void attr_fill(const struct share *share, const struct stat *from, struct fuse_attr *to)
{
    *to = (struct fuse_attr){
        .ino = inode_number(share, from->st_dev, from->st_ino),
        .size = (uint64_t)from->st_size,
        .blocks = (uint64_t)from->st_blocks,
        .atime = (uint64_t)from->st_atim.tv_sec,
        .mtime = (uint64_t)from->st_mtim.tv_sec,
        .ctime = (uint64_t)from->st_ctim.tv_sec,
        .atimensec = (uint32_t)from->st_atim.tv_nsec,
        .mtimensec = (uint32_t)from->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)from->st_ctim.tv_nsec,
        .mode = from->st_mode,
        .nlink = (uint32_t)from->st_nlink,
        .uid = from->st_uid,
        .gid = from->st_gid,
        .rdev = (uint32_t)from->st_rdev,
        .blksize = (uint32_t)from->st_blksize,
    };
}

int attr_of(struct share *share, const struct node *node, struct fuse_attr *ret_attr)
{
    struct stat status;
    if (fstatat(node->fd, "", &status, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    attr_fill(share, &status, ret_attr);
    return 0;
}

int entry_of(struct share *share, const struct node *node, struct fuse_entry_out *ret_entry)
{
    struct fuse_entry_out entry = {
        .nodeid = node->id, .entry_valid = VALID_SECONDS, .attr_valid = VALID_SECONDS};
    int r = attr_of(share, node, &entry.attr);
    if (r >= 0)
        *ret_entry = entry;
    return r;
}

int entry_give(struct share *share, struct request *request, struct node *node)
{
    struct fuse_entry_out entry;
    int r = entry_of(share, node, &entry);
    if (r < 0)
        node_forget(share, node->id, 1);
    else
        request_give(request, &entry, sizeof entry);
    return r;
}

static int reply(struct share *share, struct node *node, struct request *request)
{
    struct fuse_attr_out out = {.attr_valid = VALID_SECONDS};
    int r = attr_of(share, node, &out.attr);
    if (r >= 0)
        request_give(request, &out, sizeof out);
    return r;
}

int attr_get(struct share *share, struct node *node, struct request *request)
{
    return reply(share, node, request);
}

static int set_size(struct share *share, struct node *node, const struct fuse_setattr_in *in)
{
    struct handle *handle = in->valid & FATTR_FH ? handle_find(share, in->fh, false) : NULL;
    if (in->size > INT64_MAX)
        return -EFBIG;
    if (handle)
        return ftruncate(handle->fd, (off_t)in->size) < 0 ? -errno : 0;
    if (node->type != S_IFREG)
        return node->type == S_IFDIR ? -EISDIR : -EINVAL;
    int fd = node_open(share, node, O_WRONLY);
    _cleanup_fd_ int owned = fd;
    if (fd < 0)
        return fd;
    return ftruncate(fd, (off_t)in->size) < 0 ? -errno : 0;
}

static int set_mode(struct share *share, struct node *node, uint32_t mode)
{
    char name[16];
    /* The descriptor's name is a link that leads on: with a symbolic link behind it that would be
     * what this is not about. */
    if (node->type == S_IFLNK)
        return -EOPNOTSUPP;
    mode &= node->type == S_IFDIR ? 07777 : 01777; /* S4; a folder's hands down its group only */
    mode &= ~(uint32_t)S_ISUID;
    descriptor_name(node->fd, name);
    return fchmodat(share->descriptors, name, mode, 0) < 0 ? -errno : 0;
}

static int set_owner(struct node *node, const struct fuse_setattr_in *in)
{
    uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
    gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;
    return fchownat(node->fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

static struct timespec time_of(uint32_t valid, uint32_t given, uint32_t now, uint64_t seconds,
                               uint32_t nanoseconds)
{
    if (valid & now)
        return (struct timespec){.tv_nsec = UTIME_NOW};
    if (!(valid & given))
        return (struct timespec){.tv_nsec = UTIME_OMIT};
    /* The kernel refuses what is no number of nanoseconds, but for two that have a meaning there.
     */
    if (nanoseconds >= 1000000000)
        nanoseconds = 999999999;
    return (struct timespec){.tv_sec = (time_t)seconds, .tv_nsec = (long)nanoseconds};
}

static int set_times(struct node *node, const struct fuse_setattr_in *in)
{
    const struct timespec times[] = {
        time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
        time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
    };
    return utimensat(node->fd, "", times, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0 ? -errno : 0;
}

/* Owner before mode and times, for the kernel takes bits of the mode away with a change of owner,
 * and sets times with one of the size. */
int attr_set(struct share *share, struct node *node, struct request *request)
{
    struct fuse_setattr_in in;
    int r = request_take(request, &in, sizeof in);
    if (r >= 0 && in.valid & FATTR_SIZE)
        r = set_size(share, node, &in);
    if (r >= 0 && in.valid & (FATTR_UID | FATTR_GID))
        r = set_owner(node, &in);
    if (r >= 0 && in.valid & FATTR_MODE)
        r = set_mode(share, node, in.mode);
    if (r >= 0 && in.valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW))
        r = set_times(node, &in);
    return r < 0 ? r : reply(share, node, request);
}

int attr_statfs(struct share *share, struct node *node, struct request *request)
{
    struct statfs status;
    if (fstatfs(node->fd, &status) < 0)
        return -errno;
    struct fuse_statfs_out out = {.st = {.blocks = status.f_blocks,
                                         .bfree = status.f_bfree,
                                         .bavail = status.f_bavail,
                                         .files = status.f_files,
                                         .ffree = status.f_ffree,
                                         .bsize = (uint32_t)status.f_bsize,
                                         .namelen = (uint32_t)status.f_namelen,
                                         .frsize = (uint32_t)status.f_frsize}};
    request_give(request, &out, sizeof out);
    return 0;
}
