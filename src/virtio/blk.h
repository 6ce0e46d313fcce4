/*
 * blk.h: virtio block device (virtio 1.2, 5.2).
 *
 * Joins a `struct disk` (disk/disk.h) to up to BLK_QUEUES_MAX request queues, each with a thread of
 * its own. It has IN, OUT, FLUSH, GET_ID, DISCARD and WRITE_ZEROES; other types are answered with
 * UNSUPP. What a driver does wrong in a request is IOERR; where there is no place for a status, or
 * the rings are wrong, the device wants to be reset.
 *
 * Transfers go through an io_uring where there is one and disk_direct() knows a place, straight
 * between guest memory and the host's file; adjacent requests that wait together become one. Writes
 * into the host's page cache are made by the queue's thread, unless the host holds them up. All
 * else is done by the disk's calls, on the queue's thread. A small transfer that the host's page
 * cache can serve at once is done by the vCPU that notifies: for that no thread need wake.
 *
 * Durability: with a write-back cache (FLUSH negotiated, `writeback` not 0) writes are safe after
 * the next FLUSH. Without one, each write is flushed before it is answered.
 *
 * A reset waits for what is in flight; requests that had not been begun are forgotten.
 *
 * Errors of the host go to the guest as IOERR and to `on_error` (positive errno: EIO, ...), on an
 * I/O thread, with the queue's lock held: note it and return.
 *
 * A full disk (ENOSPC, EDQUOT) is no error where there is `on_full`. What found no space is kept,
 * its data still in the guest's memory, and tried again every second and at virtio_blk_retry();
 * nothing behind it in its queue is begun meanwhile. `on_full` says that virtio_blk_full() may have
 * changed, called as on_error is. A reset drops what is kept.
 *
 * Threads: all functions from any thread. The transport frees the device and joins its threads;
 * disk and rings are borrowed and outlive it.
 *
 * Errors: -EINVAL for a configuration out of bounds, -ENOMEM, or why there is no thread.
 */
#pragma once

#include "base/err.h"
#include "disk/disk.h"
#include "mem/mem.h"
#include "virtio/blk_ring.h"
#include "virtio/device.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    BLK_QUEUES_MAX = 4,
    BLK_SERIAL_MAX = 20,
    BLK_RING_ENTRIES = 128, /* of each ring in the configuration */
};

struct virtio_blk;

struct virtio_blk_config {
    struct disk *disk;
    const char *serial;             /* at most BLK_SERIAL_MAX bytes; NULL = none */
    unsigned queues;                /* 1..BLK_QUEUES_MAX */
    struct blk_ring *const *rings;  /* one a queue, or NULL; an entry may be NULL, too */
    uint64_t iops, bps;             /* limits of all queues together; 0 = none */
    uint64_t iops_burst, bps_burst; /* 0 = a tenth of a second's worth */
    void (*on_error)(void *opaque, bool write, int number); /* may be NULL */
    void *opaque;
    void (*on_full)(void *opaque); /* NULL: a full disk is an error like others */
    void *full_opaque;
};

int virtio_blk_new(struct mem *mem, const struct virtio_blk_config *config,
                   struct virtio_blk **ret_blk, struct err *err);

/* For virtio_pci_new(). */
struct virtio_device *virtio_blk_device(struct virtio_blk *blk);

/* Why requests wait for space: ENOSPC or EDQUOT; 0: none does. */
int virtio_blk_full(const struct virtio_blk *blk);
void virtio_blk_retry(struct virtio_blk *blk);
/* True where virtio_hold() has left nothing under way; false where requests wait for space, and
 * the device cannot be saved now. */
bool virtio_blk_settled(struct virtio_blk *blk);

/* While it is held: what was written is in the host's file, as disk_flush() has it. */
int virtio_blk_flush(struct virtio_blk *blk);

/* Another disk in place of the one it has, of the same size and as writable. While the device is
 * held (virtio_hold()): nothing is under way then. */
void virtio_blk_exchange(struct virtio_blk *blk, struct disk *disk);

/* Ends its threads; when it returns nothing of it touches the disk, for ever. Before disk_close()
 * where the device is not freed. */
void virtio_blk_stop(struct virtio_blk *blk);
