#include "virtio/blk.h"

#include "base/bytes.h"
#include "virtio/worker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEVICE_ID = 2,
    CLASS_CODE = 0x018000, /* mass storage, of no kind that has a number */
    QUEUE_SIZE = 256,
    SEGMENTS = QUEUE_SIZE - 2, /* of data in one request: beside header and status */
    BATCH = 16, /* requests before the mutex is let go of, so that a reset waits briefly */

    HEADER = 16,
    RANGE = 16, /* struct virtio_blk_discard_write_zeroes */
    RANGES_MAX = 16,
    RANGE_SECTORS = 1 << 21, /* 1 GiB at a time */
    CONFIG_SIZE = 60,
};

/* 5.2.3 */
#define F_SEG_MAX      (UINT64_C(1) << 2)
#define F_RO           (UINT64_C(1) << 5)
#define F_BLK_SIZE     (UINT64_C(1) << 6)
#define F_FLUSH        (UINT64_C(1) << 9)
#define F_TOPOLOGY     (UINT64_C(1) << 10)
#define F_MQ           (UINT64_C(1) << 12)
#define F_DISCARD      (UINT64_C(1) << 13)
#define F_WRITE_ZEROES (UINT64_C(1) << 14)

/* 5.2.6 */
enum request_type { IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, WRITE_ZEROES = 13 };
enum request_status { OK = 0, IOERR = 1, UNSUPP = 2 };
enum { RANGE_UNMAP = 1 << 0 };

struct blk_queue {
    struct blk *blk;
    unsigned number;
    struct worker worker;
    pthread_mutex_t mutex;
    bool live; /* between start() and reset() */
    struct queue_chain chain;
    struct iovec iov[QUEUE_CHAIN_MAX];
};

struct blk {
    struct virtio_device device; /* first: ops get this pointer */
    struct disk *disk;
    char serial[BLK_SERIAL_MAX];
    uint8_t config[CONFIG_SIZE];
    unsigned queue_count;
    struct blk_queue queues[];
};

static struct blk *of(struct virtio_device *device)
{
    return (struct blk *)device;
}

/* ---- requests ---- */

static enum request_status status_of(int r)
{
    return r == 0 ? OK : IOERR;
}

/* The range of a transfer in bytes. False: it cannot be one. */
static bool range_of(const struct blk *blk, uint64_t sector, uint64_t bytes, uint64_t *ret_offset)
{
    uint64_t sectors = disk_size(blk->disk) / DISK_SECTOR;
    if (bytes % DISK_SECTOR || sector > sectors || bytes / DISK_SECTOR > sectors - sector)
        return false;
    *ret_offset = sector * DISK_SECTOR;
    return true;
}

/* The status byte lies behind the data. */
static unsigned without_status(struct iovec *iov, unsigned count)
{
    if (--iov[count - 1].iov_len == 0)
        count--;
    return count;
}

static enum request_status serve_in(struct blk_queue *queue, uint64_t sector)
{
    struct blk *blk = queue->blk;
    uint64_t offset;
    if (!range_of(blk, sector, queue->chain.writable_bytes - 1, &offset))
        return IOERR;
    unsigned count = queue_chain_writable(&queue->chain, 0, queue->iov, QUEUE_CHAIN_MAX);
    return status_of(disk_readv(blk->disk, offset, queue->iov, without_status(queue->iov, count)));
}

static enum request_status serve_out(struct blk_queue *queue, uint64_t sector)
{
    struct blk *blk = queue->blk;
    uint64_t offset;
    if (!range_of(blk, sector, queue->chain.readable_bytes - HEADER, &offset))
        return IOERR;
    unsigned count = queue_chain_readable(&queue->chain, HEADER, queue->iov, QUEUE_CHAIN_MAX);
    return status_of(disk_writev(blk->disk, offset, queue->iov, count));
}

static enum request_status serve_id(struct blk_queue *queue)
{
    const struct blk *blk = queue->blk;
    uint64_t room = queue->chain.writable_bytes - 1;
    if (room < BLK_SERIAL_MAX)
        return IOERR;
    queue_chain_write(&queue->chain, 0, blk->serial, BLK_SERIAL_MAX);
    return OK;
}

