/*
 * The table of requests. What has no row is answered with ENOSYS.
 */
#include "share/private.h"

#include "base/bytes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

/* The oldest version that a virtio-fs driver speaks, and what we speak to all. */
enum { MINOR = 31, PAGE = 4096 };

/* What we want of what the guest's kernel can. Without WRITEBACK_CACHE: what a guest's write() has
 * done is there for the host's processes to see. */
enum {
    WANTED = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_AUTO_INVAL_DATA |
             FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
             FUSE_HANDLE_KILLPRIV | FUSE_MAX_PAGES,
};

static void forget_all(struct share *share)
{
    handle_close_all(share);
    node_forget_all(share);
    share->greeted = false;
}

/* A guest that comes again has been reset: what it knew is gone. */
static int greet(struct share *share, struct node *node, struct request *request)
{
    /* A field more came with 7.36; drivers without it end behind the flags. */
    struct {
        uint32_t major, minor, max_readahead, flags;
    } in;
    int r = request_take(request, &in, sizeof in);
    if (r < 0)
        return r;
    struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = MINOR};
    if (in.major < FUSE_KERNEL_VERSION || (in.major == FUSE_KERNEL_VERSION && in.minor < MINOR))
        return -EPROTO;
    forget_all(share);
    /* One with a larger number hears ours and asks again. */
    if (in.major == FUSE_KERNEL_VERSION) {
        out.max_readahead = min(in.max_readahead, (uint32_t)SHARE_WRITE_MAX);
        out.flags = in.flags & WANTED;
        out.max_background = 64;
        out.congestion_threshold = 48;
        out.max_write = SHARE_WRITE_MAX;
        out.time_gran = 1;
        out.max_pages = SHARE_WRITE_MAX / PAGE;
        share->greeted = true;
    }
    request_give(request, &out, sizeof out);
    return 0;
}

static int leave(struct share *share, struct node *node, struct request *request)
{
    forget_all(share);
    return 0;
}

static int forget(struct share *share, struct node *node, struct request *request)
{
    struct fuse_forget_in in;
    if (request_take(request, &in, sizeof in) >= 0)
        node_forget(share, request->header.nodeid, in.nlookup);
    return 0;
}

/* The count is the guest's word; the bytes that follow are the bound. */
static int forget_many(struct share *share, struct node *node, struct request *request)
{
    struct fuse_batch_forget_in in;
    struct fuse_forget_one one;
    if (request_take(request, &in, sizeof in) < 0)
        return 0;
    for (uint32_t i = 0; i < in.count && request_take(request, &one, sizeof one) >= 0; i++)
        node_forget(share, one.nodeid, one.nlookup);
    return 0;
}

/* Requests are done one after the other: what is to be interrupted has been answered. */
static int interrupt(struct share *share, struct node *node, struct request *request)
{
    return 0;
}

enum {
    ANY_NODE = 1, /* the request's node may be nothing */
    NO_REPLY = 2,
    CHANGES = 4, /* refused where the share is read-only */
};

