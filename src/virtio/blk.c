#include "virtio/blk_device.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/record.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

enum {
    DEVICE_ID = 2,
    BLOCK_SIZE = DISK_SECTOR,
    PHYSICAL_EXPONENT = 3, /* 4 KiB: what host file systems and disks like */
};

/* struct virtio_blk_config, 5.2.4. */
enum {
    CONFIG_CAPACITY = 0,
    CONFIG_SIZE_MAX = 8,
    CONFIG_SEG_MAX = 12,
    CONFIG_BLK_SIZE = 20,
    CONFIG_PHYSICAL_EXPONENT = 24,
    CONFIG_MIN_IO_SIZE = 26,
    CONFIG_OPT_IO_SIZE = 28,
    CONFIG_WRITEBACK = 32,
    CONFIG_NUM_QUEUES = 34,
    CONFIG_MAX_DISCARD_SECTORS = 36,
    CONFIG_MAX_DISCARD_SEG = 40,
    CONFIG_DISCARD_ALIGNMENT = 44,
    CONFIG_MAX_ZEROES_SECTORS = 48,
    CONFIG_MAX_ZEROES_SEG = 52,
    CONFIG_ZEROES_MAY_UNMAP = 56,
    CONFIG_SIZE = 60,
};

static struct virtio_blk *of(struct virtio_device *device)
{
    return (struct virtio_blk *)device;
}

/* 5.2.5: as the driver has set it; before, what FLUSH says. */
static bool writeback(const struct virtio_blk *blk)
{
    return blk->writeback < 0 ? (blk->device.features & BLK_F_FLUSH) != 0 : blk->writeback != 0;
}

bool blk_write_through(const struct virtio_blk *blk)
{
    if (blk->device.features & BLK_F_CONFIG_WCE)
        return !writeback(blk);
    return !(blk->device.features & BLK_F_FLUSH);
}

static bool has_limits(const struct virtio_blk *blk)
{
    return blk->requests.rate || blk->bytes.rate;
}

uint64_t blk_limit_wait(struct virtio_blk *blk)
{
    if (!has_limits(blk))
        return 0;
    uint64_t now = clock_ns();
    return max(bucket_wait(&blk->requests, now), bucket_wait(&blk->bytes, now));
}

void blk_limit_spend(struct virtio_blk *blk, uint64_t bytes)
{
    if (!has_limits(blk))
        return;
    uint64_t now = clock_ns();
    bucket_spend(&blk->requests, now, 1);
    bucket_spend(&blk->bytes, now, bytes);
}

static void fill_config(const struct virtio_blk *blk, uint8_t config[CONFIG_SIZE])
{
    le64_write(config + CONFIG_CAPACITY, disk_size(blk->disk) / DISK_SECTOR);
    le32_write(config + CONFIG_SIZE_MAX, BLK_SEGMENT_BYTES_MAX);
    le32_write(config + CONFIG_SEG_MAX, BLK_SEGMENTS_MAX);
    le32_write(config + CONFIG_BLK_SIZE, BLOCK_SIZE);
    config[CONFIG_PHYSICAL_EXPONENT] = PHYSICAL_EXPONENT;
    le16_write(config + CONFIG_MIN_IO_SIZE, 1 << PHYSICAL_EXPONENT);
    config[CONFIG_WRITEBACK] = writeback(blk);
    le16_write(config + CONFIG_NUM_QUEUES, (uint16_t)blk->queue_count);
    if (blk->device.offered & BLK_F_DISCARD) {
        le32_write(config + CONFIG_MAX_DISCARD_SECTORS, BLK_DISCARD_SECTORS_MAX);
        le32_write(config + CONFIG_MAX_DISCARD_SEG, BLK_DISCARD_SEGMENTS_MAX);
        le32_write(config + CONFIG_DISCARD_ALIGNMENT, blk->discard_alignment);
    }
    if (blk->device.offered & BLK_F_WRITE_ZEROES) {
        le32_write(config + CONFIG_MAX_ZEROES_SECTORS, BLK_ZERO_SECTORS_MAX);
        le32_write(config + CONFIG_MAX_ZEROES_SEG, BLK_ZERO_SEGMENTS_MAX);
        config[CONFIG_ZEROES_MAY_UNMAP] = 1;
    }
}