static enum request_status serve_range(struct blk *blk, enum request_type type,
                                       const uint8_t range[RANGE])
{
    uint64_t sector = le64_read(range), sectors = le32_read(range + 8), offset;
    uint32_t flags = le32_read(range + 12);
    /* 5.2.6.2: an unknown flag, or UNMAP with a discard, is not supported. */
    if (flags & ~(uint32_t)(type == WRITE_ZEROES ? RANGE_UNMAP : 0))
        return UNSUPP;
    if (sectors > RANGE_SECTORS || !range_of(blk, sector, sectors * DISK_SECTOR, &offset))
        return IOERR;
    int r = type == DISCARD
                ? disk_discard(blk->disk, offset, sectors * DISK_SECTOR)
                : disk_write_zeroes(blk->disk, offset, sectors * DISK_SECTOR, flags & RANGE_UNMAP);
    return status_of(r);
}

static enum request_status serve_ranges(struct blk_queue *queue, enum request_type type)
{
    struct blk *blk = queue->blk;
    uint64_t bytes = queue->chain.readable_bytes - HEADER;
    uint8_t ranges[RANGES_MAX * RANGE];
    if (!(blk->device.features & (type == DISCARD ? F_DISCARD : F_WRITE_ZEROES)))
        return UNSUPP;
    if (bytes == 0 || bytes % RANGE || bytes > sizeof ranges)
        return IOERR;
    queue_chain_read(&queue->chain, HEADER, ranges, bytes);
    enum request_status status = OK;
    for (uint64_t at = 0; at < bytes && status == OK; at += RANGE)
        status = serve_range(blk, type, ranges + at);
    return status;
}

/* A driver that has not negotiated FLUSH gets its writes through to the disk (5.2.6.2). */
static enum request_status serve(struct blk_queue *queue, const uint8_t header[HEADER])
{
    struct blk *blk = queue->blk;
    uint32_t type = le32_read(header);
    uint64_t sector = le64_read(header + 8);
    switch (type) {
    case IN: return serve_in(queue, sector);
    case OUT: {
        enum request_status status = serve_out(queue, sector);
        if (status == OK && !(blk->device.features & F_FLUSH))
            status = status_of(disk_flush(blk->disk));
        return status;
    }
    case FLUSH: return status_of(disk_flush(blk->disk));
    case GET_ID: return serve_id(queue);
    case DISCARD:
    case WRITE_ZEROES: return serve_ranges(queue, type);
    default: return UNSUPP;
    }
}

/* False: nothing more can be served. */
static bool serve_next(struct blk_queue *queue)
{
    struct virtio_device *device = &queue->blk->device;
    uint8_t header[HEADER];
    if (!virtio_pop(device, queue->number, &queue->chain))
        return false;
    const struct queue_chain *chain = &queue->chain;
    if (chain->writable_bytes == 0 ||
        queue_chain_read(chain, 0, header, sizeof header) < sizeof header) {
        virtio_fail(device);
        return false;
    }
    uint8_t status = serve(queue, header);
    queue_chain_write(chain, chain->writable_bytes - 1, &status, 1);
    virtio_push(device, queue->number, chain, chain->writable_bytes);
    return true;
}

/* True where more may wait. */
static bool serve_batch(void *opaque)
{
    struct blk_queue *queue = opaque;
    int served = 0;
    while (queue->live && served < BATCH && serve_next(queue))
        served++;
    if (served)
        virtio_notify(&queue->blk->device, queue->number);
    return served == BATCH;
}

static void run(void *opaque)
{
    struct blk_queue *queue = opaque;
    worker_serve(&queue->worker, &queue->mutex, serve_batch, queue);
}

/* ---- the device ---- */

static void set_live(struct blk *blk, bool live)
{
    for (unsigned i = 0; i < blk->queue_count; i++) {
        struct blk_queue *queue = &blk->queues[i];
        pthread_mutex_lock(&queue->mutex);
        queue->live = live;
        pthread_mutex_unlock(&queue->mutex);
        if (live)
            worker_wake(&queue->worker);
    }
}

