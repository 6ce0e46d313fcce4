#include "bus/pci_device.h"

#include "base/bytes.h"
#include "base/record.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

enum {
    FIRST_CAPABILITY = 0x40,
    STATUS_INTERRUPT = 1 << 3,
    STATUS_CAPABILITIES = 1 << 4,
    CLASS_ISA_BRIDGE = 0x0601,
    BAR_IS_IO = 1,
    BAR_IS_64_BIT = 4,
};

static uint32_t get(const uint8_t *config, unsigned offset, unsigned size)
{
    uint8_t bytes[4] = {0};
    memcpy(bytes, config + offset, size);
    return le32_read(bytes);
}

/* While the device is set up: the value now and after each reset. */
static void preset(struct pci_device *device, unsigned offset, unsigned size, uint32_t value)
{
    uint8_t bytes[4];
    le32_write(bytes, value);
    memcpy(device->config + offset, bytes, size);
    memcpy(device->initial + offset, bytes, size);
}

static void allow(struct pci_device *device, unsigned offset, unsigned size, uint32_t mask)
{
    uint8_t bytes[4];
    le32_write(bytes, mask);
    memcpy(device->writable + offset, bytes, size);
}

static void preset_header(struct pci_device *device, const struct pci_identity *identity)
{
    preset(device, PCI_VENDOR_ID, 2, identity->vendor);
    preset(device, PCI_DEVICE_ID, 2, identity->device);
    preset(device, PCI_REVISION, 1, identity->revision);
    preset(device, PCI_CLASS, 2, identity->class_code & 0xffff);
    preset(device, PCI_CLASS + 2, 1, identity->class_code >> 16);
    preset(device, PCI_SUBSYSTEM_VENDOR_ID, 2, identity->subsystem_vendor);
    preset(device, PCI_SUBSYSTEM_ID, 2, identity->subsystem);
    preset(device, PCI_INTERRUPT_PIN, 1, identity->pin);
    if (identity->pin) {
        unsigned line = (device->slot + identity->pin - 1) % PCI_LINES;
        preset(device, PCI_INTERRUPT_LINE, 1, device->host->config.line_numbers[line]);
    }
    unsigned command = PCI_COMMAND_MASTER | PCI_COMMAND_INTX_OFF;
    if (identity->class_code >> 8 == CLASS_ISA_BRIDGE) /* what it decodes is not in its BARs */
        command |= PCI_COMMAND_IO | PCI_COMMAND_MEMORY;
    allow(device, PCI_COMMAND, 2, command);
    allow(device, PCI_INTERRUPT_LINE, 1, 0xff);
    allow(device, 0x0c, 1, 0xff); /* cache line size: a scratch register for us */
}

int pci_device_new(struct pci_host *host, int slot, const struct pci_identity *identity,
                   const struct pci_ops *ops, void *opaque, struct pci_device **ret_device,
                   struct err *err)
{
    if (slot == PCI_SLOT_ANY)
        for (slot = 1; slot < PCI_SLOTS && host->devices[slot];)
            slot++;
    if (slot < 0 || slot >= PCI_SLOTS)
        return err_set(err, -EINVAL, "no PCI slot for '%s'", ops->name);
    if (host->devices[slot])
        return err_set(err, -EEXIST, "PCI slot %d of '%s' is taken by '%s'", slot, ops->name,
                       host->devices[slot]->ops->name);
    if (identity->pin > PCI_LINES)
        return err_set(err, -EINVAL, "'%s' has no interrupt pin %d", ops->name, identity->pin);
    struct pci_device *device = calloc(1, sizeof *device);
    if (!device)
        return err_set(err, -ENOMEM, "no memory for PCI device '%s'", ops->name);
    device->host = host;
    device->slot = (unsigned)slot;
    device->ops = ops;
    device->opaque = opaque;
    device->config_used = FIRST_CAPABILITY;
    device->last_link = PCI_CAPABILITIES;
    pthread_mutex_init(&device->lock, NULL);
    for (unsigned i = 0; i < PCI_BARS; i++)
        device->bars[i] = (struct pci_bar){.device = device, .index = i};
    preset_header(device, identity);
    host->devices[slot] = device;
    *ret_device = device;
    return 0;
}

void pci_device_free(struct pci_device *device)
{
    if (!device)
        return;
    struct pci_host *host = device->host;
    pci_intx_set(device, false);
    pthread_mutex_lock(&host->moving);
    host->devices[device->slot] = NULL;
    for (unsigned i = 0; i < PCI_BARS; i++)
        if (device->bars[i].address)
            bus_release(host->config.bus, device->bars[i].kind == PCI_BAR_IO ? BUS_PORT : BUS_MMIO,
                        device->bars[i].address);
    pthread_mutex_unlock(&host->moving);
    pthread_mutex_destroy(&device->lock);
    free(device->msix.table);
    free(device->msix.pending);
    free(device);
}