static const struct row {
    int (*serve)(struct share *share, struct node *node, struct request *request);
    unsigned how;
} rows[] = {
    [FUSE_LOOKUP] = {name_look_up, 0},
    [FUSE_FORGET] = {forget, ANY_NODE | NO_REPLY},
    [FUSE_GETATTR] = {attr_get, 0},
    [FUSE_SETATTR] = {attr_set, CHANGES},
    [FUSE_READLINK] = {name_readlink, 0},
    [FUSE_SYMLINK] = {name_symlink, CHANGES},
    [FUSE_MKNOD] = {name_mknod, CHANGES},
    [FUSE_MKDIR] = {name_mkdir, CHANGES},
    [FUSE_UNLINK] = {name_unlink, CHANGES},
    [FUSE_RMDIR] = {name_rmdir, CHANGES},
    [FUSE_RENAME] = {name_rename, CHANGES},
    [FUSE_LINK] = {name_link, CHANGES},
    [FUSE_OPEN] = {file_open, 0},
    [FUSE_READ] = {file_read, 0},
    [FUSE_WRITE] = {file_write, CHANGES},
    [FUSE_STATFS] = {attr_statfs, 0},
    [FUSE_RELEASE] = {file_release, ANY_NODE},
    [FUSE_FSYNC] = {file_fsync, 0},
    [FUSE_INIT] = {greet, ANY_NODE},
    [FUSE_OPENDIR] = {folder_open, 0},
    [FUSE_READDIR] = {folder_read, 0},
    [FUSE_RELEASEDIR] = {folder_release, ANY_NODE},
    [FUSE_FSYNCDIR] = {folder_fsync, 0},
    [FUSE_CREATE] = {file_create, CHANGES},
    [FUSE_INTERRUPT] = {interrupt, ANY_NODE | NO_REPLY},
    [FUSE_DESTROY] = {leave, ANY_NODE},
    [FUSE_BATCH_FORGET] = {forget_many, ANY_NODE | NO_REPLY},
    [FUSE_FALLOCATE] = {file_fallocate, CHANGES},
    [FUSE_READDIRPLUS] = {folder_read_plus, 0},
    [FUSE_RENAME2] = {name_rename2, CHANGES},
    [FUSE_LSEEK] = {file_lseek, 0},
};

static int serve(struct share *share, const struct row *row, struct request *request)
{
    if (!row->serve)
        return -ENOSYS;
    if (!share->greeted && row->serve != greet && row->serve != leave)
        return -EIO;
    if (row->how & CHANGES && share->options.read_only)
        return -EROFS;
    struct node *node = node_find(share, request->header.nodeid);
    if (!node && !(row->how & ANY_NODE))
        return -ESTALE;
    return row->serve(share, node, request);
}

size_t share_serve(struct share *share, const uint8_t *request, size_t length, uint8_t *reply)
{
    static const struct row nothing = {0};
    struct fuse_out_header out;
    struct request of = {.body = request,
                         .left = length,
                         .reply = reply + sizeof out,
                         .room = SHARE_MESSAGE_MAX - sizeof out};
    if (request_take(&of, &of.header, sizeof of.header) < 0 || of.header.len != length)
        return 0;
    const struct row *row = of.header.opcode < ARRAY_LEN(rows) ? &rows[of.header.opcode] : &nothing;
    int r = serve(share, row, &of);
    if (row->how & NO_REPLY)
        return 0;
    if (r < 0)
        of.length = 0;
    out = (struct fuse_out_header){
        .len = (uint32_t)(sizeof out + of.length), .error = r, .unique = of.header.unique};
    memcpy(reply, &out, sizeof out);
    return out.len;
}

int share_new(int folder, int descriptors, const struct share_options *options,
              struct share **ret_share, struct err *err)
{
    struct stat status;
    if (fstatat(folder, "", &status, AT_EMPTY_PATH) < 0)
        return err_errno(err, errno, "the shared folder");
    if (!S_ISDIR(status.st_mode))
        return err_set(err, -ENOTDIR, "what is to be shared is no folder");
    struct share *share = calloc(1, sizeof *share);
    if (!share)
        return err_set(err, -ENOMEM, "no memory for a share");
    share->options = *options;
    share->options.nodes_max = min(options->nodes_max, (unsigned)SHARE_NODES_MAX);
    share->options.handles_max = min(options->handles_max, (unsigned)SHARE_HANDLES_MAX);
    share->descriptors = descriptors;
    share->dev = status.st_dev;
    share->root = (struct node){.id = FUSE_ROOT_ID,
                                .fd = folder,
                                .type = S_IFDIR,
                                .dev = status.st_dev,
                                .ino = status.st_ino};
    if (node_tables_new(share) < 0) {
        share_free(share);
        return err_set(err, -ENOMEM, "no memory for a share");
    }
    *ret_share = share;
    return 0;
}

void share_free(struct share *share)
{
    if (!share)
        return;
    handle_close_all(share);
    node_tables_free(share);
    free(share->handles);
    free(share);
}
