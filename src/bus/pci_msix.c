/*
 * MSI-X, PCI Local Bus 3.0, 6.8.2. A table entry is address (8 bytes), data (4) and vector control
 * (4, bit 0 = masked). A message that is due while its vector or the whole function is masked sets
 * the vector's pending bit, and goes out as soon as nothing masks it.
 */
#include "bus/pci_device.h"

#include "base/bytes.h"
#include "base/record.h"

#include <errno.h>
#include <stdlib.h>

enum {
    ENTRY_SIZE = 16,
    ENTRY_DATA = 8,
    ENTRY_CONTROL = 12,
    ENTRY_MASKED = 1,
    CAPABILITY_SIZE = 12,
    CONTROL_ENABLE = 1 << 15,
    CONTROL_FUNCTION_MASK = 1 << 14,
};

static uint32_t table_size(const struct pci_msix *msix)
{
    return msix->vectors * ENTRY_SIZE;
}

static uint32_t pending_size(const struct pci_msix *msix)
{
    return (msix->vectors + 63) / 64 * 8;
}

static struct pci_msix_vector vector_now(const struct pci_device *device, unsigned vector)
{
    const uint8_t *entry = device->msix.table + vector * ENTRY_SIZE;
    uint16_t control = le16_read(device->config + device->msix.capability + 2);
    bool masked =
        (control & CONTROL_FUNCTION_MASK) || (le32_read(entry + ENTRY_CONTROL) & ENTRY_MASKED);
    return (struct pci_msix_vector){
        .address = le64_read(entry),
        .data = le32_read(entry + ENTRY_DATA),
        .open = (control & CONTROL_ENABLE) && !masked,
    };
}

static bool take_pending(struct pci_msix *msix, unsigned vector)
{
    uint8_t bit = (uint8_t)(1u << vector % 8);
    bool was = msix->pending[vector / 8] & bit;
    msix->pending[vector / 8] &= (uint8_t)~bit;
    return was;
}

/* The message leaves under device->lock: a guest that has masked the vector and read the register
 * back gets none after. */
static void send(const struct pci_device *device, const struct pci_msix_vector *vector)
{
    const struct msi_target *target = &device->host->config.msi;
    if (target->send && device->bus_master)
        target->send(target->opaque, vector->address, vector->data);
}

/* The guest changed what this vector is or whether it is masked. */
static void settle(struct pci_device *device, unsigned vector)
{
    struct pci_msix *msix = &device->msix;
    struct pci_msix_vector now = vector_now(device, vector);
    if (msix->changed)
        msix->changed(msix->changed_opaque, vector, &now);
    if (now.open && take_pending(msix, vector))
        send(device, &now);
}

bool pci_msix_holds(const struct pci_msix *msix, unsigned bar, uint64_t offset)
{
    return msix->vectors && bar == msix->bar &&
           (offset - msix->table_at < table_size(msix) ||
            offset - msix->pending_at < pending_size(msix));
}

uint64_t pci_msix_read(struct pci_device *device, uint64_t offset, unsigned size)
{
    const struct pci_msix *msix = &device->msix;
    bool in_table = offset - msix->table_at < table_size(msix);
    const uint8_t *from = in_table ? msix->table : msix->pending;
    uint64_t at = offset - (in_table ? msix->table_at : msix->pending_at);
    if (!range_fits(at, size, in_table ? table_size(msix) : pending_size(msix)))
        return UINT64_MAX;
    uint8_t bytes[8] = {0};
    memcpy(bytes, from + at, size);
    return le64_read(bytes);
}

void pci_msix_write(struct pci_device *device, uint64_t offset, unsigned size, uint64_t value)
{
    struct pci_msix *msix = &device->msix;
    uint64_t at = offset - msix->table_at;
    /* The pending bits are read-only; entries take whole words (6.8.2: DWORD or QWORD). */
    if (size < 4 || at % size || !range_fits(at, size, table_size(msix)))
        return;
    uint8_t bytes[8];
    le64_write(bytes, value);
    memcpy(msix->table + at, bytes, size);
    settle(device, (unsigned)(at / ENTRY_SIZE));
}

void pci_msix_control_written(struct pci_device *device)
{
    uint16_t control = le16_read(device->config + device->msix.capability + 2);
    device->msix_enabled = control & CONTROL_ENABLE;
    for (unsigned vector = 0; vector < device->msix.vectors; vector++)
        settle(device, vector);
    pci_device_update_pin(device);
}

