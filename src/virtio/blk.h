/*
 * blk.h: the virtio block device (virtio 1.2, 5.2) over a struct disk.
 *
 * Each queue has a thread of its own, which serves one request after the other: what lies in
 * different queues goes on at the same time. Offered: SEG_MAX, BLK_SIZE, TOPOLOGY, FLUSH, MQ, and
 * RO or DISCARD and WRITE_ZEROES. Requests of other kinds are answered UNSUPP, what lies outside
 * the disk or is no whole number of sectors IOERR; a chain without room for the status, or without
 * a header, breaks the protocol (virtio_fail).
 * An error of the host's disk is the guest's I/O error.
 */
#pragma once

#include "base/err.h"
#include "disk/disk.h"
#include "virtio/device.h"

enum {
    BLK_QUEUES_MAX = 16,
    BLK_SERIAL_MAX = 20, /* bytes */
};

struct virtio_blk_config {
    struct disk *disk;  /* taken over, where virtio_blk_new() succeeds */
    unsigned queues;    /* 1..BLK_QUEUES_MAX */
    const char *serial; /* at most BLK_SERIAL_MAX bytes; NULL: none */
};

int virtio_blk_new(struct mem *mem, const struct virtio_blk_config *config,
                   struct virtio_device **ret_device, struct err *err);