/* Device operations. */

static void blk_config_read(struct virtio_device *device, uint32_t offset, void *to, unsigned size)
{
    uint8_t config[CONFIG_SIZE] = {0};
    fill_config(of(device), config);
    memcpy(to, config + offset, size);
}

static void blk_config_write(struct virtio_device *device, uint32_t offset, const void *from,
                             unsigned size)
{
    if (offset == CONFIG_WRITEBACK && size == 1 && device->features & BLK_F_CONFIG_WCE)
        of(device)->writeback = *(const uint8_t *)from != 0;
}

static void blk_start(struct virtio_device *device)
{
    for (unsigned i = 0; i < of(device)->queue_count; i++)
        blk_queue_start(&of(device)->queues[i]);
}

static void blk_reset(struct virtio_device *device)
{
    for (unsigned i = 0; i < of(device)->queue_count; i++)
        blk_queue_reset(&of(device)->queues[i]);
    of(device)->writeback = -1;
}

static void blk_queue_notify(struct virtio_device *device, unsigned queue)
{
    blk_queue_notified(&of(device)->queues[queue]);
}

static int blk_notify_fd(struct virtio_device *device, unsigned queue)
{
    return of(device)->queues[queue].worker.wake_fd;
}

static void blk_settle(struct virtio_device *device)
{
    for (unsigned i = 0; i < of(device)->queue_count; i++)
        blk_queue_settle(&of(device)->queues[i]);
}

/* The disk is another matter: a snapshot says which one it goes with. Its size is looked at here,
 * so that no driver finds it changed. */
static void blk_state(struct virtio_device *device, struct record *record)
{
    struct virtio_blk *blk = of(device);
    uint64_t size = disk_size(blk->disk);
    bool read_only = disk_read_only(blk->disk);
    uint8_t writeback = (uint8_t)(blk->writeback + 1);
    record_u64(record, &size);
    record_bool(record, &read_only);
    record_u8_below(record, &writeback, 3);
    if (record->loading && size != disk_size(blk->disk))
        record_fail(record, "has a disk of another size");
    if (record->loading && read_only != disk_read_only(blk->disk))
        record_fail(record, "has a disk that may be written to, or may not, unlike before");
    blk->writeback = writeback - 1;
}

static void blk_free(struct virtio_device *device)
{
    struct virtio_blk *blk = of(device);
    virtio_blk_stop(blk);
    for (unsigned i = 0; i < blk->queue_count; i++)
        blk_queue_fini(&blk->queues[i]);
    free(blk->queues);
    bucket_fini(&blk->requests);
    bucket_fini(&blk->bytes);
    virtio_device_fini(device);
    free(blk);
}

static const struct virtio_device_ops blk_ops = {
    .name = "virtio-blk",
    .id = DEVICE_ID,
    .class_code = 0x018000, /* mass storage, other */
    .config_size = CONFIG_SIZE,
    .config_read = blk_config_read,
    .config_write = blk_config_write,
    .start = blk_start,
    .reset = blk_reset,
    .queue_notified = blk_queue_notify,
    .notify_fd = blk_notify_fd,
    .settle = blk_settle,
    .state = blk_state,
    .state_version = 1,
    .free = blk_free,
};

/* Making one. */

static uint64_t features_of(const struct virtio_blk_config *config)
{
    uint64_t features = BLK_F_SIZE_MAX | BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH |
                        BLK_F_TOPOLOGY | BLK_F_CONFIG_WCE;
    features |= disk_read_only(config->disk) ? BLK_F_RO : BLK_F_DISCARD | BLK_F_WRITE_ZEROES;
    return config->queues > 1 ? features | BLK_F_MQ : features;
}

/* What gives space back is a whole cluster, where the format has some; else a page of the host's.
 */
static uint32_t discard_alignment(struct disk *disk)
{
    struct disk_info info = {0};
    uint32_t sectors = 1 << PHYSICAL_EXPONENT;
    if (disk_info(disk, &info) >= 0) {
        if (info.cluster_bits >= 9 && info.cluster_bits < 32)
            sectors = UINT32_C(1) << (info.cluster_bits - 9);
        disk_info_free(&info);
    }
    return sectors;
}