static void blk_start(struct virtio_device *device)
{
    set_live(of(device), true);
}

static void blk_reset(struct virtio_device *device)
{
    set_live(of(device), false);
}

static void blk_queue_notified(struct virtio_device *device, unsigned queue)
{
    worker_wake(&of(device)->queues[queue].worker);
}

static int blk_notify_fd(struct virtio_device *device, unsigned queue)
{
    return of(device)->queues[queue].worker.wake_fd;
}

static void blk_config_read(struct virtio_device *device, uint32_t offset, void *to, unsigned size)
{
    memcpy(to, of(device)->config + offset, size);
}

static void blk_free(struct virtio_device *device)
{
    struct blk *blk = of(device);
    for (unsigned i = 0; i < blk->queue_count; i++) {
        worker_stop(&blk->queues[i].worker);
        pthread_mutex_destroy(&blk->queues[i].mutex);
    }
    virtio_device_fini(device);
    disk_close(blk->disk);
    free(blk);
}

static const struct virtio_device_ops blk_ops = {
    .name = "virtio-blk",
    .id = DEVICE_ID,
    .class_code = CLASS_CODE,
    .config_size = CONFIG_SIZE,
    .config_read = blk_config_read,
    .start = blk_start,
    .reset = blk_reset,
    .queue_notified = blk_queue_notified,
    .notify_fd = blk_notify_fd,
    .free = blk_free,
};

/* 5.2.4 */
static void fill_config(struct blk *blk, bool writable)
{
    uint8_t *config = blk->config;
    le64_write(config, disk_size(blk->disk) / DISK_SECTOR);
    le32_write(config + 12, SEGMENTS);
    le32_write(config + 20, DISK_SECTOR);
    config[24] = 3;             /* the host's blocks are 8 sectors, the first of them is aligned */
    le16_write(config + 26, 8); /* so is the smallest and the best transfer that is cheap */
    le16_write(config + 34, (uint16_t)blk->queue_count);
    if (!writable)
        return;
    le32_write(config + 36, RANGE_SECTORS);
    le32_write(config + 40, RANGES_MAX);
    le32_write(config + 44, 8);
    le32_write(config + 48, RANGE_SECTORS);
    le32_write(config + 52, RANGES_MAX);
    config[56] = 1; /* zeroes may unmap */
}

static int queues_start(struct blk *blk, unsigned count, struct err *err)
{
    int r = 0;
    for (unsigned i = 0; i < count && r >= 0; i++) {
        struct blk_queue *queue = &blk->queues[i];
        queue->blk = blk;
        queue->number = i;
        pthread_mutex_init(&queue->mutex, NULL);
        blk->queue_count = i + 1;
        r = worker_start(&queue->worker, "virtio-blk", run, queue, err);
    }
    return r;
}

int virtio_blk_new(struct mem *mem, const struct virtio_blk_config *config,
                   struct virtio_device **ret_device, struct err *err)
{
    uint16_t sizes[BLK_QUEUES_MAX];
    unsigned count = config->queues;
    bool writable = !disk_read_only(config->disk);
    if (count < 1 || count > BLK_QUEUES_MAX)
        return err_set(err, -EINVAL, "a block device has 1 to %d queues", BLK_QUEUES_MAX);
    struct blk *blk = calloc(1, sizeof *blk + count * sizeof blk->queues[0]);
    if (!blk)
        return err_set(err, -ENOMEM, "no memory for virtio-blk");
    for (unsigned i = 0; i < count; i++)
        sizes[i] = QUEUE_SIZE;
    uint64_t features = F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH | F_MQ |
                        (writable ? F_DISCARD | F_WRITE_ZEROES : F_RO);
    int r = virtio_device_init(&blk->device, &blk_ops, mem, features, sizes, count, err);
    if (r >= 0)
        r = queues_start(blk, count, err);
    if (r < 0) {
        blk_free(&blk->device);
        return r;
    }
    blk->disk = config->disk;
    if (config->serial)
        memcpy(blk->serial, config->serial, strnlen(config->serial, BLK_SERIAL_MAX));
    fill_config(blk, writable);
    *ret_device = &blk->device;
    return 0;
}
