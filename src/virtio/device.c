#include "virtio/device.h"

#include "base/bytes.h"
#include "base/record.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

int virtio_device_init(struct virtio_device *device, const struct virtio_device_ops *ops,
                       struct mem *mem, uint64_t features, const uint16_t *queue_sizes,
                       unsigned queue_count, struct err *err)
{
    assert(queue_count > 0 && queue_count <= VIRTIO_QUEUES_MAX);
    struct queue *queues = calloc(queue_count, sizeof *queues);
    if (!queues)
        return err_set(err, -ENOMEM, "no memory for the queues of '%s'", ops->name);
    for (unsigned i = 0; i < queue_count; i++)
        queue_init(&queues[i], mem, queue_sizes[i]);
    *device = (struct virtio_device){
        .ops = ops,
        .mem = mem,
        .offered = features | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1,
        .queue_count = queue_count,
        .queues = queues,
    };
    return 0;
}

void virtio_device_fini(struct virtio_device *device)
{
    free(device->queues);
    device->queues = NULL;
}

void virtio_attach(struct virtio_device *device, const struct virtio_transport_ops *ops,
                   void *opaque)
{
    device->transport = ops;
    device->transport_opaque = opaque;
}

static bool is_live(const struct virtio_device *device)
{
    return (device->status & (VIRTIO_STATUS_DRIVER_OK | VIRTIO_STATUS_NEEDS_RESET)) ==
           VIRTIO_STATUS_DRIVER_OK;
}

bool virtio_may_pop(const struct virtio_device *device)
{
    return is_live(device) && device->dma_allowed && !device->held;
}

int virtio_pop(struct virtio_device *device, unsigned queue, struct queue_chain *ret_chain)
{
    if (!virtio_may_pop(device))
        return 0;
    int r = queue_pop(&device->queues[queue], ret_chain);
    if (r < 0) {
        virtio_fail(device);
        return 0;
    }
    return r;
}

int virtio_pop_or_await(struct virtio_device *device, unsigned queue, struct queue_chain *ret_chain)
{
    if (virtio_pop(device, queue, ret_chain))
        return 1;
    return queue_notifications_start(&device->queues[queue]) ? virtio_pop(device, queue, ret_chain)
                                                             : 0;
}

void virtio_push(struct virtio_device *device, unsigned queue, const struct queue_chain *chain,
                 uint64_t written)
{
    queue_push(&device->queues[queue], chain, written);
}

void virtio_notify(struct virtio_device *device, unsigned queue)
{
    if (queue_should_notify(&device->queues[queue]) && device->transport)
        device->transport->interrupt_queue(device->transport_opaque, queue);
}

void virtio_config_changed(struct virtio_device *device)
{
    atomic_fetch_add(&device->config_generation, 1);
    /* Before DRIVER_OK nobody listens; the driver reads what is there then (3.1.1). */
    if (device->status & VIRTIO_STATUS_DRIVER_OK && device->transport)
        device->transport->interrupt_config(device->transport_opaque);
}

void virtio_fail(struct virtio_device *device)
{
    uint8_t before = atomic_fetch_or(&device->status, VIRTIO_STATUS_NEEDS_RESET);
    if (!(before & VIRTIO_STATUS_NEEDS_RESET) && before & VIRTIO_STATUS_DRIVER_OK &&
        device->transport)
        device->transport->interrupt_config(device->transport_opaque);
}

void virtio_set_features(struct virtio_device *device, uint64_t features)
{
    if (!(device->status & VIRTIO_STATUS_FEATURES_OK))
        device->features = features;
}

void virtio_reset(struct virtio_device *device)
{
    device->ops->reset(device);
    device->status = 0;
    device->features = 0;
    for (unsigned i = 0; i < device->queue_count; i++)
        queue_reset(&device->queues[i]);
}

/* 3.1.1: a set that has bits which were not offered, or that lacks VERSION_1 (this transport has
 * no legacy interface), is refused by leaving FEATURES_OK clear. */
static bool features_are_fine(const struct virtio_device *device)
{
    return !(device->features & ~device->offered) && device->features & VIRTIO_F_VERSION_1;
}

void virtio_set_status(struct virtio_device *device, uint8_t status)
{
    if (status == 0) {
        virtio_reset(device);
        return;
    }
    uint8_t before = device->status;
    uint8_t added = (uint8_t)(status & ~before & ~VIRTIO_STATUS_NEEDS_RESET);
    if (added & VIRTIO_STATUS_FEATURES_OK && !features_are_fine(device))
        added &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    if (added & VIRTIO_STATUS_DRIVER_OK && !((before | added) & VIRTIO_STATUS_FEATURES_OK))
        added &= (uint8_t)~VIRTIO_STATUS_DRIVER_OK;
    /* The driver never clears a bit (2.1.1) but by the reset above. */
    if (added & VIRTIO_STATUS_DRIVER_OK) {
        for (unsigned i = 0; i < device->queue_count; i++) {
            device->queues[i].indirect = device->features & VIRTIO_F_INDIRECT_DESC;
            device->queues[i].event_index = device->features & VIRTIO_F_EVENT_IDX;
        }
    }
    atomic_fetch_or(&device->status, added);
    if (added & VIRTIO_STATUS_DRIVER_OK)
        device->ops->start(device);
}

void virtio_queue_notified(struct virtio_device *device, unsigned queue)
{
    if (queue < device->queue_count && is_live(device))
        device->ops->queue_notified(device, queue);
}

int virtio_begin(struct virtio_device *device, struct err *err)
{
    return device->ops->begin ? device->ops->begin(device, err) : 0;
}

/* ---- snapshots ---- */

void virtio_hold(struct virtio_device *device)
{
    device->held = true;
    if (device->ops->settle)
        device->ops->settle(device);
}

void virtio_release(struct virtio_device *device)
{
    device->held = false;
    /* What was notified meanwhile, or while it was another machine, is still there. */
    for (unsigned i = 0; i < device->queue_count; i++)
        virtio_queue_notified(device, i);
}

static void start_loaded(struct virtio_device *device, struct record *record, uint8_t status)
{
    if (device->features & ~device->offered) {
        record_fail(record, "has features that this host's device lacks");
        return;
    }
    device->status = status;
    if (status & VIRTIO_STATUS_DRIVER_OK)
        device->ops->start(device);
}

/* The device's own part has a version of its own. */
static void own_state(struct virtio_device *device, struct record *record)
{
    unsigned outer = record->version;
    uint32_t own = device->ops->state_version;
    record_u32(record, &own);
    if (own > device->ops->state_version)
        record_fail(record, "is from a newer version");
    record->version = own;
    if (device->ops->state)
        device->ops->state(device, record);
    record->version = outer;
}

void virtio_state(struct virtio_device *device, struct record *record)
{
    uint8_t status = device->status, generation = device->config_generation;
    record_same(record, device->ops->id, "is a device of another kind");
    record_same(record, device->queue_count, "has another number of queues");
    record_u64(record, &device->features);
    record_u8(record, &status);
    record_u8(record, &generation);
    for (unsigned i = 0; i < device->queue_count && !record->failed; i++)
        queue_state(&device->queues[i], record);
    if (record->loading && !record->failed) {
        device->config_generation = generation;
        start_loaded(device, record, status);
    }
    if (!record->failed)
        own_state(device, record);
}
