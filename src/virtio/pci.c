#include "virtio/pci.h"

#include "base/bytes.h"
#include "base/record.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

/* struct virtio_pci_common_cfg, 4.1.4.3. */
enum common_register {
    COMMON_DEVICE_FEATURE_SELECT = 0,
    COMMON_DEVICE_FEATURE = 4,
    COMMON_DRIVER_FEATURE_SELECT = 8,
    COMMON_DRIVER_FEATURE = 12,
    COMMON_CONFIG_VECTOR = 16,
    COMMON_NUM_QUEUES = 18,
    COMMON_STATUS = 20,
    COMMON_CONFIG_GENERATION = 21,
    COMMON_QUEUE_SELECT = 22,
    COMMON_QUEUE_SIZE = 24,
    COMMON_QUEUE_VECTOR = 26,
    COMMON_QUEUE_ENABLE = 28,
    COMMON_QUEUE_NOTIFY_OFF = 30,
    COMMON_QUEUE_DESC = 32,
    COMMON_QUEUE_DRIVER = 40,
    COMMON_QUEUE_DEVICE = 48,
    COMMON_SIZE = 60, /* with queue_notify_data and queue_reset, which stay 0 */
};

/* struct virtio_pci_cap, 4.1.4. */
enum capability_field {
    CAP_LENGTH = 2,
    CAP_TYPE = 3,
    CAP_BAR = 4,
    CAP_OFFSET = 8,
    CAP_RANGE_LENGTH = 12,
    CAP_SIZE = 16,
    CAP_NOTIFY_MULTIPLIER = 16,
    CAP_ACCESS_DATA = 16,
    CAP_EXTENDED_SIZE = 20, /* of the notify and access capabilities */
};

enum capability_type {
    CAP_TYPE_COMMON = 1,
    CAP_TYPE_NOTIFY = 2,
    CAP_TYPE_ISR = 3,
    CAP_TYPE_DEVICE = 4,
    CAP_TYPE_ACCESS = 5,
};

enum { ISR_QUEUE = 1, ISR_CONFIG = 2 };

enum {
    PCI_VENDOR_VIRTIO = 0x1af4,
    PCI_DEVICE_MODERN = 0x1040, /* + device id, 4.1.2 */
    PCI_SUBSYSTEM_MODERN = 0x40,
};

struct virtio_pci {
    struct virtio_device *device;
    struct pci_device *pci;
    unsigned access_capability; /* offset in configuration space */

    pthread_mutex_t lock; /* the registers below and the device's status and queue set-up */
    uint32_t device_feature_select, driver_feature_select;
    uint64_t driver_features;
    uint16_t queue_select;
    void (*notify_moved)(void *opaque, uint64_t base);
    void *notify_opaque;

    /* Read by I/O threads when they interrupt. */
    _Atomic uint16_t config_vector;
    _Atomic uint16_t queue_vectors[VIRTIO_QUEUES_MAX];

    pthread_mutex_t isr_lock;
    uint8_t isr;
};

/* Interrupts. */

static void isr_raise(struct virtio_pci *transport, uint8_t bit, bool pin)
{
    pthread_mutex_lock(&transport->isr_lock);
    transport->isr |= bit;
    if (pin)
        pci_intx_set(transport->pci, true);
    pthread_mutex_unlock(&transport->isr_lock);
}

/* Reading clears and takes the pin back (4.1.4.5). */
static uint8_t isr_take(struct virtio_pci *transport)
{
    pthread_mutex_lock(&transport->isr_lock);
    uint8_t isr = transport->isr;
    transport->isr = 0;
    pci_intx_set(transport->pci, false);
    pthread_mutex_unlock(&transport->isr_lock);
    return isr;
}

static void fire(struct virtio_pci *transport, uint16_t vector)
{
    if (vector != VIRTIO_NO_VECTOR)
        pci_msix_fire(transport->pci, vector);
}