void pci_msix_reset(struct pci_device *device)
{
    struct pci_msix *msix = &device->msix;
    memset(msix->table, 0, table_size(msix));
    memset(msix->pending, 0, pending_size(msix));
    for (unsigned vector = 0; vector < msix->vectors; vector++)
        le32_write(msix->table + vector * ENTRY_SIZE + ENTRY_CONTROL, ENTRY_MASKED);
    pci_msix_control_written(device);
}

void pci_msix_state(struct pci_device *device, struct record *record)
{
    struct pci_msix *msix = &device->msix;
    record_same(record, msix->vectors, "has another number of vectors");
    if (!msix->vectors || record->failed)
        return;
    record_bytes(record, msix->table, table_size(msix));
    record_bytes(record, msix->pending, pending_size(msix));
    if (record->loading)
        pci_msix_control_written(device);
}

int pci_msix_add(struct pci_device *device, unsigned bar, uint32_t table, uint32_t pending,
                 unsigned vectors, struct err *err)
{
    struct pci_msix msix = {
        .vectors = vectors, .bar = bar, .table_at = table, .pending_at = pending};
    bool legal =
        !device->msix.vectors && bar < PCI_BARS && vectors > 0 && vectors <= PCI_MSIX_VECTORS_MAX &&
        table % 8 == 0 && pending % 8 == 0 &&
        (device->bars[bar].kind == PCI_BAR_MMIO32 || device->bars[bar].kind == PCI_BAR_MMIO64) &&
        range_fits(table, table_size(&msix), device->bars[bar].size) &&
        range_fits(pending, pending_size(&msix), device->bars[bar].size) &&
        (table + table_size(&msix) <= pending || pending + pending_size(&msix) <= table);
    if (!legal)
        return err_set(err, -EINVAL, "'%s' cannot have %u MSI-X vectors in BAR %u",
                       device->ops->name, vectors, bar);
    uint8_t body[CAPABILITY_SIZE] = {0}, writable[CAPABILITY_SIZE] = {0};
    le16_write(body + 2, (uint16_t)(vectors - 1));
    le16_write(writable + 2, (uint16_t)(CONTROL_ENABLE | CONTROL_FUNCTION_MASK));
    le32_write(body + 4, table | bar);
    le32_write(body + 8, pending | bar);
    int r = pci_capability_add(device, PCI_CAPABILITY_MSIX, body, writable, sizeof body, err);
    if (r < 0)
        return r;
    msix.capability = (unsigned)r;
    msix.table = calloc(vectors, ENTRY_SIZE);
    msix.pending = calloc(1, pending_size(&msix));
    device->msix = msix; /* also when half built: pci_device_free() frees it */
    if (!msix.table || !msix.pending) {
        device->msix.vectors = 0;
        return err_set(err, -ENOMEM, "no memory for the MSI-X table of '%s'", device->ops->name);
    }
    pthread_mutex_lock(&device->lock);
    pci_msix_reset(device);
    pthread_mutex_unlock(&device->lock);
    return 0;
}

bool pci_msix_enabled(const struct pci_device *device)
{
    return device->msix_enabled;
}

void pci_msix_fire(struct pci_device *device, unsigned vector)
{
    struct pci_msix *msix = &device->msix;
    if (vector >= msix->vectors)
        return;
    pthread_mutex_lock(&device->lock);
    struct pci_msix_vector now = vector_now(device, vector);
    if (now.open)
        send(device, &now);
    else if (device->msix_enabled)
        msix->pending[vector / 8] |= (uint8_t)(1u << vector % 8);
    pthread_mutex_unlock(&device->lock);
}

void pci_msix_observe(struct pci_device *device,
                      void (*changed)(void *opaque, unsigned vector,
                                      const struct pci_msix_vector *now),
                      void *opaque)
{
    pthread_mutex_lock(&device->lock);
    device->msix.changed = changed;
    device->msix.changed_opaque = opaque;
    for (unsigned vector = 0; changed && vector < device->msix.vectors; vector++) {
        struct pci_msix_vector now = vector_now(device, vector);
        changed(opaque, vector, &now);
    }
    pthread_mutex_unlock(&device->lock);
}