static int make_queues(struct virtio_blk *blk, const struct virtio_blk_config *config,
                       struct err *err)
{
    blk->queues = calloc(config->queues, sizeof *blk->queues);
    if (!blk->queues)
        return err_set(err, -ENOMEM, "no memory for virtio-blk");
    for (unsigned i = 0; i < config->queues; i++) {
        struct blk_ring *ring = config->rings ? config->rings[i] : NULL;
        blk->queue_count = i + 1;
        int r = blk_queue_init(&blk->queues[i], blk, i, ring, err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int check(const struct virtio_blk_config *config, struct err *err)
{
    if (config->queues < 1 || config->queues > BLK_QUEUES_MAX)
        return err_set(err, -EINVAL, "a disk has 1 to %d queues, not %u", BLK_QUEUES_MAX,
                       config->queues);
    if (config->serial && strlen(config->serial) > BLK_SERIAL_MAX)
        return err_set(err, -EINVAL, "serial '%.64s' is longer than %d bytes", config->serial,
                       BLK_SERIAL_MAX);
    return 0;
}

int virtio_blk_new(struct mem *mem, const struct virtio_blk_config *config,
                   struct virtio_blk **ret_blk, struct err *err)
{
    static const uint16_t sizes[BLK_QUEUES_MAX] = {BLK_QUEUE_SIZE, BLK_QUEUE_SIZE, BLK_QUEUE_SIZE,
                                                   BLK_QUEUE_SIZE};
    int r = check(config, err);
    if (r < 0)
        return r;
    struct virtio_blk *blk = calloc(1, sizeof *blk);
    if (!blk)
        return err_set(err, -ENOMEM, "no memory for virtio-blk");
    blk->disk = config->disk;
    if (config->serial)
        memcpy(blk->serial, config->serial, strlen(config->serial));
    blk->writeback = -1;
    blk->on_error = config->on_error;
    blk->opaque = config->opaque;
    blk->on_full = config->on_full;
    blk->full_opaque = config->full_opaque;
    blk->discard_alignment = discard_alignment(config->disk);
    bucket_init(&blk->requests, config->iops, config->iops_burst);
    bucket_init(&blk->bytes, config->bps, config->bps_burst);
    r = virtio_device_init(&blk->device, &blk_ops, mem, features_of(config), sizes, config->queues,
                           err);
    if (r >= 0)
        r = make_queues(blk, config, err);
    if (r < 0) {
        blk_free(&blk->device);
        return r;
    }
    *ret_blk = blk;
    return 0;
}

struct virtio_device *virtio_blk_device(struct virtio_blk *blk)
{
    return &blk->device;
}

int virtio_blk_full(const struct virtio_blk *blk)
{
    return blk->full_queues ? blk->full_number : 0;
}

void virtio_blk_retry(struct virtio_blk *blk)
{
    for (unsigned i = 0; i < blk->queue_count; i++)
        blk_queue_retry(&blk->queues[i]);
}

bool virtio_blk_settled(struct virtio_blk *blk)
{
    bool settled = true;
    for (unsigned i = 0; i < blk->queue_count; i++)
        settled &= blk_queue_settled(&blk->queues[i]);
    return settled;
}

int virtio_blk_flush(struct virtio_blk *blk)
{
    return disk_flush(blk->disk);
}

void virtio_blk_exchange(struct virtio_blk *blk, struct disk *disk)
{
    assert(blk->device.held && disk_size(disk) == disk_size(blk->disk) &&
           disk_read_only(disk) == disk_read_only(blk->disk));
    /* Who looks at the disk has his queue's mutex, or a request in flight. */
    for (unsigned i = 0; i < blk->queue_count; i++)
        pthread_mutex_lock(&blk->queues[i].mutex);
    blk->disk = disk;
    for (unsigned i = 0; i < blk->queue_count; i++) {
        assert(blk->queues[i].in_flight == 0);
        pthread_mutex_unlock(&blk->queues[i].mutex);
    }
}

void virtio_blk_stop(struct virtio_blk *blk)
{
    for (unsigned i = 0; i < blk->queue_count; i++)
        blk_queue_stop(&blk->queues[i]);
}