static void interrupt_queue(void *opaque, unsigned queue)
{
    struct virtio_pci *transport = opaque;
    if (pci_msix_enabled(transport->pci))
        fire(transport, transport->queue_vectors[queue]);
    else
        isr_raise(transport, ISR_QUEUE, true);
}

static void interrupt_config(void *opaque)
{
    struct virtio_pci *transport = opaque;
    bool msix = pci_msix_enabled(transport->pci);
    isr_raise(transport, ISR_CONFIG, !msix); /* the bit in either case, 4.1.4.5.1 */
    if (msix)
        fire(transport, transport->config_vector);
}

static const struct virtio_transport_ops transport_ops = {.interrupt_queue = interrupt_queue,
                                                          .interrupt_config = interrupt_config};

/* Common configuration; under transport->lock. */

static void reset_locked(struct virtio_pci *transport)
{
    virtio_reset(transport->device);
    transport->driver_features = 0;
    transport->device_feature_select = transport->driver_feature_select = 0;
    transport->queue_select = 0;
    transport->config_vector = VIRTIO_NO_VECTOR;
    for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++)
        transport->queue_vectors[i] = VIRTIO_NO_VECTOR;
    isr_take(transport);
}

static struct queue *selected_queue(struct virtio_pci *transport)
{
    struct virtio_device *device = transport->device;
    return transport->queue_select < device->queue_count ? &device->queues[transport->queue_select]
                                                         : NULL;
}

static uint32_t feature_half(uint64_t features, uint32_t select)
{
    return select < 2 ? (uint32_t)(features >> 32 * select) : 0;
}

static uint64_t common_read(struct virtio_pci *transport, uint64_t offset, unsigned size)
{
    const struct virtio_device *device = transport->device;
    uint8_t image[COMMON_SIZE + 8] = {0};
    le32_write(image + COMMON_DEVICE_FEATURE_SELECT, transport->device_feature_select);
    le32_write(image + COMMON_DEVICE_FEATURE,
               feature_half(device->offered, transport->device_feature_select));
    le32_write(image + COMMON_DRIVER_FEATURE_SELECT, transport->driver_feature_select);
    le32_write(image + COMMON_DRIVER_FEATURE,
               feature_half(transport->driver_features, transport->driver_feature_select));
    le16_write(image + COMMON_CONFIG_VECTOR, transport->config_vector);
    le16_write(image + COMMON_NUM_QUEUES, (uint16_t)device->queue_count);
    image[COMMON_STATUS] = device->status;
    image[COMMON_CONFIG_GENERATION] = device->config_generation;
    le16_write(image + COMMON_QUEUE_SELECT, transport->queue_select);
    const struct queue *queue = selected_queue(transport);
    if (queue) { /* else queue_size reads 0: no such queue (4.1.4.3.1) */
        le16_write(image + COMMON_QUEUE_SIZE, queue->size);
        le16_write(image + COMMON_QUEUE_VECTOR, transport->queue_vectors[transport->queue_select]);
        le16_write(image + COMMON_QUEUE_ENABLE, queue->ready);
        le16_write(image + COMMON_QUEUE_NOTIFY_OFF, transport->queue_select);
        le64_write(image + COMMON_QUEUE_DESC, queue->descriptors);
        le64_write(image + COMMON_QUEUE_DRIVER, queue->available);
        le64_write(image + COMMON_QUEUE_DEVICE, queue->used);
    }
    return range_fits(offset, size, COMMON_SIZE) ? le64_read(image + offset) : 0;
}

/* A vector that does not exist reads back as NO_VECTOR: so the driver learns (4.1.5.1.2). */
static uint16_t legal_vector(const struct virtio_pci *transport, uint64_t value)
{
    return value <= transport->device->queue_count ? (uint16_t)value : VIRTIO_NO_VECTOR;
}

static void set_half(uint64_t *address, bool high, uint64_t value)
{
    uint64_t mask = high ? UINT64_C(0xffffffff00000000) : UINT32_MAX;
    *address = (*address & ~mask) | ((high ? value << 32 : value) & mask);
}