unsigned pci_device_slot(const struct pci_device *device)
{
    return device->slot;
}

static bool bar_size_is_legal(enum pci_bar_kind kind, uint64_t size)
{
    if (size & (size - 1))
        return false;
    switch (kind) {
    case PCI_BAR_IO: return size >= 4 && size <= 256;
    case PCI_BAR_MMIO32: return size >= 16 && size <= GIB(2);
    case PCI_BAR_MMIO64: return size >= 16 && size <= UINT64_C(1) << 46;
    default: return false;
    }
}

int pci_bar_add(struct pci_device *device, unsigned index, enum pci_bar_kind kind, uint64_t size,
                struct err *err)
{
    unsigned registers = kind == PCI_BAR_MMIO64 ? 2 : 1;
    if (index + registers > PCI_BARS || device->bars[index].kind ||
        (registers == 2 && device->bars[index + 1].kind) ||
        (index > 0 && device->bars[index - 1].kind == PCI_BAR_MMIO64) ||
        !bar_size_is_legal(kind, size))
        return err_set(err, -EINVAL, "'%s' cannot have a BAR %u of %llu bytes", device->ops->name,
                       index, (unsigned long long)size);
    device->bars[index].kind = kind;
    device->bars[index].size = size;
    unsigned offset = PCI_BAR0 + 4 * index;
    uint64_t mask = ~(size - 1);
    allow(device, offset, 4, (uint32_t)mask);
    if (kind == PCI_BAR_IO)
        preset(device, offset, 4, BAR_IS_IO);
    if (kind == PCI_BAR_MMIO64) {
        preset(device, offset, 4, BAR_IS_64_BIT);
        allow(device, offset + 4, 4, (uint32_t)(mask >> 32));
    }
    uint32_t enable = kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    allow(device, PCI_COMMAND, 2, get(device->writable, PCI_COMMAND, 2) | enable);
    return 0;
}

int pci_register_add(struct pci_device *device, unsigned offset, unsigned size, uint32_t value,
                     uint32_t writable, struct err *err)
{
    bool legal = (size == 1 || size == 2 || size == 4) && offset >= FIRST_CAPABILITY &&
                 range_fits(offset, size, PCI_CONFIG_SIZE) && device->last_link == PCI_CAPABILITIES;
    if (!legal)
        return err_set(err, -EINVAL, "'%s' cannot have a register at 0x%x", device->ops->name,
                       offset);
    preset(device, offset, size, value);
    allow(device, offset, size, writable);
    return 0;
}

uint64_t pci_bar_address(struct pci_device *device, unsigned index)
{
    assert(index < PCI_BARS);
    return device->bars[index].address;
}

/* Under device->lock. */
static uint64_t bar_register(const struct pci_device *device, const struct pci_bar *bar)
{
    unsigned offset = PCI_BAR0 + 4 * bar->index;
    uint64_t address = get(device->config, offset, 4);
    if (bar->kind == PCI_BAR_MMIO64)
        address |= (uint64_t)get(device->config, offset + 4, 4) << 32;
    return address & ~(bar->size - 1);
}

uint64_t pci_device_bar_register(struct pci_device *device, const struct pci_bar *bar)
{
    pthread_mutex_lock(&device->lock);
    uint64_t address = bar_register(device, bar);
    pthread_mutex_unlock(&device->lock);
    return address;
}

uint64_t pci_device_bar_wanted(struct pci_device *device, const struct pci_bar *bar)
{
    uint32_t enable = bar->kind == PCI_BAR_IO ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    pthread_mutex_lock(&device->lock);
    uint64_t address = bar_register(device, bar);
    bool decoded = get(device->config, PCI_COMMAND, 2) & enable;
    pthread_mutex_unlock(&device->lock);
    /* Ports have 16 bits; a BAR beyond them answers nowhere. */
    if (bar->kind == PCI_BAR_IO && address > UINT16_MAX)
        return 0;
    return decoded ? address : 0;
}

int pci_capability_add(struct pci_device *device, uint8_t id, const void *body,
                       const void *writable, unsigned size, struct err *err)
{
    unsigned at = device->config_used;
    if (size < 2 || size > PCI_CONFIG_SIZE - at)
        return err_set(err, -ENOSPC, "'%s' has no room for capability 0x%02x", device->ops->name,
                       id);
    memcpy(device->config + at, body, size);
    memcpy(device->initial + at, body, size);
    if (writable)
        memcpy(device->writable + at, writable, size);
    preset(device, at, 1, id);
    preset(device, at + 1, 1, 0);
    allow(device, at, 2, 0);
    preset(device, device->last_link, 1, at);
    preset(device, PCI_STATUS, 2, STATUS_CAPABILITIES);
    device->last_link = at + 1;
    device->config_used = (unsigned)align_up(at + size, 4);
    return (int)at;
}

