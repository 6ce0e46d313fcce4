/*
 * fs.h: virtio-fs, a folder of the host's (virtio 1.2, 5.11), without the file system.
 *
 * The guest's kernel sends FUSE requests through its queues; another process serves them
 * (prog/lodge-share), at the other end of a stream socket. The device carries whole messages from
 * the one to the other. It understands their headers and nothing else: lengths are checked against
 * the guest's buffers and VIRTIO_FS_MESSAGE_MAX; requests that have no reply (FORGET and the like)
 * go back to the guest at once; a request's number is replaced by one of ours on its way and put
 * back in the reply, so that neither a guest that uses numbers twice nor one that is reset
 * meanwhile gets another one's reply.
 *
 *   guest                       device                        server
 *   queue 0: FORGET ... ------> one message at a time ------>
 *   queue 1: all others ------> at most SLOTS wait    <------ reply, by our number
 *
 * Messages are copied: what is sent was checked, and cannot change any more.
 *
 * A guest's fault (a request shorter or longer than it says, no room for the reply) fails the
 * device. A server that ends, or sends what is no reply, leaves the guest with EIO for everything,
 * until the machine ends.
 *
 * Errors: -EINVAL for a tag or descriptor that cannot be one; -ENOMEM and what a thread needs.
 */
#pragma once

#include "base/err.h"
#include "mem/mem.h"
#include "virtio/device.h"

enum {
    VIRTIO_FS_TAG_MAX = 36,
    VIRTIO_FS_MESSAGE_MAX = (256 << 10) + 4096, /* the server's is no larger */
};

struct virtio_fs_config {
    const char *tag; /* what the guest mounts it by: 1 to VIRTIO_FS_TAG_MAX bytes */
    int fd;          /* connected stream socket; the device's own on success */
};

int virtio_fs_new(struct mem *mem, const struct virtio_fs_config *config,
                  struct virtio_device **ret_device, struct err *err);