/* Registers of the selected queue. What describes its rings is fixed while it is enabled, and all
 * of it once the device is live: its I/O thread reads them then without our lock. */
static void queue_register_write(struct virtio_pci *transport, uint64_t offset, unsigned size,
                                 uint64_t value)
{
    struct queue *queue = selected_queue(transport);
    if (!queue)
        return;
    if (offset == COMMON_QUEUE_VECTOR && size == 2) {
        transport->queue_vectors[transport->queue_select] = legal_vector(transport, value);
        return;
    }
    if (queue->ready || transport->device->status & VIRTIO_STATUS_DRIVER_OK)
        return;
    if (offset == COMMON_QUEUE_SIZE && size == 2)
        queue->size = (uint16_t)value;
    else if (offset == COMMON_QUEUE_ENABLE && size == 2 && value == 1) {
        if (queue_enable(queue) < 0)
            virtio_fail(transport->device);
    } else if (offset >= COMMON_QUEUE_DESC && size == 4 && offset % 4 == 0) {
        uint64_t *const addresses[] = {&queue->descriptors, &queue->available, &queue->used};
        uint64_t index = (offset - COMMON_QUEUE_DESC) / 8;
        if (index < ARRAY_LEN(addresses))
            set_half(addresses[index], offset % 8, value);
    }
}

static void status_write(struct virtio_pci *transport, uint8_t value)
{
    if (value == 0)
        reset_locked(transport);
    else
        virtio_set_status(transport->device, value);
}

static void common_write(struct virtio_pci *transport, uint64_t offset, unsigned size,
                         uint64_t value)
{
    if (size == 8) { /* drivers should use two halves (4.1.3.1); some do not */
        common_write(transport, offset, 4, value & UINT32_MAX);
        common_write(transport, offset + 4, 4, value >> 32);
        return;
    }
    if (offset == COMMON_DEVICE_FEATURE_SELECT && size == 4)
        transport->device_feature_select = (uint32_t)value;
    else if (offset == COMMON_DRIVER_FEATURE_SELECT && size == 4)
        transport->driver_feature_select = (uint32_t)value;
    else if (offset == COMMON_DRIVER_FEATURE && size == 4) {
        if (transport->driver_feature_select < 2)
            set_half(&transport->driver_features, transport->driver_feature_select == 1, value);
        else if (value) /* nobody offered bits above 63: remember that they were asked for */
            transport->driver_features |= ~transport->device->offered;
        virtio_set_features(transport->device, transport->driver_features);
    } else if (offset == COMMON_CONFIG_VECTOR && size == 2)
        transport->config_vector = legal_vector(transport, value);
    else if (offset == COMMON_STATUS && size == 1)
        status_write(transport, (uint8_t)value);
    else if (offset == COMMON_QUEUE_SELECT && size == 2)
        transport->queue_select = (uint16_t)value;
    else
        queue_register_write(transport, offset, size, value);
}

/* Device configuration; under transport->lock. */

static uint64_t device_read(struct virtio_device *device, uint64_t offset, unsigned size)
{
    uint8_t bytes[8] = {0};
    if (device->ops->config_read && range_fits(offset, size, device->ops->config_size))
        device->ops->config_read(device, (uint32_t)offset, bytes, size);
    return le64_read(bytes);
}

static void device_write(struct virtio_device *device, uint64_t offset, unsigned size,
                         uint64_t value)
{
    uint8_t bytes[8];
    le64_write(bytes, value);
    if (device->ops->config_write && range_fits(offset, size, device->ops->config_size))
        device->ops->config_write(device, (uint32_t)offset, bytes, size);
}

/* The BAR. */