uint32_t pci_config_get(struct pci_device *device, unsigned offset, unsigned size)
{
    assert(size <= 4 && range_fits(offset, size, PCI_CONFIG_SIZE));
    pthread_mutex_lock(&device->lock);
    uint32_t value = get(device->config, offset, size);
    pthread_mutex_unlock(&device->lock);
    return value;
}

uint32_t pci_device_config_read(struct pci_device *device, unsigned offset, unsigned size)
{
    uint32_t value;
    if (device->ops->config_read && device->ops->config_read(device->opaque, offset, size, &value))
        return value;
    return pci_config_get(device, offset, size);
}

static bool overlaps(unsigned offset, unsigned size, unsigned start, unsigned length)
{
    return offset < start + length && start < offset + size;
}

void pci_device_config_write(struct pci_device *device, unsigned offset, unsigned size,
                             uint32_t value)
{
    uint8_t bytes[4];
    le32_write(bytes, value);
    pthread_mutex_lock(&device->lock);
    for (unsigned i = 0; i < size; i++) {
        uint8_t mask = device->writable[offset + i];
        uint8_t kept = (uint8_t)(device->config[offset + i] & ~mask);
        device->config[offset + i] = (uint8_t)(kept | (bytes[i] & mask));
    }
    if (overlaps(offset, size, PCI_COMMAND, 2)) {
        device->bus_master = get(device->config, PCI_COMMAND, 2) & PCI_COMMAND_MASTER;
        pci_device_update_pin(device);
    }
    if (device->msix.vectors && overlaps(offset, size, device->msix.capability + 2, 2))
        pci_msix_control_written(device);
    pthread_mutex_unlock(&device->lock);

    if (overlaps(offset, size, PCI_COMMAND, 2) || overlaps(offset, size, PCI_BAR0, 4 * PCI_BARS))
        device->host->stale = true;
    if (device->ops->config_written)
        device->ops->config_written(device->opaque, offset, size);
}

bool pci_bus_master(const struct pci_device *device)
{
    return device->bus_master;
}

void pci_device_update_pin(struct pci_device *device)
{
    struct pci_host *host = device->host;
    unsigned pin = device->config[PCI_INTERRUPT_PIN];
    if (pin == 0)
        return;
    uint8_t status = (uint8_t)(device->config[PCI_STATUS] & ~STATUS_INTERRUPT);
    device->config[PCI_STATUS] = device->pin_level ? status | STATUS_INTERRUPT : status;

    /* With MSI-X on, a function must not use its pin (PCI 3.0, 6.8.3.3). */
    bool off = get(device->config, PCI_COMMAND, 2) & PCI_COMMAND_INTX_OFF;
    bool pulls = device->pin_level && !off && !device->msix_enabled;
    unsigned line = (device->slot + pin - 1) % PCI_LINES;
    uint32_t bit = UINT32_C(1) << device->slot;
    /* The line is set under the lock, so that two devices' edges arrive in their order. */
    pthread_mutex_lock(&host->lines_lock);
    uint32_t before = host->pulling[line];
    host->pulling[line] = pulls ? before | bit : before & ~bit;
    if (!before != !host->pulling[line])
        irq_set(&host->config.lines[line], host->pulling[line] != 0);
    pthread_mutex_unlock(&host->lines_lock);
}

void pci_intx_set(struct pci_device *device, bool level)
{
    pthread_mutex_lock(&device->lock);
    device->pin_level = level;
    pci_device_update_pin(device);
    pthread_mutex_unlock(&device->lock);
}

void pci_device_reset(struct pci_device *device)
{
    if (device->ops->reset)
        device->ops->reset(device->opaque);
    pthread_mutex_lock(&device->lock);
    memcpy(device->config, device->initial, sizeof device->config);
    device->bus_master = false;
    device->pin_level = false;
    if (device->msix.vectors)
        pci_msix_reset(device);
    pci_device_update_pin(device);
    pthread_mutex_unlock(&device->lock);
}

/* Of configuration space only what the guest may write is taken from a record: the rest is what the
 * device is. */
void pci_device_state(struct pci_device *device, struct record *record)
{
    uint8_t config[PCI_CONFIG_SIZE];
    pthread_mutex_lock(&device->lock);
    record_same(record, le32_read(device->initial + PCI_VENDOR_ID), "has another device there");
    memcpy(config, device->config, sizeof config);
    record_bytes(record, config, sizeof config);
    record_bool(record, &device->pin_level);
    if (record->loading && !record->failed) {
        for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
            device->config[i] = (uint8_t)((device->config[i] & ~device->writable[i]) |
                                          (config[i] & device->writable[i]));
        device->bus_master = get(device->config, PCI_COMMAND, 2) & PCI_COMMAND_MASTER;
    }
    pci_msix_state(device, record);
    if (record->loading)
        pci_device_update_pin(device);
    pthread_mutex_unlock(&device->lock);
}
