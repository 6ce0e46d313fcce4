/*
 * share.h: a folder of the host's as a file system for a guest, by FUSE messages.
 *
 * A `struct share` is the server's whole state for one guest and one folder: which inodes the guest
 * knows and which files it has open. share_serve() takes one request of the guest's kernel, does
 * it, and makes the reply. The protocol is FUSE 7.31 (linux/fuse.h), as virtio-fs carries it
 * (virtio 1.2, 5.11).
 *
 * Every byte of a request is hostile, and so may be what other processes of the host do in the
 * folder meanwhile. Invariants:
 *
 *   S1  an inode is a descriptor (O_PATH), never a path: whoever moves a file or puts a
 *       symbolic link in its place changes nothing about what the guest holds
 *   S2  a name is one component: not empty, no slash, neither "." nor ".."; it is looked up
 *       with openat2() below its folder's descriptor, and no symbolic link is ever
 *       followed. Links are the guest's to read and to follow, in its own tree
 *   S3  only regular files and folders are ever opened for more than O_PATH: a guest
 *       neither reaches a device nor waits at a FIFO of the host's. It makes regular files,
 *       folders and symbolic links
 *   S4  no file that a guest makes or changes is set-user-ID or set-group-ID
 *   S5  read-only shares refuse what changes anything before they look at it
 *   S6  inodes, open files and the length of a message have a limit
 *
 * Not there, and answered with ENOSYS, after which Linux does not ask again: extended attributes,
 * locks (they hold inside the guest), DAX, ioctl, poll, syncfs, copy_file_range.
 *
 * Threads: one at a time. Calls block as long as the host's file system does.
 *
 *     size_t length = share_serve(share, request, size, reply);
 *     if (length > 0)
 *         send(socket, reply, length);
 */
#pragma once

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SHARE_WRITE_MAX = 256 << 10,                /* bytes of a read or write */
    SHARE_MESSAGE_MAX = SHARE_WRITE_MAX + 4096, /* bytes of a request or reply */
    SHARE_REQUEST_MIN = 40,                     /* a header, and it begins with its length */
    SHARE_NODES_MAX = 1 << 20,
    SHARE_HANDLES_MAX = 1 << 16,
};

struct share_options {
    bool read_only;
    bool owners;        /* give new files to the guest's users; wants CAP_CHOWN */
    unsigned nodes_max; /* inodes that the guest may hold, each a descriptor; <= SHARE_NODES_MAX */
    unsigned handles_max; /* files that it may have open; <= SHARE_HANDLES_MAX */
};

struct share;

/* `folder` and `descriptors`, which is /proc/self/fd, are O_PATH and stay the caller's. -ENOTDIR,
 * -ENOMEM. */
int share_new(int folder, int descriptors, const struct share_options *options,
              struct share **ret_share, struct err *err);
void share_free(struct share *share);

/* `reply` has SHARE_MESSAGE_MAX bytes. Returns the reply's length; 0 for the kinds of request that
 * have none, and for what is no request. */
size_t share_serve(struct share *share, const uint8_t *request, size_t length, uint8_t *reply);