static uint64_t bar_read(void *opaque, unsigned bar, uint64_t offset, unsigned size)
{
    struct virtio_pci *transport = opaque;
    uint64_t area = align_down(offset, VIRTIO_PCI_AREA_SIZE);
    uint64_t value = 0;
    if (area == VIRTIO_PCI_ISR)
        return offset == VIRTIO_PCI_ISR ? isr_take(transport) : 0;
    pthread_mutex_lock(&transport->lock);
    if (area == VIRTIO_PCI_COMMON)
        value = common_read(transport, offset - area, size);
    else if (area == VIRTIO_PCI_DEVICE)
        value = device_read(transport->device, offset - area, size);
    pthread_mutex_unlock(&transport->lock);
    return value;
}

static void bar_write(void *opaque, unsigned bar, uint64_t offset, unsigned size, uint64_t value)
{
    struct virtio_pci *transport = opaque;
    uint64_t area = align_down(offset, VIRTIO_PCI_AREA_SIZE);
    if (area == VIRTIO_PCI_NOTIFY) { /* without our lock: this is the busy path */
        virtio_queue_notified(transport->device,
                              (unsigned)(offset - area) / VIRTIO_PCI_NOTIFY_STRIDE);
        return;
    }
    pthread_mutex_lock(&transport->lock);
    if (area == VIRTIO_PCI_COMMON)
        common_write(transport, offset - area, size, value);
    else if (area == VIRTIO_PCI_DEVICE)
        device_write(transport->device, offset - area, size, value);
    pthread_mutex_unlock(&transport->lock);
}

/* Configuration space: the access capability (4.1.4.9) and COMMAND. */

static bool overlaps(unsigned offset, unsigned size, unsigned start, unsigned length)
{
    return offset < start + length && start < offset + size;
}

/* Where the access capability points, if that is a place the driver may touch through it. */
static bool access_window(struct virtio_pci *transport, uint32_t *ret_offset, unsigned *ret_size)
{
    unsigned at = transport->access_capability;
    uint32_t bar = pci_config_get(transport->pci, at + CAP_BAR, 1);
    uint32_t offset = pci_config_get(transport->pci, at + CAP_OFFSET, 4);
    uint32_t size = pci_config_get(transport->pci, at + CAP_RANGE_LENGTH, 4);
    if (bar != VIRTIO_PCI_BAR || (size != 1 && size != 2 && size != 4) || offset % size ||
        !range_fits(offset, size, VIRTIO_PCI_BAR_SIZE))
        return false;
    *ret_offset = offset;
    *ret_size = size;
    return true;
}

static bool config_read(void *opaque, unsigned offset, unsigned size, uint32_t *ret_value)
{
    struct virtio_pci *transport = opaque;
    unsigned data = transport->access_capability + CAP_ACCESS_DATA;
    uint32_t at;
    unsigned width;
    if (!transport->access_capability || offset < data || !overlaps(offset, size, data, 4) ||
        !access_window(transport, &at, &width))
        return false;
    uint64_t value = bar_read(transport, VIRTIO_PCI_BAR, at, width);
    value &= UINT64_MAX >> (64 - 8 * width);
    *ret_value = (uint32_t)(value >> 8 * (offset - data));
    return true;
}

static void config_written(void *opaque, unsigned offset, unsigned size)
{
    struct virtio_pci *transport = opaque;
    struct virtio_device *device = transport->device;
    if (overlaps(offset, size, PCI_COMMAND, 2)) {
        pthread_mutex_lock(&transport->lock);
        device->dma_allowed = pci_bus_master(transport->pci);
        pthread_mutex_unlock(&transport->lock);
        /* What was notified while we could not look is still there. */
        for (unsigned i = 0; device->dma_allowed && i < device->queue_count; i++)
            virtio_queue_notified(device, i);
    }
    unsigned data = transport->access_capability + CAP_ACCESS_DATA;
    uint32_t at;
    unsigned width;
    if (transport->access_capability && overlaps(offset, size, data, 4) &&
        access_window(transport, &at, &width))
        bar_write(transport, VIRTIO_PCI_BAR, at, width,
                  pci_config_get(transport->pci, data, width));
}

