#include "share/private.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What getdents64() gives, getdents(2). */
struct dirent_out {
    uint64_t ino;
    int64_t next; /* where the entry after it is */
    uint16_t length;
    uint8_t type;
    char name[];
};

int folder_open(struct share *share, struct node *node, struct request *request)
{
    struct fuse_open_in in;
    int r = request_take(request, &in, sizeof in);
    if (r < 0)
        return r;
    if (node->type != S_IFDIR)
        return -ENOTDIR;
    int fd = node_open(share, node, O_RDONLY | O_DIRECTORY);
    return fd < 0 ? fd : handle_give(share, request, fd, true);
}

/* A list in the making. */
struct listing {
    struct share *share;
    struct node *folder;
    struct request *request;
    size_t room; /* that the guest has */
    bool plus;   /* with inodes */
};

static bool is_dots(const char *name)
{
    return !strcmp(name, ".") || !strcmp(name, "..");
}

/* What is gone meanwhile, or cannot be looked at, is listed without an inode (nodeid 0). The dots
 * are never looked up: the guest knows them, and ".." of the root is not its business. */
static void fill_entry(struct listing *listing, const char *name, struct fuse_entry_out *ret_entry)
{
    struct node *node;
    *ret_entry = (struct fuse_entry_out){0};
    if (is_dots(name) || node_look_up(listing->share, listing->folder, name, &node) < 0)
        return;
    if (entry_of(listing->share, node, ret_entry) < 0)
        node_forget(listing->share, node->id, 1);
}

/* False where there is no room left for it. */
static bool list(struct listing *listing, const struct dirent_out *from)
{
    static const uint8_t zeros[8] = {0};
    struct request *request = listing->request;
    size_t length = strlen(from->name);
    size_t head = FUSE_NAME_OFFSET + (listing->plus ? sizeof(struct fuse_entry_out) : 0);
    size_t size = align_up(head + length, 8);
    if (size > listing->room - request->length)
        return false;
    struct fuse_dirent entry = {.ino = from->ino,
                                .off = (uint64_t)from->next,
                                .namelen = (uint32_t)length,
                                .type = from->type};
    /* The folder above the root is the guest's own, whatever it is here. */
    if (listing->folder == &listing->share->root && is_dots(from->name))
        entry.ino = listing->share->root.ino;
    if (listing->plus) {
        struct fuse_entry_out inode;
        fill_entry(listing, from->name, &inode);
        request_give(request, &inode, sizeof inode);
    }
    request_give(request, &entry, FUSE_NAME_OFFSET);
    request_give(request, from->name, length);
    request_give(request, zeros, size - head - length);
    return true;
}

/* The kernel's own list: well-formed. */
static size_t list_all(struct listing *listing, struct handle *handle, size_t got)
{
    const uint8_t *bytes = listing->share->folder;
    for (size_t at = 0; at < got;) {
        const struct dirent_out *entry = (const void *)(bytes + at);
        if (!list(listing, entry))
            return at;
        handle->position = entry->next;
        at += entry->length;
    }
    return got;
}

static int read_folder(struct share *share, struct node *node, struct request *request, bool plus)
{
    struct fuse_read_in in;
    struct handle *handle;
    int r = handle_take(share, request, true, &in, sizeof in, &handle);
    if (r < 0)
        return r;
    /* Any number is a place to the kernel, if not a useful one. */
    if (in.offset > INT64_MAX)
        return -EINVAL;
    if ((int64_t)in.offset != handle->position && lseek(handle->fd, (off_t)in.offset, SEEK_SET) < 0)
        return -errno;
    handle->position = (int64_t)in.offset;
    struct listing listing = {.share = share,
                              .folder = node,
                              .request = request,
                              .room = min((size_t)in.size, (size_t)SHARE_WRITE_MAX),
                              .plus = plus};
    /* What does not fit is read again; with inodes an entry is about five times as long as the
     * kernel's, which has room for the longest name at least. */
    size_t want = plus ? max(listing.room / 5, (size_t)512) : listing.room;
    want = min(want, sizeof share->folder);
    long got = syscall(SYS_getdents64, handle->fd, share->folder, want);
    if (got < 0)
        return -errno;
    size_t listed = list_all(&listing, handle, (size_t)got);
    if (listed < (size_t)got) {
        if (listed == 0)
            return -EINVAL; /* no room for one */
        if (lseek(handle->fd, (off_t)handle->position, SEEK_SET) < 0)
            return -errno;
    }
    return 0;
}

int folder_read(struct share *share, struct node *node, struct request *request)
{
    return read_folder(share, node, request, false);
}

int folder_read_plus(struct share *share, struct node *node, struct request *request)
{
    return read_folder(share, node, request, true);
}

int folder_release(struct share *share, struct node *node, struct request *request)
{
    return handle_release(share, request, true);
}

int folder_fsync(struct share *share, struct node *node, struct request *request)
{
    return handle_sync(share, request, true);
}