static void bar_moved(void *opaque, unsigned bar, uint64_t address)
{
    struct virtio_pci *transport = opaque;
    pthread_mutex_lock(&transport->lock);
    if (transport->notify_moved)
        transport->notify_moved(transport->notify_opaque,
                                address ? address + VIRTIO_PCI_NOTIFY : 0);
    pthread_mutex_unlock(&transport->lock);
}

static void reset(void *opaque)
{
    struct virtio_pci *transport = opaque;
    pthread_mutex_lock(&transport->lock);
    reset_locked(transport);
    transport->device->dma_allowed = false;
    pthread_mutex_unlock(&transport->lock);
}

static const struct pci_ops virtio_pci_ops = {
    .name = "virtio",
    .bar_read = bar_read,
    .bar_write = bar_write,
    .config_read = config_read,
    .config_written = config_written,
    .bar_moved = bar_moved,
    .reset = reset,
};

/* Making one. */

static int capability_add(struct virtio_pci *transport, enum capability_type type, uint32_t offset,
                          uint32_t length, struct err *err)
{
    uint8_t body[CAP_EXTENDED_SIZE] = {0}, writable[CAP_EXTENDED_SIZE] = {0};
    bool extended = type == CAP_TYPE_NOTIFY || type == CAP_TYPE_ACCESS;
    uint8_t size = extended ? CAP_EXTENDED_SIZE : CAP_SIZE;
    body[CAP_LENGTH] = size;
    body[CAP_TYPE] = (uint8_t)type;
    body[CAP_BAR] = VIRTIO_PCI_BAR;
    le32_write(body + CAP_OFFSET, offset);
    le32_write(body + CAP_RANGE_LENGTH, length);
    if (type == CAP_TYPE_NOTIFY)
        le32_write(body + CAP_NOTIFY_MULTIPLIER, VIRTIO_PCI_NOTIFY_STRIDE);
    if (type == CAP_TYPE_ACCESS) {
        writable[CAP_BAR] = 0xff;
        memset(writable + CAP_OFFSET, 0xff, CAP_EXTENDED_SIZE - CAP_OFFSET);
    }
    return pci_capability_add(transport->pci, PCI_CAPABILITY_VENDOR, body, writable, size, err);
}

static int describe(struct virtio_pci *transport, struct err *err)
{
    const struct virtio_device *device = transport->device;
    int r = pci_bar_add(transport->pci, VIRTIO_PCI_BAR, PCI_BAR_MMIO64, VIRTIO_PCI_BAR_SIZE, err);
    if (r >= 0)
        r = capability_add(transport, CAP_TYPE_COMMON, VIRTIO_PCI_COMMON, COMMON_SIZE, err);
    if (r >= 0)
        r = capability_add(transport, CAP_TYPE_NOTIFY, VIRTIO_PCI_NOTIFY,
                           device->queue_count * VIRTIO_PCI_NOTIFY_STRIDE, err);
    if (r >= 0)
        r = capability_add(transport, CAP_TYPE_ISR, VIRTIO_PCI_ISR, 1, err);
    if (r >= 0 && device->ops->config_size)
        r = capability_add(transport, CAP_TYPE_DEVICE, VIRTIO_PCI_DEVICE, device->ops->config_size,
                           err);
    if (r >= 0)
        r = pci_msix_add(transport->pci, VIRTIO_PCI_BAR, VIRTIO_PCI_MSIX_TABLE,
                         VIRTIO_PCI_MSIX_PENDING, device->queue_count + 1, err);
    if (r >= 0)
        r = capability_add(transport, CAP_TYPE_ACCESS, 0, 0, err);
    if (r >= 0)
        transport->access_capability = (unsigned)r;
    return r;
}

int virtio_pci_new(struct pci_host *host, int slot, struct virtio_device *device,
                   struct virtio_pci **ret_transport, struct err *err)
{
    _Static_assert(VIRTIO_QUEUES_MAX * VIRTIO_PCI_NOTIFY_STRIDE <= VIRTIO_PCI_AREA_SIZE,
                   "the notification area holds all queues");
    _Static_assert((VIRTIO_QUEUES_MAX + 1) * 16 <= VIRTIO_PCI_AREA_SIZE,
                   "the MSI-X table fits its area");
    struct virtio_pci *transport = calloc(1, sizeof *transport);
    if (!transport)
        return err_set(err, -ENOMEM, "no memory for the transport of '%s'", device->ops->name);
    transport->device = device;
    pthread_mutex_init(&transport->lock, NULL);
    pthread_mutex_init(&transport->isr_lock, NULL);
    const struct pci_identity identity = {
        .vendor = PCI_VENDOR_VIRTIO,
        .device = (uint16_t)(PCI_DEVICE_MODERN + device->ops->id),
        .subsystem_vendor = PCI_VENDOR_VIRTIO,
        .subsystem = (uint16_t)(PCI_SUBSYSTEM_MODERN + device->ops->id),
        .revision = 1,
        .class_code = device->ops->class_code,
        .pin = 1,
    };
    int r = pci_device_new(host, slot, &identity, &virtio_pci_ops, transport, &transport->pci, err);
    if (r >= 0)
        r = describe(transport, err);
    if (r < 0) {
        transport->device = NULL; /* remains the caller's */
        virtio_pci_free(transport);
        return err_prefix(err, r, "virtio device '%s'", device->ops->name);
    }
    virtio_attach(device, &transport_ops, transport);
    reset(transport);
    *ret_transport = transport;
    return 0;
}

void virtio_pci_free(struct virtio_pci *transport)
{
    if (!transport)
        return;
    /* The device first: until its threads are joined they may interrupt. */
    if (transport->device)
        transport->device->ops->free(transport->device);
    pci_device_free(transport->pci);
    pthread_mutex_destroy(&transport->lock);
    pthread_mutex_destroy(&transport->isr_lock);
    free(transport);
}

struct pci_device *virtio_pci_device(struct virtio_pci *transport)
{
    return transport->pci;
}

uint64_t virtio_pci_notify_address(struct virtio_pci *transport, unsigned queue)
{
    assert(queue < transport->device->queue_count);
    uint64_t bar = pci_bar_address(transport->pci, VIRTIO_PCI_BAR);
    return bar ? bar + VIRTIO_PCI_NOTIFY + (uint64_t)queue * VIRTIO_PCI_NOTIFY_STRIDE : 0;
}

void virtio_pci_observe_notify(struct virtio_pci *transport,
                               void (*moved)(void *opaque, uint64_t base), void *opaque)
{
    pthread_mutex_lock(&transport->lock);
    transport->notify_moved = moved;
    transport->notify_opaque = opaque;
    if (moved)
        moved(opaque, virtio_pci_notify_address(transport, 0));
    pthread_mutex_unlock(&transport->lock);
}

static void vector_state(struct virtio_pci *transport, struct record *record,
                         _Atomic uint16_t *vector)
{
    uint16_t value = *vector;
    record_u16(record, &value);
    if (record->loading)
        *vector = legal_vector(transport, value);
}

void virtio_pci_state(struct virtio_pci *transport, struct record *record)
{
    struct virtio_device *device = transport->device;
    pthread_mutex_lock(&transport->lock);
    record_u32(record, &transport->device_feature_select);
    record_u32(record, &transport->driver_feature_select);
    record_u64(record, &transport->driver_features);
    record_u16(record, &transport->queue_select);
    vector_state(transport, record, &transport->config_vector);
    record_same(record, device->queue_count, "has another number of queues");
    for (unsigned i = 0; i < device->queue_count; i++)
        vector_state(transport, record, &transport->queue_vectors[i]);
    pthread_mutex_lock(&transport->isr_lock);
    record_u8(record, &transport->isr); /* the pin is the PCI device's own state */
    pthread_mutex_unlock(&transport->isr_lock);
    if (record->loading)
        device->dma_allowed = pci_bus_master(transport->pci);
    if (!record->failed)
        virtio_state(device, record);
    pthread_mutex_unlock(&transport->lock);
}
